//! `sn_tc_task`: what a task sends into its overlay network.

mod common;

use common::*;
use dataplane_abi::{
    BACKEND_DRAINING, Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue,
    NodeConfig, PEER_RETURNING, PEER_SUSPECTED, RingSlot, SERVICE_NEAR, SERVICE_NEAR_DRAINS,
    ServiceValue, VIP_FLOW_HAIRPIN, VipFlowKey, VipFlowValue,
    hash::{FlowTuple, ring_slot},
    net::task_mac,
    seat::{SEATS, seat_port},
};

const VNI: u32 = 4097;
const OTHER_VNI: u32 = 4098;
const VTEP: Be32 = ip(192, 0, 2, 1);
const VTEP_B: Be32 = ip(192, 0, 2, 2);
const VTEP_C: Be32 = ip(192, 0, 2, 3);
/// The task behind the interface.
const TASK: Be32 = ip(10, 0, 1, 3);
/// A task of the same node, and one of node B.
const NEAR: Be32 = ip(10, 0, 1, 4);
const FAR: Be32 = ip(10, 0, 1, 5);
const FAR_2: Be32 = ip(10, 0, 1, 6);
const VIP: Be32 = ip(10, 0, 1, 2);
const NOBODY: Be32 = ip(10, 0, 1, 99);
const STATS: u32 = 20;
const FRONT: u32 = 21;

fn node() -> Node {
    let mut node = Node::configured(VTEP);
    node.overlay_veth(LOOPBACK, VNI, TASK, STATS);
    node.endpoint(VNI, TASK, Place::Here(LOOPBACK));
    node.endpoint(VNI, NEAR, Place::Here(60));
    node.endpoint(VNI, FAR, Place::At(VTEP_B));
    node.endpoint(VNI, FAR_2, Place::At(VTEP_B));
    node.endpoint(OTHER_VNI, NOBODY, Place::Here(61));
    node
}

/// A VIP whose ring is `slots` over `backends`.
fn node_with_vip(
    backends: &[dataplane_abi::BackendValue],
    slots: &[dataplane_abi::RingSlot],
) -> Node {
    let mut node = node();
    let service: ServiceValue = node.service(0, FRONT, 0, backends, slots);
    node.vip(VNI, VIP, service);
    node
}

fn near() -> dataplane_abi::BackendValue {
    backend(7, Be32::ZERO, NEAR)
}

fn far() -> dataplane_abi::BackendValue {
    backend(8, VTEP_B, FAR)
}

fn to(dst: Be32, flags: u8) -> Frame {
    Frame::tcp((TASK, 40_000), (dst, 80), flags).between_tasks()
}

fn vip_key(client: Be32, backend: Be32, client_port: u16, backend_port: u16) -> VipFlowKey {
    VipFlowKey {
        vni: VNI,
        client,
        backend,
        client_port: Be16::from_host(client_port),
        backend_port: Be16::from_host(backend_port),
        proto: TCP,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    }
}

fn has_vip_flows(node: &mut Node) -> bool {
    let endpoint: EndpointValue = node
        .get(
            "ENDPOINTS",
            EndpointKey {
                vni: VNI,
                addr: TASK,
            },
        )
        .unwrap();
    endpoint.flags & ENDPOINT_HAS_VIP_FLOWS != 0
}

#[test]
fn packets_to_tasks_of_the_network_are_sent_as_they_are() {
    let mut node = node();
    for frame in [
        to(NEAR, SYN),
        to(FAR, SYN),
        Frame::udp((TASK, 1), (FAR, 53)).between_tasks(),
        Frame::new(TASK, FAR, Transport::Icmp { kind: 8, code: 0 }).between_tasks(),
        Frame::new(TASK, FAR, Transport::Other(132)).between_tasks(),
        // Fragments need no ports here.
        Frame::udp((TASK, 1), (FAR, 53))
            .fragment(0x2000)
            .between_tasks(),
        Frame::udp((TASK, 1), (NEAR, 53))
            .fragment(0x0010)
            .between_tasks(),
        to(NEAR, SYN).options(&[1; 8]),
        to(FAR, SYN).ttl(1),
    ] {
        node.assert_sends(
            "sn_tc_task",
            &frame.bytes(),
            TC_ACT_REDIRECT,
            &frame.bytes(),
        );
    }
    assert_eq!(node.stats(STATS).packets, 9);
    assert!(node.drops().is_empty());
    assert!(
        node.entries::<VipFlowKey, VipFlowValue>("VIP_FLOWS")
            .is_empty()
    );
}

