//! Plans against a model of the kernel's maps: arrays that keep what was written, and entries that
//! the model checks after each single operation.

use std::{collections::BTreeMap, time::Duration};

use dataplane_abi::{
    BACKEND_ACTIVE, BACKEND_DRAINING, Be16, RING_CHUNK_WORDS, RING_LEN_MAX, RingChunk, RingPlace,
    RingSlot,
};
use model::{
    ClusterId, EndpointId, NetworkId, NodeId, ServiceId, TaskId, Vni,
    feed::{
        BackendState, ClusterView, EndpointView, NetworkView, NodeView, PeerView, PublishedPort,
        ServiceNetwork, ServiceView, ViewObject,
    },
    object::{Attachment, DataPathConfig},
    spec::{EndpointMode, Protocol},
};
use proptest::prelude::*;

use super::*;
use crate::{
    desired::Desired,
    local::{Doubt, HostPort, LocalState, LocalTask, LocalVeth},
    look::Sight,
    recorded::Recorded,
    tables::{Port, Published, backend_range, ring_slots},
};

/// What nobody wrote.
const NO_SLOTS: RingChunk = RingChunk {
    words: [0; RING_CHUNK_WORDS as usize],
};

/// The kernel's side.
#[derive(Clone, Default)]
struct Kernel {
    /// Its services are VIPs only.
    tables: Tables,
    frontends: BTreeMap<u32, ServiceValue>,
    chunks: BTreeMap<u32, RingChunk>,
    backends: BTreeMap<u32, BackendValue>,
}

impl Kernel {
    fn observe(&self) -> Tables {
        let mut tables = self.tables.clone();
        let published = self.tables.published();
        tables.services.extend(published.filter_map(|(at, index)| {
            let value = self.frontends.get(&index)?;
            Some((Frontend::Published(at), *value))
        }));
        for service in tables.services.values() {
            if (2..=RING_LEN_MAX).contains(&service.ring_len) {
                let len = ring_slots(service);
                let place = service.ring;
                let chunks = ring_chunks(service);
                let chunks = chunks.map(|chunk| self.chunks.get(&chunk).unwrap_or(&NO_SLOTS));
                let slots = chunks.flat_map(|chunk| place.slots(chunk));
                let slots: Vec<u32> = slots.map(RingSlot::to_raw).take(len as usize).collect();
                tables.rings.insert((place, len), slots.into());
            }
            if service.backend_count == 0 {
                continue;
            }
            let values = backend_range(service)
                .map(|index| self.backends.get(&index).copied().unwrap_or_default());
            tables.backends.insert(
                (service.backend_base, service.backend_count),
                values.collect(),
            );
        }
        tables
    }

    fn apply(&mut self, op: &Op) {
        let tables = &mut self.tables;
        match op {
            Op::ResetStats(_) | Op::DropFlows(_) | Op::DropVipFlows(_) => {}
            Op::PutEndpoint(at, value) => drop(tables.endpoints.insert(*at, *value)),
            Op::PutVeth(ifindex, value) => drop(tables.veths.insert(*ifindex, *value)),
            Op::PutLocal(endpoint, value) => drop(tables.locals.insert(*endpoint, *value)),
            Op::PutNetns(cookie, value) => drop(tables.netns.insert(*cookie, *value)),
            Op::PutTarget(at, value) => drop(tables.targets.insert(*at, *value)),
            Op::PutPeer(addr, value) => drop(tables.peers.insert(*addr, *value)),
            Op::PutNodeAddr(addr) => drop(tables.node_addrs.insert(*addr)),
            Op::WriteBackends(base, values) => {
                self.backends.extend((*base..).zip(values.iter().copied()));
            }
            Op::WriteRing(place, slots) => {
                let form = place.form();
                let runs = slots.chunks(form.slots_per_chunk() as usize);
                let chunks = runs.map(|run| form.pack(run));
                self.chunks.extend((place.first_chunk()..).zip(chunks));
            }
            Op::WriteFrontend(index, value) => {
                let named = tables.published().any(|(_, at)| at == *index);
                assert!(!named, "element {index} is written while ports lead there");
                self.frontends.insert(*index, *value);
            }
            Op::PutVip(at, value) => drop(tables.services.insert(Frontend::Vip(*at), *value)),
            Op::PutAddressed(at, index) => drop(tables.addressed.insert(*at, *index)),
            Op::SetPort(port, word) => {
                let had = tables.ports.remove(port);
                assert_ne!(
                    had.unwrap_or_default(),
                    *word,
                    "a store that changes nothing"
                );
                if *word != PortWord::default() {
                    tables.ports.insert(*port, *word);
                }
            }
            Op::RemoveVip(at) => drop(tables.services.remove(&Frontend::Vip(*at)).unwrap()),
            Op::RemoveAddressed(at) => drop(tables.addressed.remove(at).unwrap()),
            Op::RemoveEndpoint(at) => drop(tables.endpoints.remove(at).unwrap()),
            Op::RemoveVeth(ifindex) => drop(tables.veths.remove(ifindex).unwrap()),
            Op::RemoveLocal(endpoint) => drop(tables.locals.remove(endpoint).unwrap()),
            Op::RemoveNetns(cookie) => drop(tables.netns.remove(cookie).unwrap()),
            Op::RemoveTarget(at) => drop(tables.targets.remove(at).unwrap()),
            Op::RemovePeer(addr) => drop(tables.peers.remove(addr).unwrap()),
            Op::RemoveNodeAddr(addr) => assert!(tables.node_addrs.remove(addr)),
            Op::PutConfig(value) => tables.config = *value,
        }
    }

