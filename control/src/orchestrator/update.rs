//! Rolling updates and rollbacks: brings slots to the service's newest spec, a few at a time, and
//! watches whether the new tasks last.
//!
//! All of an update's progress can be seen in the store: which slots still have a task of an older
//! spec, and which have one that was made since the update began, by the version it began at. Only when
//! a task began to run cannot: the clocks of the leaders who wrote it differ. That is observed, and an
//! orchestrator that was not there to see it takes a task that runs for one that began when it looked
//! first, and one that failed for an early failure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use model::{
    TaskId, TaskState, Version,
    object::{Service, Task, UpdateState, UpdateStatus},
    spec::{FailureAction, UPDATE_MONITOR_DEFAULT, UpdateConfig, UpdateOrder},
};
use tokio::time::Instant;

use super::{
    edit::{self, Editor},
    slot::{Slot, SlotKey, Slots, ended_itself, has_ended, is_running, is_wanted, misplaced},
};
use crate::allocator;

/// An update or rollback that is under way.
#[derive(Debug, Clone)]
struct Run {
    config: UpdateConfig,
    /// Version at which it began.
    since: Version,
    /// For a person.
    started_at: Timestamp,
    is_rollback: bool,
}

impl Run {
    fn of(service: &Service) -> Option<Self> {
        let status = service.update_status.as_ref()?;
        let (is_rollback, config) = match status.state {
            UpdateState::Updating => (false, &service.spec.update),
            UpdateState::RollbackStarted => (true, &service.spec.rollback),
            _ => return None,
        };
        Some(Self {
            config: config.clone().unwrap_or_default(),
            since: status.since,
            started_at: status.started_at,
            is_rollback,
        })
    }

    /// How long a new task has to run to count as a success.
    fn monitor(&self) -> Duration {
        let monitor = self.config.monitor.unwrap_or(UPDATE_MONITOR_DEFAULT);
        if self.config.delay >= monitor {
            self.config.delay + Duration::from_secs(1)
        } else {
            monitor
        }
    }

    fn verb(&self) -> &'static str {
        if self.is_rollback {
            "rollback"
        } else {
            "update"
        }
    }
}

/// What became of the first task that an update made in a slot, and when that was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    running: Option<Instant>,
    ended: Option<Instant>,
    /// Ended by itself before or within the monitor time.
    failed: bool,
}

impl Seen {
    /// When it began to run, or ended without.
    fn reached(&self) -> Option<Instant> {
        self.running.or(self.ended)
    }
}

/// What was seen of the running update of one service.
#[derive(Debug, Default)]
pub(super) struct Observations {
    since: Option<Version>,
    seen: HashMap<TaskId, Seen>,
}

impl Observations {
    /// To be called on the state before anything is made of it.
    pub(super) fn observe(&mut self, service: &Service, slots: &Slots, now: Instant) {
        let run = Run::of(service);
        let since = run.as_ref().map(|run| run.since);
        if self.since != since {
            self.since = since;
            self.seen.clear();
        }
        let Some(run) = run else { return };
        for (_, slot) in slots.iter() {
            if let Some(task) = slot.first_attempt(service.spec_version, run.since) {
                self.see(task, run.monitor(), now);
            }
        }
    }

    fn see(&mut self, task: &Task, monitor: Duration, now: Instant) {
        let seen = self.seen.entry(task.id).or_default();
        if seen.running.is_none() && task.status.state == TaskState::Running {
            seen.running = Some(now);
        }
        if seen.ended.is_none() && has_ended(task) {
            let lasted = seen.running.is_some_and(|running| running + monitor <= now);
            seen.ended = Some(now);
            seen.failed = ended_itself(task) && !lasted;
        }
    }

    fn of(&self, task: &Task) -> Seen {
        self.seen.get(&task.id).copied().unwrap_or_default()
    }
}

