//! From wanted and present contents of the maps to the operations that lead from one to the other: of
//! all that the maps hold, or of the part that a change touches.
//!
//! The order makes every moment in between consistent for the programs, which run all the while:
//! first what the new frontends lead to (endpoints, interfaces, fresh ranges of rings and
//! backends), then each frontend's one entry, then the removals, at last the configuration.

mod frontends;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    net::Ipv4Addr,
    ops::Range,
    sync::Arc,
};

use dataplane_abi::{
    BackendValue, ENDPOINT_HAS_VIP_FLOWS, EndpointValue, LocalEndpoint, NetnsValue, NodeConfig,
    PeerValue, PortWord, RingPlace, ServiceValue, TargetValue, VethValue,
};

use crate::{
    desired::Wanted,
    extent::{Exhausted, Extents, Moment},
    plan::frontends::Entry,
    recorded::Released,
    ring::RingBuilder,
    tables::{Frontend, OverlayAddr, Port, Published, Tables, Target, backend_range, ring_chunks},
};

/// One change of the kernel's tables.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Zeroes counters that get a new owner.
    ResetStats(u32),
    PutEndpoint(OverlayAddr, EndpointValue),
    PutVeth(u32, VethValue),
    PutLocal(u32, LocalEndpoint),
    PutNetns(u64, NetnsValue),
    PutTarget(Target, TargetValue),
    PutPeer(Ipv4Addr, PeerValue),
    PutNodeAddr(Ipv4Addr),
    /// At an index of `BACKENDS`.
    WriteBackends(u32, Arc<[BackendValue]>),
    /// From a place in `RINGS` on, in its form.
    WriteRing(RingPlace, Arc<[u32]>),
    /// At an index of `FRONTENDS`.
    WriteFrontend(u32, ServiceValue),
    PutVip(OverlayAddr, ServiceValue),
    PutAddressed(Published, u32),
    SetPort(Port, PortWord),
    RemoveVip(OverlayAddr),
    RemoveAddressed(Published),
    RemoveEndpoint(OverlayAddr),
    RemoveVeth(u32),
    RemoveLocal(u32),
    RemoveNetns(u64),
    RemoveTarget(Target),
    RemovePeer(Ipv4Addr),
    RemoveNodeAddr(Ipv4Addr),
    /// Mesh flows of endpoints that are gone.
    DropFlows(BTreeSet<u32>),
    /// Per-packet VIP flows to backends that are gone.
    DropVipFlows(BTreeSet<OverlayAddr>),
    PutConfig(NodeConfig),
}

/// For logs: one line, however long the ring.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteBackends(base, values) => {
                write!(f, "WriteBackends at {base}, {} of them", values.len())
            }
            Self::WriteRing(place, slots) => {
                let (chunk, form) = (place.first_chunk(), place.form());
                let slots = slots.len();
                write!(f, "WriteRing at chunk {chunk}, {slots} slots, {form:?}")
            }
            Self::SetPort(port, word) => write!(f, "SetPort {port}, {word:?}"),
            short => write!(f, "{short:?}"),
        }
    }
}

/// A map is too small for what it shall hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "map {map}: no room for {} more of its {} entries ({} in use, {} resting); remove services, \
     or build with a larger map", .at.wanted, .at.capacity, .at.in_use, .at.resting
)]
pub struct Full {
    pub map: &'static str,
    pub at: Exhausted,
}

/// Chooses the places in the array maps and makes plans.
#[derive(Debug)]
pub struct Planner {
    rings: Extents,
    backends: Extents,
    frontends: Extents,
    stats: Extents,
    builder: RingBuilder,
}

/// Sizes of the array maps.
#[derive(Debug, Clone, Copy)]
pub struct Capacities {
    pub ring_chunks: u32,
    pub backends: u32,
    pub frontends: u32,
    pub stats: u32,
}

impl Planner {
    pub fn new(capacities: Capacities) -> Self {
        let Capacities {
            ring_chunks,
            backends,
            frontends,
            stats,
        } = capacities;
        Self {
            rings: Extents::new(0..ring_chunks),
            backends: Extents::new(0..backends),
            // Zero in a port's word is no frontend.
            frontends: Extents::new(1..frontends),
            // Counters at zero are nobody's: a value that names none counts there.
            stats: Extents::new(1..stats),
            builder: RingBuilder::default(),
        }
    }

    /// What leads from `present` to what is wanted, in order; nothing when they are alike. `present`
    /// is what this was settled to, and all plans since were carried out on, and released from.
    pub fn plan(
        &mut self,
        wanted: &Wanted,
        present: &Tables,
        now: Moment,
    ) -> Result<Vec<Op>, Full> {
        self.extents().for_each(|extents| extents.begin(now));
        let mut draft = Draft::default();
        let entries = self.entries(wanted, present, &mut draft)?;
        self.builder.forget();
        let stats = self.stats(wanted, present, &entries, &mut draft)?;
        endpoints(wanted, present, &mut draft);
        interfaces(wanted, present, &stats.by_endpoint, &mut draft);
        neighbours(wanted, present, &mut draft);
        self.frontends(wanted, &entries, present, &stats.by_frontend, &mut draft)?;
        config(wanted, present, &mut draft);
        Ok(draft.into_ops())
    }

