//! One agent's session.

use std::{sync::Arc, time::Duration};

use ca::{Identity, clock::until};
use model::{
    NodeId, Version,
    feed::{AgentMessage, Hello, ManagerMessage, PINS_PER_NODE_MAX, TaskStatusUpdate},
    object::{Node, NodeState},
};
use store::{State, Transaction};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    feed::Feed,
    flight::Flight,
    hub::{News, Pending, Seat, Work},
};
use crate::{
    access::{expired, is_member, not_a_member},
    liveness::{cluster_period, grace, session_period},
    office::Office,
    presence::{Presence, presence},
    rotation::roots_pem,
    tunnel,
};

/// For an agent's first message.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// Heartbeats in a row that may tell of another view than the one sent: an update may be applied
/// while a heartbeat is on its way.
const DRIFT_MAX: u32 = 2;

type Outbox = mpsc::Sender<Result<ManagerMessage, Status>>;

fn leaving_office() -> Status {
    Status::unavailable("this manager does not lead any more; try again")
}

/// Serves one session to its end, and tells the agent why it ended.
pub(crate) async fn run(
    office: Arc<Office>,
    caller: Arc<Identity>,
    mut inbound: Streaming<AgentMessage>,
    outbox: Outbox,
) {
    let refusal = match greet(&office, &mut inbound).await {
        Ok(hello) => {
            let span = info_span!("session", node.id = %caller.node);
            serve(office, &caller, hello, inbound, &outbox)
                .instrument(span)
                .await
        }
        Err(status) => Some(status),
    };
    if let Some(status) = refusal {
        // An agent that has gone needs no reason, and one that does not listen must not keep us.
        let _ = outbox.try_send(Err(status));
    }
}

/// The agent's hello.
async fn greet(office: &Office, inbound: &mut Streaming<AgentMessage>) -> Result<Hello, Status> {
    let first = tokio::select! {
        biased;
        () = office.cancel.cancelled() => return Err(leaving_office()),
        first = tokio::time::timeout(HELLO_WAIT, inbound.message()) => first,
    };
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
    let Some(AgentMessage::Hello(hello)) = first else {
        return Err(Status::invalid_argument("a session begins with a hello"));
    };
    Ok(*hello)
}

/// Returns what the agent is to be told at the end, if it is still there.
async fn serve(
    office: Arc<Office>,
    caller: &Identity,
    hello: Hello,
    inbound: Streaming<AgentMessage>,
    outbox: &Outbox,
) -> Option<Status> {
    let node = caller.node;
    let heartbeat = Heartbeat::new(&office.store.state());
    office.liveness.beat(node, grace(heartbeat.session));
    let marked = office.store.write(|tx| mark_ready(tx, caller, &hello));
    let version = match marked.await {
        Ok((_, version)) => version,
        Err(store::WriteError::Refused(status)) => return Some(status),
        Err(error) => return Some(Status::unavailable(error.to_string())),
    };
    info!(node.hostname = hello.description.hostname, feed.applied = %hello.applied,
        "session begins");
    let mut session = Session {
        seat: office.hub.seat(node, &office.cancel),
        node,
        trust: None,
        since: version,
        heartbeat,
        office,
        outbox,
        feed: Feed::new(node, hello.known),
        flight: Flight::default(),
        updates: 0,
        updated: Version::default(),
        settled: Version::default(),
        drift: 0,
    };
    let end = match session.welcome().await {
        Ok(()) => session.converse(caller, inbound).await,
        Err(end) => end,
    };
    match end {
        End::Gone => {
            info!("session ends: the agent is gone");
            None
        }
        End::Refused(status) => {
            info!(reason = status.message(), "session ends");
            Some(status)
        }
    }
}

