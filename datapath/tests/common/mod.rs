//! Shared by the tests of the programs: the object loaded without pins, its maps, test runs.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unused_imports, reason = "each test binary uses a part of it")]

pub mod cluster;
pub mod netns;
pub mod packets;
pub mod two_nodes;

use std::collections::BTreeMap;

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, DropCounter, DropReason, EndpointKey, EndpointValue,
    FlowKey, FlowValue, LocalEndpoint, NodeConfig, PeerValue, PinKey, PinValue, PortWord,
    ProgramId, PublishedKey, RingChunk, RingForm, RingPlace, RingSlot, SIDE_PACKETS, ServiceValue,
    Stats, TargetKey, TargetValue, VETH_GATEWAY, VETH_OVERLAY, VethValue, VipKey,
    drops::drop_index, net::task_mac, ports::port_index,
};

use nix::time::{ClockId, clock_gettime};

pub use netns::*;
pub use packets::*;

pub const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SWARMNET_EBPF_OBJECT"));

pub const TC_PROGRAMS: [&str; 5] = [
    "sn_tc_uplink",
    "sn_tc_vxlan",
    "sn_tc_task",
    "sn_tc_gateway",
    "sn_tc_ordered",
];
pub const SOCKET_PROGRAMS: [&str; 4] = ["sn_connect4", "sn_sendmsg4", "sn_recvmsg4", "sn_getpeer4"];

pub const TC_ACT_OK: u32 = 0;
pub const TC_ACT_SHOT: u32 = 2;
pub const TC_ACT_REDIRECT: u32 = 7;
/// `TC_ACT_UNSPEC`: go on with the next program or the stack.
pub const TC_ACT_UNSPEC: u32 = u32::MAX;
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

/// Test runs put packets on the loopback device of the test's namespace.
pub const LOOPBACK: u32 = 1;

pub const MESH_VNI: u32 = 4096;
pub const RING_SEED: u64 = 0x5eed;
pub const VXLAN_IFINDEX: u32 = 901;
/// Of an underlay of 1500 bytes.
pub const TUNNEL_MTU: u32 = 1450;
pub const GATEWAY_ADDR: Be32 = ip(172, 18, 0, 1);
pub const GATEWAY_MASK: Be32 = ip(255, 255, 0, 0);

pub const fn ip(a: u8, b: u8, c: u8, d: u8) -> Be32 {
    Be32::from_host(u32::from_be_bytes([a, b, c, d]))
}

/// The programs of one node, not attached, and what they left behind.
pub struct Node {
    pub ebpf: Ebpf,
    /// How many elements of `FRONTENDS` are written.
    frontends: u32,
}

pub struct Outcome {
    pub verdict: u32,
    pub packet: Vec<u8>,
}

impl Node {
    /// All maps, of a size that tests in parallel can afford. The programs are loaded when they are
    /// first used: on a slow machine the verifier takes its time.
    pub fn load() -> Self {
        Self::load_with(
            EbpfLoader::new()
                .map_max_entries("RINGS", 1024)
                .map_max_entries("BACKENDS", 4096)
                .map_max_entries("FLOWS", 4096)
                .map_max_entries("SYN_FLOWS", 4096)
                .map_max_entries("UDP_FLOWS", 4096)
                .map_max_entries("CLIENTS", 4096)
                .map_max_entries("FRAGMENTS", 4096)
                .map_max_entries("VIP_FLOWS", 4096)
                .map_max_entries("SOCK_ORIGINS", 4096)
                .map_max_entries("STATS", 1024),
        )
    }

    /// As [`Self::load`], all maps of the size that they have in use.
    pub fn load_whole() -> Self {
        Self::load_with(&mut EbpfLoader::new())
    }

    fn load_with(loader: &mut EbpfLoader<'_>) -> Self {
        let ebpf = loader.load(OBJECT).expect("the object loads");
        Self { ebpf, frontends: 0 }
    }

