//! `trace` against the kernel: random tables, random packets; what it says beforehand is what the
//! programs do, to the byte. The programs' own flow tables grow meanwhile.

mod common;

use std::net::Ipv4Addr;

use aya::{
    Pod,
    maps::{Array, HashMap},
};
use common::*;
use dataplane_abi::{
    BACKEND_DRAINING, BackendValue, Be16, Be32, ClientKey, ClientValue, FlowKey, FlowValue,
    NodeConfig, PEER_RETURNING, PEER_SUSPECTED, PinKey, PinValue, RingForm, RingSlot,
    SERVICE_AFFINITY, SERVICE_NEAR, SERVICE_NEAR_DRAINS, ServiceValue,
    hash::{FlowTuple, flow_hash},
    seat::seat_port,
};
use swarmnet_datapath::trace::{
    Lookup, Outcome, Probe, Sent, Step, Trace, from_outside, from_task,
};

const NODE: Be32 = ip(192, 0, 2, 1);
const AFFINITY_KEYS: [u32; 2] = [71, 72];
const ALIAS: Be32 = ip(192, 0, 2, 77);
const NODE_B: Be32 = ip(192, 0, 2, 2);
const NODE_C: Be32 = ip(192, 0, 2, 3);
const VNI: u32 = 4097;
const TASK: Be32 = ip(10, 0, 1, 3);
const CLIENTS: [Be32; 3] = [ip(203, 0, 113, 9), ip(203, 0, 113, 10), ip(172, 18, 0, 66)];
const TARGETS: [Be32; 5] = [NODE, NODE, ALIAS, NODE_B, ip(172, 18, 0, 11)];
const PORTS: [u16; 4] = [8080, 8081, 8082, 22];
const ENDPOINTS: u32 = 7;

impl Lookup for Node {
    fn look<K: Pod, V: Pod>(&self, map: &'static str, key: K) -> Option<V> {
        let map = self.ebpf.map(map).expect("the object has the map");
        if let Ok(map) = HashMap::<_, K, V>::try_from(map) {
            return map.get(&key, 0).ok();
        }
        let map = Array::<_, V>::try_from(map).expect("a hash or an array");
        // SAFETY: arrays have keys of four bytes, which `K` is then.
        let index = unsafe { std::mem::transmute_copy::<K, u32>(&key) };
        map.get(&index, 0).ok()
    }
}

/// Steele, Lea and Flood's SplitMix64: a failure is told by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u32) -> u32 {
        (self.next() % u64::from(n)) as u32
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len() as u32) as usize]
    }
}