#[test]
fn destination_mac_follows_the_endpoint() {
    let mut node = node();
    for dst in [NEAR, FAR] {
        let stale = to(dst, SYN).macs(task_mac(NOBODY), task_mac(TASK));
        node.assert_sends(
            "sn_tc_task",
            &stale.bytes(),
            TC_ACT_REDIRECT,
            &to(dst, SYN).bytes(),
        );
    }
}

#[test]
fn destinations_outside_of_the_network_drop_with_reason() {
    let mut node = node();
    // Known, but in another network.
    node.assert_drops(
        "sn_tc_task",
        &to(NOBODY, SYN).bytes(),
        DropReason::UnknownDestination,
    );
    let outside = to(ip(203, 0, 113, 1), SYN);
    node.assert_drops(
        "sn_tc_task",
        &outside.bytes(),
        DropReason::UnknownDestination,
    );
}

#[test]
fn spoofed_sources_drop_with_reason() {
    let mut node = node();
    for frame in [
        to(FAR, SYN).src(NEAR),
        to(FAR, SYN).macs(task_mac(FAR), task_mac(NEAR)),
        Frame::tcp((VIP, 1), (FAR, 80), SYN).macs(task_mac(FAR), task_mac(TASK)),
    ] {
        node.assert_drops("sn_tc_task", &frame.bytes(), DropReason::SpoofedSource);
    }
    let mut arp = Arp::question(TASK, NEAR);
    arp.sender.1 = task_mac(FAR);
    node.assert_drops("sn_tc_task", &arp.bytes(), DropReason::SpoofedSource);
    let mut arp = Arp::question(TASK, NEAR);
    arp.sender.0 = FAR;
    node.assert_drops("sn_tc_task", &arp.bytes(), DropReason::SpoofedSource);
}

#[test]
fn what_is_not_unicast_ipv4_drops_with_reason() {
    let mut node = node();
    let multicast = Frame::udp((TASK, 1), (ip(224, 0, 0, 251), 5353))
        .macs([0x01, 0, 0x5e, 0, 0, 0xfb], task_mac(TASK));
    node.assert_drops("sn_tc_task", &multicast.bytes(), DropReason::NotUnicast);
    let broadcast = Frame::udp((TASK, 1), (ip(10, 0, 1, 255), 67)).macs(BROADCAST, task_mac(TASK));
    node.assert_drops("sn_tc_task", &broadcast.bytes(), DropReason::NotUnicast);
    let mut ipv6 = to(FAR, SYN).bytes();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.assert_drops("sn_tc_task", &ipv6, DropReason::UnsupportedProtocol);
}

#[test]
fn broken_packets_drop_with_reason() {
    let mut node = node();
    let packet = to(FAR, SYN).bytes();
    // The kernel's test run refuses IPv4 below 20 bytes itself.
    node.assert_drops("sn_tc_task", &packet[..14 + 20], DropReason::Truncated);
    node.assert_drops("sn_tc_task", &packet[..14 + 20 + 17], DropReason::Truncated);
    let mut version = packet.clone();
    version[14] = 0x65;
    node.assert_drops("sn_tc_task", &version, DropReason::BadIpHeader);
    let mut length = packet;
    length[14] = 0x43;
    node.assert_drops("sn_tc_task", &length, DropReason::BadIpHeader);
    let arp = Arp::question(TASK, NEAR).bytes();
    node.assert_drops("sn_tc_task", &arp[..14 + 27], DropReason::Truncated);
}

