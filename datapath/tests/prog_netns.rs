//! The programs together, on real devices: two nodes, a client outside, tasks as plain namespaces.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Instant,
};

use aya::programs::XdpMode;
use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::{Be32, ClientKey, ClientValue, SERVICE_AFFINITY, ServiceValue, VipKey};

const MIB: usize = 1 << 20;

#[track_caller]
fn assert_came_from(server: &EchoServer, addr: Be32) {
    assert_eq!(server.peer().ip(), show(addr));
}

#[test]
fn overlay_carries_tcp_and_udp_between_and_inside_nodes() {
    let mut cluster = Cluster::new();
    let [near, far] = [&cluster.a.tasks[1], &cluster.b.tasks[0]];
    let from = &cluster.a.tasks[0];
    for to in [near, far] {
        let server = EchoServer::tcp(&to.namespace, at(to.overlay, 80));
        let stream = connect(&from.namespace, at(to.overlay, 80));
        assert_came_from(&server, from.overlay);
        exchange(&stream, 16 * MIB);
        let server = EchoServer::udp(&to.namespace, at(to.overlay, 53));
        let socket = udp(&from.namespace);
        assert_eq!(ask(&socket, at(to.overlay, 53), 1400), at(to.overlay, 53));
        assert_came_from(&server, from.overlay);
        // Larger than the MTU: fragments need no ports on this path.
        assert_eq!(ask(&socket, at(to.overlay, 53), 4000), at(to.overlay, 53));
    }
    cluster.assert_no_drops();
    assert!(cluster.a.node.stats(11).packets > 0);
}

#[test]
fn networks_are_apart() {
    let mut cluster = Cluster::new();
    // Task 12 moves to another network: neither its neighbour nor node B's task reaches it.
    let addr = cluster.a.tasks[1].overlay;
    for host in cluster.hosts() {
        host.node
            .hash::<dataplane_abi::EndpointKey, dataplane_abi::EndpointValue>("ENDPOINTS")
            .remove(&dataplane_abi::EndpointKey { vni: VNI, addr })
            .unwrap();
        host.node.endpoint(VNI + 1, addr, Place::Here(0));
    }
    for from in [&cluster.a.tasks[0], &cluster.b.tasks[0]] {
        let refused = from
            .namespace
            .run(|| TcpStream::connect_timeout(&at(addr, 80), std::time::Duration::from_secs(4)));
        let error = refused.expect_err("the address is not in this network");
        assert!(
            matches!(
                error.kind(),
                ErrorKind::HostUnreachable | ErrorKind::TimedOut
            ),
            "{error}"
        );
    }
    assert!(cluster.a.node.drops().contains_key("unknown-destination"));
    assert!(cluster.b.node.drops().contains_key("unknown-destination"));
}

#[test]
fn vip_per_packet_reaches_backends_far_near_and_oneself() {
    let mut cluster = Cluster::new();
    for (base, backend) in [(0, ON_B), (10, ON_A_2), (20, ON_A)] {
        cluster.vip(base, &[slot(backend, backend)]);
        let to = match backend {
            ON_A => &cluster.a.tasks[0],
            ON_A_2 => &cluster.a.tasks[1],
            _ => &cluster.b.tasks[0],
        };
        let from = &cluster.a.tasks[0];
        // A backend that is oneself sees the VIP, the others the caller.
        let seen = if backend == ON_A { VIP } else { from.overlay };
        let server = EchoServer::tcp(&to.namespace, at(to.overlay, 80));
        let stream = connect(&from.namespace, at(VIP, 80));
        assert_eq!(stream.peer_addr().unwrap(), at(VIP, 80));
        assert_came_from(&server, seen);
        exchange(&stream, 8 * MIB);
        let server = EchoServer::udp(&to.namespace, at(to.overlay, 53));
        let socket = udp(&from.namespace);
        assert_eq!(
            ask(&socket, at(VIP, 53), 1200),
            at(VIP, 53),
            "the answer names the VIP"
        );
        assert_came_from(&server, seen);
    }
    cluster.assert_no_drops();
}

