//! `sn_tc_uplink` and `sn_xdp_uplink`: the mesh's entry.

mod common;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use common::*;
use dataplane_abi::{
    BACKEND_DRAINING, Be16, Be32, DropReason, FLOW_CLIENT_FIN, FLOW_RESET, FLOW_TASK_FIN, FlowKey,
    FlowValue, LocalEndpoint, NodeConfig, SERVICE_AFFINITY, ServiceValue,
    hash::{FlowTuple, flow_hash, ring_slot},
    net::{mesh_mac::Kind, task_mac},
    seat::{SEAT_LINGER_NS, SEATS, seat_port},
};

const NODE: Be32 = ip(192, 0, 2, 1);
const NODE_B: Be32 = ip(192, 0, 2, 2);
const NODE_C: Be32 = ip(192, 0, 2, 3);
const CLIENT: (Be32, u16) = (ip(203, 0, 113, 9), 40_000);
const PUBLISHED: (Be32, u16) = (NODE, 8080);
const TASK: Be32 = ip(172, 18, 0, 5);
const TASK_2: Be32 = ip(172, 18, 0, 6);
/// Endpoint ids.
const EP: u32 = 0x0102_0304;
const EP_2: u32 = 0x0a0b_0c0d;
/// Number of the first task's namespace.
const EP_NETNS: u32 = 61;
/// Counters of the frontend and of the endpoints.
const FRONT: u32 = 10;
const STATS: u32 = 11;
const STATS_2: u32 = 12;

fn node() -> Node {
    let mut node = Node::configured(NODE);
    node.node_addr(NODE);
    node
}

/// A service on 8080 whose one backend is here.
fn node_with_local_backend(proto: u8) -> Node {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    let service = node.service(
        0,
        FRONT,
        80,
        &[backend(EP, Be32::ZERO, TASK)],
        &[slot(0, 0)],
    );
    node.publish(PUBLISHED.1, proto, service);
    node
}

/// A service on 8080 whose one backend is at node B.
fn node_with_remote_backend(proto: u8) -> Node {
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[backend(EP, NODE_B, NODE_B)], &[slot(0, 0)]);
    node.publish(PUBLISHED.1, proto, service);
    node
}

fn syn() -> Frame {
    Frame::tcp(CLIENT, PUBLISHED, SYN)
}

fn ack() -> Frame {
    Frame::tcp(CLIENT, PUBLISHED, PSH_ACK)
}

/// What the task gets for `frame`.
fn delivered(frame: &Frame, task: Be32) -> Vec<u8> {
    let macs = (task_mac(task), task_mac(GATEWAY_ADDR));
    frame
        .clone()
        .dst(task)
        .dport(80)
        .ttl(frame.ttl - 1)
        .macs(macs.0, macs.1)
        .bytes()
}

fn flow_key(proto: u8) -> FlowKey {
    FlowKey {
        client: CLIENT.0,
        task: TASK,
        client_port: Be16::from_host(CLIENT.1),
        task_port: Be16::from_host(80),
        proto,
        _pad: 0,
        _pad2: 0,
    }
}

#[test]
fn what_is_not_for_a_published_port_passes_untouched() {
    let mut node = node_with_local_backend(TCP);
    let cases = [
        (
            "unknown port",
            Frame::tcp(CLIENT, (NODE, 8081), SYN).bytes(),
        ),
        ("other protocol", Frame::udp(CLIENT, PUBLISHED).bytes()),
        (
            "address of another machine",
            Frame::tcp(CLIENT, (NODE_B, 8080), SYN).bytes(),
        ),
        (
            "ping",
            Frame::new(CLIENT.0, NODE, Transport::Icmp { kind: 8, code: 0 }).bytes(),
        ),
        (
            "other transport",
            Frame::new(CLIENT.0, NODE, Transport::Other(132)).bytes(),
        ),
        ("later fragment", syn().fragment(0x0010).bytes()),
        ("ARP", Arp::question(CLIENT.0, NODE).bytes()),
        ("IPv4 version 5", {
            let mut bytes = syn().bytes();
            bytes[14] = 0x55;
            bytes
        }),
        ("header length below 20", {
            let mut bytes = syn().bytes();
            bytes[14] = 0x44;
            bytes
        }),
        (
            "truncated TCP header",
            syn().bytes()[..14 + 20 + 13].to_vec(),
        ),
        ("IPv4 options beyond the end", {
            let mut bytes = syn().bytes();
            bytes[14] = 0x4f;
            bytes
        }),
    ];
    for (what, packet) in cases {
        println!("{what}");
        node.assert_passes("sn_tc_uplink", &packet);
        let outcome = node.run_xdp(&packet, LOOPBACK);
        assert_eq!(outcome.verdict, XDP_PASS);
        assert_packets_equal(&outcome.packet, &packet);
    }
    assert!(node.drops().is_empty());
    assert_eq!(node.stats(FRONT), Default::default());
    assert!(node.entries::<FlowKey, FlowValue>("FLOWS").is_empty());
}