/// Tasks whose spec and host ports equal the newest are up to date, whichever version they were made from: going
/// back and forth between two specs restarts only what has to be. Returns whether that was all of
/// them: until then, who is out of date is not known.
pub(super) fn adopt_alike(editor: &mut Editor<'_>, service: &Service) -> bool {
    let host_ports = edit::host_ports(service);
    let alike: Vec<Arc<Task>> = editor
        .state()
        .tasks_of_service(service.id)
        .filter(|task| task.spec_version != service.spec_version)
        .filter(|task| is_wanted(task) || ended_itself(task))
        .filter(|task| task.spec == service.spec.task && task.host_ports == host_ports)
        .cloned()
        .collect();
    for task in alike {
        if editor.is_exhausted() {
            return false;
        }
        editor.put_task(Task {
            spec_version: service.spec_version,
            ..Task::clone(&task)
        });
    }
    true
}

/// Pauses the update or rolls it back if too much of it failed. Returns whether it did: then all
/// that is to be done with the failed tasks is another matter.
pub(super) fn judge(
    editor: &mut Editor<'_>,
    service: &Service,
    kept: &[SlotKey],
    slots: &Slots,
    observations: &Observations,
) -> bool {
    let Some(run) = Run::of(service) else {
        return false;
    };
    let made = made(service, &run, kept, slots, observations);
    let dirty = dirty(service, kept, slots).count();
    let failed = failure(&run, &made, dirty);
    failed
        .inspect(|failed| react(editor, service, &run, *failed))
        .is_some()
}

/// Takes the update of the service as far as it may go now.
pub(super) fn step(
    editor: &mut Editor<'_>,
    service: &Service,
    kept: &[SlotKey],
    slots: &Slots,
    observations: &Observations,
) {
    let dirty: Vec<(SlotKey, &Slot)> = dirty(service, kept, slots).collect();
    let state = service.update_status.as_ref().map(|status| status.state);
    if let Some(UpdateState::Paused | UpdateState::RollbackPaused) = state {
        return;
    }
    let run = match Run::of(service) {
        Some(run) => run,
        None if dirty.is_empty() => return,
        None => begin(editor, service),
    };
    let made = made(service, &run, kept, slots, observations);
    if dirty.is_empty() {
        return finish(editor, service, &run, &made);
    }
    let busy = busy(editor, &run, &made);
    let workers = match run.config.parallelism {
        0 => usize::MAX,
        parallelism => usize::try_from(parallelism).unwrap_or(usize::MAX),
    };
    for (key, slot) in dirty.into_iter().take(workers.saturating_sub(busy)) {
        if editor.is_exhausted() {
            return;
        }
        replace(editor, service, key, slot, run.config.order);
    }
}

/// The first task of the update in each slot that it has come to.
fn made<'a>(
    service: &Service,
    run: &Run,
    kept: &'a [SlotKey],
    slots: &'a Slots,
    observations: &Observations,
) -> Vec<(&'a Arc<Task>, Seen)> {
    slots
        .among(kept)
        .filter_map(|(_, slot)| slot.first_attempt(service.spec_version, run.since))
        .map(|task| (task, observations.of(task)))
        .collect()
}

/// Slots in which the newest spec has not been tried.
fn dirty<'a>(
    service: &Service,
    kept: &'a [SlotKey],
    slots: &'a Slots,
) -> impl Iterator<Item = (SlotKey, &'a Slot)> {
    let version = service.spec_version;
    let outdated = move |slot: &Slot| {
        slot.newest()
            .is_some_and(|newest| newest.spec_version != version)
    };
    let current = move |slot: &Slot| slot.alive().any(|task| task.spec_version == version);
    slots
        .among(kept)
        .filter(move |(_, slot)| outdated(slot) && !current(slot))
}

fn begin(editor: &mut Editor<'_>, service: &Service) -> Run {
    let status = UpdateStatus {
        state: UpdateState::Updating,
        since: editor.version(),
        started_at: editor.date(),
        completed_at: None,
        message: "update in progress".to_owned(),
    };
    let service = Service {
        update_status: Some(status),
        ..service.clone()
    };
    let run = Run::of(&service).expect("it was just begun");
    editor.put_service(service);
    run
}