    /// Makes ranges that rest available at once. The caller has waited, after the last plan, until
    /// every program ended that ran before it.
    pub fn readers_are_gone(&mut self) {
        self.extents().for_each(Extents::end_rest);
    }

    fn extents(&mut self) -> impl Iterator<Item = &mut Extents> {
        let (rings, backends) = (&mut self.rings, &mut self.backends);
        [rings, backends, &mut self.frontends, &mut self.stats].into_iter()
    }

    /// Takes note of what a plan that was carried out left without a name.
    pub fn release(&mut self, released: Released, now: Moment) {
        self.rings.release(released.rings, now);
        self.backends.release(released.backends, now);
        self.frontends.release(released.frontends, now);
        self.stats.release(released.stats, now);
    }

    /// Takes note of all that `present` names.
    pub fn settle(&mut self, present: &Tables, now: Moment) {
        let services = || present.services.values();
        self.rings.settle(services().map(ring_chunks), now);
        self.backends.settle(services().map(backend_range), now);
        let places = present.published().map(|(_, index)| index);
        self.frontends
            .settle(places.map(|index| index..index.saturating_add(1)), now);
        let frontends = services().map(|service| service.stats);
        let endpoints = present.locals.values().map(|local| local.stats);
        let veths = present.veths.values().map(|veth| veth.stats);
        let named = frontends.chain(endpoints).chain(veths);
        self.stats
            .settle(named.map(|index| index..index.saturating_add(1)), now);
    }

    /// Counters of every frontend and local endpoint: those it has, else new ones.
    fn stats(
        &mut self,
        wanted: &Wanted,
        present: &Tables,
        entries: &[Entry],
        draft: &mut Draft,
    ) -> Result<StatsIndexes, Full> {
        let mut claims = Claims {
            bounds: self.stats.bounds(),
            taken: HashSet::new(),
        };
        let mut indexes = StatsIndexes::default();
        for entry in entries {
            let had = present.services.get(&entry.frontend);
            let kept = claims.keep(had.map(|service| service.stats));
            indexes.by_frontend.insert(entry.frontend, kept);
        }
        let node = &wanted.node;
        let endpoints = node.veths.values().map(|veth| veth.endpoint);
        for endpoint in endpoints.chain(node.locals.keys().copied()) {
            indexes.by_endpoint.entry(endpoint).or_insert_with(|| {
                let local = present.locals.get(&endpoint).map(|local| local.stats);
                let mut veths = present.veths.values();
                let had = local.or_else(|| {
                    let veth = veths.find(|veth| veth.endpoint == endpoint);
                    veth.map(|veth| veth.stats)
                });
                claims.keep(had)
            });
        }
        let frontends = indexes.by_frontend.values_mut();
        for index in frontends.chain(indexes.by_endpoint.values_mut()) {
            if *index == 0 {
                *index = self.stats.allocate(1).map_err(full("STATS"))?;
                draft.resets.push(Op::ResetStats(*index));
            }
        }
        Ok(indexes)
    }
}

fn full(map: &'static str) -> impl Fn(Exhausted) -> Full {
    move |at| Full { map, at }
}

/// Zero stands for "none yet".
#[derive(Default)]
struct StatsIndexes {
    by_frontend: BTreeMap<Frontend, u32>,
    by_endpoint: BTreeMap<u32, u32>,
}

/// Counters that already have an owner. An altered table may name one twice, or one that does not
/// exist.
struct Claims {
    bounds: Range<u32>,
    taken: HashSet<u32>,
}

impl Claims {
    fn keep(&mut self, had: Option<u32>) -> u32 {
        had.filter(|index| self.bounds.contains(index) && self.taken.insert(*index))
            .unwrap_or(0)
    }
}

/// A plan in the making, by phases.
#[derive(Default)]
struct Draft {
    resets: Vec<Op>,
    puts: Vec<Op>,
    ranges: Vec<Op>,
    /// Single addresses before the words that send readers to them, and the other way round.
    frontends: Vec<Op>,
    ports: Vec<Op>,
    frontend_removals: Vec<Op>,
    removals: Vec<Op>,
    /// After the removals, so that no program makes a new one.
    flow_removals: Vec<Op>,
    config: Vec<Op>,
}

impl Draft {
    fn into_ops(self) -> Vec<Op> {
        [
            self.resets,
            self.puts,
            self.ranges,
            self.frontends,
            self.ports,
            self.frontend_removals,
            self.removals,
            self.flow_removals,
            self.config,
        ]
        .concat()
    }

