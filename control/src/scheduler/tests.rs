use std::collections::BTreeMap;

use model::{
    NodeId, ServiceId, TaskState,
    object::{NodeState, Task},
    spec::{Availability, PublishMode, ServiceSpec},
};

use crate::{fixture, ops, sim::Sim};

fn per_node(sim: &Sim, id: ServiceId) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for task in sim.wanted(id) {
        *counts.entry(task.node.expect("assigned")).or_default() += 1;
    }
    counts
}

fn counts(sim: &Sim, id: ServiceId) -> Vec<usize> {
    let mut counts: Vec<_> = per_node(sim, id).into_values().collect();
    counts.sort();
    counts
}

/// Why the service's tasks that wait do so.
fn reasons(sim: &mut Sim, spec: ServiceSpec) -> Vec<String> {
    let id = sim.create(spec);
    sim.settle();
    let tasks = sim.wanted(id);
    let waiting = tasks
        .iter()
        .filter(|task| task.status.state == TaskState::Pending);
    waiting
        .map(|task| task.status.err.clone().unwrap())
        .collect()
}

#[test]
fn five_tasks_on_three_nodes_are_two_two_and_one() {
    let mut sim = Sim::new(1, 3);
    let id = sim.create(fixture::service("web", 5, &[]));
    sim.settle();
    assert_eq!(counts(&sim, id), [1, 2, 2]);
}

#[test]
fn own_tasks_count_before_those_of_others() {
    let mut sim = Sim::new(1, 3);
    let crowded = sim.nodes()[0];
    let mut pinned = fixture::service("pinned", 9, &[]);
    pinned.task.placement.constraints = vec![format!("node.id=={crowded}")];
    let pinned = sim.create(pinned);
    sim.settle();
    assert_eq!(counts(&sim, pinned), [9]);
    // Two go where there is least, the third where the service has nothing.
    let two = sim.create(fixture::service("two", 2, &[]));
    let three = sim.create(fixture::service("three", 3, &[]));
    sim.settle();
    assert!(!per_node(&sim, two).contains_key(&crowded));
    assert_eq!(counts(&sim, three), [1, 1, 1]);
}

#[test]
fn reasons_name_what_is_missing_and_where() {
    let mut sim = Sim::new(1, 4);
    let nodes = sim.nodes();
    sim.set_down(nodes[0], true);
    sim.set_availability(nodes[1], Availability::Pause);
    let mut spec = fixture::service("a", 1, &[]);
    spec.task.placement.constraints = vec!["node.role==manager".to_owned()];
    spec.task.resources.reserve_memory_bytes = Some(9 << 30);
    sim.change_node(nodes[2], |node| node.description.memory_bytes = 16 << 30);
    assert_eq!(
        reasons(&mut sim, spec),
        [
            "no suitable node (2 nodes not available for new tasks; insufficient resources on 1 \
          node; scheduling constraints not satisfied on 1 node)"
        ]
    );
    let before = sim.world.state.version();
    sim.settle();
    assert_eq!(sim.world.state.version(), before);
}

#[test]
fn no_nodes_at_all_is_said_and_a_node_helps() {
    let mut sim = Sim::new(1, 0);
    assert_eq!(
        reasons(&mut sim, fixture::service("a", 1, &[])),
        ["no suitable node"]
    );
    sim.world.add_nodes(1);
    sim.settle();
    let task = sim.world.state.tasks().next().unwrap();
    assert_eq!(
        (task.status.state, &task.status.err),
        (TaskState::Assigned, &None)
    );
}

#[test]
fn reservations_fill_nodes_and_are_given_back() {
    let mut sim = Sim::new(1, 2);
    let mut spec = fixture::service("fat", 5, &[]);
    spec.task.resources.reserve_nano_cpus = Some(2_000_000_000);
    let reasons = reasons(&mut sim, spec);
    assert_eq!(
        reasons,
        ["no suitable node (insufficient resources on 2 nodes)"]
    );
    let id = sim.world.state.services().next().unwrap().id;
    assert!(sim.run_until(
        std::time::Duration::from_secs(60),
        |sim| sim.running(id).len() == 4
    ));
    sim.world.add_nodes(1);
    sim.settle();
    assert_eq!(counts(&sim, id), [1, 2, 2]);
}

#[test]
fn max_replicas_and_host_ports_bound_a_node() {
    let mut sim = Sim::new(1, 2);
    let mut spec = fixture::service("few", 3, &[]);
    spec.task.placement.max_replicas = 1;
    assert_eq!(
        reasons(&mut sim, spec),
        ["no suitable node (max replicas per node limit exceed)"]
    );
    let mut spec = fixture::service("host", 3, &[]);
    spec.endpoint.ports = vec![fixture::port(Some(80), 80)];
    spec.endpoint.ports[0].mode = PublishMode::Host;
    assert_eq!(
        reasons(&mut sim, spec),
        ["no suitable node (host-mode port already in use on 2 nodes)"]
    );
}