/// A node with random tables, and the packets that its world knows.
struct World {
    node: Node,
    random: Random,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            node: Node::configured(NODE),
            random: Random(seed),
        };
        world.node.node_addr(NODE);
        world.node.node_addr(ALIAS);
        for endpoint in 1..=ENDPOINTS {
            let gateway = ip(172, 18, 0, 10 + endpoint as u8);
            if !world.random.one_in(4) {
                world
                    .node
                    .local(endpoint, 50 + endpoint, gateway, 20 + endpoint);
            }
        }
        for (base, port) in (0..).zip(&PORTS[..3]) {
            for proto in [TCP, UDP] {
                let service = world.published(100 * base + u32::from(proto));
                if world.random.one_in(4) {
                    let elsewhere = match world.random.one_in(2) {
                        true => 0,
                        false => world.node.frontend(*port, service),
                    };
                    world
                        .node
                        .publish_at(ALIAS, *port, proto, service, elsewhere);
                } else {
                    world.node.publish(*port, proto, service);
                }
            }
        }
        world.overlay();
        world
    }

    fn place(&mut self) -> Be32 {
        self.random.of(&[Be32::ZERO, Be32::ZERO, NODE_B, NODE_C])
    }

    fn backends(&mut self, addr: impl Fn(u32) -> Be32) -> Vec<BackendValue> {
        let count = self.random.below(5);
        let mut backends = Vec::new();
        for _ in 0..count {
            let endpoint = 1 + self.random.below(ENDPOINTS);
            let mut one = backend(endpoint, self.place(), addr(endpoint));
            if self.random.one_in(4) {
                one.state = BACKEND_DRAINING;
            }
            backends.push(one);
        }
        // As the agent writes them.
        backends.sort_by_key(|one| one.endpoint);
        backends.dedup_by_key(|one| one.endpoint);
        backends
    }

    fn slots(&mut self, backends: &[BackendValue]) -> Vec<RingSlot> {
        let len = self.random.of(&[0, 1, 2, 64, 256, 512]);
        // Now and then a slot names nobody.
        let count = backends.len() as u32 + u32::from(self.random.one_in(4));
        let one = |random: &mut Random| random.below(count.max(1)) as u16;
        (0..len)
            .map(|_| slot(one(&mut self.random), one(&mut self.random)))
            .collect()
    }

    fn published(&mut self, base: u32) -> ServiceValue {
        let backends = self.backends(|endpoint| ip(172, 18, 0, 10 + endpoint as u8));
        let target = self.random.of(&[80, 8080]);
        self.service(base, 1, target, &backends)
    }

    /// With its ring; now and then it prefers the node's own, which then have slots as well.
    fn service(
        &mut self,
        base: u32,
        stats: u32,
        target: u16,
        backends: &[BackendValue],
    ) -> ServiceValue {
        let mut slots = self.slots(backends);
        let len = slots.len();
        let is_near = len > 1 && self.random.one_in(2);
        if is_near {
            let here: Vec<u16> = (0..)
                .zip(backends)
                .filter(|(_, backend)| backend.vtep.is_zero())
                .map(|(index, _)| index)
                .collect();
            let here = if here.is_empty() { vec![0] } else { here };
            slots.extend((0..len).map(|_| slot(self.random.of(&here), self.random.of(&here))));
        }
        let form = self.random.of(&[RingForm::Wide, RingForm::Narrow]);
        let node = &mut self.node;
        let service = node.service_in(form, base, stats, target, backends, &slots);
        let near = match is_near {
            true => SERVICE_NEAR | self.random.of(&[0, 0, SERVICE_NEAR_DRAINS]),
            false => 0,
        };
        let (affinity, affinity_secs) =
            self.random
                .of(&[(0, 0), (SERVICE_AFFINITY, 0), (SERVICE_AFFINITY, 60)]);
        ServiceValue {
            ring_len: len as u32,
            flags: near | affinity,
            affinity_secs,
            affinity_key: self.random.of(&AFFINITY_KEYS),
            ..service
        }
    }

    fn overlay(&mut self) {
        self.node.overlay_veth(LOOPBACK, VNI, TASK, 20);
        self.node.endpoint(VNI, TASK, Place::Here(LOOPBACK));
        for endpoint in 1..=ENDPOINTS {
            let addr = ip(10, 0, 1, 10 + endpoint as u8);
            let place = match self.random.below(5) {
                0 => continue,
                1 => Place::At(NODE_B),
                2 => Place::Here(0),
                _ => Place::Here(60 + endpoint),
            };
            self.node.endpoint(VNI, addr, place);
        }
        for (base, vip) in [(700, ip(10, 0, 1, 100)), (800, ip(10, 0, 1, 101))] {
            // Endpoint 7 is the task itself.
            let mut backends = self.backends(|endpoint| match endpoint {
                7 => TASK,
                endpoint => ip(10, 0, 1, 10 + endpoint as u8),
            });
            for own in backends.iter_mut().filter(|one| one.addr == TASK) {
                own.vtep = Be32::ZERO;
            }
            let service = self.service(base, 2, 0, &backends);
            self.node.vip(VNI, vip, service);
        }
    }

    /// A change of rings is under way, for as long as the test runs.
    fn unsettle(&mut self) {
        let mut config: NodeConfig = self.node.look("CONFIG", 0u32).expect("it is configured");
        config.unsettled_until = u64::MAX;
        self.node.configure(config);
    }

    /// Something that the programs would find only after a change of the ring, or never.
    fn disturb(&mut self) {
        if self.random.one_in(3) {
            let flags = self.random.of(&[0, PEER_SUSPECTED, PEER_RETURNING]);
            let node = self.random.of(&[NODE_B, NODE_C]);
            return self.node.doubt(node, flags);
        }
        let (client, port) = (
            self.random.of(&CLIENTS),
            40_000 + self.random.below(4) as u16,
        );
        let endpoint = 1 + self.random.below(ENDPOINTS);
        let published = Be16::from_host(self.random.of(&PORTS));
        let proto = self.random.of(&[TCP, UDP]);
        if self.random.one_in(3) {
            let key = ClientKey {
                client: self.random.of(&[client, TASK]).to_host().into(),
                service: self.random.of(&AFFINITY_KEYS),
                _pad: 0,
            };
            let value = ClientValue {
                last_seen: self.random.of(&[monotonic_ns(), monotonic_ns(), 0]),
                endpoint,
                index: self.random.below(5),
            };
            self.node.put("CLIENTS", key, value);
            return;
        }
        if self.random.one_in(2) {
            let key = PinKey {
                client,
                node_addr: self.random.of(&[NODE, ALIAS]),
                client_port: Be16::from_host(port),
                published,
                proto,
                ..PinKey::default()
            };
            let vtep = self.place();
            self.node.put("PINS", key, PinValue { endpoint, vtep });
            return;
        }
        let nth = self.random.of(&[0, 0, 1, 2]);
        let key = FlowKey {
            client,
            task: ip(172, 18, 0, 10 + endpoint as u8),
            client_port: seat_port(Be16::from_host(port), nth),
            task_port: Be16::from_host(self.random.of(&[80, 8080])),
            proto,
            ..FlowKey::default()
        };
        let flow = FlowValue {
            last_seen: self.random.of(&[monotonic_ns(), 0]),
            node_addr: self.random.of(&[NODE, ALIAS]),
            published,
            flags: self.random.of(&[0, 0, 1, 4]),
            endpoint: self.random.of(&[endpoint, endpoint, 1]),
            generation: self.random.of(&[1, 1, 2]),
            own_port: match nth {
                0 => Be16::ZERO,
                _ => Be16::from_host(port),
            },
            ..FlowValue::default()
        };
        let table = match proto {
            UDP => "UDP_FLOWS",
            _ => self.random.of(&["FLOWS", "SYN_FLOWS"]),
        };
        self.node.put(table, key, flow);
    }

    fn frame(&mut self, src: Be32, dst: Be32, dport: u16) -> (Probe, Frame) {
        let sport = 40_000 + self.random.below(4) as u16;
        let flags = self.random.of(&[SYN, PSH_ACK]);
        let proto = self.random.of(&[TCP, TCP, UDP]);
        let probe = Probe {
            proto,
            src: (src.into(), sport),
            dst: (dst.into(), dport),
            established: flags != SYN,
            fragment: false,
        };
        let frame = match proto {
            TCP => Frame::tcp((src, sport), (dst, dport), flags),
            _ => Frame::udp((src, sport), (dst, dport)),
        };
        (probe, frame)
    }

    /// Runs the packet and holds what happened against what was said.
    #[track_caller]
    fn check(&mut self, program: &str, frame: &Frame, said: Outcome, context: &str) {
        let before = self.node.drops();
        let packet = frame.bytes();
        let outcome = self.node.run_tc(program, &packet);
        let mut after = self.node.drops();
        for (label, count) in &before {
            let left = after.get_mut(label).expect("counters only grow");
            *left -= count;
        }
        after.retain(|_, count| *count > 0);
        let context = format!("{context}\nsaid {said:?}\ndropped {after:?}");
        match said {
            Outcome::Dropped(reason) => {
                assert_eq!(after, [(reason.label(), 1)].into(), "{context}");
                // Refused: the sender hears of it by a RST.
                let is_reset = outcome.packet.len() == 54 && outcome.packet[47] & RST != 0;
                assert!(
                    outcome.verdict == TC_ACT_SHOT
                        || outcome.verdict == TC_ACT_REDIRECT && is_reset,
                    "verdict {}, {context}",
                    outcome.verdict
                );
            }
            Outcome::Chosen { .. } => unreachable!("no socket is asked, {context}"),
            Outcome::Stack => {
                assert_eq!(
                    (outcome.verdict, after.len()),
                    (TC_ACT_UNSPEC, 0),
                    "{context}"
                );
                assert_packets_equal(&outcome.packet, &packet);
            }
            Outcome::Task { sent, .. } | Outcome::Tunnel { sent, .. } => {
                assert_eq!(
                    (outcome.verdict, after.len()),
                    (TC_ACT_REDIRECT, 0),
                    "{context}"
                );
                assert_packets_equal(&outcome.packet, &as_sent(frame, &sent).bytes());
            }
        }
    }

    /// XDP sends on only what tc would send to another node's backend, and drops nothing else than tc.
    #[track_caller]
    fn check_xdp(&mut self, frame: &Frame, uplink: u32, trace: &Trace, context: &str) {
        let said = trace.outcome;
        let before = self.node.drops();
        let packet = frame.bytes();
        let outcome = self.node.run_xdp(&packet, uplink);
        let dropped = self.node.drops() != before;
        let context = format!("XDP: {context}\nsaid {said:?}");
        match (said, outcome.verdict) {
            (Outcome::Dropped(_), XDP_DROP) => assert!(dropped, "{context}"),
            (Outcome::Tunnel { vtep, vni, sent }, XDP_TX) => {
                let inner = as_sent(frame, &sent).bytes();
                let wrapped = outer(vtep.into(), vni, frame).around(&inner);
                assert_packets_equal(&outcome.packet, &wrapped);
            }
            (Outcome::Tunnel { .. }, XDP_PASS) => {
                // By way of a backend that is here, if only to find that it has no such flow.
                let mut steps = trace.steps.iter();
                let is_asked = steps.any(|at| matches!(at, Step::UnknownTo { .. }));
                assert!(is_asked, "{context}");
            }
            (Outcome::Stack | Outcome::Dropped(_) | Outcome::Task { .. }, XDP_PASS) => {
                assert!(!dropped, "{context}");
                assert_packets_equal(&outcome.packet, &packet);
            }
            (_, verdict) => panic!("verdict {verdict}, {context}"),
        }
    }
}