#[test]
fn tcp_to_a_local_backend_is_translated_and_remembered() {
    let mut node = node_with_local_backend(TCP);
    let frame = syn();
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );

    // Not among the connections that exist, so that a flood of SYNs evicts none of them.
    assert!(node.get::<_, FlowValue>("FLOWS", flow_key(TCP)).is_none());
    let flow: FlowValue = node
        .get("SYN_FLOWS", flow_key(TCP))
        .expect("the flow is noted");
    let expected = FlowValue {
        last_seen: flow.last_seen,
        entry_vtep: Be32::ZERO,
        node_addr: NODE,
        published: Be16::from_host(8080),
        flags: 0,
        endpoint: EP,
        generation: 1,
        stats: STATS,
        opened: flow.opened,
        ..FlowValue::default()
    };
    assert_eq!(flow, expected);
    assert_eq!(flow.opened, flow.last_seen);

    let frame = ack().payload(&[7; 1000]);
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );
    let bytes = (syn().bytes().len() + frame.bytes().len()) as u64;
    let expected = dataplane_abi::Stats {
        packets: 2,
        bytes,
        new_flows: 1,
    };
    assert_eq!(node.stats(FRONT), expected);
    assert_eq!(node.stats(STATS), expected);
    assert!(node.drops().is_empty());
    // The handshake is over, and the flow as old as before.
    let now: FlowValue = node.get("FLOWS", flow_key(TCP)).unwrap();
    assert_eq!(now.opened, flow.opened);
    assert!(
        node.get::<_, FlowValue>("SYN_FLOWS", flow_key(TCP))
            .is_none()
    );
}

#[test]
fn packets_of_connections_that_nobody_has_are_refused_and_leave_nothing() {
    let _netns = with_route();
    let mut node = node_with_local_backend(TCP);
    for port in 40_000..40_100 {
        assert_refuses(&mut node, &ack().sport(port), DropReason::UnknownFlow);
    }
    for table in ["FLOWS", "SYN_FLOWS"] {
        assert!(node.entries::<FlowKey, FlowValue>(table).is_empty());
    }
    // Moments after a change the flow may be another node's, which has not said so yet.
    let mut config: NodeConfig = node.array("CONFIG").get(&0, 0).unwrap();
    config.unsettled_until = u64::MAX;
    node.configure(config);
    node.assert_drops("sn_tc_uplink", &ack().bytes(), DropReason::Unsettled);
}

/// Real sockets in a namespace that this one has a number for: each state of a connection's socket.
#[test]
fn connection_without_entry_is_told_by_the_tasks_socket() {
    let netns = with_route();
    let task = Namespace::new("task");
    netns.ip(&format!("netns set {} {EP_NETNS}", task.name));
    let mut node = node_with_local_backend(TCP);
    let mut local: LocalEndpoint = node.get("LOCAL", EP).unwrap();
    local.netns = EP_NETNS;
    node.put("LOCAL", EP, local);
    // Client and server at one loopback device, under the addresses that the task sees.
    for addr in [TASK, CLIENT.0] {
        task.ip(&format!("addr add {}/32 dev lo", Ipv4Addr::from(addr)));
    }
    let from_client = |flags| Frame::tcp(CLIENT, PUBLISHED, flags);
    let (server, client) = task.run(|| {
        let server = TcpListener::bind((Ipv4Addr::from(TASK), 80)).unwrap();
        let client = bound_socket((CLIENT.0, CLIENT.1));
        (server, client)
    });
    assert_refuses(&mut node, &ack(), DropReason::UnknownFlow);

    connect_bound(&client, (TASK, 80));
    let (accepted, _) = server.accept().unwrap();
    let frame = from_client(PSH_ACK);
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );
    let flow: FlowValue = node.get("FLOWS", flow_key(TCP)).expect("the entry is back");
    assert_eq!((flow.node_addr, flow.published.to_host()), PUBLISHED);
    assert_eq!(node.stats(STATS).new_flows, 0);

    node.hash::<FlowKey, FlowValue>("FLOWS")
        .remove(&flow_key(TCP))
        .unwrap();
    drop(accepted);
    drop(client);
    // What is left of it at the task waits in TIME_WAIT.
    let frame = from_client(FIN | ACK);
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );
}

