//! Clients that use one source port for several ways to one port of one task, which sees each flow by a
//! port of its own.

mod common;

use std::{
    io,
    net::{SocketAddr, TcpStream},
    ops::Range,
};

use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::Be32;

const PORTS: Range<u16> = 20_000..20_050;
const OTHER_VIP: Be32 = ip(10, 0, 1, 3);

/// A connection from each port to each address, all open at once.
#[track_caller]
fn open(client: &Namespace, to: &[SocketAddr]) -> Vec<TcpStream> {
    let pairs = to.iter().flat_map(|to| PORTS.map(move |port| (port, *to)));
    pairs
        .map(|(port, to)| connect_when_free(client, port, to))
        .collect()
}

#[test]
fn one_port_reaches_a_task_by_two_nodes_and_two_published_ports() {
    let mut cluster = Cluster::new();
    cluster.publish_port(8080, 0, &[slot(ON_B, ON_B)]);
    cluster.publish_port(8081, 10, &[slot(ON_B, ON_B)]);
    let task = &cluster.b.tasks[0];
    let _server = WordServer::new(&task.namespace, at(task.gateway, 80));
    let datagrams = EchoServer::udp(&task.namespace, at(task.gateway, 80));
    let ways: Vec<_> = [NODE_A, NODE_B]
        .iter()
        .flat_map(|node| [8080, 8081].map(|port| at(*node, port)))
        .collect();
    let mut connections = open(&cluster.client, &ways);
    assert_all_echo(&connections);
    let socket = udp(&cluster.client);
    let mut seen = Vec::new();
    for _ in 0..2 {
        for way in &ways {
            assert_eq!(ask(&socket, *way, 1400), *way);
            let peer = datagrams.peer();
            assert_eq!(peer.ip(), show(CLIENT));
            seen.push(peer.port());
        }
    }
    // Each way has a port at the task, and keeps it.
    assert_eq!(seen[..ways.len()], seen[ways.len()..]);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), ways.len(), "{seen:?}");

    // Those that came first end: the others stay what they are.
    connections.drain(..PORTS.len()).for_each(WordServer::end);
    assert_all_echo(&connections);
    // Where one was, one may be again.
    connections.extend(open(&cluster.client, &ways[..1]));
    assert_all_echo(&connections);
    cluster.assert_no_drops();
}

#[test]
fn one_port_reaches_a_task_by_two_vips_packet_by_packet() {
    let mut cluster = Cluster::new();
    // The last packets of connections to a backend may come after the change: it is the one before.
    for (base, backend, before) in [(0, ON_B, ON_B), (20, ON_A_2, ON_B), (40, ON_A, ON_A_2)] {
        cluster.vip_at(VIP, base, &[slot(backend, before)]);
        cluster.vip_at(OTHER_VIP, base + 10, &[slot(backend, before)]);
        let to = match backend {
            ON_A => &cluster.a.tasks[0],
            ON_A_2 => &cluster.a.tasks[1],
            _ => &cluster.b.tasks[0],
        };
        let from = &cluster.a.tasks[0];
        let _server = WordServer::new(&to.namespace, at(to.overlay, 80));
        let _udp = EchoServer::udp(&to.namespace, at(to.overlay, 53));
        let connections = open(&from.namespace, &[at(VIP, 80), at(OTHER_VIP, 80)]);
        assert_all_echo(&connections);
        let socket = udp(&from.namespace);
        for vip in [VIP, OTHER_VIP, VIP, OTHER_VIP] {
            assert_eq!(ask(&socket, at(vip, 53), 1200), at(vip, 53));
        }
        // By the server: the ports are for the next backend's turn.
        connections.into_iter().for_each(WordServer::end);
    }
    cluster.assert_no_drops();
}

/// The hooks have the kernel choose a source port for the backend's address: none is used twice there,
/// and who insists on one is told that it is taken.
#[test]
fn sockets_that_the_hooks_translate_have_no_port_twice() {
    let cgroup = Cgroup::enter();
    let mut cluster = Cluster::new();
    cluster.a.attach_sockets(&cgroup);
    cluster.vip_at(VIP, 0, &[slot(ON_B, ON_B)]);
    cluster.vip_at(OTHER_VIP, 10, &[slot(ON_B, ON_B)]);
    let (from, to) = (&cluster.a.tasks[0], &cluster.b.tasks[0]);
    let _server = WordServer::new(&to.namespace, at(to.overlay, 80));
    // Few ports, so that the two would meet.
    let few = "20000 20099";
    from.namespace.sysctl("net/ipv4/ip_local_port_range", few);
    let connections: Vec<_> = (0..80)
        .map(|nth| connect(&from.namespace, at([VIP, OTHER_VIP][nth % 2], 80)))
        .collect();
    assert_all_echo(&connections);
    let _one = connect_from(&from.namespace, 30_000, at(VIP, 80)).unwrap();
    let other = connect_from(&from.namespace, 30_000, at(OTHER_VIP, 80));
    let error = other.expect_err("the port is in use towards the backend");
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable, "{error}");
    cluster.assert_no_drops();
}
