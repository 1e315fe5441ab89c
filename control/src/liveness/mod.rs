//! Which nodes are alive: an agent's session says so at a period; after three missed ones its node
//! is DOWN. A new leader knows nothing yet: nodes are UNKNOWN and have twice the time. What the manager
//! sleeps through counts against nobody ([`deadlines`]).

mod deadlines;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    NodeId,
    object::{Node, NodeState},
};
use store::{State, Store, Transaction, WriteError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use deadlines::Deadlines;

/// Heartbeats that a node may miss.
const MISSED_MAX: u32 = 3;
/// A node that has not been heard of since this manager took office has this many times the grace.
const START_FACTOR: u32 = 2;
/// Each session's period is off the cluster's by up to this share, so that the beats of many nodes
/// do not come at once.
const JITTER: f64 = 0.1;
/// Until a state that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The period for one session, around that of the cluster.
pub(crate) fn session_period(cluster: Duration) -> Duration {
    cluster.mul_f64(rand::random_range(1.0 - JITTER..=1.0 + JITTER))
}

/// How long a node that beats at `period` may be silent.
pub(crate) fn grace(period: Duration) -> Duration {
    period * MISSED_MAX
}

/// How long a node may take to open its first session.
fn start_grace(state: &State) -> Duration {
    grace(cluster_period(state)) * START_FACTOR
}

pub(crate) fn cluster_period(state: &State) -> Duration {
    let cluster = state.cluster().expect("a manager runs with a cluster");
    cluster.spec.dispatcher_heartbeat
}

/// The watch over all nodes; shared by the sessions, which beat, and the loop, which looks.
#[derive(Debug)]
pub(crate) struct Liveness {
    deadlines: Mutex<Deadlines>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            deadlines: Mutex::new(Deadlines::new(Instant::now())),
        }
    }
}

impl Liveness {
    /// The node is alive, and will be heard of again within `grace`.
    pub(crate) fn beat(&self, node: NodeId, grace: Duration) {
        self.lock().beat(node, Instant::now(), grace);
    }

    /// The node has just joined.
    pub(crate) fn expect(&self, node: NodeId, state: &State) {
        self.beat(node, start_grace(state));
    }

    /// The node is no more watched: it left.
    pub(crate) fn forget(&self, node: NodeId) {
        self.lock().forget(node);
    }

    fn lock(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks all nodes UNKNOWN but those that are DOWN, and gives them their time.
    ///
    /// # Errors
    /// When the store does not take it.
    pub(crate) async fn start(&self, store: &Store) -> Result<(), WriteError<Infallible>> {
        let state = store.state();
        for node in state
            .nodes()
            .filter(|node| node.status.state != NodeState::Down)
        {
            self.expect(node.id, &state);
        }
        store
            .write(|tx| {
                all_unknown(tx);
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Marks nodes DOWN when their time is over, and calls `on_down` for each.
    pub(crate) async fn run(
        self: Arc<Self>,
        store: Store,
        on_down: impl Fn(NodeId) + Send,
        cancel: CancellationToken,
    ) {
        loop {
            let next_look = self.lock().next_look();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(next_look) => {}
            }
            self.mark_expired(&store, &on_down).await;
        }
    }

    async fn mark_expired(&self, store: &Store, on_down: &(impl Fn(NodeId) + Send)) {
        let now = Instant::now();
        let expired = self.lock().look(now);
        if expired.is_empty() {
            return;
        }
        let outcome = store
            .write(|tx| {
                // A beat may have come while the write waited for its turn.
                let deadlines = self.lock();
                let silent = expired.iter().filter(|node| !deadlines.is_watched(**node));
                Ok::<_, Infallible>(mark_down(tx, silent.copied()))
            })
            .await;
        match outcome {
            Ok((down, _)) => down.into_iter().for_each(|node| {
                info!(node.id = %node, "node is down: it missed its heartbeats");
                on_down(node);
            }),
            Err(error) => {
                warn!(%error, "cannot mark nodes down; trying again");
                let again = now + RETRY;
                let mut deadlines = self.lock();
                expired
                    .iter()
                    .for_each(|node| deadlines.retry(*node, again));
            }
        }
    }
}

fn all_unknown(tx: &mut Transaction) {
    let nodes: Vec<Node> = tx
        .state()
        .nodes()
        .filter(|node| {
            matches!(
                node.status.state,
                NodeState::Ready | NodeState::Disconnected
            )
        })
        .map(|node| Node::clone(node))
        .collect();
    for mut node in nodes {
        node.status.state = NodeState::Unknown;
        node.status.message = "the leader is new and has not heard of the node yet".to_owned();
        tx.put(node).expect("it was read in this transaction");
    }
}

/// Returns those that were not down before.
fn mark_down(tx: &mut Transaction, nodes: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut down = Vec::new();
    for id in nodes {
        let Some(node) = tx.state().node(id) else {
            continue;
        };
        if node.status.state == NodeState::Down {
            continue;
        }
        let mut node = Node::clone(node);
        node.status.state = NodeState::Down;
        node.status.message = "heartbeat failure".to_owned();
        tx.put(node).expect("it was read in this transaction");
        down.push(id);
    }
    down
}

#[cfg(test)]
mod tests;