    /// What a program resolves: the owners of some hashes, through the frontend's entry.
    fn resolve(&self, frontend: Frontend) -> Option<Vec<(BackendValue, BackendValue)>> {
        let tables = self.observe();
        let service = tables.services.get(&frontend)?;
        let slots = tables.slots(service).expect("slots exist");
        let backend = |index: u16| {
            assert!(u32::from(index) < service.backend_count, "dangling slot");
            let at = service.backend_base + u32::from(index);
            *self.backends.get(&at).expect("backend was written")
        };
        let step = (slots.len() / 64).max(1);
        let slots = slots
            .iter()
            .step_by(step)
            .map(|raw| RingSlot::from_raw(*raw));
        Some(
            slots
                .map(|slot| (backend(slot.now), backend(slot.before)))
                .collect(),
        )
    }

    fn resolve_all(&self) -> BTreeMap<Frontend, Vec<(BackendValue, BackendValue)>> {
        let tables = self.observe();
        let frontends = tables.services.keys();
        frontends
            .map(|frontend| (*frontend, self.resolve(*frontend).expect("it is there")))
            .collect()
    }
}

fn new_planner() -> Planner {
    Planner::new(Capacities {
        ring_chunks: 4096,
        backends: 4096,
        frontends: 4096,
        stats: 4096,
    })
}

fn moment(sync: u64) -> Moment {
    Moment {
        sync,
        at: Duration::from_millis(sync * 400),
    }
}

fn vtep(node: u128) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 0, node as u8)
}

const SELF: u128 = 1;

/// A drawn endpoint.
#[derive(Debug, Clone, Copy)]
struct Draw {
    id: u32,
    service: u128,
    node: u128,
    state: BackendState,
    wired: bool,
}

fn view(draws: &[Draw], ports: &BTreeMap<u16, u128>, down: bool) -> NodeView {
    let mut view = NodeView::default();
    view.put(ViewObject::Cluster(ClusterView {
        id: ClusterId::from_raw(1),
        data_path: DataPathConfig::default(),
        managers: Vec::new(),
        role: None,
        probe_keys: Default::default(),
    }));
    for node in 1..=3 {
        view.put(ViewObject::Peer(PeerView {
            node: NodeId::from_raw(node),
            hostname: format!("n{node}"),
            vtep: vtep(node),
            up: node != 3 || !down,
        }));
    }
    for network in 1..=2u8 {
        view.put(ViewObject::Network(NetworkView {
            id: NetworkId::from_raw(network.into()),
            name: format!("net{network}"),
            vni: Vni::new(5000 + u32::from(network)).unwrap(),
            subnet: format!("10.0.{network}.0/24").parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, network, 1),
            internal: false,
        }));
    }
    for service in 1..=3u8 {
        let of_it = ports.iter().filter(|(_, owner)| **owner == service.into());
        view.put(ViewObject::Service(ServiceView {
            id: ServiceId::from_raw(service.into()),
            name: format!("s{service}"),
            mode: EndpointMode::Vip,
            networks: (1..=2u8)
                .map(|network| ServiceNetwork {
                    network: NetworkId::from_raw(network.into()),
                    vip: Some(Ipv4Addr::new(10, 0, network, 100 + service)),
                    aliases: Vec::new(),
                })
                .collect(),
            ports: of_it
                .map(|(port, _)| PublishedPort {
                    protocol: Protocol::Tcp,
                    published: *port,
                    target: 80,
                    addresses: Vec::new(),
                })
                .collect(),
            policy: Default::default(),
        }));
    }
    for draw in draws {
        view.put(ViewObject::Endpoint(EndpointView {
            id: EndpointId(draw.id),
            task: TaskId::from_raw(draw.id.into()),
            task_name: format!("t{}", draw.id),
            service: ServiceId::from_raw(draw.service),
            slot: None,
            node: NodeId::from_raw(draw.node),
            addresses: (1..=2u8)
                .map(|network| Attachment {
                    network: NetworkId::from_raw(network.into()),
                    addr: overlay_addr(network, draw.id),
                    prefix_len: 24,
                })
                .collect(),
            state: draw.state,
            weight: 1,
        }));
    }
    view
}

