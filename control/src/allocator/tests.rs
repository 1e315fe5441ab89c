use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use model::{
    NetworkId, ServiceId, TaskId, TaskState, Vni,
    object::{Meta, Network, Task, TaskStatus},
    spec::{NetworkSpec, ServiceSpec},
};
use proptest::prelude::*;
use store::Key;

use super::*;
use crate::{fixture, fixture::World, ops};

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        subnet: subnet.map(net),
        ..NetworkSpec::default()
    }
}

fn make(world: &mut World, spec: NetworkSpec) -> Result<Network, AllocateError> {
    let id = world.try_write(|tx| create_network(tx, spec))?;
    Ok(Network::clone(world.state.network(id).unwrap()))
}

fn task(service: ServiceId, slot: u64, networks: &[NetworkId]) -> Task {
    let now = fixture::epoch();
    Task {
        id: TaskId::generate(),
        meta: Meta::new(now),
        service,
        service_name: "web".to_owned(),
        slot: Some(slot),
        node: None,
        spec: fixture::service("web", 1, networks).task,
        spec_version: Default::default(),
        host_ports: Vec::new(),
        desired: TaskState::Running,
        status: TaskStatus {
            timestamp: now,
            state: TaskState::New,
            message: String::new(),
            err: None,
            container: None,
            ports: Vec::new(),
        },
        attachments: Vec::new(),
        endpoint: None,
    }
}

/// Adds a task, lets the allocator see it, and returns it.
fn add_task(world: &mut World, networks: &[NetworkId]) -> Task {
    let task = task(ServiceId::from_raw(1), 1, networks);
    let id = task.id;
    world.write(|tx| tx.put(task).unwrap());
    world.write(step);
    Task::clone(world.state.task(id).unwrap())
}

fn end(world: &mut World, id: TaskId) {
    world.write(|tx| {
        let mut task = Task::clone(tx.state().task(id).unwrap());
        task.status.state = TaskState::Shutdown;
        tx.put(task).unwrap();
    });
}

fn addr(task: &Task) -> Ipv4Addr {
    task.attachments[0].addr
}

fn create(world: &mut World, spec: ServiceSpec) -> ServiceId {
    world
        .try_write(|tx| ops::service::create(tx, spec))
        .unwrap()
}

#[test]
fn first_networks_are_numbered_as_in_swarm() {
    let mut world = World::new();
    let ingress = ingress(&world.state).unwrap().clone();
    assert_eq!(
        (ingress.subnet, ingress.vni),
        (net("10.0.0.0/24"), Vni::MESH)
    );
    assert_eq!(ingress.gateway, Ipv4Addr::new(10, 0, 0, 1));
    let first = make(&mut world, spec("a", None)).unwrap();
    assert_eq!((first.subnet, first.vni.get()), (net("10.0.1.0/24"), 4097));
    let second = make(&mut world, spec("b", None)).unwrap();
    assert_eq!(
        (second.subnet, second.vni.get()),
        (net("10.0.2.0/24"), 4098)
    );

    let web = create(&mut world, fixture::service("web", 1, &[first.id]));
    let vip = world.state.service(web).unwrap().endpoint.vips[0];
    assert_eq!((vip.addr, vip.prefix_len), (Ipv4Addr::new(10, 0, 1, 2), 24));
    let task = add_task(&mut world, &[second.id, first.id]);
    let addrs: Vec<_> = task.attachments.iter().map(|a| a.addr).collect();
    assert_eq!(
        addrs,
        [Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 1, 3)]
    );
    assert_eq!(task.status.state, TaskState::Pending);
    assert_eq!(task.endpoint.unwrap().0, 1);
}

#[test]
fn numbers_of_removed_networks_rest() {
    let mut world = World::new();
    let first = make(&mut world, spec("a", None)).unwrap();
    world.write(|tx| tx.remove(Key::Network(first.id)));
    let second = make(&mut world, spec("b", None)).unwrap();
    assert_eq!(
        (second.subnet, second.vni.get()),
        (net("10.0.2.0/24"), 4098)
    );
}

