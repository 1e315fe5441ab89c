//! `sn_tc_vxlan`: what other nodes send. The tunnel key is the kernel's, so the packets come in by
//! a real VXLAN device: the test is the other node, with a UDP socket.

mod common;

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Instant,
};

use common::{cluster::*, *};
use dataplane_abi::{
    BackendValue, Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue,
    FlowKey, FlowValue, VipFlowKey, VipFlowValue,
    net::{mesh_mac::Kind, task_mac},
};

const NODE: Be32 = ip(192, 0, 2, 1);
/// Nodes that the test plays, and a stranger.
const PEER: Be32 = ip(192, 0, 2, 2);
const PEER_2: Be32 = ip(192, 0, 2, 3);
const STRANGER: Be32 = ip(192, 0, 2, 4);
const CLIENT: (Be32, u16) = (ip(192, 0, 2, 9), 40_000);
/// What the client sent to: an address of the entry node.
const ENTRY_ADDR: (Be32, u16) = (ip(198, 51, 100, 7), 8080);

const TASK: Be32 = ip(10, 0, 1, 11);
const FAR: Be32 = ip(10, 0, 1, 21);
const VIP: Be32 = ip(10, 0, 1, 2);
const EP: u32 = 11;
const EP_2: u32 = 22;

/// The node under test with one task, and the machine that plays all others.
struct Bench {
    host: Host,
    task: u32,
    peer: UdpSocket,
    peer_2: UdpSocket,
    stranger: UdpSocket,
    /// Frames that reach the task, on both of its interfaces, and the world outside.
    overlay: Tap,
    gateway: Tap,
    outside: Tap,
    world: Namespace,
    _switch: Switch,
}

impl Bench {
    fn new() -> Self {
        let switch = Switch::new();
        let mut host = switch.node(NODE);
        host.add_task(EP, TASK);
        introduce(&mut [&mut host]);
        host.node.peer(PEER);
        host.node.peer(PEER_2);
        host.node.endpoint(VNI, FAR, Place::At(PEER));
        let world = switch.client(PEER);
        for addr in [PEER_2, STRANGER, CLIENT.0] {
            world.ip(&format!("addr add {}/24 dev up0", show(addr)));
        }
        let peer_socket = |addr| {
            let socket = world.run(|| UdpSocket::bind(at(addr, 4789))).unwrap();
            socket.set_read_timeout(Some(patience())).unwrap();
            socket
        };
        let namespace = &host.tasks[0].namespace;
        Self {
            peer: peer_socket(PEER),
            peer_2: peer_socket(PEER_2),
            stranger: peer_socket(STRANGER),
            overlay: Tap::new(namespace, "eth0"),
            gateway: Tap::new(namespace, "eth1"),
            outside: Tap::new(&world, "up0"),
            task: host.tasks[0].gateway.to_host(),
            host,
            world,
            _switch: switch,
        }
    }

    /// Publishes 8080 -> 80; endpoint `EP` has every slot, `before` had it.
    fn publish(&mut self, before: BackendValue) {
        let backends = [backend(EP, Be32::ZERO, self.task()), before];
        let service = self
            .host
            .node
            .service(0, 0, 80, &backends, &[slot(0, 1), slot(0, 1)]);
        self.host.node.publish(8080, TCP, service);
        self.host.node.publish(8080, UDP, service);
    }

    fn publish_alone(&mut self) {
        let own = backend(EP, Be32::ZERO, self.task());
        self.publish(own);
    }

    fn task(&self) -> Be32 {
        Be32::from_host(self.task)
    }

    fn flow(&mut self) -> Option<FlowValue> {
        let key = self.flow_key();
        self.host.node.flow(key)
    }

    /// The flow of a connection that the task has.
    fn put_flow(&mut self) {
        let key = self.flow_key();
        let flow = FlowValue {
            node_addr: ENTRY_ADDR.0,
            published: Be16::from_host(ENTRY_ADDR.1),
            endpoint: EP,
            generation: 1,
            ..FlowValue::default()
        };
        self.host.node.put("FLOWS", key, flow);
    }

    fn flow_key(&self) -> FlowKey {
        FlowKey {
            client: CLIENT.0,
            task: self.task(),
            client_port: Be16::from_host(CLIENT.1),
            task_port: Be16::from_host(80),
            proto: TCP,
            _pad: 0,
            _pad2: 0,
        }
    }

