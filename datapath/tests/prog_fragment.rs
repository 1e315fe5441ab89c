//! Fragments of flows that are translated go where their first one went.

mod common;

use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::{
    Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue, FLOW_BRIDGED,
    FlowValue, FragmentKey, FragmentValue, NodeConfig, VipFlowKey, VipFlowValue,
    net::{mesh_mac::Kind, task_mac},
};

const CLIENT_UDP: (Be32, u16) = (ip(203, 0, 113, 9), 40_000);
const PUBLISHED: (Be32, u16) = (NODE_A, 8080);
const TASK: Be32 = ip(172, 18, 0, 5);
const NEIGHBOUR: Be32 = ip(172, 18, 0, 6);
const EP: u32 = 0x0102_0304;
const CUTS: [usize; 2] = [24, 1032];

/// A node that publishes 8080/udp for one backend at `vtep`; zero is here.
fn node(vtep: Be32) -> Node {
    let mut node = Node::configured(NODE_A);
    node.node_addr(NODE_A);
    node.local(EP, 50, TASK, 11);
    node.gateway_veth(LOOPBACK, TASK);
    let service = node.service(0, 10, 80, &[backend(EP, vtep, TASK)], &[slot(0, 0)]);
    node.publish(PUBLISHED.1, UDP, service);
    node.publish(PUBLISHED.1, TCP, service);
    node
}

fn datagram(from: (Be32, u16), to: (Be32, u16)) -> Frame {
    let payload: Vec<u8> = (0..1900u32).map(|i| (i * 7) as u8).collect();
    Frame::udp(from, to).payload(&payload)
}

/// A datagram to the published port, and as the task gets it.
fn into_task() -> (Frame, Frame) {
    let frame = datagram(CLIENT_UDP, PUBLISHED);
    let own = frame.clone().dst(TASK).dport(80).ttl(63);
    (frame, own.macs(task_mac(TASK), task_mac(GATEWAY_ADDR)))
}

/// Sends pieces of `frame` in an order and compares each with that of `expected`.
#[track_caller]
fn assert_follow(
    node: &mut Node,
    program: &str,
    frame: &Frame,
    expected: &Frame,
    (id, order): (u16, &[usize]),
) {
    let sent = fragments(&frame.bytes(), &CUTS, id);
    let wanted = fragments(&expected.bytes(), &CUTS, id);
    for &nth in order {
        node.assert_sends(program, &sent[nth], TC_ACT_REDIRECT, &wanted[nth]);
    }
}

#[track_caller]
fn assert_nothing_left(node: &mut Node) {
    assert!(node.drops().is_empty(), "{:?}", node.drops());
    let left = node.entries::<FragmentKey, FragmentValue>("FRAGMENTS");
    assert!(left.is_empty(), "{left:?}");
}

const ORDERS: [&[usize]; 2] = [&[0, 1, 2], &[0, 2, 1]];

#[test]
fn fragments_reach_the_task_behind_their_head() {
    let mut node = node(Be32::ZERO);
    let (frame, own) = into_task();
    for (id, order) in (1..).zip(ORDERS) {
        assert_follow(&mut node, "sn_tc_uplink", &frame, &own, (id, order));
        let (frame, own) = (frame.clone(), own.clone());
        let (frame, own) = (frame.without_checksum(), own.without_checksum());
        assert_follow(&mut node, "sn_tc_uplink", &frame, &own, (id, order));
    }
    let options = frame.clone().options(&[7, 4, 1, 0]);
    let own_options = own.clone().options(&[7, 4, 1, 0]);
    let order = (9, ORDERS[0]);
    assert_follow(&mut node, "sn_tc_uplink", &options, &own_options, order);
    assert_nothing_left(&mut node);
    assert_eq!(node.stats(11).packets, 15);
    assert_eq!(node.stats(11).new_flows, 1);
}

