//! What each node is told, over a small world: three nodes, a mesh service `web`, a service `db` on
//! the network `back`, and a service `own` that publishes on its tasks' nodes alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use model::{
    EndpointId,
    feed::NodeView,
    object::{
        Attachment, Meta, Network, Node, NodeState, Revoked, ServiceEndpoint, TaskStatus, Vip,
    },
    spec::{EndpointSpec, NetworkSpec, PortSpec},
};
use proptest::prelude::*;
use store::{Change, Key, Transaction};

use super::*;
use crate::{
    access::revoke,
    fixture::{self, World},
};

struct Cluster {
    world: World,
    nodes: Vec<NodeId>,
    back: NetworkId,
    web: ServiceId,
    db: ServiceId,
    own: ServiceId,
    endpoints: u32,
}

impl Cluster {
    fn new() -> Self {
        let mut world = World::new();
        let nodes = world.add_nodes(3);
        let back = NetworkId::generate();
        let [web, db, own] = [(); 3].map(|()| ServiceId::generate());
        world.write(|tx| {
            tx.put(network(back)).unwrap();
            tx.put(service(web, "web", &[], Some(8080))).unwrap();
            tx.put(service(db, "db", &[back], None)).unwrap();
            let mut own = service(own, "own", &[], Some(7070));
            own.endpoint.ports = vec![own_port()];
            own.spec.endpoint.ports = vec![own_port()];
            tx.put(own).unwrap();
        });
        Self {
            world,
            nodes,
            back,
            web,
            db,
            own,
            endpoints: 0,
        }
    }

    fn run(&mut self, service: ServiceId, node: usize, state: TaskState) -> TaskId {
        self.endpoints += 1;
        let on_back = service == self.db;
        let host_ports = (service == self.own).then(own_port);
        let task = Task {
            id: TaskId::generate(),
            meta: Meta::new(fixture::epoch()),
            service,
            service_name: if on_back { "db" } else { "web" }.to_owned(),
            slot: Some(1),
            node: Some(self.nodes[node]),
            spec: Default::default(),
            spec_version: Default::default(),
            host_ports: host_ports.into_iter().collect(),
            desired: TaskState::Running,
            status: TaskStatus {
                timestamp: fixture::epoch(),
                state,
                message: String::new(),
                err: None,
                container: None,
                ports: Vec::new(),
            },
            attachments: on_back
                .then(|| Attachment {
                    network: self.back,
                    addr: Ipv4Addr::from_bits(0x0a00_0100 + self.endpoints),
                    prefix_len: 24,
                })
                .into_iter()
                .collect(),
            endpoint: Some(EndpointId(self.endpoints)),
        };
        let id = task.id;
        self.world.write(|tx| tx.put(task).unwrap());
        id
    }

    fn change(&mut self, id: TaskId, f: impl FnOnce(&mut Task)) {
        self.world.write(|tx| change_task(tx, id, f));
    }

    /// Of a node that is there.
    fn set_state(&mut self, node: usize, state: NodeState) {
        let id = self.nodes[node];
        self.world.write(|tx| {
            if let Some(stored) = tx.state().node(id) {
                let mut node = Node::clone(stored);
                node.status.state = state;
                tx.put(node).unwrap();
            }
        });
    }

    /// As a node that says so.
    fn leave(&mut self, node: usize) {
        let id = self.nodes[node];
        self.world.write(|tx| {
            let mut cluster = model::object::Cluster::clone(tx.state().cluster().unwrap());
            revoke(&mut cluster, id, Revoked::Membership, tx.now());
            tx.put(cluster).unwrap();
            if let Some(stored) = tx.state().node(id) {
                let mut node = Node::clone(stored);
                node.status.state = NodeState::Down;
                node.status.message = "the node left the swarm".to_owned();
                tx.put(node).unwrap();
            }
        });
    }

    fn view(&self, node: usize) -> NodeView {
        self.view_holding(node, &BTreeSet::new())
    }

    fn view_holding(&self, node: usize, held: &BTreeSet<TaskId>) -> NodeView {
        let mut view = NodeView::default();
        full(&self.world.state, self.nodes[node], held)
            .into_values()
            .for_each(|object| view.put(object));
        view
    }
}

fn change_task(tx: &mut Transaction, id: TaskId, f: impl FnOnce(&mut Task)) {
    let mut task = Task::clone(tx.state().task(id).unwrap());
    f(&mut task);
    tx.put(task).unwrap();
}

fn full(state: &State, node: NodeId, held: &BTreeSet<TaskId>) -> BTreeMap<ViewKey, ViewObject> {
    Projection::new(state, node, networks_of_node(state, node), held)
        .objects()
        .map(|object| (object.key(), object))
        .collect()
}