#[test]
fn pools_wrap_around_and_run_out_with_their_names() {
    let mut world = World::new();
    world.write(|tx| {
        let mut cluster = model::object::Cluster::clone(tx.state().cluster().unwrap());
        cluster.data_path.default_addr_pool = vec![net("10.0.0.0/23"), net("10.9.0.0/24")];
        tx.put(cluster).unwrap();
    });
    let a = make(&mut world, spec("a", None)).unwrap();
    let b = make(&mut world, spec("b", None)).unwrap();
    assert_eq!(
        (a.subnet, b.subnet),
        (net("10.0.1.0/24"), net("10.9.0.0/24"))
    );
    let error = make(&mut world, spec("c", None)).unwrap_err().to_string();
    assert!(error.contains("no /24 is left") && error.contains("10.0.0.0/23, 10.9.0.0/24"));
    world.write(|tx| tx.remove(Key::Network(a.id)));
    assert_eq!(make(&mut world, spec("c", None)).unwrap().subnet, a.subnet);
}

#[test]
fn subnets_that_cannot_be_are_refused_by_name() {
    let mut world = World::new();
    make(&mut world, spec("taken", Some("192.168.4.0/22"))).unwrap();
    let mut error = |spec| make(&mut world, spec).unwrap_err().to_string();
    assert_eq!(
        error(spec("x", Some("192.168.0.0/16"))),
        "subnet 192.168.0.0/16 overlaps with 192.168.4.0/22 of network taken; choose another \
         --subnet"
    );
    assert!(error(spec("x", Some("192.168.5.0/24"))).contains("of network taken"));
    assert!(error(spec("x", Some("10.0.0.0/8"))).contains("of network ingress"));
    assert!(error(spec("x", Some("172.18.4.0/24"))).contains("gateway bridges"));
    assert!(error(spec("x", Some("192.168.9.0/31"))).contains("too small"));
    let mut odd = spec("x", Some("192.168.9.0/24"));
    odd.gateway = Some(Ipv4Addr::new(192, 168, 8, 1));
    assert!(error(odd.clone()).contains("gateway 192.168.8.1 is not within"));
    odd.gateway = None;
    odd.ip_range = Some(net("192.168.8.0/23"));
    assert!(error(odd).contains("ip-range 192.168.8.0/23 is not within"));
}

#[test]
fn pools_avoid_what_users_and_nodes_have() {
    let mut world = World::new();
    make(&mut world, spec("mine", Some("10.0.1.128/25"))).unwrap();
    let mut node = fixture::node("n");
    node.vtep = Ipv4Addr::new(10, 0, 2, 7);
    world.write(|tx| tx.put(node).unwrap());
    let auto = make(&mut world, spec("auto", None)).unwrap();
    assert_eq!(auto.subnet, net("10.0.3.0/24"));
}

#[test]
fn address_given_back_rests_until_all_others_were_used() {
    let mut world = World::new();
    let small = make(&mut world, spec("small", Some("10.7.0.0/29"))).unwrap();
    let first = add_task(&mut world, &[small.id]);
    end(&mut world, first.id);
    let others: Vec<_> = (0..4)
        .map(|_| addr(&add_task(&mut world, &[small.id])))
        .collect();
    assert!(!others.contains(&addr(&first)));
    assert_eq!(addr(&add_task(&mut world, &[small.id])), addr(&first));
}

#[test]
fn full_network_is_named_on_the_task_and_the_task_served_later() {
    let mut world = World::new();
    let roomy = make(&mut world, spec("roomy", None)).unwrap();
    let small = make(&mut world, spec("small", Some("10.7.0.0/30"))).unwrap();
    let both = [roomy.id, small.id];
    let first = add_task(&mut world, &both);
    let second = add_task(&mut world, &both);
    assert_eq!(second.status.state, TaskState::Pending);
    assert_eq!((second.endpoint, second.attachments.len()), (None, 0));
    let text = second.status.err.unwrap();
    assert!(text.starts_with("network small (10.7.0.0/30) has no free address for a task of"));
    // Nothing half made, and nothing written again and again.
    let before = world.state.version();
    world.write(step);
    assert_eq!(world.state.version(), before);
    assert_eq!(
        addr(&add_task(&mut world, &[roomy.id])),
        Ipv4Addr::new(10, 0, 1, 3)
    );

    end(&mut world, first.id);
    world.write(step);
    let second = world.state.task(second.id).unwrap();
    assert_eq!(second.status.err, None);
    assert_eq!(second.attachments[1].addr, first.attachments[1].addr);
}

