use model::{
    NetworkId, ServiceId, Version,
    object::{ManagerStatus, NodeState, RaftId, Service, UpdateState, UpdateStatus},
    spec::{
        ClusterSpec, EndpointMode, NetworkSpec, NodeRole, Protocol, PublishMode, REPLICAS_MAX,
        ServiceMode, ServiceSpec,
    },
};

use super::*;
use crate::fixture::{self, World};

fn create(world: &mut World, spec: ServiceSpec) -> Result<ServiceId, OpError> {
    world.try_write(|tx| service::create(tx, spec))
}

/// What the user reads; nothing has changed then.
fn refused(world: &mut World, spec: ServiceSpec) -> String {
    let before = world.state.version();
    let error = create(world, spec).unwrap_err();
    assert_eq!(world.state.version(), before);
    error.to_string()
}

fn stored(world: &World, id: ServiceId) -> Service {
    Service::clone(world.state.service(id).unwrap())
}

fn update(
    world: &mut World,
    id: ServiceId,
    change: impl FnOnce(&mut ServiceSpec),
) -> Result<(), OpError> {
    let service = stored(world, id);
    let mut spec = service.spec;
    change(&mut spec);
    world.try_write(|tx| service::update(tx, id, service.meta.version, spec))
}

fn make_network(world: &mut World, name: &str) -> Result<NetworkId, OpError> {
    let spec = NetworkSpec {
        name: name.to_owned(),
        ..NetworkSpec::default()
    };
    world.try_write(|tx| network::create(tx, spec))
}

const INVALID: &str = "rpc error: code = InvalidArgument desc = ";

