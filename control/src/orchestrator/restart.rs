//! What happens in a slot whose task ended or has to leave its node, and when a prepared task may
//! start.

use std::{sync::Arc, time::Duration};

use model::{
    TaskState,
    object::{Service, Task},
    spec::{RESTART_DELAY_DEFAULT, UpdateOrder},
};
use store::State;
use tokio::time::Instant;

use super::{
    edit::Editor,
    slot::{
        Misplaced, Slot, SlotKey, ended_itself, has_ended, is_alive, is_running, is_stopping,
        is_wanted, misplaced, policy,
    },
};

/// How long a replacement waits for the task before it, beyond that one's grace period.
const STOP_WAIT_MAX: Duration = Duration::from_secs(60);

/// Replaces what ended or has to leave; ends what the slot has too many of.
pub(super) fn step(editor: &mut Editor<'_>, service: &Service, key: SlotKey, slot: &Slot) {
    if is_settled(editor.state(), service, slot) {
        return;
    }
    if let Some(at) = held_until(editor, slot).filter(|at| *at > editor.now()) {
        return editor.wake_at(at);
    }
    retire_ended(editor, slot);
    let (here, leaving): (Vec<_>, Vec<_>) = slot
        .alive()
        .cloned()
        .partition(|task| misplaced(editor.state(), task).is_none());
    match keeper(service, &here) {
        Some(keeper) => {
            end_surplus(editor, service, keeper, here.iter().chain(&leaving));
            restart_beside(editor, service, slot, keeper);
        }
        None if !leaving.is_empty() => relocate(editor, service, slot, key, &leaving),
        None => restart(editor, service, slot, key),
    }
}

/// The common case: one task, up to date, on its node.
fn is_settled(state: &State, service: &Service, slot: &Slot) -> bool {
    let mut wanted = slot.tasks().iter().filter(|task| is_wanted(task));
    let (Some(task), None) = (wanted.next(), wanted.next()) else {
        return false;
    };
    !has_ended(task)
        && task.spec_version == service.spec_version
        && misplaced(state, task).is_none()
}

/// A task that ended while it waited for its restart delay (its image is missing, say) is replaced
/// when that is over, not at once: each attempt costs the delay.
fn held_until(editor: &mut Editor<'_>, slot: &Slot) -> Option<Instant> {
    let held = |task: &&Arc<Task>| task.desired == TaskState::Ready && has_ended(task);
    let task = slot.tasks().iter().rfind(held)?;
    delayed_until(editor, slot, task)
}

fn retire_ended(editor: &mut Editor<'_>, slot: &Slot) {
    for task in slot.tasks() {
        if is_wanted(task) && has_ended(task) {
            editor.want(task, TaskState::Shutdown);
        }
    }
}

/// Of several live tasks of a slot the one that it is about: up to date before others, then
/// running, then the oldest.
fn keeper<'a>(service: &Service, here: &'a [Arc<Task>]) -> Option<&'a Arc<Task>> {
    here.iter()
        .min_by_key(|task| (task.spec_version != service.spec_version, !is_running(task)))
}

/// Once the keeper runs, it is the only one. Before, another keeps serving (start-first); but not a
/// second one that is up to date, nor one on a lost node.
fn end_surplus<'a>(
    editor: &mut Editor<'_>,
    service: &Service,
    keeper: &Arc<Task>,
    alive: impl Iterator<Item = &'a Arc<Task>>,
) {
    for task in alive.filter(|task| task.id != keeper.id) {
        let is_lost = misplaced(editor.state(), task) == Some(Misplaced::Lost);
        let is_double = task.spec_version == service.spec_version && !is_running(task);
        if is_running(keeper) || is_lost || is_double {
            editor.want(task, TaskState::Shutdown);
        }
    }
}

/// A start-first replacement ended while the old task serves on: it is tried again.
fn restart_beside(editor: &mut Editor<'_>, service: &Service, slot: &Slot, keeper: &Arc<Task>) {
    if keeper.spec_version == service.spec_version {
        return;
    }
    let Some(newest) = slot.newest() else { return };
    let is_replacement = newest.spec_version == service.spec_version;
    if is_replacement && has_ended(newest) && slot.may_restart_after(newest) {
        let key = SlotKey::of(newest).expect("it is in a slot");
        editor.create(service, key, TaskState::Ready);
    }
}

/// No live task may stay: they leave, and another comes.
fn relocate(
    editor: &mut Editor<'_>,
    service: &Service,
    slot: &Slot,
    key: SlotKey,
    leaving: &[Arc<Task>],
) {
    let order = service.spec.update.as_ref().map(|update| update.order);
    let newest = slot.newest();
    let again = newest.is_some_and(|newest| slot.may_restart_after(newest));
    let start_first = again && order == Some(UpdateOrder::StartFirst);
    // One of them serves until the new one runs. If that one ends before, it gets the restart
    // delay.
    let serving = leaving.iter().find(|task| {
        start_first
            && is_running(task)
            && misplaced(editor.state(), task) == Some(Misplaced::Unwelcome)
    });
    for task in leaving {
        if serving.is_none_or(|serving| serving.id != task.id) {
            editor.want(task, TaskState::Shutdown);
        }
    }
    if again {
        let delayed = newest.is_some_and(|newest| has_ended(newest));
        let desired = if serving.is_some() && !delayed {
            TaskState::Running
        } else {
            TaskState::Ready
        };
        editor.create(service, key, desired);
    }
}

/// Nothing lives in the slot: the newest task ended.
fn restart(editor: &mut Editor<'_>, service: &Service, slot: &Slot, key: SlotKey) {
    let had_ended_now = slot.tasks().iter().any(|task| is_wanted(task));
    let Some(newest) = slot.newest().filter(|_| had_ended_now) else {
        return;
    };
    if slot.may_restart_after(newest) {
        editor.create(service, key, TaskState::Ready);
    }
}

/// Lets tasks that wait to be started start: when those before them have stopped, and after the
/// restart delay if the one before ended by itself.
pub(super) fn start_when_due(editor: &mut Editor<'_>, slot: &Slot) {
    for task in slot.tasks() {
        if is_alive(task) && task.desired == TaskState::Ready {
            match due(editor, slot, task) {
                Some(at) if at > editor.now() => editor.wake_at(at),
                _ => editor.want(task, TaskState::Running),
            }
        }
    }
}

/// When the task may start at the latest; `None` is now.
fn due(editor: &mut Editor<'_>, slot: &Slot, task: &Task) -> Option<Instant> {
    let since = editor.waits_since(task);
    let stopped = slot
        .tasks()
        .iter()
        .filter(|other| is_stopping(editor.state(), other))
        .map(|other| {
            let grace = other.spec.container.stop_grace_period_or_default();
            since + STOP_WAIT_MAX + grace
        })
        .max();
    stopped.max(delayed_until(editor, slot, task))
}

fn delayed_until(editor: &mut Editor<'_>, slot: &Slot, task: &Task) -> Option<Instant> {
    let before = slot.older_than(task).next_back()?;
    let is_restart = before.spec_version == task.spec_version && ended_itself(before);
    let delay = policy(before).delay.unwrap_or(RESTART_DELAY_DEFAULT);
    is_restart.then(|| editor.waits_since(task) + delay)
}