    fn compare<K: Ord + Copy, V: Copy + PartialEq>(
        &mut self,
        desired: &BTreeMap<K, V>,
        present: &BTreeMap<K, V>,
        put: impl Fn(K, V) -> Op,
        remove: impl Fn(K) -> Op,
    ) {
        let puts = desired
            .iter()
            .filter(|(key, value)| present.get(key) != Some(value));
        self.puts.extend(puts.map(|(key, value)| put(*key, *value)));
        let gone = present.keys().filter(|key| !desired.contains_key(key));
        self.removals.extend(gone.map(|key| remove(*key)));
    }

    fn endpoint(
        &mut self,
        at: OverlayAddr,
        value: Option<EndpointValue>,
        had: Option<&EndpointValue>,
    ) {
        let Some(value) = value else {
            self.removals.extend(had.map(|_| Op::RemoveEndpoint(at)));
            return;
        };
        // A program may raise the flag between our look and our write. So whatever replaces an
        // entry has it: a needless lookup a packet, instead of flows that lose their translation.
        let flags = match had {
            Some(had)
                if *had
                    == (EndpointValue {
                        flags: had.flags & ENDPOINT_HAS_VIP_FLOWS,
                        ..value
                    }) =>
            {
                return;
            }
            Some(_) => ENDPOINT_HAS_VIP_FLOWS,
            None => 0,
        };
        self.puts
            .push(Op::PutEndpoint(at, EndpointValue { flags, ..value }));
    }
}

fn endpoints(wanted: &Wanted, present: &Tables, draft: &mut Draft) {
    let mut gone = BTreeSet::new();
    for (at, value) in &wanted.endpoints {
        let had = present.endpoints.get(at);
        draft.endpoint(*at, *value, had);
        let serves =
            |had: &EndpointValue| value.is_some_and(|value| value.endpoint == had.endpoint);
        if had.is_some_and(|had| !serves(had)) {
            gone.insert(*at);
        }
    }
    if !gone.is_empty() {
        draft.flow_removals.push(Op::DropVipFlows(gone));
    }
}

fn interfaces(wanted: &Wanted, present: &Tables, stats: &BTreeMap<u32, u32>, draft: &mut Draft) {
    let desired = &wanted.node;
    let veths = desired.veths.iter().map(|(ifindex, veth)| {
        let stats = stats[&veth.endpoint];
        (*ifindex, VethValue { stats, ..*veth })
    });
    draft.compare(
        &veths.collect(),
        &present.veths,
        Op::PutVeth,
        Op::RemoveVeth,
    );
    let locals = desired.locals.iter().map(|(endpoint, local)| {
        let had = present.locals.get(endpoint).map_or(0, |had| had.generation);
        let value = LocalEndpoint {
            stats: stats[endpoint],
            generation: had.max(1),
            ..*local
        };
        (*endpoint, value)
    });
    draft.compare(
        &locals.collect(),
        &present.locals,
        Op::PutLocal,
        Op::RemoveLocal,
    );
    draft.compare(
        &desired.netns,
        &present.netns,
        Op::PutNetns,
        Op::RemoveNetns,
    );
    draft.compare(
        &desired.targets,
        &present.targets,
        Op::PutTarget,
        Op::RemoveTarget,
    );
    let gone = present.locals.keys();
    let gone: BTreeSet<u32> = gone
        .filter(|endpoint| !desired.locals.contains_key(*endpoint))
        .copied()
        .collect();
    if !gone.is_empty() {
        draft.flow_removals.push(Op::DropFlows(gone));
    }
}

fn neighbours(wanted: &Wanted, present: &Tables, draft: &mut Draft) {
    let desired = &wanted.node;
    draft.compare(&desired.peers, &present.peers, Op::PutPeer, Op::RemovePeer);
    let new = desired.node_addrs.difference(&present.node_addrs);
    draft.puts.extend(new.map(|addr| Op::PutNodeAddr(*addr)));
    let gone = present.node_addrs.difference(&desired.node_addrs);
    draft
        .removals
        .extend(gone.map(|addr| Op::RemoveNodeAddr(*addr)));
}

fn config(wanted: &Wanted, present: &Tables, draft: &mut Draft) {
    let written = present.config.generation;
    let same = NodeConfig {
        generation: written,
        // Set for a while by whoever changes something, and no business of the view.
        unsettled_until: present.config.unsettled_until,
        ..wanted.node.config
    };
    if written == 0 || present.config != same {
        // Zero means "never written", so the count steps over it.
        let generation = written.checked_add(1).unwrap_or(1);
        draft
            .config
            .push(Op::PutConfig(NodeConfig { generation, ..same }));
    }
}

#[cfg(test)]
mod tests;
