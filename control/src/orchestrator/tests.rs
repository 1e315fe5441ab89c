use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::SignedDuration;
use model::{
    NodeId, ServiceId, TaskState,
    object::{Task, UpdateState},
    spec::{
        Availability, FailureAction, NetworkSpec, RestartCondition, RestartPolicy, ServiceMode,
        ServiceSpec, UpdateConfig, UpdateOrder,
    },
};
use store::Key;

use crate::{fixture, ops, sim::Sim};

const MINUTE: Duration = Duration::from_secs(60);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A service whose tasks all run.
fn running(sim: &mut Sim, spec: ServiceSpec) -> ServiceId {
    let id = sim.create(spec);
    assert!(sim.run_until(MINUTE, |sim| all_run(sim, id)));
    id
}

fn all_run(sim: &Sim, id: ServiceId) -> bool {
    let wanted = match sim.service(id).spec.mode {
        ServiceMode::Replicated { replicas } => replicas as usize,
        ServiceMode::Global => sim.nodes().len(),
    };
    sim.running(id).len() == wanted && sim.wanted(id).len() == wanted
}

fn with_restart(replicas: u64, restart: RestartPolicy) -> ServiceSpec {
    let mut spec = fixture::service("web", replicas, &[]);
    spec.task.restart = Some(restart);
    spec
}

fn end(sim: &mut Sim, task: &Task, state: TaskState) {
    sim.report(task, state);
    sim.settle();
}

fn slots(tasks: &[Arc<Task>]) -> Vec<u64> {
    tasks.iter().filter_map(|task| task.slot).collect()
}

fn status(sim: &Sim, id: ServiceId) -> Option<(UpdateState, String)> {
    let status = sim.service(id).update_status.clone()?;
    Some((status.state, status.message))
}

fn set_args(sim: &mut Sim, id: ServiceId, word: &str) {
    sim.update(id, |spec| spec.task.container.args = vec![word.to_owned()]);
}

fn words(tasks: &[Arc<Task>]) -> Vec<String> {
    tasks
        .iter()
        .map(|task| task.spec.container.args[0].clone())
        .collect()
}

#[test]
fn failed_task_is_replaced_in_its_slot_after_the_delay() {
    let mut sim = Sim::new(1, 3);
    let id = running(&mut sim, fixture::service("web", 3, &[]));
    let victim = sim.running(id)[1].clone();
    end(&mut sim, &victim, TaskState::Failed);
    let next = sim.wanted(id)[1].clone();
    assert_eq!((next.slot, next.desired), (Some(2), TaskState::Ready));
    assert_eq!(next.status.state, TaskState::Assigned);
    assert_eq!(sim.wake(), Some(secs(5)));

    sim.world.now += Duration::from_millis(4999);
    sim.settle();
    assert_eq!(sim.wanted(id)[1].desired, TaskState::Ready);
    sim.jump();
    assert_eq!(sim.wanted(id)[1].desired, TaskState::Running);
    let old = sim.world.state.task(victim.id).unwrap();
    assert_eq!(
        (old.desired, old.status.state),
        (TaskState::Shutdown, TaskState::Failed)
    );
}

/// Another manager leads, by a clock that is so far ahead.
fn lead_by(sim: &mut Sim, seconds: i64) {
    sim.restart_manager();
    sim.world.skew = SignedDuration::from_secs(seconds);
}

/// Of a leader before, and of the one after it.
const CLOCKS: [[i64; 2]; 2] = [[60, -60], [-60, 60]];

#[test]
fn restart_delay_is_neither_longer_nor_shorter_by_the_next_leaders_clock() {
    for [before, after] in CLOCKS {
        let mut sim = Sim::new(1, 1);
        lead_by(&mut sim, before);
        let id = running(&mut sim, fixture::service("web", 1, &[]));
        let victim = sim.running(id)[0].clone();
        end(&mut sim, &victim, TaskState::Failed);
        lead_by(&mut sim, after);
        sim.run_for(secs(4));
        assert_eq!(sim.wanted(id)[0].desired, TaskState::Ready, "{after}");
        sim.run_for(secs(2));
        assert_eq!(sim.wanted(id)[0].desired, TaskState::Running, "{after}");
    }
}