fn own_port() -> PortSpec {
    PortSpec {
        mode: PublishMode::Host,
        ..fixture::port(Some(7070), 70)
    }
}

fn network(id: NetworkId) -> Network {
    Network {
        id,
        meta: Meta::new(fixture::epoch()),
        spec: NetworkSpec {
            name: "back".to_owned(),
            ..NetworkSpec::default()
        },
        vni: model::Vni::new(4097).unwrap(),
        subnet: "10.0.1.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 1, 1),
        cursor: Default::default(),
    }
}

fn service(id: ServiceId, name: &str, networks: &[NetworkId], published: Option<u16>) -> Service {
    let mut spec = fixture::service(name, 1, networks);
    let ports: Vec<_> = published
        .map(|published| fixture::port(Some(published), 80))
        .into_iter()
        .collect();
    spec.endpoint = EndpointSpec {
        ports: ports.clone(),
        ..EndpointSpec::default()
    };
    Service {
        id,
        meta: Meta::new(fixture::epoch()),
        spec,
        previous_spec: None,
        spec_version: Default::default(),
        endpoint: ServiceEndpoint {
            mode: EndpointMode::Vip,
            ports,
            vips: networks
                .iter()
                .map(|network| Vip {
                    network: *network,
                    addr: Ipv4Addr::new(10, 0, 1, 2),
                    prefix_len: 24,
                })
                .collect(),
        },
        update_status: None,
    }
}

#[test]
fn a_service_on_its_tasks_nodes_alone_is_told_to_those() {
    let mut cluster = Cluster::new();
    let task = cluster.run(cluster.own, 0, TaskState::Running);
    let (here, elsewhere) = (cluster.view(0), cluster.view(1));
    assert!(here.services[&cluster.own].ports.is_empty());
    assert_eq!(here.tasks[&task].host_ports, [own_port()]);
    assert_eq!(here.endpoints.len(), 1);
    assert!(!elsewhere.services.contains_key(&cluster.own));
    assert!(elsewhere.endpoints.is_empty());
    cluster.change(task, |task| task.status.state = TaskState::Failed);
    assert!(!cluster.view(0).services.contains_key(&cluster.own));
}

#[test]
fn every_node_knows_all_nodes_the_ingress_network_and_the_mesh() {
    let mut cluster = Cluster::new();
    let task = cluster.run(cluster.web, 0, TaskState::Running);
    for node in 0..3 {
        let view = cluster.view(node);
        assert!(view.cluster.is_some());
        assert_eq!(view.peers.len(), 3);
        let networks: Vec<_> = view.networks.values().map(|n| n.name.as_str()).collect();
        assert_eq!(networks, ["ingress"]);
        assert_eq!(view.services[&cluster.web].ports[0].published, 8080);
        let endpoint = &view.endpoints[&EndpointId(1)];
        assert_eq!(
            (endpoint.task, endpoint.state),
            (task, BackendState::Active)
        );
        assert_eq!(view.tasks.contains_key(&task), node == 0, "own tasks only");
    }
}

#[test]
fn a_network_and_what_is_on_it_go_to_nodes_with_live_tasks_there() {
    let mut cluster = Cluster::new();
    let first = cluster.run(cluster.db, 0, TaskState::Running);
    cluster.run(cluster.db, 1, TaskState::Assigned);
    let (back, db) = (cluster.back, cluster.db);

    for node in 0..2 {
        let view = cluster.view(node);
        assert!(view.networks.contains_key(&back));
        let vip = view.services[&db].networks[0].vip;
        assert_eq!(vip, Some(Ipv4Addr::new(10, 0, 1, 2)));
        assert_eq!(view.endpoints.len(), 2);
        assert_eq!(view.endpoints[&EndpointId(2)].state, BackendState::Starting);
        assert_eq!(view.endpoints[&EndpointId(1)].addresses.len(), 1);
    }
    let stranger = cluster.view(2);
    assert!(!stranger.networks.contains_key(&back));
    assert!(!stranger.services.contains_key(&db));
    assert!(stranger.endpoints.is_empty());

    cluster.change(first, |task| task.status.state = TaskState::Failed);
    let view = cluster.view(0);
    assert!(
        !view.networks.contains_key(&back),
        "its last live task there ended"
    );
    assert_eq!(
        view.tasks[&first].state,
        TaskState::Failed,
        "its node still has the task"
    );
}

#[test]
fn a_vip_service_is_not_shown_on_a_network_before_it_has_its_address() {
    let mut cluster = Cluster::new();
    cluster.run(cluster.db, 0, TaskState::Running);
    let db = cluster.db;
    cluster.world.write(|tx| {
        let mut service = Service::clone(tx.state().service(db).unwrap());
        service.endpoint.vips.clear();
        tx.put(service).unwrap();
    });
    assert!(!cluster.view(0).services.contains_key(&db));
}