#[test]
fn fragments_go_through_the_tunnel_unchanged() {
    let mut node = node(NODE_B);
    let (frame, _) = into_task();
    let wrapped = frame.clone().mesh(Kind::Forward, EP, NODE_A);
    for (id, order) in (1..).zip(ORDERS) {
        assert_follow(&mut node, "sn_tc_uplink", &frame, &wrapped, (id, order));
    }
    assert_nothing_left(&mut node);
    // XDP leaves them to tc.
    for piece in fragments(&frame.bytes(), &CUTS, 7) {
        let outcome = node.run_xdp(&piece, LOOPBACK);
        assert_eq!(outcome.verdict, XDP_PASS);
        assert_packets_equal(&outcome.packet, &piece);
    }
}

#[test]
fn fragments_of_several_packets_come_mixed() {
    let mut node = node(Be32::ZERO);
    let (frame, own) = into_task();
    let other = datagram((CLIENT_UDP.0, 7), PUBLISHED);
    let other_own = other.clone().dst(TASK).dport(80).ttl(63);
    let other_own = other_own.macs(task_mac(TASK), task_mac(GATEWAY_ADDR));
    let both = [(&frame, &own, 1), (&other, &other_own, 2)];
    for nth in [0, 1, 2] {
        for (frame, own, id) in both {
            assert_follow(&mut node, "sn_tc_uplink", frame, own, (id, &[nth]));
        }
    }
    assert_nothing_left(&mut node);
}

#[test]
fn first_of_a_packet_takes_the_place_of_an_older_ones() {
    let mut node = node(Be32::ZERO);
    let (frame, own) = into_task();
    // The older packet is never whole.
    assert_follow(&mut node, "sn_tc_uplink", &frame, &own, (1, &[0, 1]));
    let service = node.service(5, 10, 80, &[backend(EP, NODE_B, TASK)], &[slot(0, 0)]);
    node.publish(PUBLISHED.1, UDP, service);
    let wrapped = frame.clone().mesh(Kind::Forward, EP, NODE_A);
    assert_follow(&mut node, "sn_tc_uplink", &frame, &wrapped, (1, &[0, 1, 2]));
    assert_nothing_left(&mut node);
}

#[test]
fn fragments_for_the_node_are_put_in_order_first() {
    let mut node = node(NODE_B);
    let config: NodeConfig = node.array("CONFIG").get(&0, 0).unwrap();
    node.configure(NodeConfig {
        reassembly_ifindex: 77,
        ..config
    });
    let (published, _) = into_task();
    let tcp = Frame::tcp(CLIENT_UDP, (NODE_A, 22), ACK).payload(&[1; 1900]);
    for frame in [published, datagram(CLIENT_UDP, (NODE_A, 4789)), tcp] {
        for (ttl, raised) in [(64, 65), (255, 255)] {
            let pieces = |ttl| fragments(&frame.clone().ttl(ttl).bytes(), &CUTS, 1);
            for (piece, expected) in pieces(ttl).iter().zip(pieces(raised)) {
                node.assert_sends("sn_tc_uplink", piece, TC_ACT_REDIRECT, &expected);
            }
        }
    }
    let ping = Frame::new(CLIENT_UDP.0, NODE_A, Transport::Icmp { kind: 8, code: 0 });
    for other in [ping, datagram(CLIENT_UDP, (ip(192, 0, 2, 50), 8080))] {
        for piece in fragments(&other.payload(&[1; 1900]).bytes(), &CUTS, 1) {
            node.assert_passes("sn_tc_uplink", &piece);
        }
    }
    let whole = Frame::udp(CLIENT_UDP, PUBLISHED);
    let expected = whole.clone().mesh(Kind::Forward, EP, NODE_A).bytes();
    node.assert_sends("sn_tc_uplink", &whole.bytes(), TC_ACT_REDIRECT, &expected);
    assert_eq!(node.stats(10).packets, 1, "fragments are counted in order");
    assert_nothing_left(&mut node);
}

#[test]
fn fragments_come_back_as_they_are() {
    let mut node = node(NODE_B);
    for piece in fragments(&into_task().0.bytes(), &CUTS, 1) {
        node.assert_sends("sn_tc_ordered", &piece, TC_ACT_REDIRECT, &piece);
    }
}