#[test]
fn udp_to_a_local_backend_is_translated_also_without_a_checksum() {
    let mut node = node_with_local_backend(UDP);
    for frame in [
        Frame::udp(CLIENT, PUBLISHED),
        Frame::udp(CLIENT, PUBLISHED).without_checksum(),
        Frame::udp(CLIENT, PUBLISHED).payload(&[]),
        Frame::udp(CLIENT, PUBLISHED).payload(&[0xff; 1201]),
        Frame::udp(CLIENT, PUBLISHED).options(&[1; 8]),
    ] {
        let expected = delivered(&frame, TASK);
        node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    }
    // Flows of UDP have no SYN: the first packet opens, at the backend's node.
    assert_eq!(node.stats(STATS).new_flows, 1);
    assert_eq!(node.stats(FRONT).packets, 5);
}

#[test]
fn udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut node = node_with_local_backend(UDP);
    // Choose the payload so that the translated packet sums up to zero.
    let frame = (0..=u16::MAX)
        .map(|word| Frame::udp(CLIENT, PUBLISHED).payload(&word.to_be_bytes()))
        .find(|frame| delivered(frame, TASK)[40..42] == [0xff, 0xff])
        .expect("one of all words does it");
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );
}

#[test]
fn packets_with_ip_options_are_followed() {
    let mut node = node_with_local_backend(TCP);
    let frame = syn().options(&[1, 1, 1, 0]);
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &delivered(&frame, TASK),
    );
}

#[test]
fn remote_backend_gets_the_packet_unchanged_in_the_tunnel() {
    let mut node = node_with_remote_backend(TCP);
    for frame in [syn(), ack(), syn().ttl(1)] {
        let expected = frame.clone().mesh(Kind::Forward, EP, NODE).bytes();
        node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    }
    assert_eq!(node.stats(FRONT).packets, 3);
    assert_eq!(node.stats(FRONT).new_flows, 2);
    assert!(
        node.entries::<FlowKey, FlowValue>("FLOWS").is_empty(),
        "the entry keeps nothing"
    );
}

#[test]
fn flows_spread_over_the_ring_as_the_shared_hash_says() {
    let mut node = node();
    let backends: Vec<_> = (0..5).map(|i| backend(100 + i, NODE_B, NODE_B)).collect();
    // Longer than one chunk, so that the slot's chunk and place both matter.
    let slots: Vec<_> = (0..1021u32).map(|i| slot((i * 7 % 5) as u16, 0)).collect();
    let service = node.service(3, FRONT, 80, &backends, &slots);
    node.publish(8080, TCP, service);
    let mut seen = [0; 5];
    for port in 1000..1300u16 {
        let tuple = FlowTuple {
            src: CLIENT.0,
            src_port: Be16::from_host(port),
            dst_port: Be16::from_host(8080),
            proto: TCP,
        };
        let owner = slots[ring_slot(flow_hash(tuple, RING_SEED), 1021) as usize].now;
        seen[usize::from(owner)] += 1;
        let frame = syn().sport(port);
        let expected = frame
            .clone()
            .mesh(Kind::Forward, 100 + u32::from(owner), NODE)
            .bytes();
        node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    }
    assert!(seen.iter().all(|&count| count > 20), "{seen:?}");
}

/// A TCP socket with an address and port of its own.
fn bound_socket(addr: (Be32, u16)) -> OwnedFd {
    let client = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&client, sockopt::ReuseAddr, &true).unwrap();
    let addr = SockaddrIn::from(SocketAddrV4::new(addr.0.into(), addr.1));
    bind(client.as_raw_fd(), &addr).unwrap();
    client
}

fn connect_bound(client: &OwnedFd, to: (Be32, u16)) {
    let to = SockaddrIn::from(SocketAddrV4::new(to.0.into(), to.1));
    connect(client.as_raw_fd(), &to).unwrap();
}

/// Checks that the packet counts as dropped, and that the client gets a RST.
#[track_caller]
fn assert_refuses(node: &mut Node, frame: &Frame, reason: DropReason) {
    let counted = |node: &mut Node| {
        let drops = node.drops_of("sn_tc_uplink");
        drops.get(reason.label()).copied().unwrap_or(0)
    };
    let before = counted(node);
    let expected = frame.reset().macs(ROUTER, UPLINK_MAC).bytes();
    node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    assert_eq!(counted(node), before + 1);
}

