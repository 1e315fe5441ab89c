//! What one look at a service and its tasks says about its progress. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bollard_stubs::models::{
    Service, ServiceUpdateStatusStateEnum as UpdateState, Task, TaskState,
};

use super::Line;
use crate::output::{ellipsis, short_id};

/// States from `new` to `running`.
pub const STEPS: u64 = 9;

/// More tasks than this are shown as a total only.
const LINES_MAX: usize = 20;

/// An error keeps to one line of a narrow terminal.
const ERROR_WIDTH: usize = 75;

const MONITOR_DEFAULT: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Waiting(Vec<Line>),
    Converged(Vec<Line>),
    /// The update or its rollback stopped; why, for a person.
    Paused(String),
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub struct Convergence {
    /// Since when every task has run.
    since: Option<Instant>,
    /// Labels of slots, in the order met: slots may have gaps, labels may not.
    labels: BTreeMap<i64, usize>,
}

impl Convergence {
    /// `tasks` are those of the service's current spec.
    pub fn observe(
        &mut self,
        service: &Service,
        tasks: &[Task],
        live_nodes: &BTreeSet<String>,
        now: Instant,
    ) -> Verdict {
        let rollback = match update_state(service) {
            Err(why) => return Verdict::Paused(why),
            Ok(rollback) => rollback,
        };
        let (mut lines, converged) = match replicas(service) {
            Some(replicas) => self.replicated(tasks, live_nodes, replicas, rollback.is_some()),
            None => global(tasks, live_nodes, rollback.is_some()),
        };
        lines.extend(rollback);
        if !converged {
            if self.since.take().is_some() {
                lines.push(Line::text("verify", "Detected task failure"));
            }
            return Verdict::Waiting(lines);
        }
        let stable_for = now - *self.since.get_or_insert(now);
        match monitor(service).checked_sub(stable_for) {
            Some(left) if !left.is_zero() => {
                lines.push(Line::text("verify", waiting(left)));
                Verdict::Waiting(lines)
            }
            _ => {
                let id = service.id.as_deref().unwrap_or_default();
                lines.push(Line::text("verify", format!("Service {id} converged")));
                Verdict::Converged(lines)
            }
        }
    }

    fn replicated(
        &mut self,
        tasks: &[Task],
        live_nodes: &BTreeSet<String>,
        replicas: usize,
        rollback: bool,
    ) -> (Vec<Line>, bool) {
        let tasks = current(tasks, live_nodes, |task| task.slot.unwrap_or_default());
        let running = tasks.values().filter(|task| is_running(task)).count();
        let mut lines = vec![overall(running, replicas, rollback)];
        if replicas <= LINES_MAX {
            lines.extend((1..=replicas).map(|label| Line::text(format!("{label}/{replicas}"), "")));
            // Slots that are being scaled away take no label from those that stay.
            let surplus = tasks.len() > replicas;
            let shown = |task: &Task| !surplus || rank(task.desired_state) <= STEPS;
            for (slot, task) in tasks.into_iter().filter(|(_, task)| shown(task)) {
                let next = self.labels.len() + 1;
                let label = *self.labels.entry(slot).or_insert(next);
                if let Some(line) = lines.get_mut(label) {
                    describe(line, task);
                }
            }
        }
        (lines, running == replicas)
    }
}

fn global(tasks: &[Task], live_nodes: &BTreeSet<String>, rollback: bool) -> (Vec<Line>, bool) {
    let tasks = current(tasks, live_nodes, |task| {
        task.node_id.clone().unwrap_or_default()
    });
    if tasks.is_empty() {
        // The orchestrator has made none yet, or no node is eligible: both may change.
        let line = Line::text("overall progress", "waiting for new tasks");
        return (vec![line], false);
    }
    let running = tasks.values().filter(|task| is_running(task)).count();
    let mut lines = vec![overall(running, tasks.len(), rollback)];
    if tasks.len() <= LINES_MAX {
        lines.extend(tasks.iter().map(|(node, task)| {
            let mut line = Line::text(short_id(node), "");
            describe(&mut line, task);
            line
        }));
    }
    (lines, running == tasks.len())
}

/// The task that counts for each slot or node: of several the one with the lowest desired state,
/// then the one that is least far. Tasks of lost nodes do not count.
fn current<'a, K: Ord>(
    tasks: &'a [Task],
    live_nodes: &BTreeSet<String>,
    key: impl Fn(&Task) -> K,
) -> BTreeMap<K, &'a Task> {
    let mut current: BTreeMap<K, &Task> = BTreeMap::new();
    let live = |task: &&Task| match task.node_id.as_deref() {
        None | Some("") => true,
        Some(node) => live_nodes.contains(node),
    };
    for task in tasks.iter().filter(live) {
        let rank = |task: &Task| (rank(task.desired_state), rank(state(task)));
        let other = current.entry(key(task)).or_insert(task);
        if rank(task) < rank(other) {
            *other = task;
        }
    }
    current
}

