//! Runs a packet through both programs, in the order in which a NIC would, and holds what they did
//! against the table and against each other.

use std::collections::BTreeMap;

use dataplane_abi::{
    Be16, Be32, Stats,
    hash::{FlowTuple, flow_hash},
};

use crate::{
    common::*,
    fate::{Case, Fate},
    setup::*,
};

/// The other nodes, as neighbours of the uplink.
const NEIGHBOURS: [(Be32, [u8; 6]); 2] = [
    (NODE_B, [2, 0, 0, 0, 0, 0x22]),
    (NODE_C, [2, 0, 0, 0, 0, 0x33]),
];
/// What XDP writes before the inner packet: Ethernet, IPv4, UDP and VXLAN.
const OUTER_LEN: usize = 14 + 20 + 8 + 8;
/// Counters that the tests use have indices below this.
const COUNTERS: u32 = 16;

/// What one program did with one packet.
pub struct Seen {
    pub verdict: u32,
    pub packet: Vec<u8>,
    pub drops: Drops,
    /// What each counter grew by, if it did.
    counted: Counters,
}

/// One node with both its programs.
pub struct Pair {
    pub node: Node,
    pub uplink: u32,
    pub netns: PrivateNetns,
}

impl Pair {
    /// With ways to the client and to the other nodes.
    pub fn new(node: Node) -> Self {
        let pair = Self::without_ways(node, with_route());
        for (addr, [.., last]) in NEIGHBOURS {
            let addr = std::net::Ipv4Addr::from(addr);
            let mac = format!("02:00:00:00:00:{last:02x}");
            pair.netns.ip(&format!(
                "neigh add {addr} lladdr {mac} dev up0 nud permanent"
            ));
        }
        pair
    }

    /// In a namespace with an uplink.
    pub fn without_ways(mut node: Node, netns: PrivateNetns) -> Self {
        // A veth has its receive queue registered for XDP once a program is attached.
        let xdp: &mut aya::programs::Xdp = program(&mut node.ebpf, "sn_xdp_uplink");
        xdp.attach("up0", aya::programs::XdpMode::Driver).unwrap();
        Self {
            node,
            uplink: netns.ifindex("up0"),
            netns,
        }
    }

    #[track_caller]
    pub fn table(&mut self, cases: impl IntoIterator<Item = Case>) {
        for (name, packet, fate) in cases {
            self.check(name, &packet, &fate);
        }
    }

    /// Rows alike: frames that all become what `fate` says.
    #[track_caller]
    pub fn each(
        &mut self,
        name: &str,
        frames: impl IntoIterator<Item = Frame>,
        fate: impl Fn(&Frame) -> Fate,
    ) {
        for frame in frames {
            self.check(name, &frame.bytes(), &fate(&frame));
        }
    }

    #[track_caller]
    pub fn check(&mut self, name: &str, packet: &[u8], fate: &Fate) {
        println!("{name}: {}", describe(packet));
        let (xdp, tc) = self.run(packet);
        for (program, seen, (verdict, reason)) in
            [("XDP", &xdp, fate.of_xdp()), ("tc", &tc, fate.of_tc())]
        {
            let drops = &seen.drops;
            assert_eq!(seen.verdict, verdict, "{name}: {program}, drops {drops:?}");
            let expected: Drops = reason.map(|one| (one.label(), 1)).into_iter().collect();
            assert_eq!(*drops, expected, "{name}: drops of {program}");
        }
        if let Some(expected) = fate.bytes(packet) {
            assert_packets_equal(&tc.packet, expected);
        }
        if let Fate::Tunnel(to, inner) = fate {
            assert_packets_equal(&xdp.packet, &outer(packet, *to).around(inner));
        }
    }

