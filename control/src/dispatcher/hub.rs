//! Where the rounds and the sessions meet.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{NodeId, TaskId, Version, feed::Pin, object::NodeState};
use store::State;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::reach::Reach;
use crate::projection::Touch;

/// What the sessions project: a state, and the stops that are held back in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Round {
    pub(crate) state: Arc<State>,
    pub(crate) held: Arc<BTreeSet<TaskId>>,
}

/// What a session has not looked at yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) round: Round,
    pub(crate) work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// Everything may have changed.
    All,
    Touched(BTreeSet<Touch>),
}

impl Work {
    pub(crate) fn none() -> Self {
        Self::Touched(BTreeSet::new())
    }

    fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::All, _) => {}
            (Self::Touched(mine), Self::Touched(touches)) => mine.extend(touches),
            (work, Self::All) => *work = Self::All,
        }
    }
}

/// A session's place in the hub. Given up on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    hub: Arc<Hub>,
    node: NodeId,
    number: u64,
    inbox: Arc<Inbox>,
    /// Cancelled when the session must end.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
struct Inbox {
    /// `None` once the session has taken it.
    pending: Mutex<Option<Pending>>,
    filled: Notify,
    /// Nodes whose pins the session has not passed on.
    pinned: Mutex<BTreeSet<NodeId>>,
    news: Notify,
}

/// What agents are told beside their views.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) pins: Vec<(NodeId, Arc<[Pin]>)>,
    /// Every live node has reached it, and all pins as of then are passed on.
    pub(crate) settled: Version,
}

impl Inbox {
    fn pinned(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, round: &Round, work: &Work) {
        let mut slot = self.lock();
        let pending = slot.get_or_insert_with(|| Pending {
            round: round.clone(),
            work: Work::none(),
        });
        pending.round = round.clone();
        pending.work.add(work);
        drop(slot);
        self.filled.notify_one();
    }
}

impl Seat {
    /// The next work, all of it at one state. Cancel-safe.
    pub(crate) async fn work(&self) -> Pending {
        loop {
            if let Some(pending) = self.inbox.lock().take() {
                return pending;
            }
            self.inbox.filled.notified().await;
        }
    }

    /// Waits for news. Cancel-safe.
    pub(crate) async fn has_news(&self) {
        self.inbox.news.notified().await;
    }

    pub(crate) fn news(&self) -> News {
        // One look at both: whoever hears that a version is settled has heard its pins.
        let inner = self.hub.lock();
        let pinned = std::mem::take(&mut *self.inbox.pinned());
        let pins = pinned.into_iter().filter_map(|node| {
            let pins = inner.pins.get(&node)?;
            Some((node, Arc::clone(pins)))
        });
        News {
            pins: pins.collect(),
            settled: inner.settled,
        }
    }

    /// Takes the node's pins, for the other sessions.
    pub(crate) fn pin(&self, pins: Vec<Pin>) {
        let mut inner = self.hub.lock();
        inner.pins.insert(self.node, pins.into());
        for (_, taken) in inner.seats.iter().filter(|(node, _)| **node != self.node) {
            taken.inbox.pinned().insert(self.node);
            taken.inbox.news.notify_one();
        }
    }

    /// The node has reached `version`.
    pub(crate) fn reached(&self, version: Version) {
        let mut inner = self.hub.lock();
        let is_mine = inner
            .seats
            .get(&self.node)
            .is_some_and(|s| s.number == self.number);
        if is_mine {
            inner.reach.ack(self.node, version);
            drop(inner);
            self.hub.acked.notify_one();
        }
    }

    /// The node of `task` was told to stop it before this session began.
    pub(crate) fn stop_was_released(&self, task: TaskId) {
        self.hub.lock().released_before.push(task);
        self.hub.acked.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        let is_mine = inner
            .seats
            .get(&self.node)
            .is_some_and(|s| s.number == self.number);
        if is_mine {
            inner.seats.remove(&self.node);
        }
    }
}