#[test]
fn unregistered_interface_and_empty_configuration_drop_with_reason() {
    let mut node = Node::configured(VTEP);
    node.assert_drops(
        "sn_tc_task",
        &to(FAR, SYN).bytes(),
        DropReason::UnknownInterface,
    );
    let mut node = self::node();
    node.configure(NodeConfig::default());
    node.assert_drops(
        "sn_tc_task",
        &to(FAR, SYN).bytes(),
        DropReason::NotConfigured,
    );
}

#[test]
fn endpoint_without_interface_or_node_drops_with_reason() {
    let mut node = node();
    node.endpoint(VNI, NEAR, Place::Here(0));
    node.assert_drops("sn_tc_task", &to(NEAR, SYN).bytes(), DropReason::NotLocal);
}

#[test]
fn arp_is_answered_for_endpoints_and_vips_of_the_network() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    for addr in [NEAR, FAR, VIP] {
        let question = Arp::question(TASK, addr);
        let answer = question.answer(task_mac(addr)).bytes();
        node.assert_sends("sn_tc_task", &question.bytes(), TC_ACT_REDIRECT, &answer);
    }
    let unknown = Arp::question(TASK, NOBODY).bytes();
    node.assert_drops("sn_tc_task", &unknown, DropReason::UnknownDestination);
}

#[test]
fn arp_probes_and_announcements_are_not_answered() {
    let mut node = node();
    let mut probe = Arp::question(TASK, TASK);
    probe.sender.0 = Be32::ZERO;
    node.assert_drops("sn_tc_task", &probe.bytes(), DropReason::NotUnicast);
    let announcement = Arp::question(TASK, TASK);
    node.assert_drops("sn_tc_task", &announcement.bytes(), DropReason::NotUnicast);
    let mut answer = Arp::question(TASK, NEAR);
    answer.operation = 2;
    node.assert_drops("sn_tc_task", &answer.bytes(), DropReason::NotUnicast);
    let mut other = Arp::question(TASK, NEAR).bytes();
    other[15] = 6; // not Ethernet
    node.assert_drops("sn_tc_task", &other, DropReason::UnsupportedProtocol);
}

#[test]
fn vip_goes_to_the_rings_backend_and_is_remembered() {
    for (chosen, addr) in [(near(), NEAR), (far(), FAR)] {
        let mut node = node_with_vip(&[chosen], &[slot(0, 0)]);
        assert!(!has_vip_flows(&mut node));
        node.assert_sends(
            "sn_tc_task",
            &to(VIP, SYN).bytes(),
            TC_ACT_REDIRECT,
            &to(addr, SYN).bytes(),
        );
        let flow: VipFlowValue = node
            .get("VIP_FLOWS", vip_key(TASK, addr, 40_000, 80))
            .expect("the flow is noted");
        assert_eq!((flow.vip, flow.flags), (VIP, 0));
        assert_eq!(flow.opened, flow.last_seen);
        assert!(has_vip_flows(&mut node));
        let data = to(VIP, PSH_ACK).payload(&[9; 700]);
        let expected = to(addr, PSH_ACK).payload(&[9; 700]);
        node.assert_sends(
            "sn_tc_task",
            &data.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
        assert_eq!(node.stats(FRONT).packets, 2);
        assert_eq!(node.stats(FRONT).new_flows, 1);
    }
}

#[test]
fn vip_works_for_udp_with_and_without_checksum() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    for frame in [
        Frame::udp((TASK, 5000), (VIP, 53)),
        Frame::udp((TASK, 5000), (VIP, 53)).without_checksum(),
        Frame::udp((TASK, 5000), (VIP, 53)).payload(&[1; 901]),
    ] {
        let expected = frame.clone().dst(FAR).between_tasks();
        let frame = frame.between_tasks();
        node.assert_sends(
            "sn_tc_task",
            &frame.bytes(),
            TC_ACT_REDIRECT,
            &expected.bytes(),
        );
    }
    assert_eq!(node.stats(FRONT).new_flows, 1);
}