fn as_sent(frame: &Frame, sent: &Sent) -> Frame {
    let ttl = frame.ttl - u8::from(sent.routed);
    let ((src, sport), (dst, dport)) = (sent.src, sent.dst);
    frame
        .clone()
        .src(src.into())
        .sport(sport)
        .dst(dst.into())
        .dport(dport)
        .macs(sent.dst_mac, sent.src_mac)
        .ttl(ttl)
}

fn mac_of(node: Be32) -> [u8; 6] {
    [2, 0, 0, 0, 0, node.to_host() as u8]
}

/// What the XDP program puts around a packet for the node at `vtep`.
fn outer(vtep: Be32, vni: u32, frame: &Frame) -> Outer {
    let (sport, dport, proto) = match frame.transport {
        Transport::Tcp { sport, dport, .. } => (sport, dport, TCP),
        Transport::Udp { sport, dport, .. } => (sport, dport, UDP),
        _ => panic!("no ports"),
    };
    let tuple = FlowTuple {
        src: frame.src,
        src_port: Be16::from_host(sport),
        dst_port: Be16::from_host(dport),
        proto,
    };
    Outer {
        dst_mac: mac_of(vtep),
        src_mac: UPLINK_MAC,
        src: NODE,
        dst: vtep,
        tos: 0,
        sport: 0xc000 | (flow_hash(tuple, RING_SEED) as u16 & 0x3fff),
        dport: 4789,
        vni,
    }
}