fn overlay_addr(network: u8, id: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, network, id as u8 + 2)
}

fn local(draws: &[Draw]) -> LocalState {
    let here = draws.iter().filter(|draw| draw.node == SELF && draw.wired);
    let task = |draw: &Draw| {
        let veth = |part: u8, addr| LocalVeth {
            ifindex: 100 + draw.id * 4 + u32::from(part),
            addr,
            mac: [2, 0x42, 0, 0, part, draw.id as u8],
        };
        LocalTask {
            endpoint: EndpointId(draw.id),
            netns_cookie: 1000 + u64::from(draw.id),
            netns_id: draw.id,
            gateway: veth(0, Ipv4Addr::new(172, 18, 0, draw.id as u8 + 2)),
            overlays: (1..=2u8)
                .map(|network| {
                    let id = NetworkId::from_raw(network.into());
                    (id, veth(network, overlay_addr(network, draw.id)))
                })
                .collect(),
            host_ports: host_ports(draw),
        }
    };
    LocalState {
        node: NodeId::from_raw(SELF),
        vxlan_ifindex: 2,
        uplink_ifindex: 3,
        underlay_mtu: 1500,
        reassembly_ifindex: 0,
        gateway_ifindex: 4,
        gateway_addr: Ipv4Addr::new(172, 18, 0, 1),
        node_addrs: vec![vtep(SELF)],
        netns_cookie: 999,
        doubts: BTreeMap::new(),
        tasks: here
            .map(|draw| (TaskId::from_raw(draw.id.into()), task(draw)))
            .collect(),
    }
}

/// Of some tasks, which are none of those that tests draw by hand.
fn host_ports(draw: &Draw) -> Vec<HostPort> {
    let port = HostPort {
        proto: 17,
        published: 9_000 + draw.id as u16,
        target: 53,
    };
    (draw.id >= 20).then_some(port).into_iter().collect()
}

fn desired(view: &NodeView, local: &LocalState) -> Desired {
    let mut desired = Desired::default();
    desired.update(view, local).unwrap();
    desired
}

/// After a look at everything.
fn plan(planner: &mut Planner, desired: &Desired, kernel: &Kernel, now: Moment) -> Vec<Op> {
    let present = kernel.observe();
    planner.settle(&present, now);
    planner
        .plan(&desired.whole(&present), &present, now)
        .unwrap()
}

fn some_draws() -> impl Strategy<Value = Vec<Draw>> {
    let state = prop_oneof![
        Just(BackendState::Starting),
        Just(BackendState::Active),
        Just(BackendState::Active),
        Just(BackendState::Draining)
    ];
    let rest = (1u128..=3, 1u128..=3, state, prop::bool::weighted(0.9));
    prop::collection::btree_map(1u32..40, rest, 0..16).prop_map(|draws| {
        let draws = draws.into_iter();
        draws
            .map(|(id, (service, node, state, wired))| Draw {
                id,
                service,
                node,
                state,
                wired,
            })
            .collect()
    })
}

