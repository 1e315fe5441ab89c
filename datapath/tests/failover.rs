//! The entry fails: a client's packets come in at another node, by an address that all nodes have.

mod common;

use std::{
    net::{TcpStream, UdpSocket},
    thread,
};

use common::{cluster::*, *};
use dataplane_abi::{Be32, FlowKey, FlowValue};

const NODES: [Be32; 3] = [ip(192, 0, 2, 1), ip(192, 0, 2, 2), ip(192, 0, 2, 3)];
const CLIENT: Be32 = ip(192, 0, 2, 9);
/// Of every node (RFC 1546); routes say which one gets a client's packets.
const ANYCAST: Be32 = ip(198, 51, 100, 1);
const ENDPOINT: u32 = 31;
const MIB: usize = 1 << 20;
const STREAMS: usize = 20;

#[test]
fn connections_and_datagrams_go_on_at_another_entry() {
    let switch = Switch::new();
    let [mut a, mut b, mut owner] = NODES.map(|addr| switch.node(addr));
    owner.add_task(ENDPOINT, ip(10, 0, 1, 31));
    introduce(&mut [&mut a, &mut b, &mut owner]);
    let gateway = owner.tasks[0].gateway;
    for host in [&mut a, &mut b, &mut owner] {
        host.node.node_addr(ANYCAST);
        let is_owner = host.addr == NODES[2];
        let backend = match is_owner {
            true => backend(ENDPOINT, Be32::ZERO, gateway),
            false => backend(ENDPOINT, NODES[2], NODES[2]),
        };
        let service = host.node.service(0, 200, 80, &[backend], &[slot(0, 0)]);
        host.node.publish(8080, TCP, service);
        host.node.publish(8080, UDP, service);
    }
    let client = switch.client(CLIENT);
    let route_by = |node: Be32| {
        let (to, by) = (show(ANYCAST), show(node));
        client.ip(&format!("route replace {to} via {by}"));
    };
    let task = &owner.tasks[0].namespace;
    let _tcp = EchoServer::tcp(task, at(gateway, 80));
    let _udp = EchoServer::udp(task, at(gateway, 80));

    route_by(NODES[0]);
    let busy = connect(&client, at(ANYCAST, 8080));
    exchange(&busy, 1);
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| connect(&client, at(ANYCAST, 8080)))
        .collect();
    let socket = udp(&client);
    assert_go_on(&streams, &socket);
    assert_return_by(&mut owner, NODES[0]);

    // The last entry is the owner's own node.
    for (failed, next, entry) in [(&a, NODES[1], NODES[1]), (&b, NODES[2], Be32::ZERO)] {
        let before = owner.node.stats(ENDPOINT).packets;
        thread::scope(|scope| {
            let transfer = scope.spawn(|| exchange(&busy, 16 * MIB));
            while owner.node.stats(ENDPOINT).packets < before + 100 {
                thread::yield_now();
            }
            failed.namespace.ip("link set up0 down");
            route_by(next);
            transfer.join().unwrap();
        });
        assert_go_on(&streams, &socket);
        assert_return_by(&mut owner, entry);
    }
    for host in [&mut a, &mut b, &mut owner] {
        assert!(host.node.drops().is_empty(), "{:?}", host.node.drops());
    }
}

#[track_caller]
fn assert_go_on(streams: &[TcpStream], socket: &UdpSocket) {
    streams.iter().for_each(|stream| exchange(stream, MIB / 16));
    assert_eq!(ask(socket, at(ANYCAST, 8080), 1400), at(ANYCAST, 8080));
}

/// Replies of all flows go to this node.
#[track_caller]
fn assert_return_by(owner: &mut Host, entry: Be32) {
    // A flow is in FLOWS once its handshake is over: it is.
    for (table, count) in [("FLOWS", STREAMS + 1), ("UDP_FLOWS", 1)] {
        let flows = owner.node.entries::<FlowKey, FlowValue>(table);
        assert_eq!(flows.len(), count, "in {table}");
        for (key, flow) in flows {
            assert_eq!(flow.entry_vtep, entry, "{key:?}");
        }
    }
}