/// The node is READY at once, and what it says of itself is taken over, but not another's address.
fn mark_ready(tx: &mut Transaction, caller: &Identity, hello: &Hello) -> Result<(), Status> {
    // It may have left since the gate let it in.
    is_member(caller, tx.state())?;
    tunnel::claim(tx, caller.node, hello.vtep)?;
    let stored = tx.state().node(caller.node).expect("it is a member");
    let mut node = Node::clone(stored);
    node.description = hello.description.clone();
    node.vtep = hello.vtep;
    node.issuer = Some(caller.issuer.to_string());
    node.status.state = NodeState::Ready;
    node.status.message = String::new();
    if node != **stored {
        tx.put(node).expect("it was read in this transaction");
    }
    Ok(())
}

/// How often the agent is to be heard of.
struct Heartbeat {
    /// The period that the cluster is set to, ...
    cluster: Duration,
    /// ... and this session's around it.
    session: Duration,
}

impl Heartbeat {
    fn new(state: &State) -> Self {
        let cluster = cluster_period(state);
        Self {
            cluster,
            session: session_period(cluster),
        }
    }
}

/// Why a session ends.
enum End {
    Gone,
    Refused(Status),
}

struct Session<'a> {
    office: Arc<Office>,
    seat: Seat,
    node: NodeId,
    /// The roots that the node was told of.
    trust: Option<String>,
    /// The version that made the node READY: nothing older, in which it is down, is projected.
    since: Version,
    heartbeat: Heartbeat,
    outbox: &'a Outbox,
    feed: Feed,
    flight: Flight,
    /// Updates sent.
    updates: u64,
    /// Version of the last one.
    updated: Version,
    /// What the agent was told that all nodes have.
    settled: Version,
    /// Heartbeats in a row with another view than ours.
    drift: u32,
}