#[test]
fn delay_is_the_policys_and_survives_another_manager() {
    let mut sim = Sim::new(1, 1);
    let policy = RestartPolicy {
        delay: Some(secs(30)),
        ..RestartPolicy::default()
    };
    let id = running(&mut sim, with_restart(1, policy));
    let victim = sim.running(id)[0].clone();
    end(&mut sim, &victim, TaskState::Complete);
    sim.restart_manager();
    sim.run_for(secs(29));
    assert_eq!(sim.wanted(id)[0].desired, TaskState::Ready);
    sim.run_for(secs(2));
    assert_eq!(sim.wanted(id)[0].desired, TaskState::Running);
}

#[test]
fn conditions_say_which_ends_are_restarted() {
    for (condition, state, restarted) in [
        (RestartCondition::Any, TaskState::Complete, true),
        (RestartCondition::Any, TaskState::Failed, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Rejected, true),
        (RestartCondition::None, TaskState::Failed, false),
    ] {
        let mut sim = Sim::new(1, 1);
        let policy = RestartPolicy {
            condition,
            ..RestartPolicy::default()
        };
        let id = running(&mut sim, with_restart(1, policy));
        let victim = sim.running(id)[0].clone();
        end(&mut sim, &victim, state);
        sim.restart_manager();
        sim.run_for(secs(10));
        assert_eq!(
            sim.wanted(id).len(),
            usize::from(restarted),
            "{condition:?} {state}"
        );
        assert_eq!(sim.tasks(id).len(), 1 + usize::from(restarted));
    }
}

#[test]
fn task_that_cannot_be_prepared_is_tried_once_a_delay() {
    let mut sim = Sim::new(1, 2);
    sim.broken = Some("bad".to_owned());
    let mut spec = fixture::service("web", 1, &[]);
    spec.task.container.args = vec!["bad".to_owned()];
    let id = sim.create(spec);
    sim.run_for(MINUTE);
    // The first at once, then one every five seconds.
    let made = sim.world.state.counters().endpoint_last;
    assert!((10..=13).contains(&made), "{made} tasks");
    sim.broken = None;
    sim.run_for(secs(15));
    assert!(all_run(&sim, id));
}

#[test]
fn attempts_run_out_and_an_update_starts_the_slot_again() {
    let mut sim = Sim::new(1, 1);
    let policy = RestartPolicy {
        max_attempts: 2,
        delay: Some(secs(1)),
        ..RestartPolicy::default()
    };
    let mut spec = with_restart(1, policy);
    spec.task.container.args = vec!["bad".to_owned()];
    sim.broken = Some("bad".to_owned());
    let id = sim.create(spec);
    sim.run_for(MINUTE);
    assert_eq!(sim.tasks(id).len(), 3);
    assert!(sim.wanted(id).is_empty());
    set_args(&mut sim, id, "good");
    sim.run_for(secs(30));
    assert_eq!(words(&sim.running(id)), ["good"]);
}

#[test]
fn attempts_are_counted_within_the_window() {
    let mut sim = Sim::new(1, 1);
    let policy = RestartPolicy {
        max_attempts: 1,
        delay: Some(secs(1)),
        window: Some(secs(20)),
        ..RestartPolicy::default()
    };
    let id = running(&mut sim, with_restart(1, policy));
    for pause in [25, 25, 5] {
        let victim = sim.running(id)[0].clone();
        end(&mut sim, &victim, TaskState::Failed);
        sim.run_for(secs(pause));
    }
    // The last end came within 20 s of no other: 25 s before.
    assert_eq!(sim.running(id).len(), 1);
    let victim = sim.running(id)[0].clone();
    end(&mut sim, &victim, TaskState::Failed);
    sim.run_for(secs(100));
    assert!(sim.wanted(id).is_empty());
}