fn some_ports() -> impl Strategy<Value = BTreeMap<u16, u128>> {
    prop::collection::btree_map(8000u16..8006, 1u128..=3, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Over any course of views: each plan, applied, leaves an empty plan; after each single
    /// operation each frontend resolves fully, as it did before the plan or as after it; and a
    /// planner that knows nothing (a restarted agent) plans nothing.
    #[test]
    fn applied_plan_leaves_an_empty_plan(
        course in prop::collection::vec((some_draws(), some_ports(), any::<bool>()), 1..8),
    ) {
        let mut kernel = Kernel::default();
        let mut planner = new_planner();
        for ((draws, ports, down), sync) in course.iter().zip(1..) {
            let desired = desired(&view(draws, ports, *down), &local(draws));
            prop_assert_eq!(&desired.skipped(), &[]);
            let ops = plan(&mut planner, &desired, &kernel, moment(sync));
            let old = kernel.resolve_all();
            let mut after = kernel.clone();
            ops.iter().for_each(|op| after.apply(op));
            let new = after.resolve_all();
            for op in &ops {
                kernel.apply(op);
                for (frontend, resolved) in kernel.resolve_all() {
                    let known = [old.get(&frontend), new.get(&frontend)];
                    prop_assert!(known.contains(&Some(&resolved)), "{} after {:?}", frontend, op);
                }
            }
            let wanted = desired.whole(&Tables::default());
            let frontends: Vec<_> = wanted.frontends.keys().collect();
            prop_assert_eq!(new.keys().collect::<Vec<_>>(), frontends);
            let again = plan(&mut planner, &desired, &kernel, moment(sync));
            prop_assert_eq!(again, vec![]);
            let restarted = plan(&mut new_planner(), &desired, &kernel, moment(1));
            prop_assert_eq!(restarted, vec![]);
        }
    }

    /// Whatever is deleted or altered by hand, one plan repairs it.
    #[test]
    fn damage_is_repaired(
        draws in some_draws(),
        ports in some_ports(),
        damage in prop::collection::vec((0u8..9, any::<prop::sample::Index>(), any::<u32>()), 1..6),
    ) {
        let mut kernel = Kernel::default();
        let mut planner = new_planner();
        let desired = desired(&view(&draws, &ports, false), &local(&draws));
        let ops = plan(&mut planner, &desired, &kernel, moment(1));
        ops.iter().for_each(|op| kernel.apply(op));
        let sound = kernel.clone();
        for (kind, index, value) in damage {
            harm(&mut kernel, kind, index, value);
        }
        let ops = plan(&mut planner, &desired, &kernel, moment(2));
        ops.iter().for_each(|op| kernel.apply(op));
        prop_assert_eq!(plan(&mut planner, &desired, &kernel, moment(3)), vec![]);
        let owners = |kernel: &Kernel| -> BTreeMap<Frontend, Vec<BackendValue>> {
            let all = kernel.resolve_all().into_iter();
            all.map(|(f, slots)| (f, slots.into_iter().map(|(now, _)| now).collect())).collect()
        };
        let uniform = |owners: &BTreeMap<Frontend, Vec<BackendValue>>| {
            let mut owners = owners.clone();
            // A ring kept for a made-up former owner has more slots, all alike.
            owners.values_mut().for_each(|slots| {
                if slots.iter().all(|slot| *slot == slots[0]) { slots.truncate(1) }
            });
            owners
        };
        prop_assert_eq!(uniform(&owners(&kernel)), uniform(&owners(&sound)));
        prop_assert_eq!(kernel.tables.locals.len(), sound.tables.locals.len());
    }
}

/// A node that plans from its record, as the data plane does.
struct Node {
    desired: Desired,
    recorded: Recorded,
    planner: Planner,
    kernel: Kernel,
    syncs: u64,
}

impl Node {
    fn new() -> Self {
        Self {
            desired: Desired::default(),
            recorded: Recorded::default(),
            planner: new_planner(),
            kernel: Kernel::default(),
            syncs: 0,
        }
    }

    /// Plans where the step touches anything. Each operation leaves every frontend as it was, or as
    /// it will be.
    fn sync(&mut self, step: &Step) {
        self.syncs += 1;
        let touched = self.desired.update(&step.view(), &step.local()).unwrap();
        let wanted = self.desired.part(&touched);
        let (present, now) = (self.recorded.tables(), moment(self.syncs));
        let ops = self.planner.plan(&wanted, present, now).unwrap();
        let old = self.kernel.resolve_all();
        let mut after = self.kernel.clone();
        ops.iter().for_each(|op| after.apply(op));
        let new = after.resolve_all();
        for op in &ops {
            self.kernel.apply(op);
            self.recorded.note(op);
            for (frontend, resolved) in self.kernel.resolve_all() {
                let known = [old.get(&frontend), new.get(&frontend)];
                assert!(known.contains(&Some(&resolved)), "{frontend} after {op:?}");
            }
        }
        let released = self.recorded.release();
        self.planner.release(released, now);
    }

    /// Looks at the maps, and plans where they differ from the record.
    fn repair(&mut self) {
        self.syncs += 1;
        let observed = self.kernel.observe();
        let recorded = self.recorded.tables();
        let is_altered = Sight::of(recorded, &observed).is_alteration(recorded);
        let mut touched = self.recorded.differences(&observed);
        self.desired.close(&mut touched);
        self.recorded = Recorded::new(observed);
        let (present, now) = (self.recorded.tables(), moment(self.syncs));
        self.planner.settle(present, now);
        let wanted = self.desired.part(&touched);
        let ops = self.planner.plan(&wanted, present, now).unwrap();
        assert!(is_altered || ops.is_empty(), "a look would not see {ops:?}");
        for op in ops {
            self.kernel.apply(&op);
            self.recorded.note(&op);
        }
        self.recorded.release();
        self.planner.settle(self.recorded.tables(), now);
    }

    /// The record is what the maps hold, and one that looks at all of it has nothing to do.
    fn check(&self, step: &Step) {
        let observed = self.kernel.observe();
        let recorded = self.recorded.tables();
        // Too long to print.
        assert!(recorded.rings == observed.rings, "rings");
        assert_eq!(recorded.backends, observed.backends);
        assert_eq!(recorded.services, observed.services);
        assert_eq!(recorded.endpoints, observed.endpoints);
        let fresh = desired(&step.view(), &step.local());
        assert_eq!(self.desired.whole(&observed), fresh.whole(&observed));
        assert_eq!(self.desired.skipped(), fresh.skipped());
        let rest = plan(&mut new_planner(), &fresh, &self.kernel, moment(1));
        assert_eq!(rest, []);
    }
}

/// What the managers and the node say at some moment, with services that want the same ports.
#[derive(Debug, Clone)]
struct Step {
    draws: Vec<Draw>,
    /// Port, service, and which of the node's addresses when not all.
    claims: Vec<(u16, u128, Option<u8>)>,
    has_second_network: bool,
    down: bool,
    doubt: Option<Doubt>,
}

impl Step {
    fn view(&self) -> NodeView {
        let mut view = view(&self.draws, &BTreeMap::new(), self.down);
        if !self.has_second_network {
            view.networks.remove(&NetworkId::from_raw(2));
        }
        for (published, owner, at) in &self.claims {
            let owner = ServiceId::from_raw(*owner);
            let service = view.services.get_mut(&owner).unwrap();
            service.ports.push(PublishedPort {
                protocol: Protocol::Tcp,
                published: *published,
                target: *published,
                addresses: at.iter().map(|node| vtep((*node).into())).collect(),
            });
        }
        view
    }

    fn local(&self) -> LocalState {
        // The latter may be down.
        let doubted = [2, 3].map(NodeId::from_raw);
        let doubts = doubted.map(|node| Some((node, self.doubt?)));
        LocalState {
            doubts: doubts.into_iter().flatten().collect(),
            ..local(&self.draws)
        }
    }
}

fn some_steps() -> impl Strategy<Value = Vec<Step>> {
    let claim = (8000u16..8004, 1u128..=3, prop::option::of(1u8..=2));
    let step = (
        some_draws(),
        prop::collection::vec(claim, 0..6),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.2),
        prop::option::of(prop_oneof![Just(Doubt::Suspected), Just(Doubt::Returning)]),
    );
    let step = step.prop_map(|(draws, claims, has_second_network, down, doubt)| Step {
        draws,
        claims,
        has_second_network,
        down,
        doubt,
    });
    // Each again with one endpoint less, and when the others answer, so that much stays as it is.
    prop::collection::vec(step, 1..5).prop_map(|steps| {
        let with_less = |step: Step| {
            let mut less = step.clone();
            less.draws.pop();
            let mut trusting = less.clone();
            trusting.doubt = None;
            [step, less, trusting]
        };
        steps.into_iter().flat_map(with_less).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Over any course of changes, to plan from the record where a change touches anything leads to
    /// the maps that a look at all of it asks for.
    #[test]
    fn changes_by_parts_lead_where_all_at_once_does(steps in some_steps()) {
        let mut node = Node::new();
        for step in &steps {
            node.sync(step);
            node.check(step);
        }
    }

    /// Likewise when others alter the maps in between and a repair finds it.
    #[test]
    fn repair_by_parts_leaves_nothing_to_do(
        steps in some_steps(),
        damage in prop::collection::vec((0u8..9, any::<prop::sample::Index>(), any::<u32>()), 1..6),
    ) {
        let mut node = Node::new();
        for step in &steps {
            node.sync(step);
            for (kind, index, value) in &damage {
                harm(&mut node.kernel, *kind, *index, *value);
            }
            node.repair();
            node.check(step);
        }
    }
}

/// The other port is in order by itself, and yet has to be looked at with the one that is not.
#[test]
fn port_that_is_turned_to_anothers_element_takes_no_counters_with_it() {
    let step = Step {
        draws: vec![draw(20, 1, 1, BackendState::Active)],
        claims: vec![(8002, 1, None)],
        has_second_network: false,
        down: false,
        doubt: None,
    };
    let mut node = Node::new();
    node.sync(&step);
    let ports = node.kernel.tables.ports.clone();
    let (port, other) = (ports.get_min(), ports.get_max());
    let (port, other) = (*port.unwrap(), *other.unwrap());
    assert_ne!(port, other, "the mesh's, and the task's of host mode");
    node.kernel.tables.ports.insert(port.0, other.1);
    node.repair();
    node.check(&step);
}

fn harm(kernel: &mut Kernel, kind: u8, index: prop::sample::Index, value: u32) {
    fn pick<'a, K: Copy + 'a>(
        keys: impl Iterator<Item = &'a K>,
        index: prop::sample::Index,
    ) -> Option<K> {
        let keys: Vec<K> = keys.copied().collect();
        (!keys.is_empty()).then(|| *index.get(&keys))
    }
    let tables = &mut kernel.tables;
    let vip = pick(tables.services.keys(), index);
    let element = pick(kernel.frontends.keys(), index);
    match kind {
        0 => tables.config = NodeConfig::default(),
        1 => drop(pick(tables.endpoints.keys(), index).and_then(|at| tables.endpoints.remove(&at))),
        2 => drop(pick(tables.locals.keys(), index).and_then(|at| tables.locals.remove(&at))),
        3 => drop(pick(tables.veths.keys(), index).and_then(|at| tables.veths.remove(&at))),
        4 => drop(vip.and_then(|at| tables.services.remove(&at))),
        5 => {
            let element = element.and_then(|at| kernel.frontends.get_mut(&at));
            let vip = vip.and_then(|at| tables.services.get_mut(&at));
            let both = [element, vip];
            if let Some(service) = both.into_iter().flatten().nth(value as usize % 2) {
                match value % 7 {
                    0 => service.ring = RingPlace::from_raw(value),
                    1 => service.ring_len = value % 70_000,
                    2 => service.backend_base = value,
                    3 => service.backend_count = value % 100,
                    4 => service.stats = value % 8,
                    5 => service.single = value,
                    _ => service.port_shift = value as u16,
                }
            }
        }
        6 => {
            if let Some(chunk) = pick(kernel.chunks.keys(), index) {
                let words = [value; RING_CHUNK_WORDS as usize];
                kernel.chunks.insert(chunk, RingChunk { words });
            }
        }
        7 => {
            if let Some(at) = pick(kernel.backends.keys(), index) {
                kernel.backends.insert(at, BackendValue::default());
            }
        }
        _ => {
            let port = Port {
                proto: 6,
                number: 8000 + value as u16 % 8,
            };
            let word = PortWord::new(value % 9, value.is_multiple_of(7));
            if word != PortWord::default() {
                tables.ports.insert(port, word);
            }
            let at = Published {
                addr: Ipv4Addr::from_bits(value),
                own: value.is_multiple_of(2),
                port,
            };
            tables.addressed.insert(at, value % 5);
        }
    }
}

fn draw(id: u32, service: u128, node: u128, state: BackendState) -> Draw {
    Draw {
        id,
        service,
        node,
        state,
        wired: true,
    }
}

/// Plans for the draws and applies.
fn settle(
    planner: &mut Planner,
    kernel: &mut Kernel,
    draws: &[Draw],
    ports: &[u16],
    sync: u64,
) -> Vec<Op> {
    let ports = ports.iter().map(|port| (*port, 1)).collect();
    let desired = desired(&view(draws, &ports, false), &local(draws));
    let ops = plan(planner, &desired, kernel, moment(sync));
    ops.iter().for_each(|op| kernel.apply(op));
    ops
}

fn published(port: u16) -> Frontend {
    Frontend::Published(Published::everywhere(Port {
        proto: 6,
        number: port,
    }))
}

#[test]
fn ports_of_a_service_share_ring_and_backends() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    let draws = [1, 2, 3].map(|id| draw(id, 1, id.into(), BackendState::Active));
    let ports: Vec<u16> = (8000..8400).collect();
    let ops = settle(&mut planner, &mut kernel, &draws, &ports, 1);
    let rings = ops.iter().filter(|op| matches!(op, Op::WriteRing(..)));
    assert_eq!(rings.count(), 1, "the VIPs' ring is the ports' ring");
    let backends = ops.iter().filter(|op| matches!(op, Op::WriteBackends(..)));
    assert_eq!(backends.count(), 3, "two networks and the ports");
    let frontends = |ops: &[Op]| {
        let written = ops.iter().filter(|op| matches!(op, Op::WriteFrontend(..)));
        written.count()
    };
    // All lead to the task's port 80, so no two are at the same distance.
    assert_eq!(frontends(&ops), 400);
}

/// Ranges of one size, so that only their rest keeps the first from being the third.
#[test]
fn old_ranges_are_not_written_while_readers_may_be_there() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    let mut bases = BTreeSet::new();
    for sync in 1..=3 {
        let draws = [sync as u32, sync as u32 + 1].map(|id| draw(id, 1, 2, BackendState::Active));
        settle(&mut planner, &mut kernel, &draws, &[8080], sync);
        let service = kernel.observe().services[&published(8080)];
        bases.insert((service.ring, service.backend_base));
    }
    assert_eq!(
        bases.len(),
        3,
        "three places in less than a second: {bases:?}"
    );
}