#[test]
fn specs_that_make_no_sense_are_refused_in_dockers_words() {
    let mut world = World::new();
    let mut check = |change: fn(&mut ServiceSpec), text: &str| {
        let mut spec = fixture::service("web", 1, &[]);
        change(&mut spec);
        assert_eq!(refused(&mut world, spec), format!("{INVALID}{text}"));
    };
    let dns = "name must be valid as a DNS name component";
    for bad in ["-web", "web-", "w.eb", "w eb", "wéb", "_"] {
        check_name(bad, dns);
    }
    check_name("", "meta: name must be provided");
    check_name(&"x".repeat(64), "name must be 63 characters or fewer");
    check(
        |spec| spec.task.container.image.clear(),
        "ContainerSpec: image reference must be provided",
    );
    check(
        |spec| spec.task.placement.constraints = vec!["node.role=x".to_owned()],
        "constraint expected one operator from ==, !=",
    );
    check(
        |spec| {
            spec.endpoint.mode = EndpointMode::Dnsrr;
            spec.endpoint.ports = vec![fixture::port(None, 80)];
        },
        "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    );
    check(
        |spec| spec.endpoint.ports = vec![fixture::port(Some(80), 80), fixture::port(Some(80), 81)],
        "EndpointSpec: duplicate published ports provided",
    );
    check(
        |spec| spec.endpoint.ports = vec![fixture::port(Some(80), 0)],
        "EndpointSpec: target port must be between 1 and 65535",
    );
    check(
        |spec| spec.task.resources.limit_memory_bytes = Some(1 << 20),
        "invalid memory value 1048576: Must be at least 4MiB",
    );
    check(
        |spec| spec.task.resources.reserve_nano_cpus = Some(1000),
        "invalid cpu value 0.000001: Must be at least 0.001",
    );
    check(
        |spec| {
            let update = spec.update.insert(Default::default());
            update.max_failure_ratio = f32::NAN;
        },
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    );
}

fn check_name(name: &str, text: &str) {
    let mut world = World::new();
    let spec = fixture::service(name, 1, &[]);
    assert_eq!(
        refused(&mut world, spec),
        format!("{INVALID}{text}"),
        "{name}"
    );
    let refused = make_network(&mut world, name).unwrap_err();
    assert_eq!(refused.to_string(), format!("{INVALID}{text}"), "{name}");
}

#[test]
fn taken_ports_and_names_are_named() {
    let mut world = World::new();
    let mut web = fixture::service("web", 1, &[]);
    web.endpoint.ports = vec![fixture::port(Some(8080), 80)];
    let id = create(&mut world, web.clone()).unwrap();
    // The port comes first, whatever the case of the name.
    let port = format!(
        "{INVALID}port '8080' is already in use by service 'web' ({id}) as an ingress port"
    );
    assert_eq!(refused(&mut world, web.clone()), port);
    web.endpoint.ports.clear();
    web.name = "WEB".to_owned();
    assert_eq!(
        refused(&mut world, web.clone()),
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service \
         WEB already exists"
    );

    let mut udp = fixture::service("udp", 1, &[]);
    udp.endpoint.ports = vec![fixture::port(Some(8080), 80)];
    udp.endpoint.ports[0].protocol = Protocol::Udp;
    let udp = create(&mut world, udp).unwrap();
    let taken = update(&mut world, udp, |spec| {
        spec.endpoint.ports[0].protocol = Protocol::Tcp
    });
    assert_eq!(taken.unwrap_err().to_string(), port);
}

#[test]
fn host_ports_conflict_with_ingress_ports_only() {
    let mut world = World::new();
    let host = |name: &str| {
        let mut spec = fixture::service(name, 1, &[]);
        spec.endpoint.ports = vec![fixture::port(Some(8080), 80)];
        spec.endpoint.ports[0].mode = PublishMode::Host;
        spec
    };
    let a = create(&mut world, host("a")).unwrap();
    create(&mut world, host("b")).unwrap();
    let mut ingress = host("c");
    ingress.endpoint.ports[0].mode = PublishMode::Ingress;
    let text = refused(&mut world, ingress);
    assert!(
        text.contains("port '8080' is already in use by service"),
        "{text}"
    );
    assert!(text.ends_with("as a host-published port"), "{text}");
    assert!(world.state.service(a).is_some());
}

#[test]
fn the_tunnels_port_is_nobodys() {
    let mut world = World::new();
    let mut spec = fixture::service("web", 1, &[]);
    spec.endpoint.ports = vec![fixture::port(Some(4789), 80)];
    let id = create(&mut world, spec.clone()).unwrap();
    spec.name = "other".to_owned();
    for mode in [PublishMode::Ingress, PublishMode::Host] {
        spec.endpoint.ports[0].protocol = Protocol::Udp;
        spec.endpoint.ports[0].mode = mode;
        assert_eq!(
            refused(&mut world, spec.clone()),
            format!(
                "{INVALID}port 4789/udp carries the tunnel between the nodes (the cluster's \
                 data-path port): publish another one"
            )
        );
    }
    spec.endpoint.ports[0].published = Some(7946);
    assert_eq!(
        refused(&mut world, spec),
        format!("{INVALID}port 7946/udp carries the probes between the nodes: publish another one")
    );
    let to_udp = update(&mut world, id, |spec| {
        spec.endpoint.ports[0].protocol = Protocol::Udp
    });
    assert!(to_udp.unwrap_err().to_string().contains("4789/udp carries"));
}

#[test]
fn unknown_and_forbidden_networks_are_refused() {
    let mut world = World::new();
    let nowhere = NetworkId::from_raw(7);
    assert_eq!(
        refused(&mut world, fixture::service("web", 1, &[nowhere])),
        format!("network {nowhere} not found")
    );
    let ingress = crate::allocator::ingress(&world.state).unwrap().id;
    assert_eq!(
        refused(&mut world, fixture::service("web", 1, &[ingress])),
        format!(
            "{INVALID}Service cannot be explicitly attached to the ingress network \"ingress\""
        )
    );
    let net = make_network(&mut world, "net").unwrap();
    let twice = refused(&mut world, fixture::service("web", 1, &[net, net]));
    assert!(twice.contains(&format!("network {net} is attached twice")));
}

#[test]
fn updates_keep_name_and_mode_and_order() {
    let mut world = World::new();
    let id = create(&mut world, fixture::service("web", 1, &[])).unwrap();
    let error = update(&mut world, id, |spec| spec.name = "x".to_owned()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rpc error: code = Unimplemented desc = renaming services is not supported"
    );
    let error = update(&mut world, id, |spec| spec.mode = ServiceMode::Global).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rpc error: code = Unimplemented desc = service mode change is not allowed"
    );
    let old = stored(&world, id);
    update(&mut world, id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 2 }
    })
    .unwrap();
    let again = world.try_write(|tx| service::update(tx, id, old.meta.version, old.spec));
    assert_eq!(
        again.unwrap_err().to_string(),
        "rpc error: code = Unknown desc = update out of sequence"
    );
    let read = stored(&world, id);
    world.write(|tx| {
        let mut service = Service::clone(&read);
        service.update_status = Some(UpdateStatus {
            state: UpdateState::Updating,
            since: tx.version(),
            started_at: tx.now(),
            completed_at: None,
            message: String::new(),
        });
        tx.put(service).unwrap();
    });
    assert!(stored(&world, id).meta.version > read.meta.version);
    // Its progress is no edit.
    world
        .try_write(|tx| service::update(tx, id, read.meta.version, read.spec.clone()))
        .unwrap();
    let later = Version(stored(&world, id).meta.version.0 + 1);
    let early = world.try_write(|tx| service::update(tx, id, later, read.spec));
    assert_eq!(early, Err(OpError::OutOfSequence));
    let unknown = ServiceId::from_raw(1);
    let gone = world
        .try_write(|tx| service::remove(tx, unknown))
        .unwrap_err();
    assert_eq!(gone.to_string(), format!("service {unknown} not found"));
}