#[test]
fn every_address_of_the_node_answers_and_no_other() {
    let mut node = node_with_remote_backend(TCP);
    let (other, foreign) = (ip(192, 0, 2, 77), ip(192, 0, 2, 78));
    node.node_addr(other);
    // The tunnel address needs no entry of its own.
    node.hash::<Be32, u32>("NODE_ADDRS").remove(&NODE).ok();
    for dst in [NODE, other] {
        let outcome = node.run_tc("sn_tc_uplink", &syn().dst(dst).bytes());
        assert_eq!(outcome.verdict, TC_ACT_REDIRECT, "drops {:?}", node.drops());
    }
    node.assert_passes("sn_tc_uplink", &syn().dst(foreign).bytes());
}

#[test]
fn service_without_backend_refuses_with_reason() {
    let _netns = with_route();
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[], &[]);
    node.publish(8080, TCP, service);
    node.publish(8080, UDP, service);
    for flags in [SYN, ACK, PSH_ACK, FIN | ACK, FIN, SYN | ACK] {
        let frame = Frame::tcp(CLIENT, PUBLISHED, flags);
        for payload in [0, 1, 6, 1001] {
            let frame = frame.clone().payload(&vec![0xa5; payload]);
            assert_refuses(&mut node, &frame, DropReason::NoBackend);
        }
        // XDP leaves it to tc.
        assert_eq!(node.run_xdp(&frame.bytes(), LOOPBACK).verdict, XDP_PASS);
    }
    // No answer to a RST, to options and to UDP.
    for frame in [
        Frame::tcp(CLIENT, PUBLISHED, RST),
        syn().options(&[1, 1, 1, 0]),
        Frame::udp(CLIENT, PUBLISHED),
    ] {
        node.assert_drops("sn_tc_uplink", &frame.bytes(), DropReason::NoBackend);
    }
    for frame in [
        Frame::tcp(CLIENT, PUBLISHED, RST),
        Frame::udp(CLIENT, PUBLISHED),
    ] {
        node.assert_drops("sn_xdp_uplink", &frame.bytes(), DropReason::NoBackend);
    }
}

#[test]
fn service_without_backend_drops_with_its_reason_where_no_route_leads_back() {
    let _netns = PrivateNetns::enter();
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[], &[]);
    node.publish(8080, TCP, service);
    node.assert_drops("sn_tc_uplink", &syn().bytes(), DropReason::NoBackend);
}

#[test]
fn last_backend_that_drains_keeps_its_connections_and_gets_no_new_ones() {
    let _netns = with_route();
    let mut node = node();
    let mut draining = backend(EP, NODE_B, NODE_B);
    draining.state = BACKEND_DRAINING;
    let service = node.service(0, FRONT, 80, &[draining], &[slot(0, 0)]);
    node.publish(8080, TCP, service);
    assert_refuses(&mut node, &syn(), DropReason::NoBackend);
    let expected = ack().mesh(Kind::Forward, EP, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
}

#[test]
fn slot_that_names_no_backend_refuses_with_reason() {
    let _netns = with_route();
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[backend(EP, NODE_B, NODE_B)], &[slot(1, 1)]);
    node.publish(8080, TCP, service);
    assert_refuses(&mut node, &syn(), DropReason::NoBackend);
}

#[test]
fn node_that_is_not_configured_drops_only_what_is_published() {
    let mut node = node_with_local_backend(TCP);
    node.configure(NodeConfig::default());
    node.assert_drops("sn_tc_uplink", &syn().bytes(), DropReason::NotConfigured);
    node.assert_drops("sn_xdp_uplink", &syn().bytes(), DropReason::NotConfigured);
    node.assert_passes("sn_tc_uplink", &syn().dport(22).bytes());
}

#[test]
fn time_to_live_ends_where_the_packet_is_routed() {
    let mut node = node_with_local_backend(TCP);
    node.assert_drops(
        "sn_tc_uplink",
        &syn().ttl(1).bytes(),
        DropReason::TtlExpired,
    );
}

#[test]
fn backend_that_is_not_here_any_more_ends_its_connections_and_waits_for_new_ones() {
    let _netns = with_route();
    let mut node = node_with_local_backend(TCP);
    node.hash::<u32, LocalEndpoint>("LOCAL")
        .remove(&EP)
        .unwrap();
    // The ring is about to change: the SYN comes again.
    node.assert_drops("sn_tc_uplink", &syn().bytes(), DropReason::BackendGone);
    assert_refuses(&mut node, &ack(), DropReason::BackendGone);
}

