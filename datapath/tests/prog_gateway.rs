//! `sn_tc_gateway`: what a task sends on its gateway side.

mod common;

use common::*;
use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_BRIDGED, FLOW_DIRECT, FLOW_TASK_FIN, FlowKey, FlowValue,
    NodeConfig,
    net::{mesh_mac::Kind, task_mac},
    seat::seat_port,
};

const NODE: Be32 = ip(192, 0, 2, 1);
const ENTRY: Be32 = ip(192, 0, 2, 2);
const ENTRY_ADDR: Be32 = ip(198, 51, 100, 2);
const TASK: Be32 = ip(172, 18, 0, 5);
const CLIENT: (Be32, u16) = (ip(192, 0, 2, 9), 40_000);
const EP: u32 = 0x0102_0304;
const STATS: u32 = 11;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn key(proto: u8) -> FlowKey {
    flow_key(CLIENT, TASK, proto)
}

/// A node whose task serves a flow that entered at `entry`; zero is this node.
fn node(proto: u8, entry: Be32) -> Node {
    let mut node = Node::configured(NODE);
    node.gateway_veth(LOOPBACK, TASK);
    let flow = FlowValue {
        last_seen: 0,
        entry_vtep: entry,
        node_addr: ENTRY_ADDR,
        published: Be16::from_host(8080),
        flags: 0,
        endpoint: EP,
        generation: 1,
        stats: STATS,
        ..FlowValue::default()
    };
    node.put_flow(key(proto), flow);
    node
}

fn from_task(frame: Frame) -> Frame {
    frame.macs(task_mac(GATEWAY_ADDR), task_mac(TASK))
}

fn reply(flags: u8) -> Frame {
    from_task(Frame::tcp((TASK, 80), CLIENT, flags))
}