    /// Sends `inner` and waits until the program counted it under `reason`.
    #[track_caller]
    fn assert_drops(&mut self, from: Sender, vni: u32, inner: &[u8], reason: DropReason) {
        let mut expected = self.host.node.drops();
        *expected.entry(reason.label()).or_default() += 1;
        let socket = match from {
            Sender::Peer => &self.peer,
            Sender::Stranger => &self.stranger,
        };
        send(socket, vni, inner);
        let deadline = Instant::now() + patience();
        while self.host.node.drops() != expected {
            assert!(
                Instant::now() < deadline,
                "want {expected:?}, have {:?}",
                self.host.node.drops()
            );
            std::thread::yield_now();
        }
    }
}

#[derive(Clone, Copy)]
enum Sender {
    Peer,
    Stranger,
}

fn send(socket: &UdpSocket, vni: u32, inner: &[u8]) {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    socket.send_to(&payload, at(NODE, 4789)).unwrap();
}

/// The next tunnel packet for the socket's node: VNI and inner packet.
#[track_caller]
fn receive(socket: &UdpSocket) -> (u32, Vec<u8>) {
    let mut buffer = vec![0; 1 << 16];
    let (len, from) = socket
        .recv_from(&mut buffer)
        .expect("a tunnel packet comes");
    assert_eq!(
        from.ip(),
        show(NODE),
        "peers know the node by its tunnel address"
    );
    assert_eq!(buffer[0], 0x08);
    let vni = u32::from_be_bytes(buffer[4..8].try_into().unwrap()) >> 8;
    (vni, buffer[8..len].to_vec())
}

/// Reads every IPv4 frame that a device receives.
struct Tap(OwnedFd);

impl Tap {
    fn new(namespace: &Namespace, device: &str) -> Self {
        namespace.run(|| {
            let protocol = (libc::ETH_P_IP as u16).to_be();
            // SAFETY: takes integers; the result is checked.
            let fd = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                    protocol.into(),
                )
            };
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            // SAFETY: the descriptor is new and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: zero is a value of this structure of integers.
            let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            addr.sll_family = libc::AF_PACKET as u16;
            addr.sll_protocol = protocol;
            addr.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
            // SAFETY: the address is a whole sockaddr_ll, passed with its length.
            let bound = unsafe {
                libc::bind(
                    fd.as_raw_fd(),
                    (&raw const addr).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            let timeout = libc::timeval {
                tv_sec: 0,
                tv_usec: 100_000,
            };
            // SAFETY: the option's value is a timeval, passed with its length.
            let set = unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const timeout).cast(),
                    size_of::<libc::timeval>() as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
            Self(fd)
        })
    }

    /// Waits for exactly this frame; others (the kernel's own) may come before.
    #[track_caller]
    fn expect(&self, frame: &[u8]) {
        let deadline = Instant::now() + patience();
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            let mut buffer = vec![0; 1 << 16];
            // SAFETY: the buffer is writable for its length.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if len < 0 {
                continue;
            }
            buffer.truncate(len as usize);
            if buffer == frame {
                return;
            }
            seen.push(describe(&buffer));
        }
        panic!(
            "the frame did not come\nwant: {}\nsaw: {}",
            describe(frame),
            seen.join("\n     ")
        );
    }
}

fn overlay_frame() -> Frame {
    Frame::udp((FAR, 1000), (TASK, 53)).between_tasks()
}

fn client_to_task(flags: u8) -> Frame {
    Frame::tcp(CLIENT, ENTRY_ADDR, flags)
}

#[test]
fn overlay_packets_reach_the_task_as_they_are() {
    let bench = Bench::new();
    for frame in [
        overlay_frame(),
        overlay_frame().payload(&[1; 1300]),
        overlay_frame().fragment(0x0010),
        Frame::tcp((FAR, 1000), (TASK, 80), SYN).between_tasks(),
        Frame::new(FAR, TASK, Transport::Icmp { kind: 8, code: 0 }).between_tasks(),
    ] {
        send(&bench.peer, VNI, &frame.bytes());
        bench.overlay.expect(&frame.bytes());
    }
    // A stale MAC is put right.
    let stale = overlay_frame().macs([2, 0, 0, 0, 0, 1], task_mac(FAR));
    send(&bench.peer, VNI, &stale.bytes());
    bench.overlay.expect(&overlay_frame().bytes());
}