#[test]
fn the_agent_replacing_an_endpoint_does_not_lose_the_flag_for_long() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    node.run_tc("sn_tc_task", &to(VIP, SYN).bytes());
    node.endpoint(VNI, TASK, Place::Here(LOOPBACK));
    assert!(!has_vip_flows(&mut node));
    node.run_tc("sn_tc_task", &to(VIP, ACK).bytes());
    assert!(has_vip_flows(&mut node));
}

#[test]
fn established_vip_flow_stays_with_the_owner_before() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    node.run_tc("sn_tc_task", &to(VIP, SYN).bytes());
    // The ring changes: FAR_2 now, FAR before.
    let backends = [backend(9, VTEP_B, FAR_2), far()];
    let service = node.service(100, FRONT, 0, &backends, &[slot(0, 1)]);
    node.vip(VNI, VIP, service);
    let (sent, there) = (to(VIP, ACK).bytes(), to(FAR, ACK).bytes());
    node.assert_sends("sn_tc_task", &sent, TC_ACT_REDIRECT, &there);
    // A new connection of the same ports takes the new owner.
    let (sent, there) = (to(VIP, SYN).bytes(), to(FAR_2, SYN).bytes());
    node.assert_sends("sn_tc_task", &sent, TC_ACT_REDIRECT, &there);
}

/// A VIP whose slots belong in turn to node B's FAR and to node C's FAR_2.
fn node_with_two_nodes(flags: u32) -> (Node, ServiceValue) {
    let mut node = node();
    let backends = [far(), backend(9, VTEP_C, FAR_2)];
    let slots: Vec<RingSlot> = (0..256).map(|n| slot(n % 2, n % 2)).collect();
    // Of the node's own there are no more but one that drains, with the second ring's slots.
    let (backends, slots) = match flags {
        0 => (backends.to_vec(), slots),
        _ => {
            let mut own = near();
            own.state = BACKEND_DRAINING;
            let own_slots = [slot(2, 2); 256];
            (
                [&backends[..], &[own]].concat(),
                [slots, own_slots.into()].concat(),
            )
        }
    };
    let service = ServiceValue {
        ring_len: 256,
        flags,
        ..node.service(0, FRONT, 0, &backends, &slots)
    };
    node.vip(VNI, VIP, service);
    (node, service)
}

/// Ports of the task whose flows to the VIP have one of FAR's slots.
fn ports_of_far(service: &ServiceValue, proto: u8) -> impl Iterator<Item = u16> {
    let service = *service;
    (40_000..).filter(move |port| {
        let tuple = FlowTuple {
            src: TASK,
            src_port: Be16::from_host(*port),
            dst_port: Be16::from_host(80),
            proto,
        };
        ring_slot(service.hash(tuple, RING_SEED), 256).is_multiple_of(2)
    })
}

#[track_caller]
fn assert_leads(node: &mut Node, frame: &Frame, to: Be32) {
    let expected = frame.clone().dst(to).between_tasks();
    let (sent, expected) = (frame.bytes(), expected.bytes());
    node.assert_sends("sn_tc_task", &sent, TC_ACT_REDIRECT, &expected);
}

/// Also where an own task of the node still drains, which has the first look at what is established.
#[test]
fn vip_flows_avoid_a_node_that_does_not_answer_and_stay_where_they_began() {
    for flags in [0, SERVICE_NEAR | SERVICE_NEAR_DRAINS] {
        let (mut node, service) = node_with_two_nodes(flags);
        let mut ports = ports_of_far(&service, TCP);
        let mut connection = || {
            let port = ports.next().unwrap();
            [SYN, PSH_ACK].map(|flags| to(VIP, flags).sport(port))
        };
        let [before, during, after] = [(); 3].map(|()| connection());
        assert_leads(&mut node, &before[0], FAR);
        node.doubt(VTEP_B, PEER_SUSPECTED);
        assert_leads(&mut node, &during[0], FAR_2);
        assert_leads(&mut node, &during[1], FAR_2);
        assert_leads(&mut node, &before[1], FAR);
        node.doubt(VTEP_B, PEER_RETURNING);
        assert_leads(&mut node, &after[0], FAR);
        assert_leads(&mut node, &after[1], FAR);
        assert_leads(&mut node, &during[1], FAR_2);
        assert_leads(&mut node, &before[1], FAR);
        node.doubt(VTEP_B, 0);
        assert_leads(&mut node, &before[1], FAR);
    }
}