#[test]
fn full_network_refuses_a_vip_and_the_service() {
    let mut world = World::new();
    let small = make(&mut world, spec("small", Some("10.7.0.0/30"))).unwrap();
    create(&mut world, fixture::service("one", 0, &[small.id]));
    let before = world.state.version();
    let two = fixture::service("two", 0, &[small.id]);
    let error = world.try_write(|tx| ops::service::create(tx, two));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("network small (10.7.0.0/30) has no free address for the VIP of"));
    assert_eq!(world.state.version(), before);
}

#[test]
fn addresses_come_from_the_ip_range() {
    let mut world = World::new();
    let mut narrow = spec("narrow", Some("10.7.0.0/24"));
    narrow.ip_range = Some(net("10.7.0.0/30"));
    narrow.gateway = Some(Ipv4Addr::new(10, 7, 0, 2));
    let narrow = make(&mut world, narrow).unwrap();
    let mut got: Vec<_> = (0..2)
        .map(|_| addr(&add_task(&mut world, &[narrow.id])))
        .collect();
    got.sort();
    assert_eq!(
        got,
        [Ipv4Addr::new(10, 7, 0, 1), Ipv4Addr::new(10, 7, 0, 3)]
    );
    assert!(add_task(&mut world, &[narrow.id]).status.err.is_some());
}

fn published(world: &World, id: ServiceId) -> Vec<Option<u16>> {
    let ports = &world.state.service(id).unwrap().endpoint.ports;
    ports.iter().map(|port| port.published).collect()
}

#[test]
fn ports_are_the_next_free_and_stay() {
    let mut world = World::new();
    let mut spec = fixture::service("a", 0, &[]);
    spec.endpoint.ports = vec![
        fixture::port(None, 80),
        fixture::port(Some(30000), 81),
        fixture::port(Some(0), 80),
    ];
    let a = create(&mut world, spec.clone());
    let got = published(&world, a);
    assert_eq!(got, [Some(30001), Some(30000), Some(30002)]);

    let mut other = fixture::service("b", 0, &[]);
    other.endpoint.ports = vec![fixture::port(None, 80)];
    let b = create(&mut world, other.clone());
    assert_eq!(published(&world, b), [Some(30003)]);
    world.write(|tx| tx.remove(Key::Service(b)));
    let b = create(&mut world, other);
    assert_eq!(published(&world, b), [Some(30004)]);

    // An update keeps what it can.
    spec.endpoint.ports.remove(1);
    spec.endpoint.ports.push(fixture::port(None, 82));
    let version = world.state.service(a).unwrap().meta.version;
    world
        .try_write(|tx| ops::service::update(tx, a, version, spec))
        .unwrap();
    assert_eq!(
        published(&world, a),
        [Some(30001), Some(30002), Some(30005)]
    );
}

#[test]
fn dynamic_ports_run_out_with_a_sentence() {
    let mut world = World::new();
    let mut spec = fixture::service("all", 0, &[]);
    spec.endpoint.ports = DYNAMIC_PORTS
        .map(|port| fixture::port(None, port))
        .collect();
    create(&mut world, spec);
    let mut more = fixture::service("more", 0, &[]);
    more.endpoint.ports = vec![fixture::port(None, 80)];
    let refused = world.try_write(|tx| ops::service::create(tx, more.clone()));
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("all tcp ports from 30000 to 32767")
    );
    more.endpoint.ports[0].protocol = model::spec::Protocol::Udp;
    create(&mut world, more);
}

/// What happens to a cluster, as far as numbers go.
#[derive(Debug, Clone)]
enum Event {
    AddTask(u8),
    End(usize),
    Forget(usize),
    AddService(u8, bool),
    RemoveService(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1u8..4).prop_map(Event::AddTask),
        2 => any::<usize>().prop_map(Event::End),
        1 => any::<usize>().prop_map(Event::Forget),
        2 => (0u8..4, any::<bool>()).prop_map(|(n, port)| Event::AddService(n, port)),
        1 => any::<usize>().prop_map(Event::RemoveService),
    ]
}

/// Bits choose networks.
fn chosen(networks: &[NetworkId], bits: u8) -> Vec<NetworkId> {
    let chosen = networks.iter().enumerate();
    chosen
        .filter(|(i, _)| bits >> i & 1 == 1)
        .map(|(_, id)| *id)
        .collect()
}