#[test]
fn scaling_down_spares_running_tasks_and_evens_out_nodes() {
    let mut sim = Sim::new(1, 3);
    let id = running(&mut sim, fixture::service("web", 7, &[]));
    let victim = sim.running(id)[0].clone();
    end(&mut sim, &victim, TaskState::Failed);
    sim.scale(id, 6);
    sim.settle();
    assert!(!slots(&sim.wanted(id)).contains(&victim.slot.unwrap()));
    assert_eq!(sim.running(id).len(), 6);

    sim.scale(id, 3);
    sim.settle();
    let nodes: std::collections::BTreeSet<_> =
        sim.wanted(id).iter().map(|task| task.node).collect();
    assert_eq!(nodes.len(), 3);
    sim.run_for(secs(30));
    assert_eq!(sim.tasks(id).len(), 3);
    sim.scale(id, 5);
    sim.settle();
    assert_eq!(sim.wanted(id).len(), 5);
}

#[test]
fn scaling_up_fills_the_lowest_slots() {
    let mut sim = Sim::new(1, 2);
    let id = sim.create(fixture::service("web", 2, &[]));
    sim.settle();
    sim.scale(id, 1500);
    sim.settle();
    assert_eq!(slots(&sim.wanted(id)), (1..=1500).collect::<Vec<_>>());
    sim.scale(id, 0);
    sim.run_for(MINUTE);
    assert!(sim.tasks(id).is_empty());
}

#[test]
fn tasks_of_a_lost_node_are_replaced_at_once() {
    let mut sim = Sim::new(1, 3);
    let id = running(&mut sim, fixture::service("web", 6, &[]));
    let lost = sim.nodes()[0];
    sim.set_down(lost, true);
    sim.settle();
    let wanted = sim.wanted(id);
    assert_eq!(slots(&wanted), [1, 2, 3, 4, 5, 6]);
    assert!(wanted.iter().all(|task| task.node != Some(lost)));
    assert!(wanted.iter().all(|task| task.desired == TaskState::Running));
    // Their addresses are theirs until the node comes back or is removed.
    let on_lost = sim.world.state.tasks_of_node(lost).count();
    assert_eq!(on_lost, 2);
    sim.world.write(|tx| tx.remove(Key::Node(lost)));
    sim.settle();
    for task in sim.world.state.tasks_of_node(lost) {
        assert_eq!(task.status.state, TaskState::Orphaned);
    }
}

/// The managers give the tasks up, but not their addresses: the node may be there all the while.
#[test]
fn tasks_of_a_node_down_for_a_day_are_orphaned_and_keep_their_addresses() {
    let mut sim = Sim::new(1, 2);
    let narrow = NetworkSpec {
        name: "narrow".to_owned(),
        subnet: Some("10.7.0.0/29".parse().unwrap()),
        ..NetworkSpec::default()
    };
    let narrow = sim.world.try_write(|tx| ops::network::create(tx, narrow));
    let spec = fixture::service("web", 2, &[narrow.unwrap()]);
    let id = running(&mut sim, spec.clone());
    let lost = sim.running(id)[0].node.unwrap();
    let held = |sim: &Sim| {
        let tasks = sim.world.state.tasks_of_node(lost);
        let held = tasks.flat_map(|task| task.attachments.iter().map(|at| at.addr));
        held.collect::<BTreeSet<_>>()
    };
    let before = held(&sim);
    assert!(!before.is_empty());
    sim.set_down(lost, true);
    sim.run_for(secs(30));
    sim.jump();
    let tasks = || sim.world.state.tasks_of_node(lost);
    assert!(tasks().all(|task| task.status.state == TaskState::Orphaned));
    assert!(tasks().count() > 0);

    // Not when the service goes, nor when the network is full.
    sim.world
        .try_write(|tx| ops::service::remove(tx, id))
        .unwrap();
    sim.run_for(secs(30));
    assert_eq!(held(&sim), before);
    let other = sim.create(ServiceSpec {
        name: "other".to_owned(),
        mode: ServiceMode::Replicated { replicas: 9 },
        ..spec
    });
    sim.run_for(secs(30));
    let given: BTreeSet<_> = sim
        .tasks(other)
        .iter()
        .flat_map(|task| task.attachments.iter().map(|at| at.addr))
        .collect();
    assert!(!given.is_empty() && given.is_disjoint(&before), "{given:?}");

    // When the node is back, its agent ends what the managers do not know of.
    sim.set_down(lost, false);
    sim.settle();
    assert!(sim.world.state.tasks().all(|task| task.service != id));
}