#[test]
fn draining_everywhere_keeps_the_flows() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    settle(
        &mut planner,
        &mut kernel,
        &[draw(1, 1, 2, BackendState::Active)],
        &[8080],
        1,
    );
    settle(
        &mut planner,
        &mut kernel,
        &[draw(1, 1, 2, BackendState::Draining)],
        &[8080],
        2,
    );
    let resolved = kernel.resolve(published(8080)).unwrap();
    assert_eq!(resolved[0].0.endpoint, 1);
    assert_eq!(resolved[0].0.state, dataplane_abi::BACKEND_DRAINING);
    settle(&mut planner, &mut kernel, &[], &[8080], 3);
    assert_eq!(kernel.resolve(published(8080)), Some(vec![]));
}

/// A node that is down for the managers alone keeps what it has, and nothing new goes there.
#[test]
fn endpoints_of_a_node_that_is_down_stay_until_it_does_not_answer() {
    let mut step = Step {
        draws: vec![
            draw(1, 1, 2, BackendState::Active),
            draw(2, 1, 3, BackendState::Draining),
        ],
        claims: vec![(8080, 1, None)],
        has_second_network: true,
        down: false,
        doubt: Some(Doubt::Suspected),
    };
    let seen = |step: &Step| {
        let desired = desired(&step.view(), &step.local());
        let wanted = desired.whole(&Tables::default());
        let spec = wanted.frontends[&published(8080)].clone().unwrap();
        let pool = spec.pool;
        let backends = pool.backends.iter().zip(pool.members.iter());
        let backends: Vec<_> = backends
            .map(|(backend, member)| (backend.state, member.weight, member.is_cut_off))
            .collect();
        let there = wanted.endpoints.values().flatten();
        let addresses = there.filter(|value| value.vtep == vtep(3).into()).count();
        (
            backends,
            addresses,
            wanted.node.peers.contains_key(&vtep(3)),
        )
    };
    let other = (BACKEND_ACTIVE, 1, false);
    let drains = |is_cut_off| (BACKEND_DRAINING, 0, is_cut_off);
    let up = (vec![other, drains(false)], 2, true);
    assert_eq!(seen(&step), up, "a doubt alone takes nothing away");
    step.down = true;
    assert_eq!(seen(&step), (vec![other], 0, true), "it may still send");
    step.doubt = Some(Doubt::Returning);
    assert_eq!(seen(&step), (vec![other, drains(true)], 2, true));
    step.doubt = None;
    assert_eq!(seen(&step), (vec![other, drains(true)], 2, true));
}