#[test]
fn mesh_reaches_a_remote_backend_with_the_clients_address_kept() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    let task = &cluster.b.tasks[0];
    let tcp = EchoServer::tcp(&task.namespace, at(task.gateway, 80));
    let datagrams = EchoServer::udp(&task.namespace, at(task.gateway, 80));
    for entry in [NODE_A, NODE_B] {
        let stream = connect(&cluster.client, at(entry, 8080));
        assert_came_from(&tcp, CLIENT);
        exchange(&stream, 16 * MIB);
        let socket = udp(&cluster.client);
        assert_eq!(ask(&socket, at(entry, 8080), 1400), at(entry, 8080));
        assert_came_from(&datagrams, CLIENT);
    }
    cluster.assert_no_drops();
    // Both entries counted a flow of each kind that has a SYN; the task all four.
    assert_eq!(cluster.a.node.stats(FRONT).new_flows, 1);
    assert_eq!(cluster.b.node.stats(FRONT).new_flows, 1);
    assert_eq!(cluster.b.node.stats(21).new_flows, 4);
}

#[test]
fn native_xdp_forwards_to_remote_backends_without_the_stack() {
    xdp_forwards_without_the_stack(Cluster::new(), XdpMode::Driver);
}

#[test]
fn generic_xdp_forwards_to_remote_backends_without_the_stack() {
    let mut cluster = Cluster::new();
    // As the data plane does beside generic XDP. A wire would part what that leaves in one piece; the
    // veth brings it to B as it is.
    for host in cluster.hosts() {
        host.namespace.offload("vx0", "gro", "off");
    }
    xdp_forwards_without_the_stack(cluster, XdpMode::Skb);
}

fn xdp_forwards_without_the_stack(mut cluster: Cluster, mode: XdpMode) {
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    let _napi = cluster.switch.enable_napi(NODE_A);
    cluster.a.attach_xdp(mode);
    cluster.client.finish_checksums("up0");
    // A known neighbour: what is not known yet goes by tc.
    let mac = cluster
        .b
        .namespace
        .mac("up0")
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    cluster.a.namespace.ip(&format!(
        "neigh replace 192.0.2.2 lladdr {mac} dev up0 nud permanent"
    ));
    let task = &cluster.b.tasks[0];
    let server = EchoServer::tcp(&task.namespace, at(task.gateway, 80));
    let stream = connect(&cluster.client, at(NODE_A, 8080));
    assert_came_from(&server, CLIENT);
    exchange(&stream, 4 * MIB);
    assert_eq!(
        cluster.a.sent("vx0"),
        0,
        "nothing went through the VXLAN device"
    );
    let stats = cluster.a.node.stats(FRONT);
    assert!(stats.packets > 100 && stats.new_flows == 1, "{stats:?}");
    cluster.assert_no_drops();
}

#[test]
fn connections_survive_several_changes_of_the_ring() {
    let mut cluster = Cluster::new();
    let order = [ON_B, ON_A, ON_A_2];
    for (turn, course) in [[0, 1, 2], [1, 0, 2], [2, 1, 0]].into_iter().enumerate() {
        let [first, second, third] = course.map(|at| order[at]);
        let base = 30 * turn as u32;
        cluster.publish(base, &[slot(first, first)]);
        let owner = match first {
            ON_B => &cluster.b.tasks[0],
            ON_A => &cluster.a.tasks[0],
            _ => &cluster.a.tasks[1],
        };
        let server = EchoServer::tcp(&owner.namespace, at(owner.gateway, 80));
        let streams = [NODE_A, NODE_B].map(|entry| connect(&cluster.client, at(entry, 8080)));
        for (change, moved) in [slot(second, first), slot(third, second)]
            .into_iter()
            .enumerate()
        {
            cluster.set_unsettled_until(u64::MAX);
            cluster.publish(base + 10 * (1 + change as u32), &[moved]);
            if change == 0 {
                // The slot names the owner as the one before.
                streams.iter().for_each(|stream| exchange(stream, MIB));
                continue;
            }
            // It does so no more. What is sent meanwhile is sent again, and finds its way once the
            // pin is there.
            let lost = cluster.dropped("unsettled");
            for mut stream in &streams {
                stream.write_all(b"x").unwrap();
            }
            wait_until("the packets meet no flow", || {
                cluster.dropped("unsettled") >= lost + streams.len() as u64
            });
            streams.iter().for_each(|stream| cluster.pin(stream, first));
            for mut stream in &streams {
                stream.read_exact(&mut [0]).unwrap();
                exchange(stream, MIB);
            }
        }
        for _ in &streams {
            assert_came_from(&server, CLIENT);
        }
        assert!(server.is_idle());
    }
    for host in cluster.hosts() {
        let drops = host.node.drops();
        assert!(
            drops.keys().all(|reason| *reason == "unsettled"),
            "{drops:?}"
        );
    }
}