#[test]
fn more_replicas_than_a_ring_can_name_are_refused() {
    let mut world = World::new();
    let refusal = "rpc error: code = InvalidArgument desc = 100000000 replicas are too many: a service \
                   has 65535 at most";
    let endless = fixture::service("web", 100_000_000, &[]);
    assert_eq!(refused(&mut world, endless), refusal);
    let most = fixture::service("web", REPLICAS_MAX, &[]);
    let id = create(&mut world, most).unwrap();
    let error = update(&mut world, id, |spec| {
        spec.mode = ServiceMode::Replicated {
            replicas: 100_000_000,
        }
    });
    assert_eq!(error.unwrap_err().to_string(), refusal);
}

#[test]
fn spec_version_rises_with_the_task_alone() {
    let mut world = World::new();
    let id = create(&mut world, fixture::service("web", 1, &[])).unwrap();
    let first = stored(&world, id);
    assert_eq!(first.spec_version, first.meta.version);
    update(&mut world, id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 9 }
    })
    .unwrap();
    update(&mut world, id, |_| {}).unwrap();
    let scaled = stored(&world, id);
    assert_eq!(scaled.spec_version, first.spec_version);
    // The update that changed nothing did not push the scaling out of memory.
    assert_eq!(scaled.previous_spec, Some(first.spec));
    update(&mut world, id, |spec| spec.task.force_update = 1).unwrap();
    assert!(stored(&world, id).spec_version > first.spec_version);
}

#[test]
fn rollback_goes_back_once_and_forth_again() {
    let mut world = World::new();
    let id = create(&mut world, fixture::service("web", 1, &[])).unwrap();
    let rollback = |world: &mut World| {
        let version = stored(world, id).meta.version;
        world.try_write(|tx| service::rollback(tx, id, version))
    };
    assert_eq!(
        rollback(&mut world).unwrap_err().to_string(),
        format!(
            "rpc error: code = FailedPrecondition desc = service {id} does not have a previous spec"
        )
    );
    let old = stored(&world, id).spec;
    update(&mut world, id, |spec| {
        spec.task.container.image = "new".to_owned()
    })
    .unwrap();
    let new = stored(&world, id).spec;
    rollback(&mut world).unwrap();
    let back = stored(&world, id);
    assert_eq!((back.spec, back.previous_spec), (old, Some(new.clone())));
    assert_eq!(
        back.update_status.unwrap().message,
        "manually requested rollback"
    );
    rollback(&mut world).unwrap();
    assert_eq!(stored(&world, id).spec, new);
}

#[test]
fn endpoint_follows_networks_and_mode() {
    let mut world = World::new();
    let (a, b) = (
        make_network(&mut world, "a").unwrap(),
        make_network(&mut world, "b").unwrap(),
    );
    let id = create(&mut world, fixture::service("web", 1, &[a])).unwrap();
    let first = stored(&world, id).endpoint.vips;
    let both = fixture::service("web", 1, &[b, a]).task.networks;
    update(&mut world, id, |spec| spec.task.networks = both).unwrap();
    let vips = stored(&world, id).endpoint.vips;
    assert_eq!((vips.len(), vips[0].network, vips[1]), (2, b, first[0]));
    update(&mut world, id, |spec| {
        spec.endpoint.mode = EndpointMode::Dnsrr
    })
    .unwrap();
    assert!(stored(&world, id).endpoint.vips.is_empty());
}

#[test]
fn networks_in_use_and_ingress_stay() {
    let mut world = World::new();
    let net = make_network(&mut world, "net").unwrap();
    let taken = make_network(&mut world, "Net").unwrap_err();
    assert_eq!(taken.to_string(), "network with name net already exists");
    let id = create(&mut world, fixture::service("web", 1, &[net])).unwrap();
    let remove = |world: &mut World, id| world.try_write(|tx| network::remove(tx, id));
    assert_eq!(
        remove(&mut world, net).unwrap_err().to_string(),
        format!(
            "rpc error: code = FailedPrecondition desc = network {net} is in use by service {id}"
        )
    );
    let ingress = crate::allocator::ingress(&world.state).unwrap().id;
    assert!(remove(&mut world, ingress).is_err());
    world.try_write(|tx| service::remove(tx, id)).unwrap();
    remove(&mut world, net).unwrap();
    let gone = remove(&mut world, net).unwrap_err();
    assert_eq!(gone.to_string(), format!("network {net} not found"));
    let second = NetworkSpec {
        name: "mesh".to_owned(),
        ingress: true,
        ..NetworkSpec::default()
    };
    let second = world
        .try_write(|tx| network::create(tx, second))
        .unwrap_err();
    assert_eq!(
        second.to_string(),
        format!("ingress network ({ingress}) is already present")
    );
}