    /// Loaded, and configured as the node whose tunnel address is `vtep`.
    pub fn configured(vtep: Be32) -> Self {
        let mut node = Self::load();
        node.configure(NodeConfig {
            vxlan_ifindex: VXLAN_IFINDEX,
            uplink_ifindex: LOOPBACK,
            gateway_ifindex: LOOPBACK,
            mesh_vni: MESH_VNI,
            vtep,
            gateway_addr: GATEWAY_ADDR,
            ring_seed: RING_SEED,
            data_port: Be16::from_host(4789),
            generation: 1,
            gateway_mask: GATEWAY_MASK,
            tunnel_mtu: TUNNEL_MTU,
            doubted: 0,
            unsettled_until: 0,
            reassembly_ifindex: 0,
            _pad: 0,
        });
        node
    }

    pub fn configure(&mut self, config: NodeConfig) {
        self.array("CONFIG").set(0, config, 0).unwrap();
    }

    pub fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        Array::try_from(self.ebpf.map_mut(name).unwrap()).unwrap()
    }

    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.ebpf.map_mut(name).unwrap()).unwrap()
    }

    pub fn put<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) {
        self.hash(name).insert(key, value, 0).unwrap();
    }

    pub fn get<K: Pod, V: Pod>(&mut self, name: &str, key: K) -> Option<V> {
        self.hash(name).get(&key, 0).ok()
    }

    pub fn entries<K: Pod, V: Pod>(&mut self, name: &str) -> Vec<(K, V)> {
        self.hash(name).iter().map(Result::unwrap).collect()
    }

    pub fn peer(&mut self, vtep: Be32) {
        self.put("PEERS", vtep, PeerValue::default());
    }

    /// Flags a node by `PEER_*`; zero is no doubt.
    pub fn doubt(&mut self, vtep: Be32, flags: u32) {
        self.put("PEERS", vtep, PeerValue { flags, _pad: 0 });
        let peers = self.entries::<Be32, PeerValue>("PEERS");
        let doubted = peers.iter().filter(|(_, peer)| peer.flags != 0).count() as u32;
        let config = self.array::<NodeConfig>("CONFIG").get(&0, 0).unwrap();
        self.configure(NodeConfig { doubted, ..config });
    }

    pub fn node_addr(&mut self, addr: Be32) {
        self.put("NODE_ADDRS", addr, 1u32);
    }

    /// Registers `LOOPBACK` as a task's overlay interface.
    pub fn overlay_veth(&mut self, ifindex: u32, vni: u32, addr: Be32, stats: u32) {
        let veth = VethValue {
            vni,
            addr,
            endpoint: 7,
            stats,
            mac: task_mac(addr),
            kind: VETH_OVERLAY,
        };
        self.put("VETHS", ifindex, veth);
    }

    pub fn gateway_veth(&mut self, ifindex: u32, addr: Be32) {
        let veth = VethValue {
            vni: 0,
            addr,
            endpoint: 7,
            stats: 0,
            mac: task_mac(addr),
            kind: VETH_GATEWAY,
        };
        self.put("VETHS", ifindex, veth);
    }

    /// An overlay address: on this node behind `ifindex`, or at the node `vtep`.
    pub fn endpoint(&mut self, vni: u32, addr: Be32, place: Place) {
        let (vtep, ifindex) = match place {
            Place::Here(ifindex) => (Be32::ZERO, ifindex),
            Place::At(vtep) => (vtep, 0),
        };
        let value = EndpointValue {
            vtep,
            ifindex,
            endpoint: 7,
            flags: 0,
            mac: task_mac(addr),
            _pad: 0,
        };
        self.put("ENDPOINTS", EndpointKey { vni, addr }, value);
    }

    /// A task's gateway side on this node. Its namespace has the number of its endpoint.
    pub fn local(&mut self, endpoint: u32, ifindex: u32, addr: Be32, stats: u32) {
        let value = LocalEndpoint {
            ifindex,
            addr,
            stats,
            generation: 1,
            mac: task_mac(addr),
            _pad: 0,
            netns: endpoint,
            _pad2: 0,
        };
        self.put("LOCAL", endpoint, value);
    }

    pub fn put_flow(&mut self, key: FlowKey, flow: FlowValue) {
        let table = if key.proto == TCP {
            "FLOWS"
        } else {
            "UDP_FLOWS"
        };
        self.put(table, key, flow);
    }

    /// What a flow left in the tables.
    pub fn flow(&mut self, key: FlowKey) -> Option<FlowValue> {
        let tables = ["FLOWS", "SYN_FLOWS", "UDP_FLOWS"];
        tables.iter().find_map(|table| self.get(table, key))
    }

    pub fn pin(&mut self, client: (Be32, u16), frontend: (Be32, u16), endpoint: u32, vtep: Be32) {
        let key = PinKey {
            client: client.0,
            node_addr: frontend.0,
            client_port: Be16::from_host(client.1),
            published: Be16::from_host(frontend.1),
            proto: TCP,
            _pad: 0,
            _pad2: 0,
        };
        self.put("PINS", key, PinValue { endpoint, vtep });
    }

    /// What neighbours may reach of a task: the target of a published port.
    pub fn target(&mut self, endpoint: u32, addr: Be32, port: u16, proto: u8) {
        let key = TargetKey {
            addr,
            port: Be16::from_host(port),
            proto,
            _pad: 0,
        };
        self.put("TARGETS", key, TargetValue { endpoint, _pad: 0 });
    }

    /// Writes backends from index `base`, and returns a service with a ring over `slots`, in the form that
    /// the agent chooses. One slot makes a service without a ring; none, one without a backend.
    /// `target_port` becomes a shift when the service is published.
    pub fn service(
        &mut self,
        base: u32,
        stats: u32,
        target_port: u16,
        backends: &[BackendValue],
        slots: &[RingSlot],
    ) -> ServiceValue {
        let raw: Vec<u32> = slots.iter().map(|slot| slot.to_raw()).collect();
        self.service_in(
            RingForm::of(&raw),
            base,
            stats,
            target_port,
            backends,
            slots,
        )
    }

    /// The same, in a form.
    pub fn service_in(
        &mut self,
        form: RingForm,
        base: u32,
        stats: u32,
        target_port: u16,
        backends: &[BackendValue],
        slots: &[RingSlot],
    ) -> ServiceValue {
        for (index, backend) in backends.iter().enumerate() {
            self.array("BACKENDS")
                .set(base + index as u32, *backend, 0)
                .unwrap();
        }
        let raw: Vec<u32> = slots.iter().map(|slot| slot.to_raw()).collect();
        if raw.len() > 1 {
            let mut chunks = self.array::<RingChunk>("RINGS");
            let runs = raw.chunks(form.slots_per_chunk() as usize);
            for (at, run) in (base..).zip(runs) {
                chunks.set(at, form.pack(run), 0).unwrap();
            }
        }
        ServiceValue {
            ring: RingPlace::new(base, form),
            ring_len: slots.len() as u32,
            backend_base: base,
            backend_count: backends.len() as u32,
            single: raw.first().copied().unwrap_or(0),
            stats,
            flags: 0,
            generation: 1,
            port_shift: target_port,
            affinity_secs: 0,
            affinity_key: 0,
        }
    }

    pub fn publish(&mut self, port: u16, proto: u8, service: ServiceValue) {
        self.publish_range(port, port, proto, service);
    }

    /// Publishes neighbouring ports by one frontend; the first leads to the service's target port.
    pub fn publish_range(&mut self, first: u16, last: u16, proto: u8, service: ServiceValue) {
        let frontend = self.frontend(first, service);
        for port in first..=last {
            self.set_port(port, proto, PortWord::new(frontend, false));
        }
    }

    /// Publishes a port on one address only; `elsewhere` is the frontend on all others, or zero.
    pub fn publish_at(
        &mut self,
        addr: Be32,
        port: u16,
        proto: u8,
        service: ServiceValue,
        elsewhere: u32,
    ) {
        let frontend = self.frontend(port, service);
        let key = PublishedKey {
            addr,
            port: Be16::from_host(port),
            proto,
            side: SIDE_PACKETS,
        };
        self.put("ADDRESSED", key, frontend);
        self.set_port(port, proto, PortWord::new(elsewhere, true));
    }

    /// Writes a frontend for ports from `first` on, at an index of its own.
    pub fn frontend(&mut self, first: u16, service: ServiceValue) -> u32 {
        self.frontends += 1;
        let service = ServiceValue {
            port_shift: service.port_shift.wrapping_sub(first),
            ..service
        };
        let index = self.frontends;
        self.array("FRONTENDS").set(index, service, 0).unwrap();
        index
    }

    fn set_port(&mut self, port: u16, proto: u8, word: PortWord) {
        let index = port_index(proto, Be16::from_host(port)).unwrap();
        self.array("PORTS").set(index, word.to_raw(), 0).unwrap();
    }

    pub fn vip(&mut self, vni: u32, addr: Be32, service: ServiceValue) {
        self.put("VIPS", VipKey { vni, addr }, service);
    }

    pub fn run_tc(&mut self, name: &str, packet: &[u8]) -> Outcome {
        let program: &mut SchedClassifier = program(&mut self.ebpf, name);
        let mut out = vec![0; packet.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ..Default::default()
            })
            .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        out.truncate(result.data_size_out as usize);
        Outcome {
            verdict: result.return_value,
            packet: out,
        }
    }

    /// Runs the XDP program as if the packet came in by `ifindex`.
    pub fn run_xdp(&mut self, packet: &[u8], ifindex: u32) -> Outcome {
        let program: &mut Xdp = program(&mut self.ebpf, "sn_xdp_uplink");
        let mut out = vec![0; packet.len() + 256];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context: Vec<u8> = [0, packet.len() as u32, 0, ifindex, 0, 0]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..Default::default()
            })
            .unwrap_or_else(|e| panic!("sn_xdp_uplink: {e:?}"));
        out.truncate(result.data_size_out as usize);
        Outcome {
            verdict: result.return_value,
            packet: out,
        }
    }

    /// All drops so far, packets by reason.
    pub fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        let mut drops = BTreeMap::new();
        for program in ProgramId::ALL {
            for (reason, packets) in self.drops_of(program.name()) {
                *drops.entry(reason).or_default() += packets;
            }
        }
        drops
    }

    /// What one program dropped.
    pub fn drops_of(&mut self, name: &str) -> BTreeMap<&'static str, u64> {
        let program = ProgramId::ALL
            .iter()
            .find(|one| one.name() == name)
            .unwrap();
        let map = PerCpuArray::<_, DropCounter>::try_from(self.ebpf.map("DROPS").unwrap()).unwrap();
        let count = |reason: DropReason| {
            let values = map.get(&drop_index(*program, reason), 0).unwrap();
            values.iter().map(|counter| counter.packets).sum::<u64>()
        };
        DropReason::ALL
            .iter()
            .map(|reason| (reason.label(), count(*reason)))
            .filter(|(_, packets)| *packets != 0)
            .collect()
    }

    pub fn stats(&mut self, index: u32) -> Stats {
        let map = PerCpuArray::<_, Stats>::try_from(self.ebpf.map("STATS").unwrap()).unwrap();
        map.get(&index, 0)
            .unwrap()
            .iter()
            .fold(Stats::default(), |sum, one| Stats {
                packets: sum.packets + one.packets,
                bytes: sum.bytes + one.bytes,
                new_flows: sum.new_flows + one.new_flows,
            })
    }

    /// Runs and checks that the packet is dropped for exactly this reason, once.
    #[track_caller]
    pub fn assert_drops(&mut self, name: &str, packet: &[u8], reason: DropReason) {
        let before = self
            .drops_of(name)
            .get(reason.label())
            .copied()
            .unwrap_or(0);
        let total: u64 = self.drops().values().sum();
        let outcome = if name == "sn_xdp_uplink" {
            self.run_xdp(packet, LOOPBACK)
        } else {
            self.run_tc(name, packet)
        };
        let shot = if name == "sn_xdp_uplink" {
            XDP_DROP
        } else {
            TC_ACT_SHOT
        };
        assert_eq!(
            outcome.verdict,
            shot,
            "{}: verdict; drops {:?}",
            reason.label(),
            self.drops()
        );
        let drops = self.drops();
        assert_eq!(
            self.drops_of(name).get(reason.label()),
            Some(&(before + 1)),
            "drops are {drops:?}"
        );
        assert_eq!(
            drops.values().sum::<u64>(),
            total + 1,
            "drops are {drops:?}"
        );
    }

    /// Runs and checks verdict and every byte of the packet afterwards.
    #[track_caller]
    pub fn assert_sends(&mut self, name: &str, packet: &[u8], verdict: u32, expected: &[u8]) {
        let outcome = self.run_tc(name, packet);
        assert_eq!(
            outcome.verdict,
            verdict,
            "verdict; drops {:?}",
            self.drops()
        );
        assert_packets_equal(&outcome.packet, expected);
    }

    /// Runs and checks that the packet goes on untouched.
    #[track_caller]
    pub fn assert_passes(&mut self, name: &str, packet: &[u8]) {
        self.assert_sends(name, packet, TC_ACT_UNSPEC, packet);
    }
}

