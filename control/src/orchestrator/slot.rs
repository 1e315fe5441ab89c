//! A service's tasks by place.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
};

use model::{
    NodeId, ServiceId, TaskState, Version,
    object::{NodeState, Task},
    spec::{Availability, RestartCondition, RestartPolicy},
};
use store::State;

use super::edit::Editor;
use crate::constraint;

/// The place of a task in its service: of all tasks in a place, one runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SlotKey {
    /// Of a replicated service, from 1.
    Number(u64),
    /// Of a global one.
    Node(NodeId),
}

impl SlotKey {
    /// `None` for a task that has neither slot nor node, which no orchestrator makes.
    pub(super) fn of(task: &Task) -> Option<Self> {
        match (task.slot, task.node) {
            (Some(number), _) => Some(Self::Number(number)),
            (None, Some(node)) => Some(Self::Node(node)),
            (None, None) => None,
        }
    }
}

/// Tasks of one place, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot(Vec<Arc<Task>>);

/// Whether the orchestrator wants the task to run, be it later.
pub(super) fn is_wanted(task: &Task) -> bool {
    task.desired <= TaskState::Running
}

pub(super) fn has_ended(task: &Task) -> bool {
    task.status.state.is_terminal()
}

/// Whether it is wanted and may yet run.
pub(super) fn is_alive(task: &Task) -> bool {
    is_wanted(task) && !has_ended(task)
}

pub(super) fn is_running(task: &Task) -> bool {
    is_alive(task) && task.status.state == TaskState::Running
}

/// Whether it ended without being asked to.
pub(super) fn ended_itself(task: &Task) -> bool {
    matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    )
}

pub(super) fn policy(task: &Task) -> RestartPolicy {
    task.spec.restart.clone().unwrap_or_default()
}

/// By age. Versions and endpoint ids only grow, unlike clocks; who has no endpoint yet is newest.
fn age(task: &Task) -> (Version, u32) {
    (
        task.meta.created,
        task.endpoint.map_or(u32::MAX, |endpoint| endpoint.0),
    )
}

impl Slot {
    pub(super) fn tasks(&self) -> &[Arc<Task>] {
        &self.0
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.0.iter().filter(|task| is_alive(task))
    }

    pub(super) fn running(&self) -> Option<&Arc<Task>> {
        self.0.iter().find(|task| is_running(task))
    }

    /// The newest one that is not about to be removed.
    pub(super) fn newest(&self) -> Option<&Arc<Task>> {
        let kept = |task: &&Arc<Task>| task.desired != TaskState::Remove;
        self.0.iter().rev().find(kept)
    }

    pub(super) fn older_than(&self, task: &Task) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        let position = self.0.iter().position(|other| other.id == task.id);
        self.0[..position.unwrap_or(0)].iter()
    }

    /// Whether the policy wants another task after this one, which ended (or has to leave).
    pub(super) fn may_restart_after(&self, task: &Task) -> bool {
        let policy = policy(task);
        let condition = match policy.condition {
            RestartCondition::None => false,
            RestartCondition::OnFailure => task.status.state != TaskState::Complete,
            RestartCondition::Any => true,
        };
        condition && (!ended_itself(task) || self.has_attempts_left(task, &policy))
    }

    /// Earlier ends of the same spec each cost an attempt, within the window before this end. By the dates
    /// that agents gave, so that no change of leaders starts a slot again that has none left.
    fn has_attempts_left(&self, task: &Task, policy: &RestartPolicy) -> bool {
        if policy.max_attempts == 0 {
            return true;
        }
        let ended_at = task.status.timestamp;
        let counts = |earlier: &&Arc<Task>| {
            earlier.spec_version == task.spec_version
                && ended_itself(earlier)
                && policy
                    .window
                    .filter(|window| !window.is_zero())
                    .is_none_or(|window| earlier.status.timestamp + window > ended_at)
        };
        (self.older_than(task).filter(counts).count() as u64) < policy.max_attempts
    }

    /// Whether the slot counts as filled: something is wanted in it, or it has run to its end and
    /// the policy wants no more.
    pub(super) fn is_occupied(&self) -> bool {
        self.0.iter().any(|task| is_wanted(task)) || self.is_finished()
    }

    /// Whether it has run to its end and the policy wants no more.
    pub(super) fn is_finished(&self) -> bool {
        !self.0.iter().any(|task| is_wanted(task))
            && self
                .newest()
                .is_some_and(|newest| !self.may_restart_after(newest))
    }

    /// The first task that was made for `version` in or after the transaction `since`.
    pub(super) fn first_attempt(&self, version: Version, since: Version) -> Option<&Arc<Task>> {
        self.0
            .iter()
            .find(|task| task.spec_version == version && task.meta.created >= since)
    }
}

/// All places of a service that have tasks.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    service: ServiceId,
    slots: BTreeMap<SlotKey, Slot>,
    /// How much the editor had written.
    writes: usize,
}

impl Slots {
    pub(super) fn of(editor: &Editor<'_>, service: ServiceId) -> Self {
        let mut slots: BTreeMap<SlotKey, Slot> = BTreeMap::new();
        for task in editor.state().tasks_of_service(service) {
            if let Some(key) = SlotKey::of(task) {
                slots.entry(key).or_default().0.push(Arc::clone(task));
            }
        }
        for slot in slots.values_mut() {
            slot.0.sort_by_key(|task| age(task));
        }
        Self {
            service,
            slots,
            writes: editor.writes(),
        }
    }

    /// Reads again what the editor may have written.
    pub(super) fn refresh(&mut self, editor: &Editor<'_>) {
        if self.writes != editor.writes() {
            *self = Self::of(editor, self.service);
        }
    }

    pub(super) fn get(&self, key: SlotKey) -> Option<&Slot> {
        self.slots.get(&key)
    }

    pub(super) fn iter(&self) -> btree_map::Iter<'_, SlotKey, Slot> {
        self.slots.iter()
    }

    /// Those of `keys` that have tasks.
    pub(super) fn among<'a>(
        &'a self,
        keys: &'a [SlotKey],
    ) -> impl Iterator<Item = (SlotKey, &'a Slot)> {
        keys.iter().filter_map(|key| Some((*key, self.get(*key)?)))
    }
}

/// Why a task cannot stay on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misplaced {
    /// The node is down or removed: nobody will tell how the task ended.
    Lost,
    /// The node is drained, or no longer meets the constraints.
    Unwelcome,
}

/// Whether the task has to leave its node.
pub(super) fn misplaced(state: &State, task: &Task) -> Option<Misplaced> {
    let id = task.node?;
    let Some(node) = state.node(id) else {
        return Some(Misplaced::Lost);
    };
    if node.status.state == NodeState::Down {
        return Some(Misplaced::Lost);
    }
    let drained = node.spec.availability == Availability::Drain;
    let unwelcome = drained || !constraint::all_match(&task.spec.placement, node);
    unwelcome.then_some(Misplaced::Unwelcome)
}

/// Whether the task's end will be reported and is worth waiting for.
pub(super) fn is_stopping(state: &State, task: &Task) -> bool {
    !is_wanted(task) && !has_ended(task) && misplaced(state, task) != Some(Misplaced::Lost)
}
