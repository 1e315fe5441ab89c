//! What does not fit the tunnel: the error that its sender gets, and the segment size that keeps TCP
//! from sending such.

mod common;

use common::*;
use dataplane_abi::{
    Be16, Be32, DropReason, FlowValue,
    net::{mesh_mac::Kind, task_mac},
};

const NODE: Be32 = ip(192, 0, 2, 1);
const NODE_B: Be32 = ip(192, 0, 2, 2);
const CLIENT: (Be32, u16) = (ip(203, 0, 113, 9), 40_000);
const PUBLISHED: (Be32, u16) = (NODE, 8080);
/// Gateway side of a task here.
const TASK: Be32 = ip(172, 18, 0, 5);
const EP: u32 = 0x0102_0304;
const VNI: u32 = 4097;
/// Overlay side of a task here, a task at node B, and a VIP in front of it.
const OVERLAY: Be32 = ip(10, 0, 1, 3);
const FAR: Be32 = ip(10, 0, 1, 5);
const VIP: Be32 = ip(10, 0, 1, 2);

const DONT_FRAGMENT: u16 = 0x4000;
const FITS: usize = TUNNEL_MTU as usize;

/// A service on 8080 whose one backend is at `vtep`; zero is here.
fn node(proto: u8, vtep: Be32) -> Node {
    let mut node = Node::configured(NODE);
    node.node_addr(NODE);
    node.local(EP, 50, TASK, 11);
    let service = node.service(0, 10, 80, &[backend(EP, vtep, TASK)], &[slot(0, 0)]);
    node.publish(PUBLISHED.1, proto, service);
    node
}

/// A flow that entered at `entry` and whose task is behind the loopback device.
fn node_with_flow(proto: u8, entry: Be32) -> Node {
    let mut node = Node::configured(NODE);
    node.gateway_veth(LOOPBACK, TASK);
    let flow = FlowValue {
        entry_vtep: entry,
        node_addr: NODE_B,
        published: Be16::from_host(8080),
        endpoint: EP,
        ..FlowValue::default()
    };
    node.put_flow(flow_key(CLIENT, TASK, proto), flow);
    node
}

fn overlay_node() -> Node {
    let mut node = Node::configured(NODE);
    node.overlay_veth(LOOPBACK, VNI, OVERLAY, 20);
    node.endpoint(VNI, OVERLAY, Place::Here(LOOPBACK));
    node.endpoint(VNI, FAR, Place::At(NODE_B));
    let service = node.service(0, 21, 0, &[backend(8, NODE_B, FAR)], &[slot(0, 0)]);
    node.vip(VNI, VIP, service);
    node
}

/// The longest packet of `frame`'s kind that fits passes as `sent` says; one byte more is dropped,
/// and `answer` goes back. Without "don't fragment" it passes too: the kernel fragments the outer
/// packet.
#[track_caller]
fn assert_bounded(
    node: &mut Node,
    program: &str,
    frame: &Frame,
    sent: impl Fn(Frame) -> Frame,
    answer: impl Fn(&Frame) -> IcmpError,
) {
    for (len, flags) in [(FITS, DONT_FRAGMENT), (FITS + 1, 0), (1500, 0)] {
        let frame = frame.clone().fragment(flags).ip_len(len);
        let expected = sent(frame.clone()).bytes();
        node.assert_sends(program, &frame.bytes(), TC_ACT_REDIRECT, &expected);
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
    for (count, len) in [(1, FITS + 1), (2, 1500)] {
        let frame = frame.clone().fragment(DONT_FRAGMENT).ip_len(len);
        let expected = answer(&frame).bytes();
        node.assert_sends(program, &frame.bytes(), TC_ACT_REDIRECT, &expected);
        assert_eq!(node.drops(), [(DropReason::TooBig.label(), count)].into());
    }
}

#[test]
fn client_hears_that_its_packet_does_not_fit_the_tunnel() {
    let _netns = with_route();
    let to = |proto| match proto {
        TCP => Frame::tcp(CLIENT, PUBLISHED, PSH_ACK),
        _ => Frame::udp(CLIENT, PUBLISHED),
    };
    for frame in [
        to(TCP),
        to(UDP),
        to(UDP).without_checksum(),
        to(TCP).options(&[1; 40]).ttl(3),
    ] {
        let proto = frame.proto();
        assert_bounded(
            &mut node(proto, NODE_B),
            "sn_tc_uplink",
            &frame,
            |frame| frame.mesh(Kind::Forward, EP, NODE),
            |frame| IcmpError::too_big(frame, NODE, TUNNEL_MTU as u16).macs(ROUTER, UPLINK_MAC),
        );
    }
}

#[test]
fn packet_for_a_task_here_may_be_longer() {
    let mut node = node(UDP, Be32::ZERO);
    let frame = Frame::udp(CLIENT, PUBLISHED).fragment(DONT_FRAGMENT);
    let frame = frame.ip_len(1500);
    let expected = frame.clone().dst(TASK).dport(80).ttl(63);
    let expected = expected.macs(task_mac(TASK), task_mac(GATEWAY_ADDR));
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &expected.bytes(),
    );
}

#[test]
fn error_that_finds_no_way_back_leaves_the_drop() {
    let _netns = PrivateNetns::enter();
    let frame = Frame::udp(CLIENT, PUBLISHED).fragment(DONT_FRAGMENT);
    let frame = frame.ip_len(FITS + 1).bytes();
    node(UDP, NODE_B).assert_drops("sn_tc_uplink", &frame, DropReason::TooBig);
}