#[test]
fn drained_node_is_left_stop_first_or_start_first() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(1, 3);
        let mut spec = fixture::service("web", 3, &[]);
        spec.update = Some(UpdateConfig {
            order,
            ..UpdateConfig::default()
        });
        let id = running(&mut sim, spec);
        let drained = sim.nodes()[1];
        sim.set_availability(drained, Availability::Drain);
        let mut lowest = 3;
        assert!(sim.run_until(MINUTE, |sim| {
            lowest = lowest.min(sim.running(id).len());
            all_run(sim, id)
                && sim
                    .running(id)
                    .iter()
                    .all(|task| task.node != Some(drained))
        }));
        let expected = if order == UpdateOrder::StartFirst {
            3
        } else {
            2
        };
        assert_eq!(lowest, expected, "{order:?}");
    }
}

/// The node of a start-first replacement is drained before that one runs: it goes, the task that
/// serves stays until another replacement runs.
#[test]
fn replacement_whose_node_is_drained_too_gives_way_to_the_next() {
    let mut sim = Sim::new(1, 1);
    let mut spec = fixture::service("web", 1, &[]);
    spec.update = Some(UpdateConfig {
        order: UpdateOrder::StartFirst,
        ..UpdateConfig::default()
    });
    let id = running(&mut sim, spec);
    let serving = sim.running(id)[0].clone();
    sim.set_availability(serving.node.unwrap(), Availability::Drain);
    let mut seen = vec![serving.id];
    for _ in 0..3 {
        sim.world.add_nodes(1);
        sim.settle();
        let wanted = sim.wanted(id);
        assert_eq!(wanted.len(), 2);
        let next = wanted.iter().find(|task| !seen.contains(&task.id));
        let next = next.expect("another one comes");
        assert_eq!(sim.running(id), std::slice::from_ref(&serving));
        seen.push(next.id);
        sim.set_availability(next.node.unwrap(), Availability::Drain);
    }
    sim.world.add_nodes(1);
    assert!(sim.run_until(MINUTE, |sim| all_run(sim, id)));
    assert!(!seen.contains(&sim.running(id)[0].id));
}

#[test]
fn node_that_no_longer_meets_the_constraints_is_left() {
    let mut sim = Sim::new(1, 2);
    for node in sim.nodes() {
        sim.change_node(node, |node| {
            node.spec.labels.insert("disk".into(), "ssd".into());
        });
    }
    let mut spec = fixture::service("web", 4, &[]);
    spec.task.placement.constraints = vec!["node.labels.disk==ssd".to_owned()];
    let id = running(&mut sim, spec);
    let changed = sim.nodes()[0];
    sim.change_node(changed, |node| node.spec.labels.clear());
    sim.run_for(secs(30));
    assert!(all_run(&sim, id));
    assert!(
        sim.running(id)
            .iter()
            .all(|task| task.node != Some(changed))
    );
}

#[test]
fn removed_service_takes_its_tasks_and_addresses_along() {
    let mut sim = Sim::new(1, 2);
    let net = model::spec::NetworkSpec {
        name: "net".to_owned(),
        ..Default::default()
    };
    let net = sim
        .world
        .try_write(|tx| ops::network::create(tx, net))
        .unwrap();
    let id = running(&mut sim, fixture::service("web", 4, &[net]));
    let lost = sim.nodes()[0];
    sim.set_down(lost, true);
    sim.settle();
    sim.world
        .try_write(|tx| ops::service::remove(tx, id))
        .unwrap();
    sim.settle();
    assert!(
        sim.tasks(id)
            .iter()
            .all(|task| task.desired == TaskState::Remove)
    );
    sim.run_for(secs(30));
    // Only those whose end nobody can report are left.
    assert!(sim.tasks(id).iter().all(|task| task.node == Some(lost)));
    assert_eq!(sim.tasks(id).len(), 2);
    sim.world.write(|tx| tx.remove(Key::Node(lost)));
    sim.settle();
    assert!(sim.tasks(id).is_empty());
}