/// A connected socket of UDP keeps its port, and no hook sees it again.
#[test]
fn datagrams_to_a_vip_leave_a_node_that_does_not_answer_at_once() {
    let (mut node, service) = node_with_two_nodes(0);
    let port = ports_of_far(&service, UDP).next().unwrap();
    let datagram = Frame::udp((TASK, port), (VIP, 80)).between_tasks();
    assert_leads(&mut node, &datagram, FAR);
    node.doubt(VTEP_B, PEER_SUSPECTED);
    assert_leads(&mut node, &datagram, FAR_2);
    node.doubt(VTEP_B, 0);
    assert_leads(&mut node, &datagram, FAR);
}

/// Checks that the packet counts as dropped, and that the task gets a RST from the VIP.
#[track_caller]
fn assert_refuses(node: &mut Node, flags: u8) {
    let counted = |node: &mut Node| {
        let drops = node.drops_of("sn_tc_task");
        drops.get("no-backend").copied().unwrap_or(0)
    };
    let before = counted(node);
    let frame = to(VIP, flags);
    let expected = frame.reset().between_tasks().bytes();
    node.assert_sends("sn_tc_task", &frame.bytes(), TC_ACT_REDIRECT, &expected);
    assert_eq!(counted(node), before + 1);
}

#[test]
fn vip_without_backend_refuses_with_reason() {
    let mut node = node_with_vip(&[], &[]);
    assert_refuses(&mut node, SYN);
    assert_refuses(&mut node, ACK);
    let mut draining = far();
    draining.state = BACKEND_DRAINING;
    let mut node = node_with_vip(&[draining], &[slot(0, 0)]);
    assert_refuses(&mut node, SYN);
    let datagram = Frame::udp((TASK, 1), (VIP, 53)).between_tasks();
    node.assert_drops("sn_tc_task", &datagram.bytes(), DropReason::NoBackend);
    let expected = to(FAR, ACK).bytes();
    node.assert_sends(
        "sn_tc_task",
        &to(VIP, ACK).bytes(),
        TC_ACT_REDIRECT,
        &expected,
    );
}

#[test]
fn vip_does_not_follow_what_it_cannot_translate() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    let datagram = || Frame::udp((TASK, 1), (VIP, 53)).between_tasks();
    let cases = [
        (datagram().fragment(0x0010), DropReason::FragmentWithoutHead),
        (
            Frame::new(TASK, VIP, Transport::Other(132)).between_tasks(),
            DropReason::UnsupportedProtocol,
        ),
        (
            Frame::new(TASK, VIP, Transport::Icmp { kind: 13, code: 0 }).between_tasks(),
            DropReason::UnsupportedProtocol,
        ),
    ];
    for (frame, reason) in cases {
        node.assert_drops("sn_tc_task", &frame.bytes(), reason);
    }
}

#[test]
fn vip_answers_ping_as_long_as_it_has_a_backend() {
    let mut node = node_with_vip(&[far()], &[slot(0, 0)]);
    let ping = Frame::new(TASK, VIP, Transport::Icmp { kind: 8, code: 0 }).between_tasks();
    let pong = Frame::new(VIP, TASK, Transport::Icmp { kind: 0, code: 0 }).between_tasks();
    node.assert_sends("sn_tc_task", &ping.bytes(), TC_ACT_REDIRECT, &pong.bytes());
    let mut node = node_with_vip(&[], &[]);
    node.assert_drops("sn_tc_task", &ping.bytes(), DropReason::NoBackend);
}