#[test]
fn strangers_and_wrong_networks_drop_with_reason() {
    let mut bench = Bench::new();
    let frame = overlay_frame().bytes();
    bench.assert_drops(
        Sender::Stranger,
        VNI,
        &frame,
        DropReason::UnknownTunnelSource,
    );
    let mesh = client_to_task(SYN)
        .mesh(Kind::Forward, EP, STRANGER)
        .bytes();
    bench.assert_drops(
        Sender::Stranger,
        MESH_VNI,
        &mesh,
        DropReason::UnknownTunnelSource,
    );
    bench.assert_drops(Sender::Peer, VNI + 1, &frame, DropReason::NotLocal);
    // Known, but at another node.
    let elsewhere = Frame::udp((TASK, 1000), (FAR, 53)).between_tasks().bytes();
    bench.assert_drops(Sender::Peer, VNI, &elsewhere, DropReason::NotLocal);
    let arp = Arp::question(FAR, TASK).bytes();
    bench.assert_drops(Sender::Peer, VNI, &arp, DropReason::UnsupportedProtocol);
    let truncated = &frame[..14 + 20 + 4];
    bench.assert_drops(Sender::Peer, VNI, truncated, DropReason::Truncated);
    let mut version = frame;
    version[14] = 0x65;
    bench.assert_drops(Sender::Peer, VNI, &version, DropReason::BadIpHeader);
}

#[test]
fn reply_to_a_vip_client_comes_from_the_vip() {
    let mut bench = Bench::new();
    let key = EndpointKey {
        vni: VNI,
        addr: TASK,
    };
    let mut endpoint: EndpointValue = bench.host.node.get("ENDPOINTS", key).unwrap();
    endpoint.flags = ENDPOINT_HAS_VIP_FLOWS;
    bench.host.node.put("ENDPOINTS", key, endpoint);
    let flow = VipFlowKey {
        vni: VNI,
        client: TASK,
        backend: FAR,
        client_port: Be16::from_host(40_000),
        backend_port: Be16::from_host(80),
        proto: TCP,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    };
    let value = VipFlowValue {
        vip: VIP,
        ..VipFlowValue::default()
    };
    bench.host.node.put("VIP_FLOWS", flow, value);
    let reply = Frame::tcp((FAR, 80), (TASK, 40_000), SYN | ACK).between_tasks();
    send(&bench.peer, VNI, &reply.bytes());
    bench.overlay.expect(&reply.clone().src(VIP).bytes());
    let other = Frame::tcp((FAR, 80), (TASK, 40_001), SYN | ACK).between_tasks();
    send(&bench.peer, VNI, &other.bytes());
    bench.overlay.expect(&other.bytes());
}

#[test]
fn mesh_packet_is_translated_and_its_entry_remembered() {
    let mut bench = Bench::new();
    bench.publish_alone();
    let frame = client_to_task(SYN);
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::Forward, EP, PEER).bytes(),
    );
    bench
        .gateway
        .expect(&delivered(&frame, bench.task()).bytes());
    let flow = bench.flow().expect("the flow is noted");
    assert_eq!(flow.entry_vtep, PEER);
    assert_eq!((flow.node_addr, flow.published.to_host()), ENTRY_ADDR);
    assert_eq!(bench.host.node.stats(EP).new_flows, 1);

    // Meanwhile the task has refused: as if it had not.
    bench.put_flow();
    // The client's packets now come through another node: so do the replies.
    let frame = client_to_task(PSH_ACK).payload(&[6; 1000]);
    send(
        &bench.peer_2,
        MESH_VNI,
        &frame.clone().mesh(Kind::Forward, EP, PEER_2).bytes(),
    );
    bench
        .gateway
        .expect(&delivered(&frame, bench.task()).bytes());
    assert_eq!(bench.flow().unwrap().entry_vtep, PEER_2);
    assert_eq!(bench.host.node.stats(EP).new_flows, 1);
    // The task's kernel has no such connection: its reset goes back the same way.
    let (vni, inner) = receive(&bench.peer_2);
    assert_eq!(vni, MESH_VNI);
    assert_eq!(Kind::of(inner[..6].try_into().unwrap()), Some(Kind::Return));
}