fn state(task: &Task) -> Option<TaskState> {
    task.status.as_ref().and_then(|status| status.state)
}

/// How far a state is: [`STEPS`] at `running`.
fn rank(state: Option<TaskState>) -> u64 {
    match state {
        Some(TaskState::NEW) => 1,
        Some(TaskState::ALLOCATED) => 2,
        Some(TaskState::PENDING) => 3,
        Some(TaskState::ASSIGNED) => 4,
        Some(TaskState::ACCEPTED) => 5,
        Some(TaskState::PREPARING) => 6,
        Some(TaskState::READY) => 7,
        Some(TaskState::STARTING) => 8,
        Some(TaskState::RUNNING) => STEPS,
        Some(TaskState::COMPLETE) => 10,
        Some(TaskState::SHUTDOWN) => 11,
        Some(TaskState::FAILED) => 12,
        Some(TaskState::REJECTED) => 13,
        _ => 14,
    }
}

fn is_running(task: &Task) -> bool {
    state(task) == Some(TaskState::RUNNING) && rank(task.desired_state) <= STEPS
}

fn overall(running: usize, total: usize, rollback: bool) -> Line {
    let prefix = if rollback {
        "rolling back update: "
    } else {
        ""
    };
    let text = format!("{prefix}{running} out of {total} tasks");
    Line::text("overall progress", text)
}

fn describe(line: &mut Line, task: &Task) {
    let err = task
        .status
        .as_ref()
        .and_then(|status| status.err.as_deref());
    match (err, state(task)) {
        (Some(err), _) if !err.is_empty() => {
            line.text = ellipsis(&err.replace('\n', " "), ERROR_WIDTH);
        }
        (_, Some(state)) if rank(Some(state)) <= STEPS => {
            line.text = state.to_string();
            line.steps = Some(rank(Some(state)));
        }
        _ => {}
    }
}

fn waiting(left: Duration) -> String {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    format!("Waiting {seconds} seconds to verify that tasks are stable...")
}

/// `None` for a global service.
fn replicas(service: &Service) -> Option<usize> {
    let mode = service.spec.as_ref()?.mode.as_ref()?;
    let replicas = mode.replicated.as_ref()?.replicas.unwrap_or(1);
    usize::try_from(replicas).ok()
}

fn monitor(service: &Service) -> Duration {
    let nanos = service
        .spec
        .as_ref()
        .and_then(|spec| spec.update_config.as_ref()?.monitor)
        .and_then(|nanos| u64::try_from(nanos).ok())
        .unwrap_or_default();
    if nanos == 0 {
        MONITOR_DEFAULT
    } else {
        Duration::from_nanos(nanos)
    }
}