impl Session<'_> {
    async fn welcome(&self) -> Result<(), End> {
        let heartbeat = self.heartbeat.session;
        self.send(ManagerMessage::Welcome { heartbeat }).await
    }

    /// Lets the agent know of another period, should the cluster have one now.
    async fn keep_pace(&mut self, state: &State) -> Result<(), End> {
        if cluster_period(state) == self.heartbeat.cluster {
            return Ok(());
        }
        self.heartbeat = Heartbeat::new(state);
        self.welcome().await
    }

    /// Lets the agent know whom to trust, should that have changed.
    async fn keep_trust(&mut self, state: &State) -> Result<(), End> {
        let Some(cluster) = state.cluster() else {
            return Ok(());
        };
        let roots_pem = roots_pem(cluster);
        if self.trust.as_ref() == Some(&roots_pem) {
            return Ok(());
        }
        self.trust = Some(roots_pem.clone());
        self.send(ManagerMessage::Trust { roots_pem }).await
    }

    async fn converse(&mut self, caller: &Identity, mut inbound: Streaming<AgentMessage>) -> End {
        let stop = self.seat.stop.clone();
        let is_stopping = self.office.cancel.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => End::Refused(match is_stopping.is_cancelled() {
                true => leaving_office(),
                false => Status::aborted(
                    "the node began another session, left, or missed its heartbeats",
                ),
            }),
            () = until(caller.not_after) => End::Refused(expired(caller)),
            end = self.exchange(&mut inbound) => end,
        }
    }

    async fn exchange(&mut self, inbound: &mut Streaming<AgentMessage>) -> End {
        loop {
            let outcome = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.hear(message).await,
                    Ok(None) | Err(_) => return End::Gone,
                },
                pending = self.seat.work(), if self.flight.has_room() => self.tell(pending).await,
                () = self.seat.has_news() => self.tell_news().await,
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    async fn hear(&mut self, message: AgentMessage) -> Result<(), End> {
        self.office
            .liveness
            .beat(self.node, grace(self.heartbeat.session));
        match message {
            AgentMessage::Hello(_) => Err(End::Refused(Status::invalid_argument(
                "a hello comes once, at the beginning",
            ))),
            AgentMessage::Ack { version } => {
                self.flight.ack(version);
                self.seat.reached(self.flight.reached());
                Ok(())
            }
            AgentMessage::Pins(pins) if pins.len() > PINS_PER_NODE_MAX => {
                Err(End::Refused(Status::invalid_argument(format!(
                    "{} pins: want {PINS_PER_NODE_MAX} at most",
                    pins.len()
                ))))
            }
            AgentMessage::Pins(pins) => {
                self.seat.pin(pins);
                Ok(())
            }
            AgentMessage::Status { seq, statuses } => self.commit(seq, statuses).await,
            AgentMessage::Heartbeat { applied: _, digest } => {
                self.check(digest)?;
                self.send(ManagerMessage::HeartbeatAck).await
            }
        }
    }

    async fn commit(&mut self, seq: u64, statuses: Vec<TaskStatusUpdate>) -> Result<(), End> {
        let committed = self.office.statuses.commit(self.node, statuses).await;
        committed.map_err(|error| End::Refused(Status::unavailable(error.to_string())))?;
        self.send(ManagerMessage::StatusAck { seq }).await
    }

    /// Compares what the agent has applied with what it was sent. An agent that drifted begins
    /// again: its next hello names what it really has, and the difference repairs it.
    fn check(&mut self, digest: u64) -> Result<(), End> {
        if !self.flight.is_empty() || digest == self.feed.digest() {
            self.drift = 0;
            return Ok(());
        }
        self.drift += 1;
        if self.drift < DRIFT_MAX {
            return Ok(());
        }
        warn!("the node's view is not what it was sent; it has to begin its session again");
        Err(End::Refused(Status::aborted(
            "the applied view differs from the one sent; begin the session again to repair it",
        )))
    }

    /// Sends what changed for the node, if anything.
    async fn tell(&mut self, pending: Pending) -> Result<(), End> {
        let Pending { round, work } = pending;
        let version = round.state.version();
        if version < self.since && presence(&round.state, self.node) != Presence::Up {
            // The rounds have yet to see that the node is READY. They will, and then we look at
            // everything. One that they hold for up, after a start of this manager say, must not wait:
            // they may wait for its acknowledgement themselves ([`super::pace`]).
            return Ok(());
        }
        if round.state.node(self.node).is_none() {
            return Err(End::Refused(not_a_member(self.node)));
        }
        self.keep_pace(&round.state).await?;
        self.keep_trust(&round.state).await?;
        // Before the update, which may take from flows the owner that only pins know of then.
        self.tell_news().await?;
        let is_first = self.updates == 0;
        if is_first {
            for task in self.feed.find_released(&round) {
                self.seat.stop_was_released(*task);
            }
        }
        let work = if is_first { Work::All } else { work };
        let update = self.feed.update(&round, &work);
        // The first update goes out even when empty: it tells the agent that it is up to date.
        let news = is_first || !update.put.is_empty() || !update.removed.is_empty();
        self.flight.evaluated(version, news);
        if news {
            self.updates += 1;
            debug!(feed.version = %version, feed.put = update.put.len(),
                feed.removed = update.removed.len(), feed.looked_at = self.feed.looked_at(),
                "update sent");
            self.send(ManagerMessage::Update(update)).await?;
            self.updated = version;
        }
        self.seat.reached(self.flight.reached());
        // A node that comes back may have been everywhere already.
        self.tell_news().await
    }

    /// Passes on other nodes' pins, and says which of the updates are at all nodes.
    async fn tell_news(&mut self) -> Result<(), End> {
        let News { pins, settled } = self.seat.news();
        for (node, pins) in pins {
            let pins = pins.to_vec();
            self.send(ManagerMessage::Pins { node, pins }).await?;
        }
        if self.settled < self.updated && self.settled < settled {
            self.settled = settled;
            let version = settled;
            self.send(ManagerMessage::Settled { version }).await?;
        }
        Ok(())
    }

    async fn send(&self, message: ManagerMessage) -> Result<(), End> {
        self.outbox.send(Ok(message)).await.map_err(|_| End::Gone)
    }
}