#[derive(Debug)]
struct Taken {
    number: u64,
    inbox: Arc<Inbox>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    round: Round,
    seats: HashMap<NodeId, Taken>,
    seat_last: u64,
    /// What each node acknowledged. Outlives sessions: what is in a kernel stays there.
    reach: Reach,
    /// What each node last said of its flows.
    pins: HashMap<NodeId, Arc<[Pin]>>,
    /// The version that every live node has reached.
    settled: Version,
    released_before: Vec<TaskId>,
}

#[derive(Debug, Default)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Something was acknowledged.
    acked: Notify,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new session of `node`. An older session of it must end.
    pub(crate) fn seat(self: &Arc<Self>, node: NodeId, parent: &CancellationToken) -> Seat {
        let mut inner = self.lock();
        inner.seat_last += 1;
        let others = inner.pins.keys().copied().filter(|other| *other != node);
        let pinned = others.collect();
        let news = Notify::new();
        news.notify_one();
        let seat = Seat {
            hub: Arc::clone(self),
            node,
            number: inner.seat_last,
            inbox: Arc::new(Inbox {
                pending: Mutex::new(Some(Pending {
                    round: inner.round.clone(),
                    work: Work::All,
                })),
                filled: Notify::new(),
                pinned: Mutex::new(pinned),
                news,
            }),
            stop: parent.child_token(),
        };
        let taken = Taken {
            number: seat.number,
            inbox: Arc::clone(&seat.inbox),
            stop: seat.stop.clone(),
        };
        if let Some(older) = inner.seats.insert(node, taken) {
            older.stop.cancel();
        }
        seat
    }

    /// Ends the session of a node, if it has one.
    pub(crate) fn end_session(&self, node: NodeId) {
        if let Some(taken) = self.lock().seats.get(&node) {
            taken.stop.cancel();
        }
    }

    /// Takes note of who is there and live in `state`: ahead of any question about all nodes.
    pub(crate) fn follow_all(&self, state: &State) {
        let mut inner = self.lock();
        inner.reach.follow_all(state);
        inner.pins.retain(|node, _| state.node(*node).is_some());
    }

    /// The same, where `state` differs by `touches` from the last that was followed.
    pub(crate) fn follow(&self, state: &State, touches: &BTreeSet<Touch>) {
        let mut inner = self.lock();
        for touch in touches {
            if let Touch::Peer(node) = *touch {
                inner.reach.follow(state, node);
                if state.node(node).is_none() {
                    inner.pins.remove(&node);
                }
            }
        }
    }

    /// Hands a round to all sessions.
    pub(crate) fn publish(&self, round: Round, work: &Work) {
        let mut inner = self.lock();
        for taken in inner.seats.values() {
            taken.inbox.add(&round, work);
        }
        inner.round = round;
    }

    /// Notes how far all live nodes are, and has the sessions tell it.
    pub(crate) fn settle(&self) {
        let mut inner = self.lock();
        let reached = inner.reach.of_all().min(inner.round.state.version());
        if reached > inner.settled {
            inner.settled = reached;
            for taken in inner.seats.values() {
                taken.inbox.news.notify_one();
            }
        }
    }

    /// Waits until something was acknowledged since the last call. Cancel-safe.
    pub(crate) async fn acked(&self) {
        self.acked.notified().await;
    }

    /// Stops that sessions found to have been released by the manager before this one.
    pub(crate) fn take_released_before(&self) -> Vec<TaskId> {
        std::mem::take(&mut self.lock().released_before)
    }

    /// What the node has reached; 0 when it has not been heard of.
    pub(crate) fn reached(&self, node: NodeId) -> Version {
        self.lock().reach.of(node)
    }

    /// The lowest version that any node reached of those that are not down, as of [`Self::follow`].
    /// With none there is nobody to wait for.
    pub(crate) fn reached_by_all(&self) -> Version {
        self.lock().reach.of_all()
    }

    /// What each node reached of those that are not down in `state`. Looks at all of them.
    pub(crate) fn reached_by_live(&self, state: &State) -> HashMap<NodeId, Version> {
        let inner = self.lock();
        let live = state
            .nodes()
            .filter(|node| node.status.state != NodeState::Down);
        live.map(|node| (node.id, inner.reach.of(node.id)))
            .collect()
    }
}