const WORLDS: u64 = 8;
const PACKETS: u32 = 400;

/// How often each outcome has to come up, or the worlds are too plain to tell anything.
#[derive(Default, Debug)]
struct Tally {
    stack: u32,
    dropped: u32,
    task: u32,
    tunnel: u32,
}

impl Tally {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Chosen { .. } => unreachable!("no socket is asked"),
            Outcome::Stack => self.stack += 1,
            Outcome::Dropped(_) => self.dropped += 1,
            Outcome::Task { .. } => self.task += 1,
            Outcome::Tunnel { .. } => self.tunnel += 1,
        }
    }
}

#[test]
fn packets_from_outside_go_where_the_trace_says_with_tc_and_with_xdp() {
    let netns = PrivateNetns::with_uplink();
    for node in [NODE_B, NODE_C] {
        let mac = mac_of(node).map(|byte| format!("{byte:02x}")).join(":");
        let addr = Ipv4Addr::from(node);
        netns.ip(&format!(
            "neigh add {addr} lladdr {mac} dev up0 nud permanent"
        ));
    }
    let uplink = netns.ifindex("up0");
    let mut tally = Tally::default();
    for seed in 0..WORLDS {
        let mut world = World::new(seed);
        if seed % 2 == 1 {
            world.unsettle();
        }
        let xdp: &mut aya::programs::Xdp = program(&mut world.node.ebpf, "sn_xdp_uplink");
        // A veth has its receive queue registered for XDP once a program is attached.
        xdp.attach("up0", aya::programs::XdpMode::Driver).unwrap();
        for nth in 0..PACKETS {
            if world.random.one_in(8) {
                world.disturb();
            }
            let (src, dst) = (world.random.of(&CLIENTS), world.random.of(&TARGETS));
            let port = world.random.of(&PORTS);
            let (probe, frame) = world.frame(src, dst, port);
            let trace = from_outside(&world.node, probe, monotonic_ns());
            let context = format!("world {seed}, packet {nth}: {probe}\n{:?}", trace.steps);
            tally.count(trace.outcome);
            world.check_xdp(&frame, uplink, &trace, &context);
            world.check("sn_tc_uplink", &frame, trace.outcome, &context);
        }
    }
    println!("{tally:?}");
    let Tally {
        stack,
        dropped,
        task,
        tunnel,
    } = tally;
    assert!(
        [stack, dropped, task, tunnel].iter().all(|&n| n > 100),
        "too plain"
    );
}