#[test]
fn fragments_of_what_is_not_published_are_left_to_the_host() {
    let mut node = node(NODE_B);
    for to in [(NODE_A, 4789), (ip(192, 0, 2, 50), 8080)] {
        let frame = datagram(CLIENT_UDP, to).bytes();
        for order in [[0, 1, 2], [2, 1, 0]] {
            for nth in order {
                node.assert_passes("sn_tc_uplink", &fragments(&frame, &CUTS, 1)[nth]);
            }
        }
    }
    let other = Frame::new(CLIENT_UDP.0, NODE_A, Transport::Icmp { kind: 8, code: 0 });
    let other = other.payload(&[1; 1900]).bytes();
    for piece in fragments(&other, &CUTS, 1) {
        node.assert_passes("sn_tc_uplink", &piece);
    }
}

#[test]
fn fragment_for_a_task_that_went_drops_with_reason() {
    let mut node = node(Be32::ZERO);
    let (frame, own) = into_task();
    assert_follow(&mut node, "sn_tc_uplink", &frame, &own, (1, &[0]));
    node.hash::<u32, dataplane_abi::LocalEndpoint>("LOCAL")
        .remove(&EP)
        .unwrap();
    let piece = &fragments(&frame.bytes(), &CUTS, 1)[1];
    node.assert_drops("sn_tc_uplink", piece, DropReason::BackendGone);
}

#[test]
fn replies_in_fragments_go_back_as_one_flow() {
    let _netns = with_route();
    for entry in [NODE_B, Be32::ZERO] {
        let mut node = node(Be32::ZERO);
        let value = FlowValue {
            entry_vtep: entry,
            node_addr: NODE_A,
            published: Be16::from_host(8080),
            endpoint: EP,
            generation: 1,
            ..FlowValue::default()
        };
        node.put_flow(flow_key(CLIENT_UDP, TASK, UDP), value);
        let frame = datagram((TASK, 80), CLIENT_UDP);
        let frame = frame.macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
        let expected = frame.clone().src(NODE_A).sport(8080).ttl(63);
        let expected = match entry {
            Be32::ZERO => expected.macs(ROUTER, UPLINK_MAC),
            _ => expected.mesh(Kind::Return, EP, NODE_A),
        };
        for (id, order) in (1..).zip(ORDERS) {
            assert_follow(&mut node, "sn_tc_gateway", &frame, &expected, (id, order));
        }
        assert_nothing_left(&mut node);
    }
}

#[test]
fn neighbours_fragments_pass_the_bridge_where_the_packet_may() {
    let mut node = node(Be32::ZERO);
    node.target(9, NEIGHBOUR, 80, UDP);
    let to_neighbour = |frame: Frame| frame.macs(task_mac(NEIGHBOUR), task_mac(TASK)).bytes();
    let question = to_neighbour(datagram((TASK, 5000), (NEIGHBOUR, 80)));
    for piece in fragments(&question, &CUTS, 1) {
        node.assert_passes("sn_tc_gateway", &piece);
    }
    let value = FlowValue {
        flags: FLOW_BRIDGED,
        ..FlowValue::default()
    };
    node.put_flow(flow_key((NEIGHBOUR, 5000), TASK, UDP), value);
    let answer = to_neighbour(datagram((TASK, 80), (NEIGHBOUR, 5000)));
    for piece in fragments(&answer, &CUTS, 2) {
        node.assert_passes("sn_tc_gateway", &piece);
    }
    assert_nothing_left(&mut node);
    let denied = to_neighbour(datagram((TASK, 5000), (NEIGHBOUR, 81)));
    let pieces = fragments(&denied, &CUTS, 3);
    node.assert_drops("sn_tc_gateway", &pieces[0], DropReason::Isolated);
    node.assert_drops("sn_tc_gateway", &pieces[1], DropReason::FragmentWithoutHead);
}

const ME: Be32 = ip(10, 0, 1, 3);
const NEAR: Be32 = ip(10, 0, 1, 4);
const FAR: Be32 = ip(10, 0, 1, 5);