#[test]
fn tasks_that_never_had_a_node_vanish_at_once() {
    let mut sim = Sim::new(1, 0);
    let id = sim.create(fixture::service("web", 3, &[]));
    sim.settle();
    assert_eq!(sim.tasks(id).len(), 3);
    sim.scale(id, 1);
    sim.settle();
    assert_eq!(slots(&sim.tasks(id)), [1]);
    set_args(&mut sim, id, "new");
    sim.settle();
    assert_eq!(words(&sim.tasks(id)), ["new"]);
}

#[test]
fn history_is_as_long_as_the_limit() {
    let mut sim = Sim::new(1, 1);
    let policy = RestartPolicy {
        delay: Some(Duration::ZERO),
        ..RestartPolicy::default()
    };
    let id = running(&mut sim, with_restart(2, policy));
    for _ in 0..9 {
        let victim = sim.running(id)[0].clone();
        end(&mut sim, &victim, TaskState::Failed);
        sim.run_until(MINUTE, |sim| all_run(sim, id));
    }
    // Five ended and the running one in slot 1, the running one in slot 2.
    assert_eq!(sim.tasks(id).len(), 7);
    sim.world.write(|tx| {
        let mut cluster = model::object::Cluster::clone(tx.state().cluster().unwrap());
        cluster.spec.task_history_limit = 0;
        tx.put(cluster).unwrap();
    });
    sim.settle();
    assert_eq!(sim.tasks(id).len(), 2);
}

#[test]
fn update_replaces_every_task_and_says_so() {
    let mut sim = Sim::new(1, 3);
    let id = running(&mut sim, fixture::service("web", 3, &[]));
    assert_eq!(status(&sim, id), None);
    let before = sim.service(id).spec_version;
    set_args(&mut sim, id, "new");
    sim.settle();
    let begun = (UpdateState::Updating, "update in progress".to_owned());
    assert_eq!(status(&sim, id), Some(begun));
    assert!(sim.service(id).spec_version > before);
    // One slot at a time: its new task waits for the old one to stop.
    let tasks = sim.wanted(id);
    assert_eq!(words(&tasks), ["new", "sleep", "sleep"]);
    assert_eq!(tasks[0].desired, TaskState::Ready);
    assert!(sim.run_until(MINUTE, |sim| {
        status(sim, id) == Some((UpdateState::Completed, "update completed".to_owned()))
    }));
    assert_eq!(words(&sim.running(id)), ["new", "new", "new"]);
    assert!(
        sim.service(id)
            .update_status
            .as_ref()
            .unwrap()
            .completed_at
            .is_some()
    );
}

#[test]
fn same_spec_and_scaling_restart_nothing() {
    let mut sim = Sim::new(1, 3);
    let id = running(&mut sim, fixture::service("web", 3, &[]));
    let before = (sim.service(id).spec_version, sim.running(id));
    sim.update(id, |_| {});
    sim.update(id, |spec| {
        spec.labels.insert("a".into(), "b".into());
    });
    sim.run_for(secs(10));
    assert_eq!((sim.service(id).spec_version, sim.running(id)), before);
    assert_eq!(status(&sim, id), None);
}

#[test]
fn delay_passes_between_slots() {
    let mut sim = Sim::new(1, 3);
    let mut spec = fixture::service("web", 3, &[]);
    spec.update = Some(UpdateConfig {
        delay: secs(20),
        ..UpdateConfig::default()
    });
    let id = running(&mut sim, spec);
    set_args(&mut sim, id, "new");
    let begun = sim.world.now;
    let done = |sim: &Sim| status(sim, id).is_some_and(|(s, _)| s == UpdateState::Completed);
    assert!(sim.run_until(secs(300), done));
    // Two pauses, and the last monitor time, which is never shorter than the delay.
    let took = sim.world.now.duration_since(begun);
    assert!(took.as_secs() >= 61 && took.as_secs() < 80, "{took:?}");
}

/// A service of four, then an update to a spec that fails.
fn broken_update(seed: u64, change: impl FnOnce(&mut UpdateConfig)) -> (Sim, ServiceId) {
    let mut sim = Sim::new(seed, 3);
    let mut spec = with_restart(4, RestartPolicy::default());
    let mut update = UpdateConfig::default();
    change(&mut update);
    spec.update = Some(update);
    let id = running(&mut sim, spec);
    sim.broken = Some("bad".to_owned());
    set_args(&mut sim, id, "bad");
    sim.run_for(MINUTE);
    (sim, id)
}