#[test]
fn connection_of_the_owner_before_goes_there_though_the_owner_now_is_gone() {
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    node.hash::<u32, LocalEndpoint>("LOCAL")
        .remove(&EP)
        .unwrap();
    let expected = ack().mesh(Kind::SecondHop, EP_2, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
    let mut node = node_with_moved_slot(backend(EP_2, Be32::ZERO, TASK_2));
    node.hash::<u32, LocalEndpoint>("LOCAL")
        .remove(&EP)
        .unwrap();
    node.local(EP_2, 51, TASK_2, STATS_2);
    put_flow(&mut node);
    let outcome = node.run_tc("sn_tc_uplink", &ack().bytes());
    assert_eq!(outcome.verdict, TC_ACT_REDIRECT);
    assert_eq!(node.stats(STATS_2).packets, 1);
}

/// The flow at the second task.
fn put_flow(node: &mut Node) {
    let key = FlowKey {
        task: TASK_2,
        ..flow_key(TCP)
    };
    let flow = FlowValue {
        node_addr: NODE,
        published: Be16::from_host(8080),
        endpoint: EP_2,
        generation: 1,
        stats: STATS_2,
        ..FlowValue::default()
    };
    node.put("FLOWS", key, flow);
}

#[test]
fn flow_that_its_ring_has_forgotten_goes_where_its_pin_says() {
    let third = 0x77;
    // Pinned elsewhere: whoever is before is not asked.
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    node.pin(CLIENT, PUBLISHED, third, NODE_C);
    let expected = ack().mesh(Kind::SecondHop, third, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
    // A SYN is a new connection.
    node.assert_sends(
        "sn_tc_uplink",
        &syn().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&syn(), TASK),
    );
    // Pinned here, to another task.
    let mut node = node_with_moved_slot(backend(third, NODE_B, NODE_B));
    node.local(EP_2, 51, TASK_2, STATS_2);
    node.pin(CLIENT, PUBLISHED, EP_2, Be32::ZERO);
    put_flow(&mut node);
    node.assert_sends(
        "sn_tc_uplink",
        &ack().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&ack(), TASK_2),
    );
    // A pin to where the flow is not is of a former connection.
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    node.pin(CLIENT, PUBLISHED, EP, Be32::ZERO);
    let expected = ack().mesh(Kind::SecondHop, EP_2, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
}

/// A service whose slot moved from `before` to a backend here.
fn node_with_moved_slot(before: dataplane_abi::BackendValue) -> Node {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    let backends = [backend(EP, Be32::ZERO, TASK), before];
    let service = node.service(0, FRONT, 80, &backends, &[slot(0, 1), slot(0, 1)]);
    node.publish(8080, TCP, service);
    node
}

#[test]
fn established_flow_of_another_owner_is_handed_on_to_it() {
    let mut node = node_with_moved_slot(backend(EP_2, NODE_C, NODE_C));
    let expected = ack().mesh(Kind::SecondHop, EP_2, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
    assert!(node.entries::<FlowKey, FlowValue>("FLOWS").is_empty());
    // New flows and those that this backend knows stay.
    node.assert_sends(
        "sn_tc_uplink",
        &syn().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&syn(), TASK),
    );
    node.assert_sends(
        "sn_tc_uplink",
        &ack().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&ack(), TASK),
    );
}

#[test]
fn established_flow_of_another_owner_on_this_node_is_delivered_to_it() {
    let mut node = node_with_moved_slot(backend(EP_2, Be32::ZERO, TASK_2));
    node.local(EP_2, 51, TASK_2, STATS_2);
    put_flow(&mut node);
    node.assert_sends(
        "sn_tc_uplink",
        &ack().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&ack(), TASK_2),
    );
    assert_eq!(node.stats(STATS_2).packets, 1);
    assert_eq!(node.stats(STATS).packets, 0);
}

#[test]
fn flow_of_an_endpoint_that_stopped_is_void() {
    let mut node = node_with_moved_slot(backend(EP_2, NODE_C, NODE_C));
    node.assert_sends(
        "sn_tc_uplink",
        &syn().bytes(),
        TC_ACT_REDIRECT,
        &delivered(&syn(), TASK),
    );
    let mut local: LocalEndpoint = node.get("LOCAL", EP).unwrap();
    local.generation = 2;
    node.put("LOCAL", EP, local);
    let expected = ack().mesh(Kind::SecondHop, EP_2, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &ack().bytes(), TC_ACT_REDIRECT, &expected);
}

