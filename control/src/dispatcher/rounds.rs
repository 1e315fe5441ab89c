//! Follows the store: each round takes the sessions to the newest state, with the stops that must
//! wait held back. A round without a commit releases stops. After one that moves rings, commits wait
//! until it is everywhere ([`Pace`]); what they changed by then is one round.

use std::{sync::Arc, time::Duration};

use model::{TaskId, Version, object::NodeState};
use store::{Change, Commit, State, Store};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    hub::{Hub, Round, Work},
    pace::{PACE_MAX, Pace},
};
use crate::{
    drain::Drains,
    projection::{Touch, moves_rings, touched},
};

/// For a commit whose state is there already.
const COMMIT_WAIT: Duration = Duration::from_secs(1);

/// Runs until cancelled.
pub(crate) async fn run(store: Store, hub: Arc<Hub>, cancel: CancellationToken) {
    let commits = store.commits();
    let mut rounds = Rounds {
        state: store.state(),
        store,
        hub,
        commits,
        drains: Drains::default(),
        pace: Pace::default(),
    };
    rounds.begin_anew();
    loop {
        let overdue = wait_until(rounds.next_deadline());
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            commit = rounds.commits.recv(), if rounds.pace.is_open() => match commit {
                Ok(commit) => rounds.follow(&commit).await,
                Err(RecvError::Lagged(_)) => rounds.begin_anew(),
                Err(RecvError::Closed) => return,
            },
            () = rounds.hub.acked() => rounds.release(),
            () = overdue => rounds.release(),
        }
    }
}

struct Rounds {
    store: Store,
    hub: Arc<Hub>,
    commits: broadcast::Receiver<Arc<Commit>>,
    /// Of the last round.
    state: Arc<State>,
    drains: Drains,
    pace: Pace,
}

impl Rounds {
    /// When to look again though nothing was acknowledged.
    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.drains.next_deadline(), self.pace.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// From the store's newest state, whatever happened before.
    fn begin_anew(&mut self) {
        self.commits = self.store.commits();
        let before = std::mem::replace(&mut self.state, self.store.state());
        let now = Instant::now();
        let gone: Vec<_> = self
            .drains
            .tasks()
            .filter(|id| self.state.task(*id).is_none())
            .collect();
        for id in gone {
            self.drains.observe(id, None, now);
        }
        for task in self.state.tasks() {
            self.drains.observe(task.id, Some(task), now);
        }
        self.hub.follow_all(&self.state);
        let tasks = before.tasks().chain(self.state.tasks());
        if moves_rings(&before, &self.state, tasks.map(|task| task.id)) {
            self.rings_move(now);
        }
        self.decide();
        self.publish(&Work::All);
    }

    /// One round for `first` and all commits that came after it.
    async fn follow(&mut self, first: &Commit) {
        let Some((state, changes)) = self.gather(first).await else {
            return self.begin_anew();
        };
        let mut touches = touched(&self.state, &state, &changes);
        let before = std::mem::replace(&mut self.state, state);
        let now = Instant::now();
        self.hub.follow(&self.state, &touches);
        let tasks = touches.iter().filter_map(|touch| match touch {
            Touch::Task { task, .. } => Some(*task),
            _ => None,
        });
        for task in tasks.clone() {
            let stored = self.state.task(task).map(|task| &**task);
            self.drains.observe(task, stored, now);
        }
        if moves_rings(&before, &self.state, tasks) {
            self.rings_move(now);
        }
        touches.extend(self.decide().into_iter().map(|task| self.touch(task)));
        self.publish(&Work::Touched(touches));
    }

    /// The changes since the last round, and the state that they led to: a session must not think
    /// that it has seen a version whose changes it has not. `None` when commits were missed.
    async fn gather(&mut self, first: &Commit) -> Option<(Arc<State>, Vec<Change>)> {
        let state = self.store.state();
        let mut version = self.state.version();
        let mut changes = Vec::new();
        let mut add = |version: &mut Version, commit: &Commit| {
            if commit.version <= *version {
                // `begin_anew` read a state that had it already.
                return Some(());
            }
            if commit.version != version.next() {
                return None;
            }
            *version = commit.version;
            changes.extend(commit.changes.iter().cloned());
            Some(())
        };
        add(&mut version, first)?;
        while version < state.version() {
            let commit = tokio::time::timeout(COMMIT_WAIT, self.commits.recv()).await;
            let commit = commit.ok()?.ok()?;
            add(&mut version, &commit)?;
        }
        (version == state.version()).then_some((state, changes))
    }

    /// A round for stops that may be released, if any.
    fn release(&mut self) {
        self.settle();
        let released = self.decide();
        if !released.is_empty() {
            let touches = released.into_iter().map(|task| self.touch(task)).collect();
            self.publish(&Work::Touched(touches));
        }
    }

    fn decide(&mut self) -> Vec<TaskId> {
        for task in self.hub.take_released_before() {
            self.drains.released_before(task);
        }
        if !self.drains.any_held() {
            return Vec::new();
        }
        let reached = self.hub.reached_by_all();
        let released = self.drains.release(reached, Instant::now());
        for stop in &released {
            let task = stop.task;
            if stop.overdue {
                warn!(task.id = %task, "stopping a task though not every node knows that it drains");
            } else {
                debug!(task.id = %task, "every node knows that the task drains; stopping it");
            }
        }
        released.into_iter().map(|stop| stop.task).collect()
    }

    fn touch(&self, task: TaskId) -> Touch {
        let endpoint = self.state.task(task).and_then(|task| task.endpoint);
        Touch::Task { task, endpoint }
    }

    fn publish(&mut self, work: &Work) {
        let round = Round {
            state: Arc::clone(&self.state),
            held: Arc::new(self.drains.held()),
        };
        self.hub.publish(round, work);
        self.settle();
    }

    /// How far all nodes are, for the agents and for the next move of rings.
    fn settle(&mut self) {
        self.hub.settle();
        // By the newest state: a node that went down meanwhile is not waited for.
        let newest = self.store.state();
        let reached = |id| {
            let node = newest.node(id)?;
            (node.status.state != NodeState::Down).then(|| self.hub.reached(id))
        };
        for node in self.pace.look(reached, Instant::now()) {
            warn!(node.id = %node, "the node has not applied the last change after {PACE_MAX:?}; \
                connections to its tasks may end at the next ones");
        }
    }

    /// The next commits wait for this one to be everywhere.
    fn rings_move(&mut self, now: Instant) {
        let live = self.hub.reached_by_live(&self.store.state());
        self.pace.moved(self.state.version(), live.into_iter(), now);
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