#[test]
fn failing_update_pauses_and_names_the_task() {
    let (mut sim, id) = broken_update(1, |_| {});
    let (state, message) = status(&sim, id).unwrap();
    assert_eq!(state, UpdateState::Paused);
    let task = message
        .strip_prefix("update paused due to failure or early termination of task ")
        .unwrap();
    assert!(sim.world.state.task(task.parse().unwrap()).is_some());
    assert_eq!(words(&sim.running(id)), ["sleep"; 3]);
    // The next update takes it from there.
    set_args(&mut sim, id, "good");
    sim.run_for(MINUTE);
    assert_eq!(words(&sim.running(id)), ["good"; 4]);
    assert_eq!(status(&sim, id).unwrap().0, UpdateState::Completed);
}

/// What failed under a fast clock is not of the update that is resumed under a slow one.
#[test]
fn resumed_update_is_judged_by_its_own_tasks_whatever_leaders_clocks_say() {
    for [before, after] in CLOCKS {
        let mut sim = Sim::new(1, 3);
        lead_by(&mut sim, before);
        let id = running(&mut sim, with_restart(4, RestartPolicy::default()));
        sim.broken = Some("bad".to_owned());
        set_args(&mut sim, id, "bad");
        sim.run_for(MINUTE);
        assert_eq!(status(&sim, id).unwrap().0, UpdateState::Paused);
        lead_by(&mut sim, after);
        sim.broken = None;
        sim.update(id, |_| {});
        sim.run_for(MINUTE);
        assert_eq!(status(&sim, id).unwrap().0, UpdateState::Completed);
        assert_eq!(words(&sim.running(id)), ["bad"; 4]);
    }
}

#[test]
fn monitor_time_is_neither_longer_nor_shorter_by_the_next_leaders_clock() {
    for [before, after] in CLOCKS {
        let mut sim = Sim::new(1, 1);
        lead_by(&mut sim, before);
        let id = running(&mut sim, fixture::service("web", 1, &[]));
        set_args(&mut sim, id, "new");
        assert!(sim.run_until(MINUTE, |sim| words(&sim.running(id)) == ["new"]));
        lead_by(&mut sim, after);
        sim.run_for(secs(4));
        assert_eq!(status(&sim, id).unwrap().0, UpdateState::Updating);
        sim.run_for(secs(2));
        assert_eq!(status(&sim, id).unwrap().0, UpdateState::Completed);
    }
}

#[test]
fn failing_start_first_update_takes_nothing_away() {
    let (mut sim, id) = broken_update(1, |update| update.order = UpdateOrder::StartFirst);
    assert_eq!(status(&sim, id).unwrap().0, UpdateState::Paused);
    assert_eq!(words(&sim.running(id)), ["sleep"; 4]);
    let service = sim.service(id);
    let version = service.meta.version;
    sim.world
        .try_write(|tx| ops::service::rollback(tx, id, version))
        .unwrap();
    let before: Vec<_> = sim.running(id).iter().map(|task| task.id).collect();
    sim.run_for(MINUTE);
    let after: Vec<_> = sim.running(id).iter().map(|task| task.id).collect();
    assert_eq!(before, after);
    assert!(all_run(&sim, id));
    let done = (
        UpdateState::RollbackCompleted,
        "rollback completed".to_owned(),
    );
    assert_eq!(status(&sim, id), Some(done));
}

#[test]
fn failing_update_goes_on_when_told_to() {
    let (sim, id) = broken_update(1, |update| update.failure_action = FailureAction::Continue);
    assert_eq!(status(&sim, id).unwrap().0, UpdateState::Completed);
    assert_eq!(words(&sim.wanted(id)), ["bad"; 4]);
}

#[test]
fn failing_update_rolls_back_without_touching_the_rest() {
    let (sim, id) = broken_update(1, |update| update.failure_action = FailureAction::Rollback);
    let (state, _) = status(&sim, id).unwrap();
    assert_eq!(state, UpdateState::RollbackCompleted);
    assert_eq!(words(&sim.running(id)), ["sleep"; 4]);
    assert!(sim.service(id).previous_spec.is_none());
    let ended = sim.tasks(id).len() - 4;
    // Of the one slot that was tried: the old task and the failed one.
    assert_eq!(ended, 2);
}