/// A flow of the mesh to port 80 of `task`.
pub fn flow_key(client: (Be32, u16), task: Be32, proto: u8) -> FlowKey {
    FlowKey {
        client: client.0,
        task,
        client_port: Be16::from_host(client.1),
        task_port: Be16::from_host(80),
        proto,
        _pad: 0,
        _pad2: 0,
    }
}

/// What `task` gets at its port 80 for a packet of the mesh.
pub fn delivered(frame: &Frame, task: Be32) -> Frame {
    let macs = (task_mac(task), task_mac(GATEWAY_ADDR));
    let frame = frame.clone().ttl(frame.ttl - 1).macs(macs.0, macs.1);
    frame.dst(task).dport(80)
}

/// The clock of the programs, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

pub enum Place {
    Here(u32),
    At(Be32),
}

pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// A namespace whose uplink leads to 203.0.113.0/24 by a known [`ROUTER`].
pub fn with_route() -> PrivateNetns {
    let netns = PrivateNetns::with_uplink();
    netns.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:99 dev up0 nud permanent");
    netns.ip("route add 203.0.113.0/24 via 192.0.2.9");
    netns
}

pub fn slot(now: u16, before: u16) -> RingSlot {
    RingSlot { now, before }
}

/// A backend whose addresses are as the agent would write them: `vtep` zero is here.
pub fn backend(endpoint: u32, vtep: Be32, addr: Be32) -> BackendValue {
    BackendValue {
        endpoint,
        vtep,
        addr,
        state: BACKEND_ACTIVE,
        mac: task_mac(addr),
        _pad: 0,
    }
}

pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
    <&'a mut P as TryFrom<&'a mut aya::programs::Program>>::Error: std::fmt::Debug,
{
    let program = ebpf
        .program_mut(name)
        .unwrap_or_else(|| panic!("no program {name}"));
    if program.fd().is_err() {
        load(program).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
    }
    program.try_into().unwrap()
}

/// The verifier gives up (EAGAIN) when a signal waits for its thread. As often as libbpf, try again.
fn load(program: &mut Program) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 5;
    let interrupted = |error: &ProgramError| {
        matches!(error, ProgramError::LoadError { io_error, .. }
            if io_error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let mut loaded = verify(program);
    for _ in 1..ATTEMPTS {
        match &loaded {
            Err(error) if interrupted(error) => loaded = verify(program),
            _ => break,
        }
    }
    loaded
}

fn verify(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