#[test]
fn established_flow_without_entry_goes_to_the_owner_before_once() {
    let mut bench = Bench::new();
    bench.publish(backend(EP_2, PEER_2, PEER_2));
    let frame = client_to_task(ACK);
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::Forward, EP, PEER).bytes(),
    );
    let (vni, inner) = receive(&bench.peer_2);
    assert_eq!(vni, MESH_VNI);
    // The entry stays named, so that the second hop replies to it.
    assert_packets_equal(
        &inner,
        &frame.clone().mesh(Kind::SecondHop, EP_2, PEER).bytes(),
    );
    assert!(bench.flow().is_none());

    // Handed on to this node as the owner before, the same packet is delivered, whoever handed it on.
    let backends = [
        backend(EP, Be32::ZERO, bench.task()),
        backend(EP_2, PEER_2, PEER_2),
    ];
    let service = bench
        .host
        .node
        .service(100, 0, 80, &backends, &[slot(1, 0)]);
    bench.host.node.publish(8080, TCP, service);
    bench.put_flow();
    send(
        &bench.peer_2,
        MESH_VNI,
        &frame.clone().mesh(Kind::SecondHop, EP, PEER).bytes(),
    );
    bench
        .gateway
        .expect(&delivered(&frame, bench.task()).bytes());
    assert_eq!(bench.flow().unwrap().entry_vtep, PEER);
    // A flow that entered here and came back: its entry is this node.
    bench.put_flow();
    send(
        &bench.peer_2,
        MESH_VNI,
        &frame.clone().mesh(Kind::SecondHop, EP, NODE).bytes(),
    );
    bench
        .gateway
        .expect(&delivered(&frame, bench.task()).bytes());
    assert_eq!(bench.flow().unwrap().entry_vtep, Be32::ZERO);
}

#[test]
fn node_that_has_not_heard_of_a_change_asks_the_owner_that_it_knows() {
    let mut bench = Bench::new();
    // The sender has this node's task as the slot's owner, the ring here has not: to it the slot is
    // the first's, and was the second's.
    let backends = [backend(5, PEER_2, PEER_2), backend(6, PEER, PEER)];
    let service = bench.host.node.service(0, 0, 80, &backends, &[slot(0, 1)]);
    bench.host.node.publish(8080, TCP, service);
    let frame = client_to_task(ACK);
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::Forward, EP, PEER).bytes(),
    );
    assert_packets_equal(
        &receive(&bench.peer_2).1,
        &frame.clone().mesh(Kind::Search(3), 5, PEER).bytes(),
    );
    assert!(bench.flow().is_none());
}

/// Where both owners that the slot names are asked in vain, the flow's pin tells a third one.
#[test]
fn flow_of_a_slot_that_moved_often_goes_where_its_pin_says() {
    let mut bench = Bench::new();
    bench.publish(backend(EP_2, PEER_2, PEER_2));
    bench.host.node.pin(CLIENT, ENTRY_ADDR, 12, PEER_2);
    let frame = client_to_task(ACK);
    // Also from the second hop: to the owner before.
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::SecondHop, EP, PEER).bytes(),
    );
    assert_packets_equal(
        &receive(&bench.peer_2).1,
        &frame
            .clone()
            .ttl(63)
            .mesh(Kind::Search(3), 12, PEER)
            .bytes(),
    );
    assert!(bench.flow().is_none());
}

/// Nodes that have a pin of a connection that ended hand a packet to each other no longer than it
/// takes to ask whom the ring names.
#[test]
fn pin_that_outlived_its_connection_sends_no_packet_round() {
    let mut bench = Bench::new();
    bench.publish(backend(EP_2, PEER_2, PEER_2));
    let frame = client_to_task(PSH_ACK);
    // The task that the pin names has nothing: it can only be the owner before.
    bench.host.node.pin(CLIENT, ENTRY_ADDR, EP, Be32::ZERO);
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::SecondHop, EP, PEER).bytes(),
    );
    assert_packets_equal(
        &receive(&bench.peer_2).1,
        &frame.clone().ttl(63).mesh(Kind::Last, EP_2, PEER).bytes(),
    );
    // That one, when it has nothing either, does not ask whom the pin names.
    bench.host.node.pin(CLIENT, ENTRY_ADDR, EP_2, PEER_2);
    send(
        &bench.peer_2,
        MESH_VNI,
        &frame.clone().mesh(Kind::Last, EP, PEER).bytes(),
    );
    let expected = frame.reset().mesh(Kind::Return, EP, NODE).bytes();
    assert_packets_equal(&receive(&bench.peer).1, &expected);
    assert_eq!(bench.host.node.drops()["unknown-flow"], 1);
}