#[test]
fn task_hears_that_its_reply_does_not_fit_the_tunnel() {
    for frame in [
        Frame::tcp((TASK, 80), CLIENT, PSH_ACK),
        Frame::udp((TASK, 80), CLIENT),
    ] {
        let frame = frame.macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
        assert_bounded(
            &mut node_with_flow(frame.proto(), NODE_B),
            "sn_tc_gateway",
            &frame,
            |frame| {
                let frame = frame.src(NODE_B).sport(8080).ttl(63);
                frame.mesh(Kind::Return, EP, NODE)
            },
            |frame| {
                let error = IcmpError::too_big(frame, GATEWAY_ADDR, TUNNEL_MTU as u16);
                error.macs(task_mac(TASK), task_mac(GATEWAY_ADDR))
            },
        );
    }
}

#[test]
fn task_hears_that_its_packet_does_not_fit_the_overlay() {
    for to in [FAR, VIP] {
        assert_bounded(
            &mut overlay_node(),
            "sn_tc_task",
            &Frame::udp((OVERLAY, 40_000), (to, 80)).between_tasks(),
            |frame| frame.dst(FAR).between_tasks(),
            |frame| {
                let error = IcmpError::too_big(frame, to, TUNNEL_MTU as u16);
                error.macs(task_mac(OVERLAY), task_mac(to))
            },
        );
    }
}

const MSS: [u8; 2] = [2, 4];

/// Options of a SYN, with a place for the maximum segment size in each.
fn syn_options(mss: u16) -> Vec<Vec<u8>> {
    let [high, low] = mss.to_be_bytes();
    let option = [MSS[0], MSS[1], high, low];
    let padded = |before: &[u8], behind: &[u8]| [before, &option, behind].concat();
    vec![
        padded(&[], &[]),
        padded(&[], &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7]),
        padded(&[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], &[1, 3, 3, 7]),
        // At an odd offset: the checksum sums it up in halves of two pairs.
        padded(&[1], &[1, 1, 1]),
        padded(&[3, 3, 7], &[1]),
        // As late as can be.
        padded(&[1; 36], &[]),
        padded(&[1; 35], &[0]),
    ]
}

/// Options that hold no size, or end before one.
fn other_options() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![4, 2, 1, 1],
        // Behind the end; inside of another option; of a wrong length; cut off.
        vec![0, 0, 0, 0, 2, 4, 0xff, 0xff],
        vec![8, 8, 2, 4, 0xff, 0xff, 0, 0],
        vec![2, 6, 0xff, 0xff, 0, 0, 1, 1],
        vec![1, 1, 2, 4],
        // Options without a length, and with one that leads out of the header.
        vec![9, 0, 2, 4, 0xff, 0xff, 1, 1],
        vec![9, 1, 2, 4, 0xff, 0xff, 1, 1],
        vec![9, 255, 2, 4, 0xff, 0xff, 1, 1],
    ]
}

/// What a SYN's options become; `told` goes down to the limit and never up.
fn clamped() -> Vec<(Vec<u8>, Vec<u8>)> {
    let limit = TUNNEL_MTU as u16 - 40;
    let told = [u16::MAX, 1460, limit + 1, limit, 536, 0];
    let sizes = told.iter().flat_map(|told| {
        let becomes = syn_options((*told).min(limit));
        syn_options(*told).into_iter().zip(becomes)
    });
    let others = other_options().into_iter().map(|same| (same.clone(), same));
    sizes.chain(others).collect()
}

#[test]
fn segment_size_that_the_client_tells_leaves_room_for_the_tunnel() {
    let mut node = node(TCP, Be32::ZERO);
    for (port, (told, becomes)) in (1000..).zip(clamped()) {
        let frame = Frame::tcp((CLIENT.0, port), PUBLISHED, SYN).payload(&[]);
        let expected = frame.clone().dst(TASK).dport(80).ttl(63);
        let expected = expected.macs(task_mac(TASK), task_mac(GATEWAY_ADDR));
        node.assert_sends(
            "sn_tc_uplink",
            &frame.tcp_options(&told).bytes(),
            TC_ACT_REDIRECT,
            &expected.tcp_options(&becomes).bytes(),
        );
    }
    // Only a SYN has the option.
    let syn = Frame::tcp(CLIENT, PUBLISHED, SYN);
    node.run_tc("sn_tc_uplink", &syn.bytes());
    let option = [2, 4, 0xff, 0xff];
    let frame = Frame::tcp(CLIENT, PUBLISHED, ACK).tcp_options(&option);
    let expected = frame.clone().dst(TASK).dport(80).ttl(63);
    let expected = expected.macs(task_mac(TASK), task_mac(GATEWAY_ADDR));
    node.assert_sends(
        "sn_tc_uplink",
        &frame.bytes(),
        TC_ACT_REDIRECT,
        &expected.bytes(),
    );
}

#[test]
fn segment_size_that_the_task_tells_leaves_room_for_the_tunnel() {
    let mut node = node_with_flow(TCP, NODE_B);
    for (told, becomes) in clamped() {
        let frame = Frame::tcp((TASK, 80), CLIENT, SYN | ACK).payload(&[]);
        let frame = frame.macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
        let expected = frame.clone().src(NODE_B).sport(8080).ttl(63);
        let expected = expected.mesh(Kind::Return, EP, NODE);
        node.assert_sends(
            "sn_tc_gateway",
            &frame.tcp_options(&told).bytes(),
            TC_ACT_REDIRECT,
            &expected.tcp_options(&becomes).bytes(),
        );
    }
}