#[test]
fn neighbours_reach_each_other_by_the_gateway_bridge_only_where_published() {
    let cgroup = Cgroup::enter();
    let mut cluster = Cluster::new();
    cluster.a.attach_sockets(&cgroup);
    let [from, to] = [&cluster.a.tasks[0], &cluster.a.tasks[1]];
    let tcp = [80, 81].map(|port| EchoServer::tcp(&to.namespace, at(to.gateway, port)));
    let datagrams = [80, 81].map(|port| EchoServer::udp(&to.namespace, at(to.gateway, port)));
    let try_tcp = |from: &Task, to: Be32, port| {
        let patience = std::time::Duration::from_millis(300);
        from.namespace
            .run(|| TcpStream::connect_timeout(&at(to, port), patience))
    };
    for port in [80, 81] {
        let error = try_tcp(from, to.gateway, port).expect_err("nothing is published");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let socket = udp(&from.namespace);
        socket.send_to(b"x", at(to.gateway, port)).unwrap();
    }
    let dropped = cluster.a.node.drops()["isolated"];
    assert!(dropped >= 4, "{dropped}");

    cluster.publish(0, &[slot(ON_A_2, ON_A_2)]);
    let [from, to] = [&cluster.a.tasks[0], &cluster.a.tasks[1]];
    // By the published port and, what that comes to, directly.
    for addr in [at(NODE_A, 8080), at(to.gateway, 80)] {
        let stream = connect(&from.namespace, addr);
        assert_came_from(&tcp[0], from.gateway);
        exchange(&stream, 4 * MIB);
        let socket = udp(&from.namespace);
        assert_eq!(ask(&socket, addr, 1400), addr);
        assert_came_from(&datagrams[0], from.gateway);
    }
    try_tcp(from, to.gateway, 81).expect_err("81 is not published");
    assert!(tcp[1].is_idle() && datagrams.iter().all(EchoServer::is_idle));
    // The node itself is no neighbour.
    let stream = connect(&cluster.a.namespace, at(to.gateway, 80));
    exchange(&stream, MIB);
}

#[test]
fn connections_survive_a_change_of_the_ring() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    let [old, new] = [&cluster.b.tasks[0], &cluster.a.tasks[0]];
    let old_server = EchoServer::tcp(&old.namespace, at(old.gateway, 80));
    let new_server = EchoServer::tcp(&new.namespace, at(new.gateway, 80));
    // Through the node of the new owner, and through that of the old one.
    let streams = [NODE_A, NODE_B].map(|entry| connect(&cluster.client, at(entry, 8080)));
    for stream in &streams {
        assert_came_from(&old_server, CLIENT);
        exchange(stream, MIB);
    }
    cluster.publish(10, &[slot(ON_A, ON_B)]);
    for stream in &streams {
        exchange(stream, 4 * MIB);
    }
    for entry in [NODE_A, NODE_B] {
        let stream = connect(&cluster.client, at(entry, 8080));
        assert_came_from(&new_server, CLIENT);
        exchange(&stream, MIB);
    }
    assert!(old_server.is_idle());
    cluster.assert_no_drops();
}

#[test]
fn connections_without_a_backend_fail_at_once() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[]);
    cluster.vip(0, &[]);
    let refused = |from: &common::Namespace, to| {
        let outcome = from.run(|| TcpStream::connect_timeout(&to, patience()));
        assert_eq!(
            outcome.expect_err("there is no backend").kind(),
            ErrorKind::ConnectionRefused
        );
    };
    for entry in [NODE_A, NODE_B] {
        refused(&cluster.client, at(entry, 8080));
    }
    // No socket hook here: per packet.
    refused(&cluster.a.tasks[0].namespace, at(VIP, 80));
    // The local sender of that left the checksum to be finished; one that finishes it itself.
    cluster.client.finish_checksums("up0");
    refused(&cluster.client, at(NODE_A, 8080));
    for host in [&mut cluster.a, &mut cluster.b] {
        assert_eq!(
            host.node.drops().keys().collect::<Vec<_>>(),
            [&"no-backend"]
        );
    }
}