#[test]
fn a_stopping_task_drains_everywhere_before_its_node_is_told_to_stop_it() {
    let mut cluster = Cluster::new();
    let task = cluster.run(cluster.web, 0, TaskState::Running);
    cluster.change(task, |task| task.desired = TaskState::Remove);
    for node in 0..3 {
        let view = cluster.view_holding(node, &BTreeSet::from([task]));
        assert_eq!(view.endpoints[&EndpointId(1)].state, BackendState::Draining);
    }
    let held = cluster.view_holding(0, &BTreeSet::from([task]));
    assert_eq!(held.tasks[&task].desired, TaskState::Running);
    assert_eq!(cluster.view(0).tasks[&task].desired, TaskState::Shutdown);

    cluster.change(task, |task| task.status.state = TaskState::Shutdown);
    assert!(cluster.view(1).endpoints.is_empty());
}

/// Those that have flows go on with them; the rest begins nothing.
#[test]
fn endpoints_of_a_node_that_is_down_drain_and_come_back_with_it() {
    let mut cluster = Cluster::new();
    let task = cluster.run(cluster.web, 0, TaskState::Running);
    cluster.run(cluster.web, 0, TaskState::Starting);
    let seen = |cluster: &Cluster| {
        let view = cluster.view(1);
        let peer = view.peers.get(&cluster.nodes[0]).map(|peer| peer.up);
        let states = view.endpoints.values().map(|endpoint| endpoint.state);
        (states.collect::<Vec<_>>(), peer)
    };
    let up = (
        vec![BackendState::Active, BackendState::Starting],
        Some(true),
    );
    let down = (vec![BackendState::Draining], Some(false));
    cluster.set_state(0, NodeState::Down);
    assert_eq!(seen(&cluster), down);
    cluster.set_state(0, NodeState::Unknown);
    assert_eq!(seen(&cluster), up, "not known to be down");
    cluster.set_state(0, NodeState::Down);
    assert_eq!(seen(&cluster), down);
    cluster.set_state(0, NodeState::Ready);
    assert_eq!(seen(&cluster), up);

    cluster.set_state(0, NodeState::Down);
    cluster.change(task, |task| task.desired = TaskState::Shutdown);
    assert_eq!(seen(&cluster), down);
    cluster.change(task, |task| task.status.state = TaskState::Orphaned);
    assert_eq!(seen(&cluster), (vec![], Some(false)), "given up");
}

#[test]
fn node_that_left_is_no_peer_and_has_no_endpoints() {
    let mut cluster = Cluster::new();
    cluster.run(cluster.web, 0, TaskState::Running);
    // Its heartbeats failed before it came to leave.
    cluster.set_state(0, NodeState::Down);
    cluster.leave(0);
    let view = cluster.view(1);
    assert!(view.endpoints.is_empty());
    let peers: Vec<_> = view.peers.keys().copied().collect();
    assert!(!peers.contains(&cluster.nodes[0]) && peers.len() == 2);
}

#[test]
fn a_service_that_is_removed_leaves_its_draining_tasks_to_those_on_their_networks() {
    let mut cluster = Cluster::new();
    let task = cluster.run(cluster.db, 0, TaskState::Running);
    cluster.run(cluster.db, 1, TaskState::Running);
    let db = cluster.db;
    cluster.change(task, |task| task.desired = TaskState::Remove);
    cluster.world.write(|tx| tx.remove(Key::Service(db)));
    let view = cluster.view(1);
    assert!(!view.services.contains_key(&db));
    assert_eq!(view.endpoints[&EndpointId(1)].state, BackendState::Draining);
}