#[test]
fn reply_of_a_mesh_flow_goes_back_through_its_entrys_tunnel() {
    let mut node = node(TCP, ENTRY);
    let frame = reply(PSH_ACK).payload(&[3; 1001]);
    let expected = Frame::tcp((ENTRY_ADDR, 8080), CLIENT, PSH_ACK)
        .payload(&[3; 1001])
        .ttl(63)
        .mesh(Kind::Return, EP, NODE)
        .bytes();
    node.assert_sends("sn_tc_gateway", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    assert_eq!(node.stats(STATS).packets, 1);
    assert_eq!(node.stats(STATS).bytes, frame.bytes().len() as u64);
    let flow: FlowValue = node.get("FLOWS", key(TCP)).unwrap();
    assert_ne!(flow.last_seen, 0);
    assert_eq!(flow.flags, 0);

    node.run_tc("sn_tc_gateway", &reply(FIN | ACK).bytes());
    let flow: FlowValue = node.get("FLOWS", key(TCP)).unwrap();
    assert_eq!(flow.flags, FLOW_TASK_FIN);
}

#[test]
fn reply_to_a_moved_source_port_goes_to_the_clients_own() {
    for frame in [
        Frame::tcp((TASK, 80), CLIENT, PSH_ACK).payload(&[3; 1001]),
        Frame::udp((TASK, 80), CLIENT),
        Frame::udp((TASK, 80), CLIENT).without_checksum(),
    ] {
        let proto = frame.proto();
        let mut node = node(proto, ENTRY);
        let moved = seat_port(Be16::from_host(CLIENT.1), 1);
        let other: FlowValue = node
            .flow(key(proto))
            .expect("the flow of the client's own port");
        let flow = FlowValue {
            node_addr: ip(198, 51, 100, 8),
            own_port: Be16::from_host(CLIENT.1),
            ..other
        };
        let key = FlowKey {
            client_port: moved,
            ..key(proto)
        };
        node.put_flow(key, flow);
        let expected = frame
            .clone()
            .src(flow.node_addr)
            .sport(8080)
            .ttl(63)
            .mesh(Kind::Return, EP, NODE)
            .bytes();
        let packet = from_task(frame.dport(moved.to_host())).bytes();
        node.assert_sends("sn_tc_gateway", &packet, TC_ACT_REDIRECT, &expected);
    }
}

#[test]
fn udp_reply_is_translated_with_and_without_checksum() {
    let mut node = node(UDP, ENTRY);
    for frame in [
        Frame::udp((TASK, 80), CLIENT),
        Frame::udp((TASK, 80), CLIENT).without_checksum(),
    ] {
        let expected =
            frame
                .clone()
                .src(ENTRY_ADDR)
                .sport(8080)
                .ttl(63)
                .mesh(Kind::Return, EP, NODE);
        let frame = from_task(frame);
        node.assert_sends(
            "sn_tc_gateway",
            &frame.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
}

#[test]
fn reply_of_a_flow_that_entered_here_is_routed_to_the_client() {
    let netns = PrivateNetns::with_uplink();
    let mut node = node(TCP, Be32::ZERO);
    let expected = Frame::tcp((ENTRY_ADDR, 8080), CLIENT, ACK).ttl(63);
    // The neighbour is not known: the kernel gets the packet as it is, and resolves.
    let unresolved = expected
        .clone()
        .macs(task_mac(GATEWAY_ADDR), task_mac(TASK))
        .bytes();
    node.assert_sends(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        TC_ACT_REDIRECT,
        &unresolved,
    );
    netns.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:99 dev up0 nud permanent");
    let resolved = expected.macs(CLIENT_MAC, UPLINK_MAC).bytes();
    node.assert_sends(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        TC_ACT_REDIRECT,
        &resolved,
    );
}

/// A flow that opened with direct return goes the same way though it entered elsewhere.
#[test]
fn reply_that_returns_directly_is_routed_to_the_client() {
    let netns = PrivateNetns::with_uplink();
    netns.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:99 dev up0 nud permanent");
    let mut node = node(TCP, ENTRY);
    let mut flow: FlowValue = node.get("FLOWS", key(TCP)).unwrap();
    flow.flags = FLOW_DIRECT;
    node.put_flow(key(TCP), flow);
    let expected = Frame::tcp((ENTRY_ADDR, 8080), CLIENT, ACK).ttl(63);
    node.assert_sends(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        TC_ACT_REDIRECT,
        &expected.macs(CLIENT_MAC, UPLINK_MAC).bytes(),
    );
}

#[test]
fn reply_without_a_route_drops_with_reason() {
    let _netns = PrivateNetns::enter();
    let mut node = node(TCP, Be32::ZERO);
    node.assert_drops(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        DropReason::NoRouteToClient,
    );
}

#[test]
fn all_else_from_the_task_goes_on_to_the_bridge() {
    let mut node = node(TCP, ENTRY);
    for frame in [
        from_task(Frame::tcp((TASK, 80), (CLIENT.0, 40_001), ACK)),
        from_task(Frame::tcp((TASK, 81), CLIENT, ACK)),
        from_task(Frame::udp((TASK, 80), CLIENT)),
        from_task(Frame::udp((TASK, 80), CLIENT).fragment(0x0010)),
        from_task(Frame::new(
            TASK,
            CLIENT.0,
            Transport::Icmp { kind: 8, code: 0 },
        )),
    ] {
        node.assert_passes("sn_tc_gateway", &frame.bytes());
    }
    node.assert_passes("sn_tc_gateway", &Arp::question(TASK, GATEWAY_ADDR).bytes());
    assert!(node.drops().is_empty());
    assert_eq!(node.stats(STATS).packets, 0);
}

/// Moments after a change, the flow of an answer may not be here yet.
#[test]
fn answer_of_a_published_port_waits_for_its_flow() {
    let stray = from_task(Frame::tcp((TASK, 80), (CLIENT.0, 40_001), ACK));
    let other = from_task(Frame::tcp((TASK, 81), CLIENT, ACK));
    let mut node = node(TCP, ENTRY);
    node.target(EP, TASK, 80, TCP);
    node.assert_passes("sn_tc_gateway", &stray.bytes());
    let mut config: NodeConfig = node.array("CONFIG").get(&0, 0).unwrap();
    config.unsettled_until = u64::MAX;
    node.configure(config);
    node.assert_drops("sn_tc_gateway", &stray.bytes(), DropReason::Unsettled);
    node.assert_passes("sn_tc_gateway", &other.bytes());
    config.unsettled_until = 1;
    node.configure(config);
    node.assert_passes("sn_tc_gateway", &stray.bytes());
}

const NEIGHBOUR: Be32 = ip(172, 18, 0, 6);
const NEIGHBOURS_EP: u32 = 77;

fn to_neighbour(frame: Frame) -> Frame {
    frame.macs(task_mac(NEIGHBOUR), task_mac(TASK))
}

/// A node with a task whose interface is the test's, and a neighbour with nothing published.
fn bridged() -> Node {
    let mut node = Node::configured(NODE);
    node.gateway_veth(LOOPBACK, TASK);
    node
}

#[test]
fn neighbour_is_out_of_reach_by_any_protocol_address_and_mac() {
    let mut node = bridged();
    for frame in [
        to_neighbour(Frame::tcp((TASK, 5000), (NEIGHBOUR, 80), SYN)),
        to_neighbour(Frame::tcp((TASK, 80), (NEIGHBOUR, 5000), ACK)),
        to_neighbour(Frame::udp((TASK, 5000), (NEIGHBOUR, 80))),
        to_neighbour(Frame::new(
            TASK,
            NEIGHBOUR,
            Transport::Icmp { kind: 8, code: 0 },
        )),
        // By way of the node, which would route it back to the bridge.
        from_task(Frame::tcp((TASK, 5000), (NEIGHBOUR, 80), SYN)),
        // Broadcasts, the bridge's and everyone's.
        Frame::udp((TASK, 5000), (ip(172, 18, 255, 255), 80)).macs([0xff; 6], task_mac(TASK)),
        Frame::udp((TASK, 5000), (ip(255, 255, 255, 255), 80)).macs([0xff; 6], task_mac(TASK)),
        // Past the look at the address: a neighbour's MAC.
        to_neighbour(Frame::udp((TASK, 5000), (CLIENT.0, 80))),
        to_neighbour(Frame::udp((TASK, 5000), (GATEWAY_ADDR, 80))),
    ] {
        node.assert_drops("sn_tc_gateway", &frame.bytes(), DropReason::Isolated);
    }
    let fragment = to_neighbour(Frame::udp((TASK, 80), (NEIGHBOUR, 80)).fragment(0x0010));
    node.assert_drops(
        "sn_tc_gateway",
        &fragment.bytes(),
        DropReason::FragmentWithoutHead,
    );
    let mut ipv6 = from_task(Frame::tcp((TASK, 80), CLIENT, SYN)).bytes();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.assert_drops("sn_tc_gateway", &ipv6, DropReason::UnsupportedProtocol);
    assert_eq!(node.entries::<FlowKey, FlowValue>("UDP_FLOWS").len(), 0);
}

#[test]
fn neighbours_target_of_a_published_port_is_reached() {
    let mut node = bridged();
    node.target(NEIGHBOURS_EP, NEIGHBOUR, 80, TCP);
    node.target(NEIGHBOURS_EP, NEIGHBOUR, 53, UDP);
    for frame in [
        Frame::tcp((TASK, 5000), (NEIGHBOUR, 80), SYN),
        Frame::tcp((TASK, 5000), (NEIGHBOUR, 80), ACK),
        Frame::udp((TASK, 5000), (NEIGHBOUR, 53)),
    ] {
        node.assert_passes("sn_tc_gateway", &to_neighbour(frame).bytes());
    }
    for frame in [
        Frame::tcp((TASK, 5000), (NEIGHBOUR, 81), SYN),
        Frame::tcp((TASK, 5000), (NEIGHBOUR, 53), SYN),
        Frame::udp((TASK, 5000), (NEIGHBOUR, 80)),
        // Its replies, which it sends to none but who asked it.
        Frame::udp((TASK, 53), (NEIGHBOUR, 5000)),
    ] {
        node.assert_drops(
            "sn_tc_gateway",
            &to_neighbour(frame).bytes(),
            DropReason::Isolated,
        );
    }
    let flows = node.entries::<FlowKey, FlowValue>("UDP_FLOWS");
    assert_eq!(flows.len(), 1, "UDP leaves one entry, TCP none");
    assert_eq!(flows[0].1.flags, FLOW_BRIDGED);
    assert_eq!(flows[0].1.endpoint, NEIGHBOURS_EP);
}

#[test]
fn target_answers_its_neighbours_and_begins_nothing_from_the_published_port() {
    let mut node = bridged();
    node.target(7, TASK, 80, TCP);
    node.target(7, TASK, 53, UDP);
    for flags in [SYN | ACK, ACK, PSH_ACK, FIN | ACK] {
        let answer = Frame::tcp((TASK, 80), (NEIGHBOUR, 5000), flags);
        node.assert_passes("sn_tc_gateway", &to_neighbour(answer).bytes());
    }
    let answer = to_neighbour(Frame::udp((TASK, 53), (NEIGHBOUR, 5000))).bytes();
    for frame in [
        to_neighbour(Frame::tcp((TASK, 80), (NEIGHBOUR, 5000), SYN)).bytes(),
        answer.clone(),
    ] {
        node.assert_drops("sn_tc_gateway", &frame, DropReason::Isolated);
    }

    // The neighbour asks.
    node.gateway_veth(LOOPBACK, NEIGHBOUR);
    let question = Frame::udp((NEIGHBOUR, 5000), (TASK, 53));
    let question = question.macs(task_mac(TASK), task_mac(NEIGHBOUR));
    node.assert_passes("sn_tc_gateway", &question.bytes());
    node.gateway_veth(LOOPBACK, TASK);
    node.assert_passes("sn_tc_gateway", &answer);
    let other = to_neighbour(Frame::udp((TASK, 53), (NEIGHBOUR, 5001)));
    node.assert_drops("sn_tc_gateway", &other.bytes(), DropReason::Isolated);
}

#[test]
fn arp_that_speaks_for_another_drops_with_reason() {
    let mut node = bridged();
    let mut claim = Arp::question(TASK, NEIGHBOUR).bytes();
    node.assert_passes("sn_tc_gateway", &claim);
    // Sender protocol address: the bridge's.
    claim[28..32].copy_from_slice(&[172, 18, 0, 1]);
    node.assert_drops("sn_tc_gateway", &claim, DropReason::SpoofedSource);
}

#[test]
fn spoofed_broken_and_unregistered_drop_with_reason() {
    let mut node = node(TCP, ENTRY);
    let address = reply(ACK).src(ip(172, 18, 0, 6));
    node.assert_drops("sn_tc_gateway", &address.bytes(), DropReason::SpoofedSource);
    let mac = reply(ACK).macs(task_mac(GATEWAY_ADDR), task_mac(CLIENT.0));
    node.assert_drops("sn_tc_gateway", &mac.bytes(), DropReason::SpoofedSource);
    let short = &reply(ACK).bytes()[..14 + 20 + 4];
    node.assert_drops("sn_tc_gateway", short, DropReason::Truncated);
    node.assert_drops(
        "sn_tc_gateway",
        &reply(ACK).ttl(1).bytes(),
        DropReason::TtlExpired,
    );
    node.configure(NodeConfig::default());
    node.assert_drops(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        DropReason::NotConfigured,
    );
    let mut node = Node::configured(NODE);
    node.assert_drops(
        "sn_tc_gateway",
        &reply(ACK).bytes(),
        DropReason::UnknownInterface,
    );
}