fn host(name: &str, replicas: u64, published: Option<u16>) -> ServiceSpec {
    let mut spec = fixture::service(name, replicas, &[]);
    spec.endpoint.ports = vec![fixture::port(published, 80)];
    spec.endpoint.ports[0].mode = PublishMode::Host;
    spec
}

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn a_number_that_a_node_chose_is_taken() {
    let mut sim = Sim::new(1, 1);
    let id = sim.create(host("dynamic", 1, None));
    assert!(sim.run_until(MINUTE, |sim| sim.running(id).len() == 1));
    sim.world.write(|tx| {
        let task = tx.state().tasks_of_service(id).next().unwrap();
        let mut task = Task::clone(task);
        assert_eq!(task.host_ports[0].published, None);
        task.status.ports = task.host_ports.clone();
        task.status.ports[0].published = Some(61_000);
        tx.put(task).unwrap();
    });
    let mut mesh = fixture::service("mesh", 1, &[]);
    mesh.endpoint.ports = vec![fixture::port(Some(61_000), 80)];
    let refused = sim.world.try_write(|tx| ops::service::create(tx, mesh));
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("port '61000' is already in use by service 'dynamic'"),
        "{text}"
    );
    assert!(text.ends_with("as a host-published port"), "{text}");
    assert_eq!(
        reasons(&mut sim, host("fixed", 1, Some(61_000))),
        ["no suitable node (host-mode port already in use on 1 node)"]
    );
}

#[test]
fn tasks_are_replaced_when_their_host_ports_change_and_not_for_those_of_the_mesh() {
    let mut sim = Sim::new(1, 2);
    let id = sim.create(host("web", 2, Some(80)));
    assert!(sim.run_until(MINUTE, |sim| sim.running(id).len() == 2));
    let before = sim.running(id);
    sim.update(id, |spec| {
        spec.endpoint.ports.push(fixture::port(Some(8080), 80))
    });
    sim.settle();
    assert_eq!(sim.wanted(id), before);
    sim.update(id, |spec| spec.endpoint.ports[0].published = Some(81));
    let has_new = |task: &std::sync::Arc<Task>| {
        task.host_ports
            .iter()
            .map(|port| port.published)
            .eq([Some(81)])
    };
    assert!(sim.run_until(MINUTE, |sim| {
        let running = sim.running(id);
        running.len() == 2 && running.iter().all(has_new)
    }));
}

/// As with Swarm: the new task finds no node while the old one has the port, and the update waits.
#[test]
fn start_first_needs_a_node_where_the_host_port_is_free() {
    let mut sim = Sim::new(1, 1);
    let mut spec = host("web", 1, Some(80));
    spec.update = Some(model::spec::UpdateConfig {
        order: model::spec::UpdateOrder::StartFirst,
        ..Default::default()
    });
    let id = sim.create(spec);
    assert!(sim.run_until(MINUTE, |sim| sim.running(id).len() == 1));
    let old = sim.running(id);
    sim.update(id, |spec| spec.task.force_update += 1);
    sim.run_for(MINUTE);
    assert_eq!(sim.running(id), old);
    let waits = sim.wanted(id).into_iter().find(|task| task.id != old[0].id);
    assert_eq!(
        waits.unwrap().status.err.as_deref(),
        Some("no suitable node (host-mode port already in use on 1 node)")
    );
    sim.world.add_nodes(1);
    assert!(sim.run_until(MINUTE, |sim| {
        let running = sim.running(id);
        running.len() == 1 && running[0].node != old[0].node
    }));
}

#[test]
fn preferences_spread_over_labels_before_nodes() {
    let mut sim = Sim::new(1, 4);
    let nodes = sim.nodes();
    // Three nodes in the east, one in the west.
    for (i, node) in nodes.iter().enumerate() {
        let zone = if i == 0 { "west" } else { "east" };
        sim.change_node(*node, |node| {
            node.spec.labels.insert("zone".into(), zone.into());
        });
    }
    let mut spec = fixture::service("web", 6, &[]);
    spec.task.placement.preferences = vec!["node.labels.zone".to_owned()];
    let id = sim.create(spec);
    sim.settle();
    assert_eq!(counts(&sim, id), [1, 1, 1, 3]);
    assert_eq!(per_node(&sim, id)[&nodes[0]], 3);
}

#[test]
fn node_where_a_service_keeps_failing_comes_last() {
    let mut sim = Sim::new(1, 2);
    let mut spec = fixture::service("web", 1, &[]);
    spec.task.restart = Some(model::spec::RestartPolicy {
        delay: Some(std::time::Duration::ZERO),
        ..Default::default()
    });
    let id = sim.create(spec);
    sim.settle();
    let other = sim.create(fixture::service("other", 20, &[]));
    sim.settle();
    let node = sim.wanted(id)[0].node.unwrap();
    let spare = sim.nodes().into_iter().find(|id| *id != node).unwrap();
    sim.set_availability(spare, Availability::Pause);
    for _ in 0..5 {
        let task = sim.wanted(id)[0].clone();
        assert_eq!(task.node, Some(node));
        sim.report(&task, TaskState::Failed);
        sim.settle();
    }
    sim.set_availability(spare, Availability::Active);
    let task = sim.wanted(id)[0].clone();
    sim.report(&task, TaskState::Failed);
    sim.settle();
    assert_eq!(sim.wanted(id)[0].node, Some(spare));
    assert_eq!(counts(&sim, other), [10, 10]);
    assert_eq!(
        sim.world.state.node(spare).unwrap().status.state,
        NodeState::Ready
    );
}