#[test]
fn connection_whose_backend_is_gone_is_reset_through_its_entry() {
    let mut bench = Bench::new();
    let gone = backend(EP_2, Be32::ZERO, ip(172, 18, 0, 99));
    let service = bench.host.node.service(0, 0, 80, &[gone], &[slot(0, 0)]);
    bench.host.node.publish(8080, TCP, service);
    let frame = client_to_task(PSH_ACK);
    send(
        &bench.peer,
        MESH_VNI,
        &frame.clone().mesh(Kind::Forward, EP_2, PEER).bytes(),
    );
    let (vni, inner) = receive(&bench.peer);
    assert_eq!(vni, MESH_VNI);
    let expected = frame.reset().mesh(Kind::Return, EP_2, NODE).bytes();
    assert_packets_equal(&inner, &expected);
    // Handed on by another node, it goes to the entry all the same.
    send(
        &bench.peer_2,
        MESH_VNI,
        &frame.clone().mesh(Kind::SecondHop, EP_2, PEER).bytes(),
    );
    assert_packets_equal(&receive(&bench.peer).1, &expected);
    assert_eq!(bench.host.node.drops_of("sn_tc_vxlan")["backend-gone"], 2);
}

#[test]
fn mesh_packets_that_make_no_sense_drop_with_reason() {
    let mut bench = Bench::new();
    let forward = |frame: Frame| frame.mesh(Kind::Forward, EP, PEER).bytes();
    let syn = client_to_task(SYN);
    bench.assert_drops(
        Sender::Peer,
        MESH_VNI,
        &forward(syn.clone()),
        DropReason::NotPublished,
    );
    bench.publish_alone();
    let cases = [
        (
            syn.clone().mesh(Kind::Forward, EP_2, PEER).bytes(),
            DropReason::BackendGone,
        ),
        (
            syn.clone().mesh(Kind::SecondHop, EP_2, PEER).bytes(),
            DropReason::BackendGone,
        ),
        (
            syn.clone().macs(task_mac(TASK), task_mac(PEER)).bytes(),
            DropReason::BadMeshMac,
        ),
        (forward(syn.clone().ttl(1)), DropReason::TtlExpired),
        (
            forward(Frame::udp(CLIENT, ENTRY_ADDR).fragment(4)),
            DropReason::FragmentWithoutHead,
        ),
        (
            Frame::tcp(ENTRY_ADDR, CLIENT, ACK)
                .ttl(1)
                .mesh(Kind::Return, EP, PEER)
                .bytes(),
            DropReason::TtlExpired,
        ),
        (
            Frame::tcp(ENTRY_ADDR, (ip(203, 0, 113, 1), 1), ACK)
                .mesh(Kind::Return, EP, PEER)
                .bytes(),
            DropReason::NoRouteToClient,
        ),
    ];
    for (packet, reason) in cases {
        bench.assert_drops(Sender::Peer, MESH_VNI, &packet, reason);
    }
}

#[test]
fn return_is_routed_to_the_client() {
    let bench = Bench::new();
    let reply = Frame::tcp(ENTRY_ADDR, CLIENT, SYN | ACK);
    let macs = (bench.world.mac("up0"), bench.host.namespace.mac("up0"));
    let expected = reply.clone().ttl(63).macs(macs.0, macs.1).bytes();
    // Twice: the neighbour is resolved for the first packet, and known for the second.
    for _ in 0..2 {
        send(
            &bench.peer,
            MESH_VNI,
            &reply.clone().mesh(Kind::Return, EP, PEER).bytes(),
        );
        bench.outside.expect(&expected);
    }
}