fn overlay_node(to: Be32) -> Node {
    let mut node = Node::configured(NODE_A);
    node.overlay_veth(LOOPBACK, VNI, ME, 20);
    node.endpoint(VNI, ME, Place::Here(60));
    node.endpoint(VNI, NEAR, Place::Here(61));
    node.endpoint(VNI, FAR, Place::At(NODE_B));
    let vtep = if to == FAR { NODE_B } else { Be32::ZERO };
    let service = node.service(0, 21, 0, &[backend(8, vtep, to)], &[slot(0, 0)]);
    node.vip(VNI, VIP, service);
    node
}

#[test]
fn fragments_to_a_vip_reach_the_backend_of_their_head() {
    for to in [FAR, NEAR, ME] {
        let mut node = overlay_node(to);
        let frame = datagram((ME, 40_000), (VIP, 80)).between_tasks();
        let expected = match to {
            ME => frame.clone().src(VIP).dst(ME),
            _ => frame.clone().dst(to),
        };
        let expected = expected.between_tasks();
        for (id, order) in (1..).zip(ORDERS) {
            assert_follow(&mut node, "sn_tc_task", &frame, &expected, (id, order));
        }
        assert_nothing_left(&mut node);
        if to == ME {
            let reply = datagram((ME, 80), (VIP, 40_000)).between_tasks();
            let expected = reply.clone().src(VIP).dst(ME).between_tasks();
            assert_follow(&mut node, "sn_tc_task", &reply, &expected, (3, ORDERS[0]));
            assert_nothing_left(&mut node);
        }
        let piece = &fragments(&frame.bytes(), &CUTS, 9)[1];
        node.assert_drops("sn_tc_task", piece, DropReason::FragmentWithoutHead);
    }
}

#[test]
fn fragments_of_a_vips_reply_come_from_the_vip() {
    let mut node = overlay_node(FAR);
    let key = VipFlowKey {
        vni: VNI,
        client: NEAR,
        backend: ME,
        client_port: Be16::from_host(40_000),
        backend_port: Be16::from_host(80),
        proto: UDP,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    };
    let flow = VipFlowValue {
        vip: VIP,
        ..VipFlowValue::default()
    };
    node.put("VIP_FLOWS", key, flow);
    let key = EndpointKey {
        vni: VNI,
        addr: NEAR,
    };
    let mut endpoint: EndpointValue = node.get("ENDPOINTS", key).unwrap();
    endpoint.flags = ENDPOINT_HAS_VIP_FLOWS;
    node.put("ENDPOINTS", key, endpoint);
    let frame = datagram((ME, 80), (NEAR, 40_000)).between_tasks();
    let expected = frame.clone().src(VIP);
    for (id, order) in (1..).zip(ORDERS) {
        assert_follow(&mut node, "sn_tc_task", &frame, &expected, (id, order));
    }
    // Of no flow to a VIP: as they are.
    let other = datagram((ME, 81), (NEAR, 40_000)).between_tasks();
    assert_follow(&mut node, "sn_tc_task", &other, &other, (3, ORDERS[0]));
    assert_nothing_left(&mut node);
}

// On real devices.

#[test]
fn datagrams_longer_than_any_link_are_answered() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    let task = &cluster.b.tasks[0];
    let server = EchoServer::udp(&task.namespace, at(task.gateway, 80));
    for entry in [NODE_A, NODE_B] {
        let socket = udp(&cluster.client);
        for len in [1473, 4000, 20_000] {
            assert_eq!(ask(&socket, at(entry, 8080), len), at(entry, 8080));
            assert_eq!(server.peer().ip(), show(CLIENT));
        }
    }
    cluster.assert_no_drops();
    for (base, backend) in [(10, ON_B), (20, ON_A_2), (30, ON_A)] {
        cluster.vip(base, &[slot(backend, backend)]);
        let to = match backend {
            ON_A => &cluster.a.tasks[0],
            ON_A_2 => &cluster.a.tasks[1],
            _ => &cluster.b.tasks[0],
        };
        let server = EchoServer::udp(&to.namespace, at(to.overlay, 53));
        let socket = udp(&cluster.a.tasks[0].namespace);
        assert_eq!(ask(&socket, at(VIP, 53), 4000), at(VIP, 53));
        server.peer();
    }
    cluster.assert_no_drops();
}