#[test]
fn failures_up_to_the_ratio_are_borne() {
    let (sim, id) = broken_update(1, |update| {
        update.max_failure_ratio = 0.5;
    });
    let (state, _) = status(&sim, id).unwrap();
    assert_eq!(state, UpdateState::Paused);
    let tried = sim
        .wanted(id)
        .iter()
        .filter(|t| t.spec.container.args[0] == "bad")
        .count();
    assert_eq!(tried, 3);
}

#[test]
fn end_after_the_monitor_time_is_no_failure_of_the_update() {
    let mut sim = Sim::new(1, 2);
    let mut spec = fixture::service("web", 2, &[]);
    spec.update = Some(UpdateConfig {
        delay: secs(30),
        ..UpdateConfig::default()
    });
    for (lived, state) in [(35, UpdateState::Updating), (10, UpdateState::Paused)] {
        let mut named = spec.clone();
        named.name = format!("web{lived}");
        let id = running(&mut sim, named);
        set_args(&mut sim, id, "new");
        let first = |sim: &Sim| {
            let running = sim.running(id);
            running
                .into_iter()
                .find(|task| task.spec.container.args[0] == "new")
        };
        assert!(sim.run_until(MINUTE, |sim| first(sim).is_some()));
        let task = first(&sim).unwrap();
        sim.run_for(secs(lived));
        end(&mut sim, &task, TaskState::Failed);
        assert_eq!(status(&sim, id).unwrap().0, state);
    }
}

#[test]
fn global_service_has_a_task_on_every_eligible_node() {
    let mut sim = Sim::new(1, 3);
    let mut spec = fixture::service("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    spec.task.placement.constraints = vec!["node.hostname!=node9".to_owned()];
    let id = running(&mut sim, spec);
    let on = |sim: &Sim| -> std::collections::BTreeSet<NodeId> {
        sim.running(id)
            .iter()
            .filter_map(|task| task.node)
            .collect()
    };
    assert_eq!(on(&sim).len(), 3);

    sim.world.write(|tx| {
        tx.put(fixture::node("node3")).unwrap();
        tx.put(fixture::node("node9")).unwrap();
    });
    sim.run_for(secs(10));
    assert_eq!(on(&sim).len(), 4);

    let nodes: Vec<_> = on(&sim).into_iter().collect();
    sim.set_availability(nodes[0], Availability::Pause);
    sim.set_availability(nodes[1], Availability::Drain);
    sim.set_down(nodes[2], true);
    sim.run_for(secs(10));
    assert_eq!(on(&sim), [nodes[0], nodes[3]].into());
    sim.set_availability(nodes[1], Availability::Active);
    sim.set_down(nodes[2], false);
    sim.run_for(secs(30));
    assert_eq!(on(&sim).len(), 4);

    set_args(&mut sim, id, "new");
    assert!(sim.run_until(MINUTE, |sim| {
        status(sim, id).is_some_and(|(state, _)| state == UpdateState::Completed)
    }));
    assert_eq!(words(&sim.running(id)), ["new"; 4]);
    sim.world.write(|tx| tx.remove(Key::Node(nodes[3])));
    sim.run_for(secs(10));
    assert_eq!(
        sim.tasks(id)
            .iter()
            .filter(|task| task.node == Some(nodes[3]))
            .count(),
        0
    );
}

#[test]
fn replacement_waits_for_a_slow_stop_but_not_for_ever() {
    let mut sim = Sim::new(1, 1);
    let id = running(&mut sim, fixture::service("web", 1, &[]));
    set_args(&mut sim, id, "new");
    sim.settle();
    // No agent reports: the old task's grace period is 10 s, and a minute more.
    assert_eq!(sim.wanted(id)[0].desired, TaskState::Ready);
    assert_eq!(sim.wake(), Some(secs(70)));
    sim.jump();
    assert_eq!(sim.wanted(id)[0].desired, TaskState::Running);
}
