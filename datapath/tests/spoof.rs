//! What nobody may send is dropped with its reason: by the programs one by one, and on real links.

mod common;

use std::{net::UdpSocket, process::Command, time::Instant};

use common::{cluster::*, *};
use dataplane_abi::{
    Be32, DropReason,
    net::{mesh_mac::Kind, task_mac},
};

const NODE_A: Be32 = ip(192, 0, 2, 1);
const NODE_B: Be32 = ip(192, 0, 2, 2);
const CLIENT: Be32 = ip(192, 0, 2, 9);
const STRANGER: Be32 = ip(203, 0, 113, 9);
const TASK: Be32 = ip(10, 0, 1, 3);
const NEAR: Be32 = ip(10, 0, 1, 4);
const GATEWAY_SIDE: Be32 = ip(172, 18, 0, 5);
const EP: u32 = 7;

/// A port that looks like a source route behind the end of the IPv4 header.
const LIKE_A_ROUTE: u16 = 0x8307;

/// IPv4 options, filled up to a multiple of four: what each program says of them.
fn options() -> Vec<(Vec<u8>, Option<DropReason>)> {
    let route = [7, 4, 10, 0, 1, 9];
    let routed = |kind: u8, before: &[u8]| {
        let mut options = before.to_vec();
        options.push(kind);
        options.extend(route);
        options.resize(options.len().next_multiple_of(4), 0);
        options
    };
    vec![
        (routed(131, &[]), Some(DropReason::SourceRouted)),
        (routed(137, &[]), Some(DropReason::SourceRouted)),
        (routed(131, &[1; 29]), Some(DropReason::SourceRouted)),
        // Behind a record route (7) of 11 bytes.
        (
            routed(137, &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0]),
            Some(DropReason::SourceRouted),
        ),
        (vec![7, 1, 0, 0], Some(DropReason::BadIpHeader)),
        (vec![1, 1, 1, 1], None),
        (vec![148, 4, 0, 0], None),
        // What looks like one behind the end of the list, or inside of another option.
        (vec![0, 131, 7, 4], None),
        (vec![7, 7, 131, 137, 131, 137, 131, 1], None),
        (vec![1; 40], None),
    ]
}

#[test]
fn task_chooses_no_way_through_others() {
    let mut node = Node::configured(NODE_A);
    node.overlay_veth(LOOPBACK, VNI, TASK, 20);
    node.endpoint(VNI, TASK, Place::Here(LOOPBACK));
    node.endpoint(VNI, NEAR, Place::Here(60));
    for (options, reason) in options() {
        println!("{options:?}");
        let frame = Frame::udp((TASK, LIKE_A_ROUTE), (NEAR, 2)).between_tasks();
        let packet = frame.options(&options).bytes();
        match reason {
            Some(reason) => node.assert_drops("sn_tc_task", &packet, reason),
            None => node.assert_sends("sn_tc_task", &packet, TC_ACT_REDIRECT, &packet),
        }
    }
    let mut node = Node::configured(NODE_A);
    node.gateway_veth(LOOPBACK, GATEWAY_SIDE);
    for (options, reason) in options() {
        let frame = Frame::udp((GATEWAY_SIDE, LIKE_A_ROUTE), (STRANGER, 2));
        let frame = frame.macs(task_mac(GATEWAY_ADDR), task_mac(GATEWAY_SIDE));
        let packet = frame.options(&options).bytes();
        match reason {
            Some(reason) => node.assert_drops("sn_tc_gateway", &packet, reason),
            None => node.assert_passes("sn_tc_gateway", &packet),
        }
    }
}

