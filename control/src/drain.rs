//! Which task stops may be released: a task stops only after every node that could send to it has
//! acknowledged that it drains, or after a deadline, so that a node that hangs cannot hold up a
//! stop for ever. Pure; the dispatcher feeds it and projects the outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::{TaskId, TaskState, Version, object::Task};
use tokio::time::Instant;

/// How long a stop waits for acknowledgements: longer than a node that is not heard of stays live, so
/// that only one that is there and does not apply what it hears is overtaken.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// The tasks that have been asked to stop and have not ended.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    stopping: BTreeMap<TaskId, Stop>,
}

/// A stop that need not wait any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) task: TaskId,
    /// Not all nodes have acknowledged that it drains.
    pub(crate) overdue: bool,
}

#[derive(Debug)]
enum Stop {
    /// Every node must have acknowledged `since`, or `deadline` have passed.
    Held { since: Version, deadline: Instant },
    /// Never taken back: a task that was told to stop is not told to run again.
    Released,
}

impl Drains {
    /// Takes note of how a task stands; `None` when it is gone.
    pub(crate) fn observe(&mut self, id: TaskId, task: Option<&Task>, now: Instant) {
        let stopping = task.filter(|task| {
            task.node.is_some() && task.desired.asks_to_stop() && !task.status.state.is_terminal()
        });
        let Some(task) = stopping else {
            self.stopping.remove(&id);
            return;
        };
        self.stopping.entry(id).or_insert_with(|| {
            if task.status.state < TaskState::Running {
                // No node has sent new flows to it, and none will.
                return Stop::Released;
            }
            Stop::Held {
                since: task.meta.version,
                deadline: now + DRAIN_DEADLINE,
            }
        });
    }

    /// The node of this task was told to stop it before: by the manager that this one follows.
    pub(crate) fn released_before(&mut self, id: TaskId) {
        if let Some(stop) = self.stopping.get_mut(&id) {
            *stop = Stop::Released;
        }
    }

    /// Releases what every live node has acknowledged, and what is overdue. `acked_by_all` is the
    /// lowest version that any live node acknowledged.
    pub(crate) fn release(&mut self, acked_by_all: Version, now: Instant) -> Vec<Released> {
        let mut released = Vec::new();
        for (id, stop) in &mut self.stopping {
            let Stop::Held { since, deadline } = *stop else {
                continue;
            };
            let acked = acked_by_all >= since;
            if acked || now >= deadline {
                *stop = Stop::Released;
                released.push(Released {
                    task: *id,
                    overdue: !acked,
                });
            }
        }
        released
    }

    /// Those observed to be asked to stop and not to have ended.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.stopping.keys().copied()
    }

    pub(crate) fn any_held(&self) -> bool {
        self.deadlines().next().is_some()
    }

    /// Tasks whose nodes must not hear of the stop yet.
    pub(crate) fn held(&self) -> BTreeSet<TaskId> {
        self.deadlines().map(|(id, _)| id).collect()
    }

    /// When to call [`Self::release`] again though nothing was acknowledged.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines().map(|(_, deadline)| deadline).min()
    }

    fn deadlines(&self) -> impl Iterator<Item = (TaskId, Instant)> + '_ {
        self.stopping.iter().filter_map(|(id, stop)| match stop {
            Stop::Held { deadline, .. } => Some((*id, *deadline)),
            Stop::Released => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use model::{
        NodeId, ServiceId,
        object::{Meta, TaskStatus},
    };

    use super::*;
    use crate::fixture::epoch;

    fn task(state: TaskState, desired: TaskState, version: u64) -> Task {
        let mut meta = Meta::new(epoch());
        meta.version = Version(version);
        Task {
            id: TaskId::generate(),
            meta,
            service: ServiceId::generate(),
            service_name: "web".to_owned(),
            slot: Some(1),
            node: Some(NodeId::generate()),
            spec: Default::default(),
            spec_version: Version(1),
            host_ports: Vec::new(),
            desired,
            status: TaskStatus {
                timestamp: epoch(),
                state,
                message: String::new(),
                err: None,
                container: None,
                ports: Vec::new(),
            },
            attachments: Vec::new(),
            endpoint: None,
        }
    }

    #[test]
    fn a_stop_waits_for_the_version_that_asked_for_it() {
        let (mut drains, now) = (Drains::default(), Instant::now());
        let mut task = task(TaskState::Running, TaskState::Running, 4);
        drains.observe(task.id, Some(&task), now);
        assert!(!drains.any_held());

        task.desired = TaskState::Shutdown;
        task.meta.version = Version(7);
        drains.observe(task.id, Some(&task), now);
        assert_eq!(drains.held(), BTreeSet::from([task.id]));
        // A later change of the task does not make it wait for that, too.
        task.meta.version = Version(9);
        drains.observe(task.id, Some(&task), now);

        assert_eq!(drains.release(Version(6), now), []);
        let released = Released {
            task: task.id,
            overdue: false,
        };
        assert_eq!(drains.release(Version(7), now), [released]);
        assert!(!drains.any_held());
        // Never held again, whatever else becomes of it.
        drains.observe(task.id, Some(&task), now);
        assert!(!drains.any_held());
        assert_eq!(drains.tasks().count(), 1);
        task.status.state = TaskState::Shutdown;
        drains.observe(task.id, Some(&task), now);
        assert_eq!(drains.tasks().count(), 0);
    }

    #[test]
    fn a_stop_waits_no_longer_than_the_deadline() {
        let (mut drains, now) = (Drains::default(), Instant::now());
        let task = task(TaskState::Running, TaskState::Remove, 7);
        drains.observe(task.id, Some(&task), now);
        let deadline = drains.next_deadline().unwrap();
        assert_eq!(deadline, now + DRAIN_DEADLINE);
        assert_eq!(
            drains.release(Version(0), deadline - Duration::from_millis(1)),
            []
        );
        let released = Released {
            task: task.id,
            overdue: true,
        };
        assert_eq!(drains.release(Version(0), deadline), [released]);
        assert_eq!(drains.next_deadline(), None);
    }

    #[test]
    fn a_task_that_never_ran_stops_at_once_even_if_it_starts_meanwhile() {
        let (mut drains, now) = (Drains::default(), Instant::now());
        let mut task = task(TaskState::Preparing, TaskState::Shutdown, 7);
        drains.observe(task.id, Some(&task), now);
        assert!(!drains.any_held());
        task.status.state = TaskState::Running;
        drains.observe(task.id, Some(&task), now);
        assert!(!drains.any_held());
    }

    #[test]
    fn what_an_earlier_manager_released_is_not_held() {
        let (mut drains, now) = (Drains::default(), Instant::now());
        let task = task(TaskState::Running, TaskState::Shutdown, 7);
        drains.observe(task.id, Some(&task), now);
        drains.released_before(task.id);
        assert!(!drains.any_held());
        drains.released_before(TaskId::generate());
        assert_eq!(drains.tasks().count(), 1);
    }

    #[test]
    fn ended_removed_and_unassigned_tasks_hold_nothing() {
        let (mut drains, now) = (Drains::default(), Instant::now());
        let ended = task(TaskState::Failed, TaskState::Shutdown, 7);
        drains.observe(ended.id, Some(&ended), now);
        let mut unassigned = task(TaskState::Running, TaskState::Shutdown, 7);
        unassigned.node = None;
        drains.observe(unassigned.id, Some(&unassigned), now);
        let gone = task(TaskState::Running, TaskState::Shutdown, 7);
        drains.observe(gone.id, Some(&gone), now);
        drains.observe(gone.id, None, now);
        assert_eq!(drains.tasks().count(), 0);
    }
}