fn happen(world: &mut World, networks: &[NetworkId], serial: usize, event: Event) {
    let tasks: Vec<_> = world.state.tasks().map(|task| task.id).collect();
    let services: Vec<_> = world.state.services().map(|service| service.id).collect();
    match event {
        Event::AddTask(bits) => {
            add_task(world, &chosen(networks, bits));
        }
        Event::End(pick) if !tasks.is_empty() => end(world, tasks[pick % tasks.len()]),
        Event::Forget(pick) if !tasks.is_empty() => {
            world.write(|tx| tx.remove(Key::Task(tasks[pick % tasks.len()])));
        }
        Event::AddService(bits, port) => {
            let mut spec = fixture::service(&format!("s{serial}"), 0, &chosen(networks, bits));
            spec.endpoint
                .ports
                .extend(port.then(|| fixture::port(None, 80)));
            // May be refused: the networks are small.
            let _ = world.try_write(|tx| ops::service::create(tx, spec));
        }
        Event::RemoveService(pick) if !services.is_empty() => {
            world.write(|tx| tx.remove(Key::Service(services[pick % services.len()])));
        }
        _ => {}
    }
    world.write(step);
}

/// Addresses that objects hold, each once; ports likewise.
fn held(world: &World) -> BTreeSet<(NetworkId, Ipv4Addr)> {
    let mut held = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for service in world.state.services() {
        for vip in &service.endpoint.vips {
            assert!(held.insert((vip.network, vip.addr)));
        }
        for port in &service.endpoint.ports {
            assert!(ports.insert((port.protocol, port.published.unwrap())));
        }
    }
    for task in world
        .state
        .tasks()
        .filter(|task| holds_addresses(&world.state, task))
    {
        for attachment in &task.attachments {
            assert!(held.insert((attachment.network, attachment.addr)));
        }
    }
    held
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In two networks of six hosts: nothing is handed out twice, and a live task waits only while
    /// one of its networks is full.
    #[test]
    fn nothing_is_handed_out_twice_or_lost(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        let subnets = ["10.7.0.0/29", "10.8.0.0/29"];
        let networks: Vec<_> = subnets
            .map(|subnet| make(&mut world, spec(&subnet.replace(['.', '/'], "-"), Some(subnet))))
            .map(|network| network.unwrap().id)
            .to_vec();
        for (serial, event) in events.into_iter().enumerate() {
            happen(&mut world, &networks, serial, event);
            let held = held(&world);
            let is_full = |id: &NetworkId| held.iter().filter(|(n, _)| n == id).count() == 5;
            for task in world.state.tasks().filter(|task| holds_addresses(&world.state, task)) {
                let waits = task.endpoint.is_none();
                let wanted: Vec<_> = task.spec.networks.iter().map(|n| n.network).collect();
                prop_assert_eq!(waits, task.status.err.is_some());
                prop_assert!(!waits || wanted.iter().any(is_full));
                prop_assert!(waits || task.attachments.len() == wanted.len());
            }
        }
        let all: Vec<Key> = world.state.tasks().map(|task| Key::Task(task.id)).collect();
        let services = world.state.services().map(|service| Key::Service(service.id));
        let all: Vec<Key> = all.into_iter().chain(services).collect();
        world.write(|tx| all.into_iter().for_each(|key| tx.remove(key)));
        prop_assert!(held(&world).is_empty());
        let addrs: BTreeSet<_> = (0..5).map(|_| addr(&add_task(&mut world, &networks))).collect();
        prop_assert_eq!(addrs.len(), 5);
    }
}

/// Thousands of tasks at once: a scan for each would take minutes.
#[test]
fn thousands_of_tasks_are_served() {
    let mut world = World::new();
    let wide = make(&mut world, spec("wide", Some("10.64.0.0/16"))).unwrap();
    world.write(|tx| {
        for slot in 1..=5000 {
            tx.put(task(ServiceId::from_raw(1), slot, &[wide.id]))
                .unwrap();
        }
    });
    let mut before = world.state.version();
    loop {
        world.write(step);
        if world.state.version() == before {
            break;
        }
        before = world.state.version();
    }
    assert_eq!(held(&world).len(), 5000);
}