#[test]
fn targets_are_the_published_ports_of_tasks_here_until_they_are_gone() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    let draws = |state| [draw(1, 1, SELF, state), draw(2, 1, 2, BackendState::Active)];
    settle(
        &mut planner,
        &mut kernel,
        &draws(BackendState::Active),
        &[8080],
        1,
    );
    let targets = kernel.tables.targets.clone();
    let at: Vec<_> = targets.keys().map(|at| (at.addr, at.proto)).collect();
    assert_eq!(at, [(Ipv4Addr::new(172, 18, 0, 3), 6)]);
    assert_eq!(
        kernel.observe().services[&published(8080)]
            .target(Be16::from_host(8080))
            .to_host(),
        targets.keys().next().unwrap().port
    );
    settle(
        &mut planner,
        &mut kernel,
        &draws(BackendState::Draining),
        &[8080],
        2,
    );
    assert_eq!(
        kernel.tables.targets, targets,
        "draining conversations go on"
    );
    settle(
        &mut planner,
        &mut kernel,
        &draws(BackendState::Draining),
        &[],
        3,
    );
    assert!(kernel.tables.targets.is_empty());
}

#[test]
fn gone_endpoint_takes_its_flows_along() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    settle(
        &mut planner,
        &mut kernel,
        &[draw(7, 1, SELF, BackendState::Active)],
        &[8080],
        1,
    );
    let ops = settle(&mut planner, &mut kernel, &[], &[8080], 2);
    assert!(ops.contains(&Op::DropFlows([7].into())), "{ops:?}");
    let place = |wanted: &Op| ops.iter().position(|op| op == wanted).unwrap();
    assert!(place(&Op::RemoveLocal(7)) < place(&Op::DropFlows([7].into())));
}