#[test]
fn connections_to_a_task_that_is_gone_are_reset() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    cluster.vip(20, &[slot(ON_B, ON_B)]);
    let task = &cluster.b.tasks[0];
    let _server = EchoServer::tcp(&task.namespace, at(task.gateway, 80));
    let _vip_server = EchoServer::tcp(&task.namespace, at(task.overlay, 80));
    let open = |cluster: &Cluster| {
        let streams = [NODE_A, NODE_B].map(|entry| connect(&cluster.client, at(entry, 8080)));
        for stream in &streams {
            exchange(stream, 4 * MIB);
        }
        streams
    };
    // The task went, and the entry nodes do not know yet; then they do.
    let streams = open(&cluster);
    let endpoint = cluster.b.tasks[0].endpoint;
    cluster
        .b
        .node
        .hash::<u32, dataplane_abi::LocalEndpoint>("LOCAL")
        .remove(&endpoint)
        .unwrap();
    streams.iter().for_each(assert_reset);
    assert!(cluster.b.node.drops()["backend-gone"] >= 2);

    let ifindex = cluster.b.namespace.ifindex(&format!("gw{endpoint}"));
    let gateway = cluster.b.tasks[0].gateway;
    cluster.b.node.local(endpoint, ifindex, gateway, endpoint);
    let streams = open(&cluster);
    let by_vip = connect(&cluster.a.tasks[0].namespace, at(VIP, 80));
    exchange(&by_vip, MIB);
    cluster.publish(10, &[]);
    cluster.vip(30, &[]);
    streams.iter().for_each(assert_reset);
    assert_reset(&by_vip);
    assert!(cluster.a.node.drops()["no-backend"] >= 2);
}

/// A segment of more than one packet is answered by a RST.
#[track_caller]
fn assert_reset(stream: &TcpStream) {
    let outcome = (&*stream)
        .write_all(&[7; 8000])
        .and_then(|()| (&*stream).read(&mut [0; 8]));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn socket_hooks_translate_once_and_tell_the_application_the_vip() {
    let cgroup = Cgroup::enter();
    let mut cluster = Cluster::new();
    cluster.a.attach_sockets(&cgroup);
    cluster.vip(0, &[slot(ON_B, ON_B)]);
    let (from, to) = (&cluster.a.tasks[0], &cluster.b.tasks[0]);
    let server = EchoServer::tcp(&to.namespace, at(to.overlay, 80));
    let stream = connect(&from.namespace, at(VIP, 80));
    assert_eq!(stream.peer_addr().unwrap(), at(VIP, 80), "getpeername");
    assert_came_from(&server, from.overlay);
    exchange(&stream, 4 * MIB);

    let server = EchoServer::udp(&to.namespace, at(to.overlay, 53));
    let socket = udp(&from.namespace);
    assert_eq!(
        ask(&socket, at(VIP, 53), 100),
        at(VIP, 53),
        "recvmsg names the VIP"
    );
    assert_eq!(ask(&socket, at(VIP, 53), 100), at(VIP, 53));
    assert_came_from(&server, from.overlay);
    let connected = udp(&from.namespace);
    connected.connect(at(VIP, 53)).unwrap();
    assert_eq!(connected.peer_addr().unwrap(), at(VIP, 53));
    connected.send(b"x").unwrap();
    let mut answer = [0; 8];
    assert_eq!(connected.recv_from(&mut answer).unwrap(), (1, at(VIP, 53)));

    // Three flows, and only what the connected socket sent was left to translate per packet.
    let stats = cluster.a.node.stats(FRONT);
    assert_eq!((stats.packets, stats.new_flows), (1, 3));

    // It goes on with another backend when its own is gone.
    let server = EchoServer::udp(
        &cluster.a.tasks[1].namespace,
        at(cluster.a.tasks[1].overlay, 53),
    );
    cluster.vip(5, &[slot(ON_A_2, ON_A_2)]);
    connected.send(b"y").unwrap();
    assert_eq!(connected.recv_from(&mut answer).unwrap(), (1, at(VIP, 53)));
    assert_came_from(&server, cluster.a.tasks[0].overlay);
    // The node's own namespace is not part of the network.
    let outside = cluster
        .a
        .namespace
        .run(|| TcpStream::connect_timeout(&at(VIP, 80), patience()));
    assert!(outside.is_err());

    // A task that is its own backend sees itself.
    cluster.vip(10, &[slot(ON_A, ON_A)]);
    let from = &cluster.a.tasks[0];
    let server = EchoServer::tcp(&from.namespace, at(from.overlay, 80));
    let stream = connect(&from.namespace, at(VIP, 80));
    assert_came_from(&server, from.overlay);
    exchange(&stream, MIB);

    // Without a backend the call fails at once, and is counted.
    cluster.vip(20, &[]);
    let from = &cluster.a.tasks[0];
    let started = Instant::now();
    let refused = from
        .namespace
        .run(|| TcpStream::connect_timeout(&at(VIP, 80), patience()));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < patience());
    assert_eq!(cluster.a.node.drops().get("no-backend"), Some(&1));
}

