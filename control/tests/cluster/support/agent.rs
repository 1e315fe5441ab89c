use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use model::{
    NodeId, TaskId, TaskState, Version,
    feed::{AgentMessage, Hello, ManagerMessage, NodeView, Pin, TaskStatusUpdate, Update},
    object::NodeDescription,
    rpc::DispatcherClient,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Credentials, in_time};

/// What an agent does by itself.
#[derive(Debug, Clone, Copy)]
struct Habits {
    acks: bool,
    beats: bool,
}

/// What the agent heard so far.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub view: NodeView,
    pub updates: Vec<Update>,
    pub status_ack: u64,
    pub heartbeat_acks: u64,
    pub welcome: Option<Duration>,
    /// Of other nodes.
    pub pins: BTreeMap<NodeId, Vec<Pin>>,
    pub settled: Version,
    /// In PEM.
    pub trust: String,
}

/// One session. Dropping it cuts the connection.
pub struct Agent {
    heard: watch::Receiver<Heard>,
    habits: watch::Sender<Habits>,
    say: mpsc::Sender<AgentMessage>,
    seq: u64,
    session: JoinHandle<Option<Status>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.session.abort();
    }
}

impl Agent {
    /// A session of an agent that holds nothing.
    pub async fn connect(addr: SocketAddr, node: &Credentials) -> Self {
        Self::resume(addr, node, NodeView::default()).await
    }

    /// A session of an agent that holds `view`.
    pub async fn resume(addr: SocketAddr, node: &Credentials, view: NodeView) -> Self {
        let client = DispatcherClient::new(node.dial(addr).await);
        let hello = Hello {
            description: NodeDescription {
                hostname: node.hostname.clone(),
                ..NodeDescription::default()
            },
            vtep: node.vtep,
            applied: view.version,
            known: view.digests(),
        };
        let habits = watch::Sender::new(Habits {
            acks: true,
            beats: true,
        });
        let heard = watch::Sender::new(Heard {
            view,
            ..Heard::default()
        });
        let (say, said) = mpsc::channel(64);
        say.send(AgentMessage::Hello(Box::new(hello)))
            .await
            .unwrap();
        Self {
            heard: heard.subscribe(),
            session: tokio::spawn(converse(
                client,
                said,
                say.clone(),
                heard,
                habits.subscribe(),
            )),
            habits,
            say,
            seq: 0,
        }
    }

    pub fn watch(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }

    pub fn view(&self) -> NodeView {
        self.heard.borrow().view.clone()
    }

    pub fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }

    pub fn acks(&self, acks: bool) {
        self.habits.send_modify(|habits| habits.acks = acks);
    }

    pub fn beats(&self, beats: bool) {
        self.habits.send_modify(|habits| habits.beats = beats);
    }

    pub async fn until(&self, what: &str, is_so: impl Fn(&NodeView) -> bool) {
        self.until_heard(what, |heard| is_so(&heard.view)).await;
    }

    pub async fn until_heard(&self, what: &str, is_so: impl Fn(&Heard) -> bool) {
        let mut heard = self.heard.clone();
        in_time(what, heard.wait_for(is_so))
            .await
            .expect("the session goes on");
    }

    pub async fn say(&self, message: AgentMessage) {
        self.say.send(message).await.expect("the session goes on");
    }

    /// Returns when the manager has committed it.
    pub async fn report(&mut self, task: TaskId, state: TaskState) {
        self.seq += 1;
        let seq = self.seq;
        let status = TaskStatusUpdate {
            task,
            timestamp: jiff::Timestamp::now(),
            state,
            message: state.to_string(),
            err: None,
            container: None,
            ports: Vec::new(),
        };
        self.say(AgentMessage::Status {
            seq,
            statuses: vec![status],
        })
        .await;
        self.until_heard("status acknowledged", |heard| heard.status_ack == seq)
            .await;
    }

    /// Whatever the manager had to say before this, it has said after it.
    pub async fn round_trip(&self) {
        let (acks, digest) = {
            let heard = self.heard.borrow();
            (heard.heartbeat_acks, heard.view.digest())
        };
        self.say(AgentMessage::Heartbeat {
            applied: self.view().version,
            digest,
        })
        .await;
        self.until_heard("heartbeat acknowledged", |heard| {
            heard.heartbeat_acks > acks
        })
        .await;
    }

    /// Why the manager ended the session.
    pub async fn end(mut self) -> Status {
        let end = in_time("the end of the session", &mut self.session).await;
        end.expect("the agent does not panic")
            .expect("the manager says why")
    }
}

async fn converse(
    mut client: DispatcherClient<tonic::transport::Channel>,
    said: mpsc::Receiver<AgentMessage>,
    say: mpsc::Sender<AgentMessage>,
    heard: watch::Sender<Heard>,
    mut habits: watch::Receiver<Habits>,
) -> Option<Status> {
    let mut inbound = match client.session(ReceiverStream::new(said)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Some(status),
    };
    let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
    let mut unacked = None;
    loop {
        tokio::select! {
            message = inbound.message() => match message {
                Ok(Some(ManagerMessage::Welcome { heartbeat: period })) => {
                    heartbeat = tokio::time::interval(period);
                    heard.send_modify(|heard| heard.welcome = Some(period));
                }
                Ok(Some(ManagerMessage::Update(update))) => {
                    unacked = Some(update.version);
                    heard.send_modify(|heard| {
                        heard.updates.push(update.clone());
                        heard.view.apply(update);
                    });
                }
                Ok(Some(ManagerMessage::StatusAck { seq })) => {
                    heard.send_modify(|heard| heard.status_ack = seq);
                }
                Ok(Some(ManagerMessage::Pins { node, pins })) => {
                    heard.send_modify(|heard| drop(heard.pins.insert(node, pins)));
                }
                Ok(Some(ManagerMessage::Settled { version })) => {
                    heard.send_modify(|heard| heard.settled = version);
                }
                Ok(Some(ManagerMessage::Trust { roots_pem })) => {
                    heard.send_modify(|heard| heard.trust = roots_pem);
                }
                Ok(Some(ManagerMessage::HeartbeatAck)) => {
                    heard.send_modify(|heard| heard.heartbeat_acks += 1);
                }
                Ok(None) => return None,
                Err(status) => return Some(status),
            },
            _ = heartbeat.tick() => if habits.borrow().beats {
                let (applied, digest) = {
                    let heard = heard.borrow();
                    (heard.view.version, heard.view.digest())
                };
                say.send(AgentMessage::Heartbeat { applied, digest }).await.ok()?;
            },
            changed = habits.changed() => changed.ok()?,
        }
        if habits.borrow().acks
            && let Some(version) = unacked.take()
        {
            say.send(AgentMessage::Ack { version }).await.ok()?;
        }
    }
}