/// One step of the life of the cluster.
#[derive(Debug, Clone)]
enum Step {
    Run { which: usize, node: usize },
    SetState { task: usize, state: TaskState },
    Stop { task: usize },
    RemoveTask { task: usize },
    SetNode { node: usize, down: bool },
    Leave { node: usize },
    Publish { published: bool },
    RemoveService { on_back: bool },
    RemoveNode { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop::sample::select(vec![
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Running,
        TaskState::Failed,
    ]);
    prop_oneof![
        4 => (0..3usize, 0..3usize).prop_map(|(which, node)| Step::Run { which, node }),
        4 => (any::<usize>(), state).prop_map(|(task, state)| Step::SetState { task, state }),
        2 => any::<usize>().prop_map(|task| Step::Stop { task }),
        2 => any::<usize>().prop_map(|task| Step::RemoveTask { task }),
        2 => (0..3usize, any::<bool>()).prop_map(|(node, down)| Step::SetNode { node, down }),
        1 => (0..3usize).prop_map(|node| Step::Leave { node }),
        1 => any::<bool>().prop_map(|published| Step::Publish { published }),
        1 => any::<bool>().prop_map(|on_back| Step::RemoveService { on_back }),
        1 => (0..3usize).prop_map(|node| Step::RemoveNode { node }),
    ]
}

impl Cluster {
    fn step(&mut self, step: Step) {
        let tasks: Vec<_> = self.world.state.tasks().map(|task| task.id).collect();
        let pick = |at: usize| (!tasks.is_empty()).then(|| tasks[at % tasks.len()]);
        let (web, db, nodes) = (self.web, self.db, self.nodes.clone());
        match step {
            Step::Run { which, node } => {
                self.run([web, db, self.own][which], node, TaskState::Assigned);
            }
            Step::SetState { task, state } => {
                if let Some(id) = pick(task) {
                    self.change(id, |task| task.status.state = state);
                }
            }
            Step::Stop { task } => {
                if let Some(id) = pick(task) {
                    self.change(id, |task| task.desired = TaskState::Shutdown);
                }
            }
            Step::RemoveTask { task } => {
                if let Some(id) = pick(task) {
                    self.world.write(|tx| tx.remove(Key::Task(id)));
                }
            }
            Step::SetNode { node, down } => {
                let state = match down {
                    true => NodeState::Down,
                    false => NodeState::Ready,
                };
                self.set_state(node, state);
            }
            Step::Leave { node } => self.leave(node),
            Step::Publish { published } => self.world.write(|tx| {
                if let Some(stored) = tx.state().service(db) {
                    let mut service = Service::clone(stored);
                    service.endpoint.ports = published
                        .then(|| fixture::port(Some(9090), 90))
                        .into_iter()
                        .collect();
                    tx.put(service).unwrap();
                }
            }),
            Step::RemoveService { on_back } => {
                let id = if on_back { db } else { web };
                self.world.write(|tx| tx.remove(Key::Service(id)));
            }
            Step::RemoveNode { node } => {
                self.world.write(|tx| tx.remove(Key::Node(nodes[node])));
            }
        }
    }
}

/// The changes between two states, as commits would list them.
fn changes(before: &State, now: &State) -> Vec<Change> {
    let keys = |state: &State| -> BTreeSet<Key> {
        let nodes = state.nodes().map(|node| Key::Node(node.id));
        let nodes = nodes.chain([Key::Cluster]);
        let services = state.services().map(|service| Key::Service(service.id));
        let tasks = state.tasks().map(|task| Key::Task(task.id));
        nodes.chain(services).chain(tasks).collect()
    };
    let version = |state: &State, key: Key| state.meta(key).map(|meta| meta.version);
    (&keys(before) | &keys(now))
        .into_iter()
        .filter(|key| version(before, *key) != version(now, *key))
        .map(|key| match key {
            Key::Cluster => Change::Put(now.cluster().unwrap().clone().into()),
            Key::Node(id) if now.contains(key) => Change::Put(now.node(id).unwrap().clone().into()),
            Key::Service(id) if now.contains(key) => {
                Change::Put(now.service(id).unwrap().clone().into())
            }
            Key::Task(id) if now.contains(key) => Change::Put(now.task(id).unwrap().clone().into()),
            key => Change::Remove(key),
        })
        .collect()
}

proptest! {
    /// What a session relies on: as long as a node's networks stay the same, the touched objects
    /// are all that differ.
    #[test]
    fn touched_objects_take_a_view_to_the_next_state(
        steps in prop::collection::vec((step(), any::<bool>()), 1..40),
    ) {
        let mut cluster = Cluster::new();
        let held = BTreeSet::new();
        let mut before = Arc::clone(&cluster.world.state);
        for (step, look) in steps {
            cluster.step(step);
            if !look {
                continue;
            }
            let now = Arc::clone(&cluster.world.state);
            let touches = touched(&before, &now, &changes(&before, &now));
            for node in cluster.nodes.clone() {
                let networks = networks_of_node(&now, node);
                if networks != networks_of_node(&before, node) {
                    continue;
                }
                let mut view = full(&before, node, &held);
                let projection = Projection::new(&now, node, networks, &held);
                for (key, object) in touches.iter().flat_map(|touch| projection.touched(*touch)) {
                    match object {
                        Some(object) => drop(view.insert(key, object)),
                        None => drop(view.remove(&key)),
                    }
                }
                prop_assert_eq!(view, full(&now, node, &held));
            }
            before = now;
        }
    }
}
