//! ICMP errors follow the flow that they are about, translated as its packets are. Packet by packet;
//! `icmp_netns.rs` has real ones.

mod common;

use common::*;
use dataplane_abi::{
    Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue, FLOW_BRIDGED,
    FlowKey, FlowValue, LocalEndpoint, PEER_SUSPECTED, VIP_FLOW_HAIRPIN, VipFlowKey, VipFlowValue,
    hash::{FlowTuple, flow_hash, ring_slot},
    net::{mesh_mac::Kind, task_mac},
    seat::seat_port,
};

const NODE: Be32 = ip(192, 0, 2, 1);
const NODE_B: Be32 = ip(192, 0, 2, 2);
/// Someone on the way to the client, and the client.
const HOP: Be32 = ip(198, 51, 100, 77);
const CLIENT: (Be32, u16) = (ip(203, 0, 113, 9), 40_000);
const PUBLISHED: (Be32, u16) = (NODE, 8080);
const TASK: Be32 = ip(172, 18, 0, 5);
const NEIGHBOUR: Be32 = ip(172, 18, 0, 6);
const EP: u32 = 0x0102_0304;
const EP_2: u32 = 0x0a0b_0c0d;

const UNREACHABLE: (u8, u8) = (3, 3);
const TOO_BIG: (u8, u8) = (3, 4);
const EXPIRED: (u8, u8) = (11, 0);
const ERRORS: [(u8, u8); 5] = [(3, 1), UNREACHABLE, TOO_BIG, EXPIRED, (12, 0)];
/// IPv4 header and 8 bytes, all of TCP's header, what routers send today, all there is.
const QUOTED: [usize; 4] = [28, 40, 128, 548];

/// A node that publishes 8080 of TCP and UDP for one backend at `vtep`, and has a flow of the client
/// if that is here.
fn node(vtep: Be32) -> Node {
    let mut node = Node::configured(NODE);
    node.node_addr(NODE);
    let service = node.service(0, 10, 80, &[backend(EP, vtep, TASK)], &[slot(0, 0)]);
    for proto in [TCP, UDP] {
        node.publish(PUBLISHED.1, proto, service);
        if vtep.is_zero() {
            flow(&mut node, proto, Be32::ZERO, 0);
        }
    }
    node.local(EP, 50, TASK, 11);
    node.gateway_veth(LOOPBACK, TASK);
    node
}

fn flow(node: &mut Node, proto: u8, entry: Be32, flags: u16) {
    let value = FlowValue {
        entry_vtep: entry,
        node_addr: NODE,
        published: Be16::from_host(PUBLISHED.1),
        endpoint: EP,
        generation: 1,
        flags,
        ..FlowValue::default()
    };
    node.put_flow(flow_key(CLIENT, TASK, proto), value);
}

/// Packets from `from` to `to` that errors are about.
fn causes(from: (Be32, u16), to: (Be32, u16)) -> Vec<Frame> {
    let payload = [0x5a; 1001];
    vec![
        Frame::tcp(from, to, PSH_ACK).payload(&payload).ttl(3),
        Frame::udp(from, to).payload(&payload),
        Frame::udp(from, to).payload(&payload).without_checksum(),
        Frame::tcp(from, to, PSH_ACK).options(&[1; 40]),
        Frame::udp(from, to).options(&[7, 4, 1, 0]).fragment(0x2000),
    ]
}

/// Each cause with each error about it, quoted in each length that holds ports.
fn errors(from: (Be32, u16), to: (Be32, u16)) -> Vec<(Frame, (u8, u8), usize)> {
    let mut all = Vec::new();
    for cause in causes(from, to) {
        for quoted in QUOTED {
            let options = cause.options.len();
            all.extend(ERRORS.map(|error| (cause.clone(), error, quoted + options)));
        }
    }
    all
}

