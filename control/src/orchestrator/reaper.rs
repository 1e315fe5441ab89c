//! Ends and deletes tasks that nobody wants any more.

use std::{sync::Arc, time::Duration};

use model::{
    TaskState,
    object::{NodeState, Service, Task, UpdateState},
};
use store::State;

use super::{
    edit::Editor,
    slot::{Slot, Slots, has_ended, is_wanted, policy},
};
use crate::allocator::holds_addresses;

/// How long a node is down before its tasks count as gone.
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Tasks whose node was removed, or has been down for a day: nobody will report their end.
pub(super) fn orphan_tasks_of_lost_nodes(editor: &mut Editor<'_>) {
    // By dates: a day is long beside what leaders' clocks differ by, and no leader may last so long.
    let now = editor.date();
    let is_lost = |state: &State, task: &Task| {
        let Some(id) = task.node else { return false };
        state.node(id).is_none_or(|node| {
            node.status.state == NodeState::Down && node.meta.updated_at + ORPHANED_AFTER <= now
        })
    };
    let lost = select(editor, |state, task| {
        task.status.state >= TaskState::Assigned && !has_ended(task) && is_lost(state, task)
    });
    let down: Vec<_> = editor
        .state()
        .nodes()
        .filter(|node| node.status.state == NodeState::Down)
        .map(|node| node.meta.updated_at + ORPHANED_AFTER)
        .filter(|at| *at > now)
        .collect();
    for at in down {
        let left = Duration::try_from(at.duration_since(now)).expect("it is later");
        editor.wake_at(editor.now() + left);
    }
    for task in lost {
        let mut task = Task::clone(&task);
        task.status.state = TaskState::Orphaned;
        task.status.timestamp = now;
        task.status.message = "node is gone".to_owned();
        editor.put_task(task);
    }
}

/// A service that was removed takes its tasks along.
pub(super) fn remove_tasks_of_lost_services(editor: &mut Editor<'_>) {
    let lost = select(editor, |state, task| {
        task.desired != TaskState::Remove && state.service(task.service).is_none()
    });
    for task in lost {
        editor.want(&task, TaskState::Remove);
    }
}

/// Tasks to be removed are deleted once they ended and gave back their addresses.
pub(super) fn delete_removed(editor: &mut Editor<'_>) {
    let gone = select(editor, |state, task| {
        let is_over = has_ended(task) && !holds_addresses(state, task);
        task.desired == TaskState::Remove
            && (is_over || task.node.is_none_or(|id| state.node(id).is_none()))
    });
    for task in gone {
        editor.delete(task.id);
    }
}

fn select(editor: &Editor<'_>, wanted: impl Fn(&State, &Task) -> bool) -> Vec<Arc<Task>> {
    let state = editor.state();
    let tasks = state.tasks().filter(|task| wanted(state, task));
    tasks.take(super::CHANGES_MAX).cloned().collect()
}

/// Keeps the newest of each slot's ended tasks, as many as the cluster's history limit says.
pub(super) fn trim_history(editor: &mut Editor<'_>, service: &Service, slots: &Slots) {
    let cluster = editor.state().cluster();
    let limit = cluster.map_or(0, |cluster| cluster.spec.task_history_limit);
    for (_, slot) in slots.iter() {
        if editor.is_exhausted() {
            return;
        }
        let ended: Vec<_> = {
            let tasks = slot.tasks().iter();
            tasks
                .filter(|task| has_ended(task) && !is_wanted(task))
                .filter(|task| !holds_addresses(editor.state(), task))
                .collect()
        };
        let surplus = ended.len().saturating_sub(keep(slot, limit));
        for task in ended.into_iter().take(surplus) {
            if !is_watched(service, slot, task) {
                editor.delete(task.id);
            }
        }
    }
}

/// Restarts are counted and delayed by the history: it must not be shorter than what they need.
fn keep(slot: &Slot, limit: u64) -> usize {
    let Some(newest) = slot.newest() else {
        return 0;
    };
    let waits = newest.desired == TaskState::Ready;
    let is_last_word = !is_wanted(newest);
    let needed = match policy(newest).max_attempts {
        0 => u64::from(waits || is_last_word),
        attempts => attempts + 1,
    };
    usize::try_from(limit.max(needed)).unwrap_or(usize::MAX)
}

/// Whether the service's update is judged by the task, or names it as the reason for its pause.
fn is_watched(service: &Service, slot: &Slot, task: &Task) -> bool {
    let Some(status) = &service.update_status else {
        return false;
    };
    let is_over = matches!(
        status.state,
        UpdateState::Completed | UpdateState::RollbackCompleted
    );
    let first = slot.first_attempt(service.spec_version, status.since);
    !is_over && first.is_some_and(|first| first.id == task.id)
}