#[test]
fn end_of_a_connection_is_noted_in_its_flow() {
    let mut node = node_with_local_backend(TCP);
    // A SYN that is sent again opens nothing.
    node.run_tc("sn_tc_uplink", &syn().bytes());
    node.run_tc("sn_tc_uplink", &syn().bytes());
    assert_eq!(node.stats(STATS).new_flows, 1);
    for (flags, expected) in [
        (FIN | ACK, FLOW_CLIENT_FIN),
        (RST, FLOW_CLIENT_FIN | FLOW_RESET),
    ] {
        node.run_tc(
            "sn_tc_uplink",
            &Frame::tcp(CLIENT, PUBLISHED, flags).bytes(),
        );
        let flow = node.flow(flow_key(TCP)).unwrap();
        assert_eq!(flow.flags, expected);
    }
    // The same ports again: a new connection.
    node.run_tc("sn_tc_uplink", &syn().bytes());
    let flow = node.flow(flow_key(TCP)).unwrap();
    assert_eq!(flow.flags, 0);
    assert_eq!(node.stats(STATS).new_flows, 2);
}

/// One port of a client, by several addresses of the node, to one port of one task.
#[test]
fn flows_of_one_source_port_have_a_port_each_at_their_task() {
    for proto in [TCP, UDP] {
        let mut node = node_with_local_backend(proto);
        let addrs: Vec<_> = (0..SEATS)
            .map(|nth| ip(192, 0, 2, 70 + nth as u8))
            .collect();
        let too_many = ip(192, 0, 2, 99);
        addrs.iter().for_each(|addr| node.node_addr(*addr));
        node.node_addr(too_many);
        let packet = |addr, flags| match proto {
            TCP => Frame::tcp(CLIENT, (addr, PUBLISHED.1), flags),
            _ => Frame::udp(CLIENT, (addr, PUBLISHED.1)),
        };
        for flags in [SYN, ACK, PSH_ACK] {
            for (nth, addr) in addrs.iter().enumerate() {
                let frame = packet(*addr, flags).payload(&[7; 501]);
                let port = seat_port(Be16::from_host(CLIENT.1), nth as u16).to_host();
                let expected = delivered(&frame.clone().sport(port), TASK);
                let sent = frame.bytes();
                node.assert_sends("sn_tc_uplink", &sent, TC_ACT_REDIRECT, &expected);
            }
        }
        assert_eq!(node.stats(STATS).new_flows, u64::from(SEATS));
        assert!(node.drops().is_empty(), "{:?}", node.drops());

        // There is no further one: a datagram is dropped, and the later SYN wins.
        if proto == UDP {
            let packet = packet(too_many, 0).bytes();
            node.assert_drops("sn_tc_uplink", &packet, DropReason::SourceCollision);
            continue;
        }
        for flags in [SYN, PSH_ACK] {
            let frame = packet(too_many, flags);
            let expected = delivered(&frame, TASK);
            node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
        }
        let packet = packet(addrs[0], PSH_ACK).bytes();
        node.assert_drops("sn_tc_uplink", &packet, DropReason::SourceCollision);
    }
}

/// The client itself uses the port that another flow of its has at the task.
#[test]
fn port_of_a_moved_flow_is_not_given_to_another() {
    let mut node = node_with_local_backend(TCP);
    let other = ip(192, 0, 2, 77);
    node.node_addr(other);
    let seat = |own, nth| seat_port(Be16::from_host(own), nth).to_host();
    let taken = seat(CLIENT.1, 1);
    for flags in [SYN, PSH_ACK] {
        for (addr, own, port) in [
            (NODE, CLIENT.1, CLIENT.1),
            (other, CLIENT.1, taken),
            (other, taken, seat(taken, 1)),
            (NODE, taken, seat(taken, 2)),
        ] {
            let frame = Frame::tcp((CLIENT.0, own), (addr, PUBLISHED.1), flags);
            let expected = delivered(&frame.clone().sport(port), TASK);
            node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
        }
    }
    assert_eq!(node.stats(STATS).new_flows, 4);
}