#[test]
fn task_that_is_its_own_backend_sees_the_vip_as_its_peer() {
    let mut node = node_with_vip(&[backend(7, Be32::ZERO, TASK)], &[slot(0, 0)]);
    let there = Frame::tcp((VIP, 40_000), (TASK, 80), SYN).between_tasks();
    node.assert_sends(
        "sn_tc_task",
        &to(VIP, SYN).bytes(),
        TC_ACT_REDIRECT,
        &there.bytes(),
    );
    let flow: VipFlowValue = node
        .get("VIP_FLOWS", vip_key(TASK, TASK, 40_000, 80))
        .unwrap();
    assert_eq!((flow.vip, flow.flags), (VIP, VIP_FLOW_HAIRPIN));

    let reply = Frame::tcp((TASK, 80), (VIP, 40_000), SYN | ACK).between_tasks();
    let back = Frame::tcp((VIP, 80), (TASK, 40_000), SYN | ACK).between_tasks();
    node.assert_sends("sn_tc_task", &reply.bytes(), TC_ACT_REDIRECT, &back.bytes());
    let there = Frame::tcp((VIP, 40_000), (TASK, 80), ACK).between_tasks();
    node.assert_sends(
        "sn_tc_task",
        &to(VIP, ACK).bytes(),
        TC_ACT_REDIRECT,
        &there.bytes(),
    );
    assert_eq!(node.stats(FRONT).new_flows, 1);
    assert!(node.drops().is_empty());
}

#[test]
fn reply_to_a_vip_client_on_this_node_comes_from_the_vip() {
    // Here the task behind the interface is the backend, and NEAR the client.
    let mut node = node();
    let flow = VipFlowValue {
        vip: VIP,
        ..VipFlowValue::default()
    };
    node.put("VIP_FLOWS", vip_key(NEAR, TASK, 40_000, 80), flow);
    let reply = Frame::tcp((TASK, 80), (NEAR, 40_000), ACK).between_tasks();
    // The client's endpoint is not marked: no look is spent.
    node.assert_sends(
        "sn_tc_task",
        &reply.bytes(),
        TC_ACT_REDIRECT,
        &reply.bytes(),
    );

    let key = EndpointKey {
        vni: VNI,
        addr: NEAR,
    };
    let mut endpoint: EndpointValue = node.get("ENDPOINTS", key).unwrap();
    endpoint.flags = ENDPOINT_HAS_VIP_FLOWS;
    node.put("ENDPOINTS", key, endpoint);
    let expected = Frame::tcp((VIP, 80), (NEAR, 40_000), ACK)
        .macs(task_mac(NEAR), task_mac(TASK))
        .bytes();
    node.assert_sends("sn_tc_task", &reply.bytes(), TC_ACT_REDIRECT, &expected);
    let flow: VipFlowValue = node
        .get("VIP_FLOWS", vip_key(NEAR, TASK, 40_000, 80))
        .unwrap();
    assert_ne!(flow.last_seen, 0);
    // Other flows between the two are their own.
    let direct = Frame::tcp((TASK, 80), (NEAR, 40_001), ACK).between_tasks();
    node.assert_sends(
        "sn_tc_task",
        &direct.bytes(),
        TC_ACT_REDIRECT,
        &direct.bytes(),
    );
    let fragment = Frame::udp((TASK, 80), (NEAR, 40_000))
        .fragment(0x0010)
        .between_tasks();
    node.assert_sends(
        "sn_tc_task",
        &fragment.bytes(),
        TC_ACT_REDIRECT,
        &fragment.bytes(),
    );
}