/// Masquerading would give it a node's address.
#[test]
fn task_sends_nothing_to_the_tunnels_port() {
    let mut node = Node::configured(NODE_A);
    node.gateway_veth(LOOPBACK, GATEWAY_SIDE);
    let macs = (task_mac(GATEWAY_ADDR), task_mac(GATEWAY_SIDE));
    for to in [NODE_A, NODE_B, STRANGER, GATEWAY_ADDR] {
        let frame = Frame::udp((GATEWAY_SIDE, 4789), (to, 4789)).macs(macs.0, macs.1);
        for frame in [
            frame.clone(),
            frame.clone().fragment(0x2000),
            frame.clone().options(&[1; 40]),
        ] {
            node.assert_drops("sn_tc_gateway", &frame.bytes(), DropReason::ForgedTunnel);
        }
        let other_port = frame.clone().dport(4790).bytes();
        node.assert_passes("sn_tc_gateway", &other_port);
        let tcp = Frame::tcp((GATEWAY_SIDE, 4789), (to, 4789), SYN).macs(macs.0, macs.1);
        node.assert_passes("sn_tc_gateway", &tcp.bytes());
    }
    // As the reply of a flow that a client began from that port, whoever it was.
    let flow = dataplane_abi::FlowValue {
        node_addr: NODE_A,
        endpoint: EP,
        generation: 1,
        ..Default::default()
    };
    let key = dataplane_abi::FlowKey {
        client: NODE_B,
        task: GATEWAY_SIDE,
        client_port: dataplane_abi::Be16::from_host(4789),
        task_port: dataplane_abi::Be16::from_host(80),
        proto: UDP,
        ..Default::default()
    };
    node.put("FLOWS", key, flow);
    let reply = Frame::udp((GATEWAY_SIDE, 80), (NODE_B, 4789)).macs(macs.0, macs.1);
    node.assert_drops("sn_tc_gateway", &reply.bytes(), DropReason::ForgedTunnel);
}

#[test]
fn gateway_network_is_not_reached_from_outside_and_nothing_comes_from_it() {
    let mut node = Node::configured(NODE_A);
    node.node_addr(NODE_A);
    let remote = node.service(0, 10, 80, &[backend(EP, NODE_B, NODE_B)], &[slot(0, 0)]);
    node.publish(8080, TCP, remote);
    let forged = [
        Frame::tcp((STRANGER, 1), (GATEWAY_SIDE, 80), SYN),
        Frame::udp((STRANGER, 1), (GATEWAY_SIDE, 80)),
        Frame::udp((STRANGER, 1), (GATEWAY_SIDE, 80)).fragment(0x0010),
        Frame::new(STRANGER, GATEWAY_SIDE, Transport::Icmp { kind: 8, code: 0 }),
        Frame::new(STRANGER, GATEWAY_SIDE, Transport::Other(132)),
        Frame::tcp((STRANGER, 1), (GATEWAY_ADDR, 22), SYN),
        Frame::tcp((GATEWAY_SIDE, 1), (NODE_A, 22), SYN),
    ];
    for frame in &forged {
        let packet = frame.bytes();
        node.assert_drops("sn_tc_uplink", &packet, DropReason::ForgedTaskAddress);
        // XDP leaves to tc what is for no published port.
        assert_eq!(node.run_xdp(&packet, LOOPBACK).verdict, XDP_PASS);
    }
    let claim = Frame::tcp((GATEWAY_SIDE, 1), (NODE_A, 8080), SYN).bytes();
    for program in ["sn_tc_uplink", "sn_xdp_uplink"] {
        node.assert_drops(program, &claim, DropReason::ForgedTaskAddress);
    }
    let neighbour = ip(172, 19, 0, 5);
    let passes = Frame::udp((neighbour, 1), (NODE_A, 53)).bytes();
    node.assert_passes("sn_tc_uplink", &passes);
}

/// A VLAN tag (802.1Q, VLAN 5) behind the MACs.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

/// What UDP carries to make `inner` a packet of the tunnel.
fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(inner);
    bytes
}

/// Waits until the node counted drops for exactly these reasons, one each.
#[track_caller]
fn assert_drops(host: &mut Host, reasons: &[DropReason]) {
    let mut expected = std::collections::BTreeMap::new();
    for reason in reasons {
        *expected.entry(reason.label()).or_default() += 1u64;
    }
    let deadline = Instant::now() + patience();
    while host.node.drops() != expected {
        assert!(
            Instant::now() < deadline,
            "dropped {:?}, not {expected:?}",
            host.node.drops()
        );
        std::thread::yield_now();
    }
}