#[test]
fn nodes_go_when_down_or_by_force_but_managers_never() {
    let mut world = World::new();
    let ids = world.add_nodes(3);
    let remove = |world: &mut World, id, force| world.try_write(|tx| node::remove(tx, id, force));
    let change = |world: &mut World, id, f: fn(&mut model::object::Node)| {
        world.write(|tx| {
            let mut node = model::object::Node::clone(tx.state().node(id).unwrap());
            f(&mut node);
            tx.put(node).unwrap();
        });
    };
    assert_eq!(
        remove(&mut world, ids[0], false).unwrap_err().to_string(),
        format!(
            "rpc error: code = FailedPrecondition desc = node {} is not down and can't be removed",
            ids[0]
        )
    );
    remove(&mut world, ids[0], true).unwrap();
    change(&mut world, ids[1], |node| {
        node.status.state = NodeState::Down
    });
    remove(&mut world, ids[1], false).unwrap();
    change(&mut world, ids[2], |node| {
        node.spec.role = NodeRole::Manager
    });
    let text = remove(&mut world, ids[2], true).unwrap_err().to_string();
    assert!(text.contains("is a cluster manager and is a member of the raft cluster"));

    let node = world.state.node(ids[2]).unwrap().clone();
    let worker = model::spec::NodeSpec::default();
    let demoted =
        world.try_write(|tx| node::update(tx, node.id, node.meta.version, worker, |_| true));
    assert_eq!(
        demoted.unwrap_err().to_string(),
        "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the \
         swarm"
    );
}

/// Of three managers one may go as long as the two that are left both answer; of two, if the other
/// does.
#[test]
fn manager_is_not_demoted_when_the_rest_would_have_no_quorum() {
    let mut world = World::new();
    let ids = world.add_nodes(3);
    world.write(|tx| {
        for (raft, id) in (1..).zip(&ids) {
            let mut node = model::object::Node::clone(tx.state().node(*id).unwrap());
            node.spec.role = NodeRole::Manager;
            node.manager = Some(ManagerStatus {
                raft: RaftId(raft),
                addr: "192.0.2.1:2377".parse().unwrap(),
            });
            tx.put(node).unwrap();
        }
    });
    let demote = |world: &mut World, id, up: &[u64]| {
        let version = world.state.node(id).unwrap().meta.version;
        let worker = model::spec::NodeSpec::default();
        let is_up = |raft: RaftId| up.contains(&raft.0);
        world.try_write(|tx| node::update(tx, id, version, worker, is_up))
    };
    let down = world
        .state
        .node(ids[2])
        .unwrap()
        .description
        .hostname
        .clone();
    let text = demote(&mut world, ids[1], &[1, 2]).unwrap_err().to_string();
    assert!(text.contains("loss of quorum"), "{text}");
    assert!(text.contains(&format!("bring back {down} ")), "{text}");
    // The one that is down is what the others can do without.
    demote(&mut world, ids[2], &[1, 2]).unwrap();
    demote(&mut world, ids[1], &[1]).unwrap();
    let text = demote(&mut world, ids[0], &[1]).unwrap_err().to_string();
    assert!(text.contains("last manager"), "{text}");
}

#[test]
fn tokens_rotate_behind_their_root() {
    let mut world = World::new();
    let before = world.state.cluster().unwrap().clone();
    let rotate = Rotate {
        worker_token: true,
        ..Rotate::default()
    };
    let run = |world: &mut World, version: Version, spec: ClusterSpec| {
        world.try_write(|tx| cluster::update(tx, version, spec, rotate))
    };
    let spec = ClusterSpec {
        cert_expiry: std::time::Duration::from_secs(60),
        ..ClusterSpec::default()
    };
    let version = before.meta.version;
    assert_eq!(
        run(&mut world, version, spec).unwrap_err().to_string(),
        format!("{INVALID}minimum certificate expiry time is: 1h0m0s")
    );
    run(&mut world, version, ClusterSpec::default()).unwrap();
    let after = world.state.cluster().unwrap().clone();
    assert_eq!(after.tokens.manager, before.tokens.manager);
    assert_ne!(after.tokens.worker, before.tokens.worker);
    assert!(
        after
            .tokens
            .worker
            .parse::<model::token::JoinToken>()
            .is_ok()
    );
    assert_eq!(after.tokens.worker[..60], before.tokens.worker[..60]);
    assert_eq!(
        run(&mut world, version, ClusterSpec::default()),
        Err(OpError::OutOfSequence)
    );
}
