//! The session with the leader: one stream each way. It carries the view here, and
//! acknowledgements, task statuses and heartbeats back. A lost session is begun again with what the
//! agent holds, at whichever manager leads by then: any manager names the leader, and the view
//! names the managers.

use std::{net::SocketAddrV4, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use ca::{Connector, NodeTls};
use jiff::Timestamp;
use model::{
    NodeId, Version,
    feed::{AgentMessage, Hello, ManagerMessage, NodeView, Pin, Update},
    object::NodeDescription,
    rpc::{DispatcherClient, leader_named},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::config::Credentials;

/// Of heartbeats, until the manager names a period.
const HEARTBEAT: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Leaders change within seconds, and a node must be heard of before its grace is over.
const RETRY_MAX: Duration = Duration::from_secs(3);
/// Messages that wait for the stream; senders wait when it is full.
const OUTBOX_LEN: usize = 256;

/// What is in the kernel.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    pub view: Arc<NodeView>,
    pub digest: u64,
}

impl Applied {
    pub fn new(view: Arc<NodeView>) -> Self {
        let digest = view.digest();
        Self { view, digest }
    }

    pub fn next(&self, view: Arc<NodeView>) -> Self {
        let digest = view.digest_after(&self.view, self.digest);
        Self { view, digest }
    }
}

/// What the session tells the agent.
#[derive(Debug)]
pub enum SessionEvent {
    /// Statuses must be said again: the manager may not have them.
    Connected,
    Update(Update),
    StatusAck(u64),
    /// All pins of another node.
    Pins(NodeId, Vec<Pin>),
    /// All nodes have applied this version.
    Settled(Version),
}

/// Everything the session needs of the agent.
pub struct Session {
    pub credentials: Credentials,
    pub tls: NodeTls,
    pub description: NodeDescription,
    pub applied: watch::Receiver<Applied>,
    pub events: mpsc::Sender<SessionEvent>,
    /// What the agent has to say. Lost while there is no session.
    pub outbox: mpsc::Receiver<AgentMessage>,
    pub cancel: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Connect(#[from] net::DialError),
    #[error("manager {} refused the session: {}", .0, because(.1))]
    Refused(SocketAddrV4, Box<Status>),
    #[error("session with manager {} lost: {}", .0, because(.1))]
    Lost(SocketAddrV4, Box<Status>),
    #[error("manager {0} ended the session")]
    Ended(SocketAddrV4),
    #[error("the certificate was renewed")]
    Renewed,
    #[error("{}", ca::expired(*.0))]
    Expired(Timestamp),
    #[error("the agent is stopping")]
    Stopping,
}

/// What a person should know of a failed call.
fn because(status: &Status) -> String {
    net::refused_certificate(status).unwrap_or_else(|| status.message().to_owned())
}

impl SessionError {
    /// The manager to ask instead.
    fn leader(&self) -> Option<SocketAddrV4> {
        match self {
            Self::Refused(_, status) | Self::Lost(_, status) => leader_named(status),
            Self::Connect(_)
            | Self::Ended(_)
            | Self::Expired(_)
            | Self::Renewed
            | Self::Stopping => None,
        }
    }
}

impl Session {
    /// Keeps a session until cancelled, with a growing pause between tries.
    pub async fn run(mut self) {
        let builder = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(RETRY_MIN)
            .with_max_delay(RETRY_MAX)
            .without_max_times();
        let mut pauses = builder.build();
        let mut next_manager = 0;
        let mut named = None;
        loop {
            let managers = self.managers();
            let was_named = named.is_some();
            let manager = named.take().unwrap_or_else(|| {
                next_manager += 1;
                managers[next_manager % managers.len()]
            });
            let cancel = self.cancel.clone();
            let (served, outcome) = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                outcome = self.serve(manager) => outcome,
            };
            if served {
                pauses = builder.build();
            }
            // One that was named and names another is asked after a pause: they may be of two minds.
            named = outcome.leader();
            if named.is_some() && !was_named {
                debug!(manager.addr = %manager, "{outcome}");
                continue;
            }
            warn!(manager.addr = %manager, "{outcome}");
            let pause = pauses.next().unwrap_or(RETRY_MAX);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Where managers may be: first those of the view, then those that the node joined by.
    fn managers(&self) -> Vec<SocketAddrV4> {
        let view = self.applied.borrow().view.clone();
        let cluster = view.cluster.as_ref();
        let mut managers = cluster.map_or_else(Vec::new, |cluster| cluster.managers.clone());
        for addr in &self.credentials.managers {
            if !managers.contains(addr) {
                managers.push(*addr);
            }
        }
        managers
    }

    /// One session, to its end. Says whether it was welcomed, and why it ended.
    async fn serve(&mut self, manager: SocketAddrV4) -> (bool, SessionError) {
        let mut served = false;
        let outcome = self.converse(manager, &mut served).await;
        (served, outcome.expect_err("a session ends for a reason"))
    }

    async fn converse(
        &mut self,
        manager: SocketAddrV4,
        served: &mut bool,
    ) -> Result<std::convert::Infallible, SessionError> {
        if let Some(when) = self
            .tls
            .with(|own| own.identity().expired(Timestamp::now()))
        {
            return Err(SessionError::Expired(when));
        }
        // From before it is shown: none that comes later is missed.
        let replaced = self.tls.replaced();
        tokio::pin!(replaced);
        let channel = net::dial(&Connector::member(&self.tls), manager).await?;
        let mut client =
            DispatcherClient::new(channel).max_decoding_message_size(net::MESSAGE_BYTES_MAX);
        // What was said while nobody listened is stale: acknowledgements of an older view, and
        // statuses that `Connected` makes the agent say again.
        while self.outbox.try_recv().is_ok() {}
        let (to_manager, stream) = mpsc::channel(OUTBOX_LEN);
        let hello = AgentMessage::Hello(Box::new(self.hello()));
        to_manager
            .send(hello)
            .await
            .map_err(|_| SessionError::Stopping)?;
        let mut from_manager = client
            .session(ReceiverStream::new(stream))
            .await
            .map_err(|status| SessionError::Refused(manager, Box::new(status)))?
            .into_inner();

        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                biased;
                message = from_manager.message() => {
                    let message = message
                        .map_err(|status| SessionError::Lost(manager, Box::new(status)))?
                        .ok_or(SessionError::Ended(manager))?;
                    if let ManagerMessage::Welcome { heartbeat: period } = &message {
                        info!(manager.addr = %manager, "session begun");
                        *served = true;
                        heartbeat = tokio::time::interval(*period);
                    }
                    self.hear(message).await?;
                }
                // The managers are to see the new certificate.
                () = &mut replaced => return Err(SessionError::Renewed),
                _ = heartbeat.tick() => {
                    let beat = self.heartbeat();
                    to_manager.send(beat).await.map_err(|_| SessionError::Ended(manager))?;
                }
                message = self.outbox.recv() => {
                    let message = message.ok_or(SessionError::Stopping)?;
                    to_manager.send(message).await.map_err(|_| SessionError::Ended(manager))?;
                }
            }
        }
    }

    fn hello(&self) -> Hello {
        let view = self.applied.borrow().view.clone();
        Hello {
            description: self.description.clone(),
            vtep: self.credentials.vtep,
            applied: view.version,
            known: view.digests(),
        }
    }

    fn heartbeat(&self) -> AgentMessage {
        let applied = self.applied.borrow();
        AgentMessage::Heartbeat {
            applied: applied.view.version,
            digest: applied.digest,
        }
    }

    async fn hear(&self, message: ManagerMessage) -> Result<(), SessionError> {
        let event = match message {
            ManagerMessage::Welcome { .. } => SessionEvent::Connected,
            ManagerMessage::Update(update) => {
                debug!(feed.version = %update.version, feed.put = update.put.len(),
                    feed.removed = update.removed.len(), "update received");
                SessionEvent::Update(update)
            }
            ManagerMessage::StatusAck { seq } => SessionEvent::StatusAck(seq),
            ManagerMessage::Pins { node, pins } => SessionEvent::Pins(node, pins),
            ManagerMessage::Settled { version } => SessionEvent::Settled(version),
            ManagerMessage::Trust { roots_pem } => {
                if self.tls.with(|own| own.roots().pem() != roots_pem) {
                    info!("the roots to trust have changed");
                    self.tls.want_renewal();
                }
                return Ok(());
            }
            ManagerMessage::HeartbeatAck => return Ok(()),
        };
        self.events
            .send(event)
            .await
            .map_err(|_| SessionError::Stopping)
    }
}