/// How many slots are being worked on: their new task does not run yet, or not for the delay yet.
fn busy(editor: &mut Editor<'_>, run: &Run, made: &[(&Arc<Task>, Seen)]) -> usize {
    let mut busy = 0;
    for (_, seen) in made {
        let free_at = seen.reached().map(|reached| reached + run.config.delay);
        match free_at {
            Some(at) if at <= editor.now() => continue,
            Some(at) => editor.wake_at(at),
            None => {}
        }
        busy += 1;
    }
    busy
}

/// The first task that failed, if too many did.
fn failure(run: &Run, made: &[(&Arc<Task>, Seen)], dirty: usize) -> Option<TaskId> {
    let mut failed = made.iter().filter(|(_, seen)| seen.failed);
    let (first, _) = failed.next()?;
    let ratio = (1 + failed.count()) as f32 / (made.len() + dirty) as f32;
    let acts = run.config.failure_action != FailureAction::Continue;
    (acts && ratio > run.config.max_failure_ratio).then_some(first.id)
}

fn react(editor: &mut Editor<'_>, service: &Service, run: &Run, failed: TaskId) {
    let roll_back = run.config.failure_action == FailureAction::Rollback && !run.is_rollback;
    let reason = match &service.previous_spec {
        Some(_) if roll_back => match roll_back_to_previous(editor, service, failed) {
            Ok(()) => return,
            Err(error) => format!(" and cannot be rolled back: {error}"),
        },
        _ => String::new(),
    };
    let verb = run.verb();
    let state = if run.is_rollback {
        UpdateState::RollbackPaused
    } else {
        UpdateState::Paused
    };
    let message =
        format!("{verb} paused due to failure or early termination of task {failed}{reason}");
    set_status(editor, service, run, state, message);
}

fn roll_back_to_previous(
    editor: &mut Editor<'_>,
    service: &Service,
    failed: TaskId,
) -> Result<(), allocator::AllocateError> {
    let mut service = service.clone();
    if let Some(previous) = service.previous_spec.take() {
        service.spec = previous;
    }
    allocator::allocate_service(editor.tx(), &mut service)?;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        since: editor.version(),
        started_at: editor.date(),
        completed_at: None,
        message: format!("update rolled back due to failure or early termination of task {failed}"),
    });
    editor.put_service(service);
    Ok(())
}

/// Nothing is left to be replaced: done when the last new task has run for the monitor time.
fn finish(editor: &mut Editor<'_>, service: &Service, run: &Run, made: &[(&Arc<Task>, Seen)]) {
    let mut done_at = None;
    for (_, seen) in made {
        match seen.reached() {
            Some(reached) => done_at = done_at.max(Some(reached + run.monitor())),
            None => return,
        }
    }
    if let Some(at) = done_at.filter(|at| *at > editor.now()) {
        return editor.wake_at(at);
    }
    let state = if run.is_rollback {
        UpdateState::RollbackCompleted
    } else {
        UpdateState::Completed
    };
    set_status(
        editor,
        service,
        run,
        state,
        format!("{} completed", run.verb()),
    );
}

fn set_status(
    editor: &mut Editor<'_>,
    service: &Service,
    run: &Run,
    state: UpdateState,
    message: String,
) {
    let is_over = matches!(
        state,
        UpdateState::Completed | UpdateState::RollbackCompleted
    );
    let completed_at = is_over.then(|| editor.date());
    editor.put_service(Service {
        update_status: Some(UpdateStatus {
            state,
            since: run.since,
            started_at: run.started_at,
            completed_at,
            message,
        }),
        ..service.clone()
    });
}

/// Stop-first: the new task is made ready while the old one stops. Start-first: the old one serves
/// until the new one runs, then [`super::restart::step`] ends it.
fn replace(
    editor: &mut Editor<'_>,
    service: &Service,
    key: SlotKey,
    slot: &Slot,
    order: UpdateOrder,
) {
    let serving = slot
        .alive()
        .filter(|task| order == UpdateOrder::StartFirst && is_running(task))
        .min_by_key(|task| misplaced(editor.state(), task).is_some());
    for task in slot.alive() {
        if serving.is_none_or(|serving| serving.id != task.id) {
            editor.want(task, TaskState::Shutdown);
        }
    }
    let desired = if serving.is_some() {
        TaskState::Running
    } else {
        TaskState::Ready
    };
    editor.create(service, key, desired);
}