#[test]
fn packets_of_a_task_go_where_the_trace_says() {
    let _netns = PrivateNetns::enter();
    let mut tally = Tally::default();
    for seed in 100..100 + WORLDS {
        let mut world = World::new(seed);
        for nth in 0..PACKETS {
            if world.random.one_in(8) {
                world.disturb();
            }
            let dst = match world.random.below(3) {
                0 => ip(10, 0, 1, 11 + world.random.below(ENDPOINTS) as u8),
                1 => ip(10, 0, 1, 100),
                _ => ip(10, 0, 1, 101),
            };
            // Replies of the task to itself, too.
            let port = world.random.of(&[80, 443, 40_000, 40_001]);
            let (mut probe, mut frame) = world.frame(TASK, dst, port);
            if world.random.one_in(4) {
                probe.src.1 = 80;
                frame = frame.sport(80);
            }
            let frame = frame.between_tasks();
            let trace = from_task(&world.node, probe, LOOPBACK, monotonic_ns());
            let context = format!("world {seed}, packet {nth}: {probe}\n{:?}", trace.steps);
            tally.count(trace.outcome);
            world.check("sn_tc_task", &frame, trace.outcome, &context);
        }
    }
    println!("{tally:?}");
    let Tally {
        dropped,
        task,
        tunnel,
        ..
    } = tally;
    assert!(
        [dropped, task, tunnel].iter().all(|&n| n > 100),
        "too plain"
    );
}

#[test]
fn fragment_is_put_in_order_where_the_programs_do_so() {
    let _netns = PrivateNetns::enter();
    let mut node = Node::configured(NODE);
    node.node_addr(NODE);
    let service = node.service(0, 10, 80, &[backend(7, NODE_B, NODE_B)], &[slot(0, 0)]);
    node.publish(8080, UDP, service);
    let client = (CLIENTS[0], 40_000);
    let ways = |node: &mut Node, to: Be32| {
        let probe = Probe {
            proto: UDP,
            src: (client.0.into(), client.1),
            dst: (to.into(), 8080),
            established: false,
            fragment: true,
        };
        let trace = from_outside(node, probe, monotonic_ns());
        let frame = Frame::udp(client, (to, 8080)).payload(&[1; 1900]).bytes();
        let later = &fragments(&frame, &[1480], 1)[1];
        (trace, node.run_tc("sn_tc_uplink", later).verdict)
    };
    let (plain, verdict) = ways(&mut node, NODE);
    assert_eq!(
        verdict, TC_ACT_UNSPEC,
        "there is no place to put it in order"
    );
    let config: NodeConfig = node.array("CONFIG").get(&0, 0).unwrap();
    node.configure(NodeConfig {
        reassembly_ifindex: 77,
        ..config
    });
    let (ordered, verdict) = ways(&mut node, NODE);
    assert_eq!(verdict, TC_ACT_REDIRECT);
    assert_eq!(ordered.steps[0], Step::Ordered { ifindex: 77 });
    assert_eq!(ordered.steps[1..], plain.steps);
    assert_eq!(ordered.outcome, plain.outcome);
    let (foreign, verdict) = ways(&mut node, NODE_C);
    assert_eq!(verdict, TC_ACT_UNSPEC);
    assert_eq!(foreign.steps, [Step::NotOfNode]);
}
