//! Decides which tasks there are: as many as each service wants, replaced when they end or lose
//! their node, brought up to date when the service changes, and removed when nobody wants them.
//!
//! An orchestrator creates tasks (NEW) and writes desired states; it never writes what an agent
//! reports. The exceptions: a task whose node is gone for good is ORPHANED, and one that was never
//! given to a node is deleted at once, since no agent would report its end.
//!
//! * `slot`: a service's tasks by place.
//! * `replicated`, `global`: which slots there are.
//! * `restart`: what happens in a slot whose task ended or lost its node.
//! * `update`: brings slots to the service's newest spec.
//! * `reaper`: deletes what nobody wants to see any more.

mod edit;
mod global;
mod reaper;
mod replicated;
mod restart;
mod slot;
#[cfg(test)]
mod tests;
mod update;

use std::{collections::HashMap, mem, sync::Arc};

use model::{ServiceId, Version, object::Service, spec::ServiceMode};
use store::{State, Transaction};
use tokio::time::Instant;

use edit::{Editor, Waiting};
use slot::Slots;
use update::Observations;

/// Changes in one transaction, about: a slot is always dealt with whole.
const CHANGES_MAX: usize = 500;

/// The stage. What it holds are observations of running updates and of waiting tasks, which a new one
/// makes anew, and which services there was nothing to do for.
#[derive(Debug, Default)]
pub struct Orchestrator {
    observations: HashMap<ServiceId, Observations>,
    waiting: Waiting,
    quiet: HashMap<ServiceId, Quiet>,
}

/// There is nothing to do for a service while the state it was judged by is the same, until `wake`.
#[derive(Debug)]
struct Quiet {
    judged: Fingerprint,
    wake: Option<Instant>,
}

/// Numbers that differ when the objects do: a write raises the highest version, a removal lowers
/// the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    service: Version,
    tasks: (usize, Version),
    nodes: (usize, Version),
    cluster: Option<Version>,
}

impl Orchestrator {
    /// Writes what follows from the state at `now`; returns when a delay is over next.
    pub fn step(&mut self, tx: &mut Transaction, now: Instant) -> Option<Instant> {
        let mut waiting = mem::take(&mut self.waiting);
        waiting.retain(tx.state());
        let wake = self.step_with(&mut Editor::new(tx, CHANGES_MAX, now, &mut waiting));
        self.waiting = waiting;
        wake
    }

    fn step_with(&mut self, editor: &mut Editor<'_>) -> Option<Instant> {
        reaper::orphan_tasks_of_lost_nodes(editor);
        reaper::remove_tasks_of_lost_services(editor);
        let services: Vec<Arc<Service>> = editor.state().services().cloned().collect();
        self.forget_lost(editor.state());
        let nodes = count_and_newest(editor.state().nodes().map(|node| node.meta.version));
        for service in services {
            if editor.is_exhausted() {
                break;
            }
            self.step_unless_quiet(editor, &service, nodes);
        }
        reaper::delete_removed(editor);
        editor.wake()
    }

    fn forget_lost(&mut self, state: &State) {
        self.observations
            .retain(|id, _| state.service(*id).is_some());
        self.quiet.retain(|id, _| state.service(*id).is_some());
    }

    fn step_unless_quiet(
        &mut self,
        editor: &mut Editor<'_>,
        service: &Arc<Service>,
        nodes: (usize, Version),
    ) {
        let tasks = editor.state().tasks_of_service(service.id);
        let judged = Fingerprint {
            service: service.meta.version,
            tasks: count_and_newest(tasks.map(|task| task.meta.version)),
            nodes,
            cluster: editor.state().cluster().map(|cluster| cluster.meta.version),
        };
        if let Some(quiet) = self.quiet.get(&service.id)
            && quiet.judged == judged
            && quiet.wake.is_none_or(|wake| wake > editor.now())
        {
            quiet.wake.into_iter().for_each(|at| editor.wake_at(at));
            return;
        }
        let (writes, others_wake) = (editor.writes(), editor.take_wake());
        self.step_service(editor, service);
        let wake = editor.wake();
        if editor.writes() == writes {
            self.quiet.insert(service.id, Quiet { judged, wake });
        }
        others_wake.into_iter().for_each(|at| editor.wake_at(at));
    }

    /// Ends early when the editor is exhausted: the next step finds what is left.
    fn step_service(&mut self, editor: &mut Editor<'_>, service: &Arc<Service>) {
        if !update::adopt_alike(editor, service) {
            return;
        }
        let mut slots = Slots::of(editor, service.id);
        let observations = self.observations.entry(service.id).or_default();
        observations.observe(service, &slots, editor.now());
        let kept = match service.spec.mode {
            ServiceMode::Replicated { replicas } => {
                replicated::step(editor, service, &slots, replicas)
            }
            ServiceMode::Global => global::step(editor, service, &slots),
        };
        slots.refresh(editor);
        if update::judge(editor, service, &kept, &slots, observations) {
            return;
        }
        for (key, slot) in slots.among(&kept) {
            if editor.is_exhausted() {
                return;
            }
            restart::step(editor, service, key, slot);
        }
        slots.refresh(editor);
        update::step(editor, service, &kept, &slots, observations);
        slots.refresh(editor);
        for (_, slot) in slots.among(&kept) {
            if editor.is_exhausted() {
                return;
            }
            restart::start_when_due(editor, slot);
        }
        slots.refresh(editor);
        reaper::trim_history(editor, service, &slots);
    }
}

fn count_and_newest(versions: impl Iterator<Item = Version>) -> (usize, Version) {
    versions.fold((0, Version::default()), |(count, newest), version| {
        (count + 1, newest.max(version))
    })
}