    /// Runs XDP, then tc on the same packet, and has them agree: XDP leaves no trace of a packet that
    /// it passes, and does with others what tc would.
    #[track_caller]
    pub fn run(&mut self, packet: &[u8]) -> (Seen, Seen) {
        let uplink = self.uplink;
        let xdp = self.watch("sn_xdp_uplink", |node| node.run_xdp(packet, uplink));
        let tc = self.watch("sn_tc_uplink", |node| node.run_tc("sn_tc_uplink", packet));
        match xdp.verdict {
            XDP_PASS => {
                assert_packets_equal(&xdp.packet, packet);
                assert!(xdp.drops.is_empty(), "{:?}", xdp.drops);
                let nothing = Counters::new();
                assert_eq!(xdp.counted, nothing, "whoever sends the packet counts it");
            }
            XDP_DROP => {
                assert_eq!(tc.verdict, TC_ACT_SHOT, "what XDP drops, tc drops");
                assert_eq!((&xdp.drops, &xdp.counted), (&tc.drops, &tc.counted));
            }
            XDP_TX => {
                assert_eq!(tc.verdict, TC_ACT_REDIRECT, "what XDP sends, tc sends");
                assert_packets_equal(&xdp.packet[OUTER_LEN..], &tc.packet);
                assert_eq!((&xdp.drops, &xdp.counted), (&tc.drops, &tc.counted));
            }
            other => panic!("XDP's verdict {other}"),
        }
        (xdp, tc)
    }

    #[track_caller]
    fn watch(&mut self, name: &str, run: impl FnOnce(&mut Node) -> Outcome) -> Seen {
        let (all, own, counters) = (self.node.drops(), self.node.drops_of(name), self.counters());
        let outcome = run(&mut self.node);
        let drops = growth(&own, self.node.drops_of(name));
        assert_eq!(drops, growth(&all, self.node.drops()), "drops are {name}'s");
        let counted = self.counters().into_iter().map(|(index, now)| {
            let before = counters.get(&index).copied().unwrap_or_default();
            (index, minus(now, before))
        });
        Seen {
            verdict: outcome.verdict,
            packet: outcome.packet,
            drops,
            counted: counted.filter(is_something).collect(),
        }
    }

    fn counters(&mut self) -> Counters {
        let counters = (0..COUNTERS).map(|index| (index, self.node.stats(index)));
        counters.filter(is_something).collect()
    }
}

/// Packets by reason.
type Drops = BTreeMap<&'static str, u64>;
/// By index.
type Counters = BTreeMap<u32, Stats>;

fn is_something((_, stats): &(u32, Stats)) -> bool {
    *stats != Stats::default()
}

fn growth(before: &Drops, now: Drops) -> Drops {
    now.into_iter()
        .map(|(reason, packets)| (reason, packets - before.get(reason).unwrap_or(&0)))
        .filter(|(_, packets)| *packets != 0)
        .collect()
}

fn minus(now: Stats, before: Stats) -> Stats {
    Stats {
        packets: now.packets - before.packets,
        bytes: now.bytes - before.bytes,
        new_flows: now.new_flows - before.new_flows,
    }
}

/// The headers that XDP puts before `packet`, an IPv4 packet with ports.
fn outer(packet: &[u8], to: Be32) -> Outer {
    let half = |at: usize| Be16::from_host(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let l4 = 14 + usize::from(packet[14] & 0xf) * 4;
    let tuple = FlowTuple {
        src: ip(packet[26], packet[27], packet[28], packet[29]),
        src_port: half(l4),
        dst_port: half(l4 + 2),
        proto: packet[23],
    };
    let neighbour = NEIGHBOURS.iter().find(|(addr, _)| *addr == to);
    Outer {
        dst_mac: neighbour.expect("a node of the test").1,
        src_mac: UPLINK_MAC,
        src: NODE,
        dst: to,
        tos: packet[15],
        sport: 0xc000 | (flow_hash(tuple, RING_SEED) as u16 & 0x3fff),
        dport: 4789,
        vni: MESH_VNI,
    }
}