#[test]
fn error_about_a_reply_goes_to_the_node_that_has_the_flow() {
    let mut node = node(NODE_B);
    for (cause, error, quoted) in errors(PUBLISHED, CLIENT) {
        let error = IcmpError::about(&cause, HOP, error, quoted);
        let expected = error.clone().mesh(Kind::Forward, EP, NODE);
        node.assert_sends(
            "sn_tc_uplink",
            &error.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
        // XDP leaves all ICMP to tc.
        let outcome = node.run_xdp(&error.bytes(), LOOPBACK);
        assert_eq!(outcome.verdict, XDP_PASS);
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
    assert!(node.entries::<FlowKey, FlowValue>("FLOWS").is_empty());
}

/// Moves the client's flows: its own port is another flow's. Gives the port that the task knows.
fn move_source_port(node: &mut Node) -> u16 {
    let moved = seat_port(Be16::from_host(CLIENT.1), 1);
    for proto in [TCP, UDP] {
        let key = flow_key(CLIENT, TASK, proto);
        let flow = node.flow(key).expect("the client's flow");
        let other = FlowValue {
            last_seen: monotonic_ns(),
            node_addr: NODE_B,
            ..flow
        };
        node.put_flow(key, other);
        let key = FlowKey {
            client_port: moved,
            ..key
        };
        let flow = FlowValue {
            own_port: Be16::from_host(CLIENT.1),
            ..flow
        };
        node.put_flow(key, flow);
    }
    moved.to_host()
}

#[test]
fn errors_about_a_flow_of_a_moved_source_port_are_translated_with_it() {
    let mut node = node(Be32::ZERO);
    for proto in [TCP, UDP] {
        flow(&mut node, proto, NODE_B, 0);
    }
    let moved = move_source_port(&mut node);
    for (cause, error, quoted) in errors(PUBLISHED, CLIENT) {
        let packet = IcmpError::about(&cause, HOP, error, quoted);
        let own = cause.clone().src(TASK).sport(80).dport(moved);
        let expected = IcmpError::about(&own, HOP, error, quoted)
            .macs(task_mac(TASK), task_mac(GATEWAY_ADDR))
            .ttl(63);
        node.assert_sends(
            "sn_tc_uplink",
            &packet.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    for (cause, error, quoted) in errors(CLIENT, PUBLISHED) {
        let as_seen = cause.clone().sport(moved).dst(TASK).dport(80);
        let packet = IcmpError::about(&as_seen, TASK, error, quoted)
            .macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
        let expected =
            IcmpError::about(&cause, NODE, error, quoted)
                .ttl(63)
                .mesh(Kind::Return, EP, NODE);
        node.assert_sends(
            "sn_tc_gateway",
            &packet.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

#[test]
fn error_takes_the_backend_that_the_flow_has() {
    let mut node = node(NODE_B);
    let backends: Vec<_> = (0..5).map(|i| backend(100 + i, NODE_B, NODE_B)).collect();
    let slots: Vec<_> = (0..512u32).map(|i| slot((i * 7 % 5) as u16, 0)).collect();
    let service = node.service(3, 10, 80, &backends, &slots);
    node.publish(PUBLISHED.1, UDP, service);
    let mut seen = std::collections::BTreeSet::new();
    for port in 1000..1100 {
        let client = (CLIENT.0, port);
        let packet = Frame::udp(client, PUBLISHED).bytes();
        let taken = node.run_tc("sn_tc_uplink", &packet).packet[..6].to_vec();
        let error = IcmpError::about(&Frame::udp(PUBLISHED, client), HOP, UNREACHABLE, 28);
        let outcome = node.run_tc("sn_tc_uplink", &error.bytes());
        assert_eq!(outcome.packet[..6], taken);
        seen.insert(taken);
    }
    assert_eq!(seen.len(), 5);
}

#[test]
fn error_about_a_reply_reaches_the_task_as_if_about_its_own_packet() {
    let mut node = node(Be32::ZERO);
    for (cause, error, quoted) in errors(PUBLISHED, CLIENT) {
        let packet = IcmpError::about(&cause, HOP, error, quoted);
        let own = cause.clone().src(TASK).sport(80);
        let expected = IcmpError::about(&own, HOP, error, quoted)
            .macs(task_mac(TASK), task_mac(GATEWAY_ADDR))
            .ttl(63);
        node.assert_sends(
            "sn_tc_uplink",
            &packet.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

#[test]
fn udp_checksum_that_comes_out_as_zero_is_quoted_as_ones() {
    let mut node = node(Be32::ZERO);
    let own = |pad: u16| {
        let frame = Frame::udp((TASK, 80), CLIENT);
        frame.payload(&[&pad.to_be_bytes()[..], b"rest"].concat())
    };
    let pad = (0..=u16::MAX).find(|pad| own(*pad).bytes()[40..42] == [0xff, 0xff]);
    let own = own(pad.expect("some payload sums up to zero"));
    let cause = own.clone().src(NODE).sport(8080);
    let error = |cause| IcmpError::about(cause, HOP, UNREACHABLE, 548);
    let expected = error(&own).macs(task_mac(TASK), task_mac(GATEWAY_ADDR));
    node.assert_sends(
        "sn_tc_uplink",
        &error(&cause).bytes(),
        TC_ACT_REDIRECT,
        &expected.ttl(63).bytes(),
    );
}

#[test]
fn error_about_a_flow_that_nobody_knows_drops_with_reason() {
    let mut node = node(Be32::ZERO);
    let about = |client, proto| {
        let cause = match proto {
            TCP => Frame::tcp(PUBLISHED, client, ACK),
            _ => Frame::udp(PUBLISHED, client),
        };
        IcmpError::about(&cause, HOP, UNREACHABLE, 28).bytes()
    };
    let unknown = DropReason::IcmpUnknownFlow;
    for proto in [TCP, UDP] {
        let stranger = (CLIENT.0, CLIENT.1 + 1);
        node.assert_drops("sn_tc_uplink", &about(stranger, proto), unknown);
    }
    // Of the same ports by another address; of an endpoint that stopped serving.
    let other = ip(192, 0, 2, 77);
    node.node_addr(other);
    let cause = Frame::udp((other, 8080), CLIENT);
    let error = IcmpError::about(&cause, HOP, UNREACHABLE, 28).bytes();
    node.assert_drops("sn_tc_uplink", &error, unknown);
    let mut local: LocalEndpoint = node.get("LOCAL", EP).unwrap();
    local.generation = 2;
    node.put("LOCAL", EP, local);
    node.assert_drops("sn_tc_uplink", &about(CLIENT, UDP), unknown);
}

#[test]
fn error_about_a_flow_of_the_owner_before_is_handed_on_to_it() {
    let mut node = node(NODE_B);
    let backends = [backend(EP, Be32::ZERO, TASK), backend(EP_2, NODE_B, NODE_B)];
    let service = node.service(0, 10, 80, &backends, &[slot(0, 1), slot(0, 1)]);
    node.publish(PUBLISHED.1, TCP, service);
    let cause = Frame::tcp(PUBLISHED, CLIENT, ACK);
    let error = IcmpError::about(&cause, HOP, TOO_BIG, 28);
    let expected = error.clone().mesh(Kind::SecondHop, EP_2, NODE);
    node.assert_sends(
        "sn_tc_uplink",
        &error.bytes(),
        TC_ACT_REDIRECT,
        &expected.bytes(),
    );
}

#[test]
fn service_without_backend_drops_the_error_unanswered() {
    let mut node = node(NODE_B);
    let service = node.service(0, 10, 80, &[], &[]);
    node.publish(PUBLISHED.1, TCP, service);
    let cause = Frame::tcp(PUBLISHED, CLIENT, ACK);
    let error = IcmpError::about(&cause, HOP, TOO_BIG, 28).bytes();
    node.assert_drops("sn_tc_uplink", &error, DropReason::NoBackend);
}

#[test]
fn error_too_long_for_the_tunnel_is_not_answered_by_another() {
    let _netns = with_route();
    let mut node = node(NODE_B);
    let cause = Frame::udp(PUBLISHED, CLIENT).payload(&[1; 1450]);
    let mut error = IcmpError::about(&cause, HOP, UNREACHABLE, 1440).bytes();
    // "Don't fragment", with the checksum of that.
    error[20] = 0x40;
    error[24..26].fill(0);
    let sum = checksum(&error[14..34]);
    error[24..26].copy_from_slice(&sum.to_be_bytes());
    node.assert_drops("sn_tc_uplink", &error, DropReason::TooBig);
}

/// Errors that name no flow of a published port, whatever cut them short.
fn malformed(good: &IcmpError) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..28)
        .map(|quoted| {
            let mut short = good.clone();
            short.quote.truncate(quoted);
            short.bytes()
        })
        .collect();
    let mut change = |edit: fn(&mut IcmpError)| {
        let mut changed = good.clone();
        edit(&mut changed);
        all.push(changed.bytes());
    };
    // Another version; a header that is too short; one that leads out of the packet.
    change(|error| error.quote[0] = 0x65);
    change(|error| error.quote[0] = 0x44);
    change(|error| error.quote[0] = 0x4f);
    // A later fragment; no TCP or UDP; about someone else's packet.
    change(|error| error.quote[7] = 1);
    change(|error| error.quote[9] = 1);
    change(|error| error.quote[15] ^= 1);
    // No errors: redirect, echo and its answer.
    change(|error| error.kind = 5);
    change(|error| error.kind = 8);
    change(|error| error.kind = 0);
    all
}

#[test]
fn what_names_no_flow_of_ours_is_left_to_the_host() {
    let mut node = node(NODE_B);
    let cause = Frame::udp(PUBLISHED, CLIENT);
    let good = IcmpError::about(&cause, HOP, UNREACHABLE, 28);
    let whole = good.bytes();
    let expected = good.clone().mesh(Kind::Forward, EP, NODE).bytes();
    node.assert_sends("sn_tc_uplink", &whole, TC_ACT_REDIRECT, &expected);
    for packet in malformed(&good) {
        node.assert_passes("sn_tc_uplink", &packet);
    }
    // The kernel takes no test packet that is shorter than an IPv4 header.
    for cut in 34..whole.len() {
        node.assert_passes("sn_tc_uplink", &whole[..cut]);
    }
    let other_port = Frame::udp((NODE, 8081), CLIENT);
    let other_addr = Frame::udp((ip(192, 0, 2, 50), 8080), CLIENT);
    for cause in [other_port, other_addr] {
        let error = IcmpError::about(&cause, HOP, UNREACHABLE, 28);
        node.assert_passes("sn_tc_uplink", &error.bytes());
    }
}

#[test]
fn tasks_error_reaches_the_client_as_if_about_its_own_packet() {
    let mut node = node(NODE_B);
    for (cause, error, quoted) in errors(CLIENT, PUBLISHED) {
        let proto = cause.proto();
        flow(&mut node, proto, NODE_B, 0);
        let as_seen = cause.clone().dst(TASK).dport(80);
        let packet = IcmpError::about(&as_seen, TASK, error, quoted)
            .macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
        let expected =
            IcmpError::about(&cause, NODE, error, quoted)
                .ttl(63)
                .mesh(Kind::Return, EP, NODE);
        node.assert_sends(
            "sn_tc_gateway",
            &packet.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}

#[test]
fn tasks_error_leaves_by_the_routing_table_where_the_flow_entered_here() {
    let _netns = with_route();
    let mut node = node(Be32::ZERO);
    let cause = Frame::udp(CLIENT, PUBLISHED);
    let as_seen = cause.clone().dst(TASK).dport(80);
    let packet = IcmpError::about(&as_seen, TASK, UNREACHABLE, 548)
        .macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
    let expected = IcmpError::about(&cause, NODE, UNREACHABLE, 548).ttl(63);
    let sent = expected.macs(ROUTER, UPLINK_MAC).bytes();
    node.assert_sends("sn_tc_gateway", &packet.bytes(), TC_ACT_REDIRECT, &sent);
}

#[test]
fn tasks_error_about_no_flow_of_ours_goes_as_its_other_packets() {
    let mut node = node(Be32::ZERO);
    let from_task = |error: IcmpError| error.macs(task_mac(GATEWAY_ADDR), task_mac(TASK));
    let cause = Frame::udp((CLIENT.0, 7), (TASK, 80));
    let good = from_task(IcmpError::about(&cause, TASK, UNREACHABLE, 28));
    // Towards the world.
    node.assert_passes("sn_tc_gateway", &good.bytes());
    let known = Frame::udp(CLIENT, (TASK, 80));
    let good = from_task(IcmpError::about(&known, TASK, UNREACHABLE, 28));
    for packet in malformed(&good) {
        node.assert_passes("sn_tc_gateway", &packet);
    }
    // About a flow of a neighbour, which is not its own to speak of.
    let theirs = Frame::udp(CLIENT, (NEIGHBOUR, 80));
    let forged = from_task(IcmpError::about(&theirs, TASK, UNREACHABLE, 28));
    node.assert_passes("sn_tc_gateway", &forged.bytes());
    // To a neighbour.
    let cause = Frame::udp((NEIGHBOUR, 7), (TASK, 80));
    let error = from_task(IcmpError::about(&cause, TASK, UNREACHABLE, 28));
    node.assert_drops("sn_tc_gateway", &error.bytes(), DropReason::Isolated);
}

#[test]
fn neighbour_that_asked_by_the_bridge_hears_that_nobody_listens() {
    let mut node = node(Be32::ZERO);
    let asker = (NEIGHBOUR, 40_000);
    let value = FlowValue {
        node_addr: TASK,
        published: Be16::from_host(80),
        flags: FLOW_BRIDGED,
        ..FlowValue::default()
    };
    node.put_flow(flow_key(asker, TASK, UDP), value);
    let cause = Frame::udp(asker, (TASK, 80));
    let error = IcmpError::about(&cause, TASK, UNREACHABLE, 548);
    let error = error.macs(task_mac(NEIGHBOUR), task_mac(TASK));
    node.assert_passes("sn_tc_gateway", &error.bytes());
}

// Flows to a VIP, translated per packet.

const VNI: u32 = 4097;
const ME: Be32 = ip(10, 0, 1, 3);
const NEAR: Be32 = ip(10, 0, 1, 4);
const FAR: Be32 = ip(10, 0, 1, 5);
const VIP: Be32 = ip(10, 0, 1, 2);

fn vip_flow(node: &mut Node, client: Be32, backend: Be32, proto: u8) {
    vip_flow_at(node, client, backend, proto, 40_000);
}

/// As [`vip_flow`], at the port by which the backend knows the client.
fn vip_flow_at(node: &mut Node, client: Be32, backend: Be32, proto: u8, port: u16) {
    let flags = match client == backend {
        true => VIP_FLOW_HAIRPIN,
        false => 0,
    };
    let key = VipFlowKey {
        vni: VNI,
        client,
        backend,
        client_port: Be16::from_host(port),
        backend_port: Be16::from_host(80),
        proto,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    };
    let value = VipFlowValue {
        vip: VIP,
        flags,
        own_port: Be16::from_host(if port == 40_000 { 0 } else { 40_000 }),
        ..VipFlowValue::default()
    };
    node.put("VIP_FLOWS", key, value);
    let key = EndpointKey {
        vni: VNI,
        addr: client,
    };
    let mut endpoint: EndpointValue = node.get("ENDPOINTS", key).unwrap();
    endpoint.flags = ENDPOINT_HAS_VIP_FLOWS;
    node.put("ENDPOINTS", key, endpoint);
}

/// The task behind the loopback device is `me`; a VIP leads to `to`, and before the last change to
/// `before`.
fn overlay_node(me: Be32, to: Be32, before: Be32) -> Node {
    let mut node = Node::configured(NODE);
    node.overlay_veth(LOOPBACK, VNI, me, 20);
    for (addr, place) in [
        (ME, Place::Here(60)),
        (NEAR, Place::Here(61)),
        (FAR, Place::At(NODE_B)),
    ] {
        node.endpoint(VNI, addr, place);
    }
    let backends = [to, before].map(|addr| {
        let vtep = if addr == FAR { NODE_B } else { Be32::ZERO };
        backend(8, vtep, addr)
    });
    let service = node.service(0, 21, 0, &backends, &[slot(0, 1)]);
    node.vip(VNI, VIP, service);
    node
}

#[test]
fn backends_error_comes_from_the_vip() {
    let mut node = overlay_node(ME, FAR, FAR);
    for (cause, error, quoted) in errors((NEAR, 40_000), (VIP, 80)) {
        vip_flow(&mut node, NEAR, ME, cause.proto());
        let as_seen = cause.clone().dst(ME);
        let macs = (task_mac(NEAR), task_mac(ME));
        let packet = IcmpError::about(&as_seen, ME, error, quoted).macs(macs.0, macs.1);
        let expected = IcmpError::about(&cause, VIP, error, quoted).macs(macs.0, macs.1);
        node.assert_sends(
            "sn_tc_task",
            &packet.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    // About no flow to a VIP, or one that the sender is no part of: as it is.
    for cause in [
        Frame::udp((NEAR, 1), (ME, 80)),
        Frame::udp((NEAR, 40_000), (FAR, 80)),
    ] {
        let packet = IcmpError::about(&cause, ME, UNREACHABLE, 28);
        let packet = packet.macs(task_mac(NEAR), task_mac(ME)).bytes();
        node.assert_sends("sn_tc_task", &packet, TC_ACT_REDIRECT, &packet);
    }
}

#[test]
fn clients_error_reaches_the_backend_that_has_the_flow() {
    // By the slot now, near and far, and by the slot before.
    for (to, before, owner) in [(FAR, FAR, FAR), (NEAR, NEAR, NEAR), (FAR, NEAR, NEAR)] {
        let mut node = overlay_node(ME, to, before);
        for (cause, error, quoted) in errors((VIP, 80), (ME, 40_000)) {
            vip_flow(&mut node, ME, owner, cause.proto());
            let packet = IcmpError::about(&cause, ME, error, quoted);
            let packet = packet.macs(task_mac(VIP), task_mac(ME));
            let own = cause.clone().src(owner);
            let expected = IcmpError::about(&own, ME, error, quoted);
            let expected = expected.macs(task_mac(owner), task_mac(ME));
            node.assert_sends(
                "sn_tc_task",
                &packet.bytes(),
                TC_ACT_REDIRECT,
                &expected.bytes(),
            );
        }
    }
}

/// What began while its slot's node did not answer is at the next choice.
#[test]
fn clients_error_reaches_the_backend_chosen_while_a_node_did_not_answer() {
    let mut node = overlay_node(ME, FAR, FAR);
    let backends = [backend(8, NODE_B, FAR), backend(9, Be32::ZERO, NEAR)];
    let mut slots = [slot(1, 1); 256];
    for proto in [TCP, UDP] {
        let tuple = FlowTuple {
            src: ME,
            src_port: Be16::from_host(40_000),
            dst_port: Be16::from_host(80),
            proto,
        };
        slots[ring_slot(flow_hash(tuple, RING_SEED), 256) as usize] = slot(0, 0);
    }
    let service = node.service(0, 21, 0, &backends, &slots);
    node.vip(VNI, VIP, service);
    node.doubt(NODE_B, PEER_SUSPECTED);
    for (cause, error, quoted) in errors((VIP, 80), (ME, 40_000)) {
        vip_flow(&mut node, ME, NEAR, cause.proto());
        let packet = IcmpError::about(&cause, ME, error, quoted);
        let packet = packet.macs(task_mac(VIP), task_mac(ME)).bytes();
        let own = cause.clone().src(NEAR);
        let expected = IcmpError::about(&own, ME, error, quoted);
        let expected = expected.macs(task_mac(NEAR), task_mac(ME)).bytes();
        node.assert_sends("sn_tc_task", &packet, TC_ACT_REDIRECT, &expected);
    }
}

#[test]
fn errors_about_a_vip_flow_of_a_moved_source_port_are_translated_with_it() {
    let moved = seat_port(Be16::from_host(40_000), 1).to_host();
    let mut node = overlay_node(ME, FAR, FAR);
    for (cause, error, quoted) in errors((NEAR, 40_000), (VIP, 80)) {
        vip_flow_at(&mut node, NEAR, ME, cause.proto(), moved);
        let as_seen = cause.clone().dst(ME).sport(moved);
        let macs = (task_mac(NEAR), task_mac(ME));
        let packet = IcmpError::about(&as_seen, ME, error, quoted).macs(macs.0, macs.1);
        let expected = IcmpError::about(&cause, VIP, error, quoted).macs(macs.0, macs.1);
        let (packet, expected) = (packet.bytes(), expected.bytes());
        node.assert_sends("sn_tc_task", &packet, TC_ACT_REDIRECT, &expected);
    }
    for (cause, error, quoted) in errors((VIP, 80), (ME, 40_000)) {
        vip_flow_at(&mut node, ME, FAR, cause.proto(), moved);
        let packet = IcmpError::about(&cause, ME, error, quoted);
        let packet = packet.macs(task_mac(VIP), task_mac(ME)).bytes();
        let own = cause.clone().src(FAR).dport(moved);
        let expected = IcmpError::about(&own, ME, error, quoted);
        let expected = expected.macs(task_mac(FAR), task_mac(ME)).bytes();
        node.assert_sends("sn_tc_task", &packet, TC_ACT_REDIRECT, &expected);
    }
}

#[test]
fn tasks_error_about_its_own_packet_by_the_vip_comes_back_to_it() {
    let moved = seat_port(Be16::from_host(40_000), 1).to_host();
    let mut node = overlay_node(ME, ME, ME);
    vip_flow(&mut node, ME, ME, UDP);
    let mut node_moved = overlay_node(ME, ME, ME);
    vip_flow_at(&mut node_moved, ME, ME, UDP, moved);
    // As backend about its question, as client about its answer.
    for (node, seen) in [(&mut node, 40_000), (&mut node_moved, moved)] {
        for (cause, own) in [
            (
                Frame::udp((VIP, seen), (ME, 80)),
                Frame::udp((ME, 40_000), (VIP, 80)),
            ),
            (
                Frame::udp((VIP, 80), (ME, 40_000)),
                Frame::udp((ME, 80), (VIP, seen)),
            ),
        ] {
            let packet = IcmpError::about(&cause, ME, UNREACHABLE, 548);
            let packet = packet.macs(task_mac(VIP), task_mac(ME));
            let expected = IcmpError::about(&own, VIP, UNREACHABLE, 548);
            let expected = expected.macs(task_mac(ME), task_mac(VIP));
            node.assert_sends(
                "sn_tc_task",
                &packet.bytes(),
                TC_ACT_REDIRECT,
                &expected.bytes(),
            );
        }
    }
}

#[test]
fn error_to_a_vip_about_an_unknown_flow_drops_with_reason() {
    let mut node = overlay_node(ME, FAR, FAR);
    for to in [(ME, 40_000), (NEAR, 40_000)] {
        let cause = Frame::udp((VIP, 80), to);
        let packet = IcmpError::about(&cause, ME, UNREACHABLE, 28);
        let packet = packet.macs(task_mac(VIP), task_mac(ME)).bytes();
        node.assert_drops("sn_tc_task", &packet, DropReason::IcmpUnknownFlow);
    }
}