#[test]
fn flow_that_ended_long_ago_leaves_its_port_to_another() {
    let other = ip(192, 0, 2, 77);
    let seat = seat_port(Be16::from_host(CLIENT.1), 1).to_host();
    let ended = FLOW_CLIENT_FIN | FLOW_TASK_FIN;
    for (flags, age, port) in [
        (0, 2 * SEAT_LINGER_NS, seat),
        (ended, SEAT_LINGER_NS / 2, seat),
        (ended, 2 * SEAT_LINGER_NS, CLIENT.1),
    ] {
        let mut node = node_with_local_backend(TCP);
        node.node_addr(other);
        let flow = FlowValue {
            last_seen: monotonic_ns().wrapping_sub(age),
            node_addr: NODE,
            published: Be16::from_host(PUBLISHED.1),
            flags,
            endpoint: EP,
            generation: 1,
            ..FlowValue::default()
        };
        node.put_flow(flow_key(TCP), flow);
        let frame = syn().dst(other);
        let expected = delivered(&frame.clone().sport(port), TASK);
        node.assert_sends("sn_tc_uplink", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    }
}

// XDP, in a namespace with a real route.

struct XdpNode {
    _netns: PrivateNetns,
    node: Node,
    uplink: u32,
}

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const NODE_B_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

fn xdp_node(node: fn(u8) -> Node) -> XdpNode {
    let netns = PrivateNetns::enter();
    netns.ip("link add up0 address 02:00:00:00:00:11 type veth peer name up1");
    netns.ip("link set up0 up");
    netns.ip("link set up1 up");
    netns.ip("addr add 192.0.2.1/24 dev up0");
    netns.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:22 dev up0 nud permanent");
    netns.sysctl("net/ipv4/conf/all/forwarding", "1");
    let mut node = node(TCP);
    // A veth has its receive queue registered for XDP once a program is attached.
    let xdp: &mut aya::programs::Xdp = program(&mut node.ebpf, "sn_xdp_uplink");
    xdp.attach("up0", aya::programs::XdpMode::Driver).unwrap();
    XdpNode {
        uplink: netns.ifindex("up0"),
        node,
        _netns: netns,
    }
}

#[test]
fn xdp_wraps_packets_for_a_remote_backend_itself() {
    let XdpNode {
        mut node,
        uplink,
        _netns,
    } = xdp_node(node_with_remote_backend);
    for frame in [syn(), ack().payload(&[5; 1300])] {
        let mut frame = frame;
        frame.tos = 0xb9;
        let packet = frame.bytes();
        let outcome = node.run_xdp(&packet, uplink);
        assert_eq!(outcome.verdict, XDP_TX, "drops {:?}", node.drops());
        let hash = flow_hash(
            FlowTuple {
                src: CLIENT.0,
                src_port: Be16::from_host(CLIENT.1),
                dst_port: Be16::from_host(8080),
                proto: TCP,
            },
            RING_SEED,
        );
        let outer = Outer {
            dst_mac: NODE_B_MAC,
            src_mac: NODE_MAC,
            src: NODE,
            dst: NODE_B,
            tos: 0xb9,
            sport: 0xc000 | (hash as u16 & 0x3fff),
            dport: 4789,
            vni: MESH_VNI,
        };
        let inner = frame.mesh(Kind::Forward, EP, NODE).bytes();
        assert_packets_equal(&outcome.packet, &outer.around(&inner));
    }
    assert_eq!(node.stats(FRONT).packets, 2);
    assert_eq!(node.stats(FRONT).new_flows, 1);
}

#[test]
fn xdp_leaves_what_needs_the_stack_to_tc() {
    let XdpNode {
        mut node,
        uplink,
        _netns: netns,
    } = xdp_node(node_with_remote_backend);
    // No neighbour: the stack resolves it.
    netns.ip("neigh del 192.0.2.2 dev up0");
    let outcome = node.run_xdp(&syn().bytes(), uplink);
    assert_eq!(outcome.verdict, XDP_PASS);
    assert_packets_equal(&outcome.packet, &syn().bytes());
    // Wrapped, it would be longer than the link's 1500 bytes: the stack fragments.
    netns.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:22 dev up0 nud permanent");
    let longest = 1500 - (20 + 8 + 8 + 14) - (20 + 20);
    let large = ack().payload(&vec![5; longest + 1]).bytes();
    let outcome = node.run_xdp(&large, uplink);
    assert_eq!(outcome.verdict, XDP_PASS);
    assert_packets_equal(&outcome.packet, &large);
    assert_eq!(
        node.stats(FRONT).packets,
        0,
        "whoever sends the packet counts it"
    );
    let fits = ack().payload(&vec![5; longest]).bytes();
    assert_eq!(node.run_xdp(&fits, uplink).verdict, XDP_TX);
}

#[test]
fn xdp_sees_a_neighbours_new_address_soon() {
    let XdpNode {
        mut node,
        uplink,
        _netns: netns,
    } = xdp_node(node_with_remote_backend);
    let outcome = node.run_xdp(&syn().bytes(), uplink);
    assert_eq!(outcome.packet[..6], NODE_B_MAC);
    netns.ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:33 dev up0 nud permanent");
    let deadline = Instant::now() + Duration::from_secs(2);
    while node.run_xdp(&syn().bytes(), uplink).packet[..6] != [2, 0, 0, 0, 0, 0x33] {
        assert!(
            Instant::now() < deadline,
            "packets still go to the old address"
        );
        std::thread::yield_now();
    }
}

#[test]
fn xdp_leaves_local_backends_to_tc() {
    let XdpNode {
        mut node,
        uplink,
        _netns,
    } = xdp_node(node_with_local_backend);
    let outcome = node.run_xdp(&syn().bytes(), uplink);
    assert_eq!(outcome.verdict, XDP_PASS);
    assert_packets_equal(&outcome.packet, &syn().bytes());
    assert_eq!(node.stats(FRONT).packets, 0);
}

/// One frontend serves a range: each port leads to the task's port at the same distance.
#[test]
fn range_of_ports_is_one_frontend() {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    let backends = [backend(EP, Be32::ZERO, TASK)];
    let service = node.service(0, FRONT, 80, &backends, &[slot(0, 0)]);
    node.publish_range(8000, 8999, TCP, service);
    for (published, target) in [(8000, 80), (8001, 81), (8999, 1079)] {
        let frame = Frame::tcp(CLIENT, (NODE, published), SYN);
        let outcome = node.run_tc("sn_tc_uplink", &frame.bytes());
        assert_eq!(outcome.verdict, TC_ACT_REDIRECT, "{:?}", node.drops());
        let port = u16::from_be_bytes([outcome.packet[36], outcome.packet[37]]);
        assert_eq!(port, target);
    }
    for port in [7999, 9000] {
        node.assert_passes(
            "sn_tc_uplink",
            &Frame::tcp(CLIENT, (NODE, port), SYN).bytes(),
        );
    }
    assert_eq!(node.stats(FRONT).new_flows, 3);
}

/// Two services share a port by address; a third has it on all other addresses.
#[test]
fn address_of_its_own_comes_before_all_the_others() {
    const ELSEWHERE: Be32 = ip(192, 168, 0, 77);
    for elsewhere in [false, true] {
        let mut node = node();
        node.node_addr(ELSEWHERE);
        let mut remote = |base: u32, endpoint: u32| {
            let backends = [backend(endpoint, NODE_B, NODE_B)];
            node.service(base, base, 80, &backends, &[slot(0, 0)])
        };
        let (own, all) = (remote(1, EP), remote(2, EP + 1));
        let all = if elsewhere {
            node.frontend(8080, all)
        } else {
            0
        };
        node.publish_at(NODE, 8080, TCP, own, all);
        let mut frontends = |addr: Be32| {
            let outcome = node.run_tc(
                "sn_tc_uplink",
                &Frame::tcp(CLIENT, (addr, 8080), SYN).bytes(),
            );
            (
                outcome.verdict,
                node.stats(1).packets,
                node.stats(2).packets,
            )
        };
        assert_eq!(frontends(NODE), (TC_ACT_REDIRECT, 1, 0));
        let other = match elsewhere {
            true => (TC_ACT_REDIRECT, 1, 1),
            false => (TC_ACT_UNSPEC, 1, 0),
        };
        assert_eq!(frontends(ELSEWHERE), other);
    }
}

/// With affinity the source port makes no difference, the client's address does; without, both do.
#[test]
fn affinity_leaves_the_source_port_out() {
    for (flags, ports_seen) in [(0, 2), (SERVICE_AFFINITY, 1)] {
        let mut node = node();
        let backends = [0, 1].map(|id| backend(EP + id, NODE_B, NODE_B));
        let slots: Vec<_> = (0..1024).map(|at| slot(at % 2, at % 2)).collect();
        let service = node.service(0, FRONT, 80, &backends, &slots);
        node.publish(8080, TCP, ServiceValue { flags, ..service });
        let mut seen = |client: (Be32, u16)| {
            let frame = Frame::tcp(client, PUBLISHED, SYN);
            let outcome = node.run_tc("sn_tc_uplink", &frame.bytes());
            assert_eq!(outcome.verdict, TC_ACT_REDIRECT);
            outcome.packet[..6].to_vec()
        };
        let ports: BTreeSet<_> = (0..64).map(|n| seen((CLIENT.0, 40_000 + n))).collect();
        assert_eq!(ports.len(), ports_seen);
        let clients: BTreeSet<_> = (0..64)
            .map(|n| seen((ip(203, 0, 113, n), CLIENT.1)))
            .collect();
        assert_eq!(clients.len(), 2);
    }
}