#[test]
fn spoofed_traffic_of_tasks_strangers_and_nodes_reaches_nobody() {
    let switch = Switch::new();
    let (mut a, mut b) = (switch.node(NODE_A), switch.node(NODE_B));
    for addr in [ip(10, 0, 1, 11), ip(10, 0, 1, 12)] {
        a.add_task(addr.to_host() & 0xff, addr);
    }
    b.add_task(21, ip(10, 0, 1, 21));
    introduce(&mut [&mut a, &mut b]);
    let client = switch.client(CLIENT);
    masquerade(&a.namespace);
    let victim = &b.tasks[0];
    let forged = Frame::udp((a.tasks[1].overlay, 1), (victim.overlay, 53)).between_tasks();
    let hears = EchoServer::udp(&victim.namespace, at(victim.overlay, 53));
    let neighbour = &a.tasks[1];
    let neighbour_hears = EchoServer::udp(&neighbour.namespace, at(neighbour.gateway, 53));

    // A task, by the node's own address.
    let socket = udp(&a.tasks[0].namespace);
    socket
        .send_to(&vxlan(VNI, &forged.bytes()), at(NODE_B, 4789))
        .unwrap();
    let mut at_a = vec![DropReason::ForgedTunnel];
    assert_drops(&mut a, &at_a);

    // A task, as another one.
    let wire = Wire::new(&a.tasks[0].namespace, "eth0");
    let own = Frame::udp((a.tasks[0].overlay, 1), (victim.overlay, 53)).between_tasks();
    wire.send(&forged.bytes());
    wire.send(&tagged(&own.bytes()));
    wire.send(&own.clone().options(&[131, 7, 4, 10, 0, 1, 9, 0]).bytes());
    wire.send(&Arp::question(a.tasks[1].overlay, victim.overlay).bytes());
    at_a.extend([
        DropReason::SpoofedSource,
        DropReason::VlanTagged,
        DropReason::SourceRouted,
        DropReason::SpoofedSource,
    ]);
    assert_drops(&mut a, &at_a);

    // A stranger: into the tunnel, straight to a task, and under a task's address.
    let stranger = udp(&client);
    stranger
        .send_to(&vxlan(VNI, &forged.bytes()), at(NODE_A, 4789))
        .unwrap();
    let wire = Wire::new(&client, "up0");
    let macs = (a.namespace.mac("up0"), client.mac("up0"));
    let neighbour = a.tasks[1].gateway;
    let straight = Frame::udp((CLIENT, 1), (neighbour, 53)).macs(macs.0, macs.1);
    // Not the uplink's: of a VLAN, which the node has no device of.
    wire.send(&tagged(&straight.bytes()));
    wire.send(&straight.bytes());
    let claim = Frame::udp((neighbour, 1), (NODE_A, 53)).macs(macs.0, macs.1);
    wire.send(&claim.bytes());
    at_a.extend([
        DropReason::UnknownTunnelSource,
        DropReason::ForgedTaskAddress,
        DropReason::ForgedTaskAddress,
    ]);
    assert_drops(&mut a, &at_a);

    // A node, with what none sends.
    let node: UdpSocket = udp(&a.namespace);
    let send = |vni, inner: &[u8]| node.send_to(&vxlan(vni, inner), at(NODE_B, 4789)).unwrap();
    send(VNI + 1, &forged.bytes());
    send(VNI, &tagged(&forged.bytes()));
    send(VNI, &forged.clone().dst(NODE_B).bytes());
    send(MESH_VNI, &forged.bytes());
    let mesh = |frame: Frame, kind| frame.mesh(kind, EP, NODE_A).bytes();
    send(MESH_VNI, &mesh(forged.clone(), Kind::Forward));
    let error = Transport::Icmp { kind: 3, code: 3 };
    send(
        MESH_VNI,
        &mesh(Frame::new(CLIENT, NODE_A, error), Kind::Forward),
    );
    let home = Frame::udp((STRANGER, 1), (NODE_B, 53));
    send(MESH_VNI, &mesh(home, Kind::Return));
    assert_drops(
        &mut b,
        &[
            DropReason::NotLocal,
            DropReason::VlanTagged,
            DropReason::NotLocal,
            DropReason::BadMeshMac,
            DropReason::NotPublished,
            DropReason::BadIcmp,
            DropReason::NoRouteToClient,
        ],
    );
    assert!(hears.is_idle() && neighbour_hears.is_idle());
    // The same by the way that it should go.
    let honest = udp(&a.tasks[0].namespace);
    let to = at(b.tasks[0].overlay, 53);
    assert_eq!(ask(&honest, to, 10), to);
    // Nothing was dropped beyond that.
    assert_drops(&mut a, &at_a);
}

/// As on a real node: what tasks send to the world gets the node's address.
fn masquerade(node: &Namespace) {
    let rules = "add table ip nat; \
                 add chain ip nat post { type nat hook postrouting priority 100; }; \
                 add rule ip nat post oifname up0 masquerade";
    let run = || Command::new("nft").arg(rules).status().unwrap();
    assert!(node.run(run).success(), "nft {rules}");
}