#[test]
fn flag_of_the_programs_is_no_difference_and_outlives_a_replacement() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    let mut draws = [draw(7, 1, SELF, BackendState::Active)];
    settle(&mut planner, &mut kernel, &draws, &[], 1);
    let flags = |kernel: &Kernel| kernel.tables.endpoints.values().next().unwrap().flags;
    assert_eq!(flags(&kernel), 0);
    let endpoints = &mut kernel.tables.endpoints;
    for at in endpoints.keys().copied().collect::<Vec<_>>() {
        endpoints[&at].flags = ENDPOINT_HAS_VIP_FLOWS;
    }
    assert_eq!(settle(&mut planner, &mut kernel, &draws, &[], 2), []);
    draws[0].node = 2;
    settle(&mut planner, &mut kernel, &draws, &[], 3);
    assert_eq!(flags(&kernel), ENDPOINT_HAS_VIP_FLOWS);
}

#[test]
fn configuration_is_written_last_and_counts() {
    let (mut planner, mut kernel) = (new_planner(), Kernel::default());
    let ops = settle(
        &mut planner,
        &mut kernel,
        &[draw(7, 1, SELF, BackendState::Active)],
        &[1],
        1,
    );
    assert!(matches!(ops.last(), Some(Op::PutConfig(config)) if config.generation == 1));
    kernel.tables.config.vtep = dataplane_abi::Be32::ZERO;
    let ops = settle(
        &mut planner,
        &mut kernel,
        &[draw(7, 1, SELF, BackendState::Active)],
        &[1],
        2,
    );
    assert!(matches!(&ops[..], [Op::PutConfig(config)] if config.generation == 2));
}

#[test]
fn full_map_is_named() {
    let (mut planner, kernel) = (new_planner(), Kernel::default());
    planner.rings = Extents::new(0..1);
    let draws = [1, 2, 3].map(|id| draw(id, 1, 2, BackendState::Active));
    let desired = desired(&view(&draws, &BTreeMap::new(), false), &local(&draws));
    let present = kernel.observe();
    let wanted = desired.whole(&present);
    let error = planner.plan(&wanted, &present, moment(1)).unwrap_err();
    assert_eq!(error.map, "RINGS");
    assert!(
        error.to_string().contains("2 more of its 1 entries"),
        "{error}"
    );
}