/// Services of one backend; the client uses one port for all, which sockets may.
#[test]
fn vips_of_one_backend_have_a_source_port_each() {
    let vip = |nth| match nth {
        0 => VIP,
        nth => ip(10, 0, 1, 70 + nth as u8),
    };
    let port = |nth| seat_port(Be16::from_host(40_000), nth).to_host();
    for (there, proto) in [(near(), TCP), (far(), TCP), (far(), UDP)] {
        let mut node = node_with_vip(&[there], &[slot(0, 0)]);
        for nth in 1..=SEATS {
            let service = node.service(10 * u32::from(nth), FRONT, 0, &[there], &[slot(0, 0)]);
            node.vip(VNI, vip(nth), service);
        }
        let packet = |to_vip, flags| match proto {
            TCP => to(to_vip, flags).payload(&[5; 401]),
            _ => Frame::udp((TASK, 40_000), (to_vip, 80)).between_tasks(),
        };
        let sent = |frame: &Frame, port| {
            let frame = frame.clone().dst(there.addr).sport(port);
            frame.between_tasks().bytes()
        };
        for flags in [SYN, PSH_ACK] {
            for nth in 0..SEATS {
                let frame = packet(vip(nth), flags);
                let expected = sent(&frame, port(nth));
                node.assert_sends("sn_tc_task", &frame.bytes(), TC_ACT_REDIRECT, &expected);
            }
        }
        assert_eq!(node.stats(FRONT).new_flows, u64::from(SEATS));
        assert!(node.drops().is_empty(), "{:?}", node.drops());

        // There is no further one: a datagram is dropped, and the later SYN wins.
        let too_many = vip(SEATS);
        if proto == UDP {
            let packet = packet(too_many, 0).bytes();
            node.assert_drops("sn_tc_task", &packet, DropReason::SourceCollision);
            continue;
        }
        for flags in [SYN, PSH_ACK] {
            let frame = packet(too_many, flags);
            let expected = sent(&frame, 40_000);
            node.assert_sends("sn_tc_task", &frame.bytes(), TC_ACT_REDIRECT, &expected);
        }
        let packet = packet(VIP, PSH_ACK).bytes();
        node.assert_drops("sn_tc_task", &packet, DropReason::SourceCollision);
    }
}

#[test]
fn reply_to_a_moved_source_port_goes_to_the_clients_own() {
    let moved = seat_port(Be16::from_host(40_000), 1).to_host();
    // The task behind the interface is the backend, and NEAR the client.
    let mut node = node();
    let flow = VipFlowValue {
        vip: VIP,
        own_port: Be16::from_host(40_000),
        ..VipFlowValue::default()
    };
    node.put("VIP_FLOWS", vip_key(NEAR, TASK, moved, 80), flow);
    let key = EndpointKey {
        vni: VNI,
        addr: NEAR,
    };
    let mut endpoint: EndpointValue = node.get("ENDPOINTS", key).unwrap();
    endpoint.flags = ENDPOINT_HAS_VIP_FLOWS;
    node.put("ENDPOINTS", key, endpoint);
    let reply = Frame::tcp((TASK, 80), (NEAR, moved), ACK).between_tasks();
    let expected = Frame::tcp((VIP, 80), (NEAR, 40_000), ACK)
        .macs(task_mac(NEAR), task_mac(TASK))
        .bytes();
    node.assert_sends("sn_tc_task", &reply.bytes(), TC_ACT_REDIRECT, &expected);
}

/// A task that is its own backend by two VIPs sees two peers; what it answers each, the client's own
/// port gets.
#[test]
fn task_that_is_its_own_backend_by_two_vips_answers_each() {
    const SECOND: Be32 = ip(10, 0, 1, 77);
    let own = [backend(7, Be32::ZERO, TASK)];
    let mut node = node_with_vip(&own, &[slot(0, 0)]);
    let service = node.service(10, FRONT, 0, &own, &[slot(0, 0)]);
    node.vip(VNI, SECOND, service);
    let moved = seat_port(Be16::from_host(40_000), 1).to_host();
    for (vip, port) in [(VIP, 40_000), (SECOND, moved)] {
        let there = Frame::tcp((vip, port), (TASK, 80), SYN).between_tasks();
        node.assert_sends(
            "sn_tc_task",
            &to(vip, SYN).bytes(),
            TC_ACT_REDIRECT,
            &there.bytes(),
        );
        let reply = Frame::tcp((TASK, 80), (vip, port), SYN | ACK).between_tasks();
        let back = Frame::tcp((vip, 80), (TASK, 40_000), SYN | ACK).between_tasks();
        node.assert_sends("sn_tc_task", &reply.bytes(), TC_ACT_REDIRECT, &back.bytes());
    }
    assert!(node.drops().is_empty(), "{:?}", node.drops());
}