/// Clients of the VIP on node A keep their backends for a minute.
fn keep_clients(cluster: &mut Cluster) {
    let key = VipKey {
        vni: VNI,
        addr: VIP,
    };
    let service: ServiceValue = cluster.a.node.get("VIPS", key).expect("a VIP");
    let service = ServiceValue {
        flags: SERVICE_AFFINITY,
        affinity_secs: 60,
        affinity_key: 7,
        ..service
    };
    cluster.a.node.put("VIPS", key, service);
}

/// A task that talked to a VIP keeps its backend when the ring changes, by the hooks and packet by
/// packet, until it was silent for too long.
#[test]
fn task_keeps_its_backend_of_a_vip() {
    for has_hooks in [true, false] {
        let cgroup = has_hooks.then(Cgroup::enter);
        let mut cluster = Cluster::new();
        if let Some(cgroup) = &cgroup {
            cluster.a.attach_sockets(cgroup);
        }
        let far = &cluster.b.tasks[0];
        let far = EchoServer::tcp(&far.namespace, at(far.overlay, 80));
        let near = &cluster.a.tasks[1];
        let near = EchoServer::tcp(&near.namespace, at(near.overlay, 80));
        let talk = |cluster: &Cluster, client: usize| {
            let client = &cluster.a.tasks[client];
            exchange(&connect(&client.namespace, at(VIP, 80)), MIB);
            client.overlay
        };
        cluster.vip(0, &[slot(ON_B, ON_B)]);
        keep_clients(&mut cluster);
        let first = talk(&cluster, 0);
        assert_came_from(&far, first);

        cluster.vip(10, &[slot(ON_A_2, ON_A_2)]);
        keep_clients(&mut cluster);
        talk(&cluster, 0);
        assert_came_from(&far, first);
        // Who comes now, goes by the ring: to itself, as which it sees the VIP packet by packet.
        let second = talk(&cluster, 1);
        assert_came_from(&near, if has_hooks { second } else { VIP });

        let kept = cluster.a.node.entries::<ClientKey, ClientValue>("CLIENTS");
        assert_eq!(kept.len(), 2);
        for (key, value) in kept {
            let last_seen = monotonic_ns().wrapping_sub(61_000_000_000);
            let aged = ClientValue { last_seen, ..value };
            cluster.a.node.put("CLIENTS", key, aged);
        }
        talk(&cluster, 0);
        assert_came_from(&near, first);
        cluster.assert_no_drops();
    }
}

#[test]
fn published_port_answers_the_node_itself_and_its_tasks() {
    let cgroup = Cgroup::enter();
    let mut cluster = Cluster::new();
    cluster.a.attach_sockets(&cgroup);
    // The last packets of connections to the first backend may come after the change: it is the one
    // before.
    for (base, backend) in [(0, ON_B), (10, ON_A_2)] {
        cluster.publish(base, &[slot(backend, ON_B)]);
        let to = if backend == ON_B {
            &cluster.b.tasks[0]
        } else {
            &cluster.a.tasks[1]
        };
        let server = EchoServer::tcp(&to.namespace, at(to.gateway, 80));
        for addr in [NODE_A, ip(127, 0, 0, 1)] {
            let stream = connect(&cluster.a.namespace, at(addr, 8080));
            assert_eq!(stream.peer_addr().unwrap(), at(addr, 8080));
            exchange(&stream, MIB);
            let seen = if backend == ON_B {
                NODE_A
            } else {
                GATEWAY_ADDR
            };
            assert_came_from(&server, seen);
        }
        if backend == ON_A_2 {
            let from = &cluster.a.tasks[0];
            let stream = connect(&from.namespace, at(NODE_A, 8080));
            exchange(&stream, MIB);
            assert_came_from(&server, from.gateway);
        }
        // A task's loopback is its own.
        let own = cluster.a.tasks[0]
            .namespace
            .run(|| TcpStream::connect_timeout(&at(ip(127, 0, 0, 1), 8080), patience()));
        assert_eq!(own.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    cluster.assert_no_drops();
}