/// A line for a rollback under way or done; an error when the daemon stopped.
fn update_state(service: &Service) -> Result<Option<Line>, String> {
    let Some(status) = &service.update_status else {
        return Ok(None);
    };
    let message = status.message.as_deref().unwrap_or_default();
    match status.state {
        Some(UpdateState::PAUSED) => Err(format!("service update paused: {message}")),
        Some(UpdateState::ROLLBACK_PAUSED) => Err(format!("service rollback paused: {message}")),
        Some(UpdateState::ROLLBACK_STARTED | UpdateState::ROLLBACK_COMPLETED) => {
            Ok(Some(Line::text("rollback", message)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(mode: serde_json::Value, update: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "ID": "svc", "Spec": {"Name": "web", "Mode": mode}, "UpdateStatus": update,
        }))
        .unwrap()
    }

    fn replicated(replicas: u64) -> Service {
        service(json!({"Replicated": {"Replicas": replicas}}), json!(null))
    }

    fn task(slot: i64, node: &str, desired: &str, state: &str) -> Task {
        serde_json::from_value(json!({
            "ID": format!("{slot}{node}{state}"), "Slot": slot, "NodeID": node,
            "DesiredState": desired, "Status": {"State": state},
        }))
        .unwrap()
    }

    fn live() -> BTreeSet<String> {
        ["n1", "n2"].map(str::to_owned).into()
    }

    fn texts(verdict: &Verdict) -> Vec<String> {
        let (Verdict::Waiting(lines) | Verdict::Converged(lines)) = verdict else {
            panic!("{verdict:?}");
        };
        let text = |line: &Line| format!("{}: {}", line.label, line.text);
        lines.iter().map(text).collect()
    }

    #[test]
    fn converges_after_the_monitoring_period() {
        let (service, start) = (replicated(2), Instant::now());
        let mut convergence = Convergence::default();
        let mut look = |tasks: &[Task], at: u64| {
            convergence.observe(&service, tasks, &live(), start + Duration::from_millis(at))
        };
        let tasks = [
            task(1, "n1", "running", "running"),
            task(2, "n2", "running", "starting"),
        ];
        assert_eq!(
            texts(&look(&tasks, 0)),
            [
                "overall progress: 1 out of 2 tasks",
                "1/2: running",
                "2/2: starting"
            ]
        );
        let tasks = [
            task(1, "n1", "running", "running"),
            task(2, "n2", "running", "running"),
        ];
        assert_eq!(
            texts(&look(&tasks, 100))[3],
            "verify: Waiting 5 seconds to verify that tasks are stable..."
        );
        assert!(matches!(look(&tasks, 5099), Verdict::Waiting(_)));
        let verdict = look(&tasks, 5100);
        assert!(matches!(verdict, Verdict::Converged(_)));
        assert_eq!(texts(&verdict)[3], "verify: Service svc converged");
    }

    #[test]
    fn failure_while_verifying_starts_over() {
        let (service, start) = (replicated(1), Instant::now());
        let mut convergence = Convergence::default();
        let mut look = |task: Task, at: u64| {
            convergence.observe(&service, &[task], &live(), start + Duration::from_secs(at))
        };
        look(task(1, "n1", "running", "running"), 0);
        let verdict = look(task(1, "n1", "running", "failed"), 4);
        assert_eq!(
            texts(&verdict).last().unwrap(),
            "verify: Detected task failure"
        );
        assert!(matches!(
            look(task(1, "n1", "running", "running"), 6),
            Verdict::Waiting(_)
        ));
        assert!(matches!(
            look(task(1, "n1", "running", "running"), 11),
            Verdict::Converged(_)
        ));
    }

    #[test]
    fn task_of_a_lost_node_does_not_count() {
        let tasks = [task(1, "lost", "running", "running")];
        let verdict =
            Convergence::default().observe(&replicated(1), &tasks, &live(), Instant::now());
        assert_eq!(
            texts(&verdict),
            ["overall progress: 0 out of 1 tasks", "1/1: "]
        );
    }

    #[test]
    fn replacement_hides_the_task_that_ended() {
        let tasks = [
            task(7, "n1", "shutdown", "failed"),
            task(7, "n2", "ready", "ready"),
        ];
        let verdict =
            Convergence::default().observe(&replicated(1), &tasks, &live(), Instant::now());
        assert_eq!(texts(&verdict)[1], "1/1: ready");
    }

    #[test]
    fn error_of_a_task_is_shown_on_one_line() {
        let mut failed = task(1, "n1", "running", "rejected");
        failed.status.as_mut().unwrap().err = Some("No such\nimage: x".to_owned());
        let verdict =
            Convergence::default().observe(&replicated(1), &[failed], &live(), Instant::now());
        assert_eq!(texts(&verdict)[1], "1/1: No such image: x");
    }

    #[test]
    fn scaling_to_nothing_converges() {
        let start = Instant::now();
        let mut convergence = Convergence::default();
        convergence.observe(&replicated(0), &[], &live(), start);
        let verdict = convergence.observe(&replicated(0), &[], &live(), start + MONITOR_DEFAULT);
        assert!(matches!(verdict, Verdict::Converged(_)));
    }

    #[test]
    fn global_service_waits_for_its_first_task() {
        let service = service(json!({"Global": {}}), json!(null));
        let mut convergence = Convergence::default();
        let verdict = convergence.observe(&service, &[], &live(), Instant::now());
        assert_eq!(texts(&verdict), ["overall progress: waiting for new tasks"]);
        let tasks = [
            task(0, "n1", "running", "running"),
            task(0, "n2", "running", "new"),
        ];
        let verdict = convergence.observe(&service, &tasks, &live(), Instant::now());
        assert_eq!(
            texts(&verdict),
            [
                "overall progress: 1 out of 2 tasks",
                "n1: running",
                "n2: new"
            ]
        );
    }

    #[test]
    fn paused_update_is_a_failure_and_a_rollback_is_said() {
        let mode = json!({"Replicated": {"Replicas": 1}});
        let look = |state: &str| {
            let update = json!({"State": state, "Message": "because"});
            Convergence::default().observe(
                &service(mode.clone(), update),
                &[],
                &live(),
                Instant::now(),
            )
        };
        assert_eq!(
            look("paused"),
            Verdict::Paused("service update paused: because".to_owned())
        );
        assert_eq!(
            look("rollback_paused"),
            Verdict::Paused("service rollback paused: because".to_owned())
        );
        assert_eq!(
            texts(&look("rollback_started")),
            [
                "overall progress: rolling back update: 0 out of 1 tasks",
                "1/1: ",
                "rollback: because"
            ]
        );
    }
}
