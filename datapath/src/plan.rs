//! From desired and present contents of the maps to the operations that lead from one to the other.
//!
//! The order makes every moment in between consistent for the programs, which run all the while:
//! first what the new frontends lead to (endpoints, interfaces, fresh ranges of rings and
//! backends), then each frontend's one entry, then the removals, at last the configuration.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    hash::Hash,
    net::Ipv4Addr,
    ops::Range,
    sync::Arc,
};

use dataplane_abi::{
    BackendValue, ENDPOINT_HAS_VIP_FLOWS, EndpointValue, LocalEndpoint, NetnsValue, NodeConfig,
    PeerValue, RING_CHUNK_SLOTS, ServiceValue, TargetValue, VethValue,
};

use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::{
    desired::{Desired, FrontendSpec, Pool},
    extent::{Exhausted, Extents, Moment},
    ring::{Ring, RingBuilder},
    tables::{Frontend, OverlayAddr, Tables, Target, backend_range, endpoints_of, ring_chunks},
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
    /// From a chunk of `RINGS` on.
    WriteRing(u32, Arc<[u32]>),
    PutService(Frontend, ServiceValue),
    RemoveService(Frontend),
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
            Self::WriteRing(base, slots) => {
                write!(f, "WriteRing at chunk {base}, {} slots", slots.len())
            }
            Self::PutService(frontend, value) => write!(
                f,
                "PutService {frontend}, ring {}+{}, backends {}+{}",
                value.ring_base, value.ring_len, value.backend_base, value.backend_count
            ),
            Self::RemoveService(frontend) => write!(f, "RemoveService {frontend}"),
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
    stats: Extents,
    builder: RingBuilder,
}

impl Planner {
    /// For maps `RINGS` (in chunks), `BACKENDS` and `STATS` of these sizes.
    pub fn new([rings, backends, stats]: [u32; 3]) -> Self {
        Self {
            rings: Extents::new(0..rings),
            backends: Extents::new(0..backends),
            // Counters at zero are nobody's: a value that names none counts there.
            stats: Extents::new(1..stats),
            builder: RingBuilder::default(),
        }
    }

    /// What leads from `present` to `desired`, in order; nothing when they are alike.
    pub fn plan(
        &mut self,
        desired: &Desired,
        present: &Tables,
        now: Moment,
    ) -> Result<Vec<Op>, Full> {
        self.settle(present, now);
        self.builder.begin();
        let mut draft = Draft::default();
        let stats = self.stats(desired, present, &mut draft)?;
        endpoints(desired, present, &mut draft);
        interfaces(desired, present, &stats.by_endpoint, &mut draft);
        neighbours(desired, present, &mut draft);
        self.services(desired, present, &stats.by_frontend, &mut draft)?;
        config(desired, present, &mut draft);
        Ok(draft.into_ops())
    }

    /// Makes ranges that rest available at once. The caller has waited, after the last plan, until
    /// every program ended that ran before it.
    pub fn readers_are_gone(&mut self, now: Moment) {
        for extents in [&mut self.rings, &mut self.backends, &mut self.stats] {
            extents.end_rest(now);
        }
    }

    fn settle(&mut self, present: &Tables, now: Moment) {
        let services = || present.services.values();
        self.rings.settle(services().map(ring_chunks), now);
        self.backends.settle(services().map(backend_range), now);
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
        desired: &Desired,
        present: &Tables,
        draft: &mut Draft,
    ) -> Result<StatsIndexes, Full> {
        let mut claims = Claims {
            bounds: self.stats.bounds(),
            taken: HashSet::new(),
        };
        let mut indexes = StatsIndexes::default();
        for frontend in desired.frontends.keys() {
            let had = present.services.get(frontend).map(|service| service.stats);
            indexes.by_frontend.insert(*frontend, claims.keep(had));
        }
        let endpoints = desired.veths.values().map(|veth| veth.endpoint);
        for endpoint in endpoints.chain(desired.locals.keys().copied()) {
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

    fn services(
        &mut self,
        desired: &Desired,
        present: &Tables,
        stats: &BTreeMap<Frontend, u32>,
        draft: &mut Draft,
    ) -> Result<(), Full> {
        let mut contents = Contents::new(present);
        let mut decided: HashMap<Situation, ServiceValue> = HashMap::new();
        for (frontend, spec) in &desired.frontends {
            let had = present.services.get(frontend);
            let value = match decided.get(&Situation::of(spec, had)) {
                Some(value) => *value,
                None => {
                    let seed = desired.config.ring_seed;
                    let value =
                        self.ranges(&spec.pool, had, present, seed, &mut contents, draft)?;
                    decided.insert(Situation::of(spec, had), value);
                    value
                }
            };
            let value = ServiceValue {
                stats: stats[frontend],
                target_port: spec.target_port,
                generation: had.map_or(0, |had| had.generation),
                ..value
            };
            if had != Some(&value) {
                let value = ServiceValue {
                    generation: value.generation.wrapping_add(1),
                    ..value
                };
                draft.services.push(Op::PutService(*frontend, value));
            }
        }
        let gone = present.services.keys();
        let gone = gone.filter(|frontend| !desired.frontends.contains_key(*frontend));
        draft
            .service_removals
            .extend(gone.map(|frontend| Op::RemoveService(*frontend)));
        Ok(())
    }

    /// Ring and backends of a frontend: where they are already when they are right, in another
    /// frontend's range with the same contents, or in a new one.
    fn ranges(
        &mut self,
        pool: &Pool,
        had: Option<&ServiceValue>,
        present: &Tables,
        seed: u64,
        contents: &mut Contents<'_>,
        draft: &mut Draft,
    ) -> Result<ServiceValue, Full> {
        let old_slots = had.and_then(|had| present.slots(had));
        let old_backends = had.and_then(|had| present.backends(had));
        let old_endpoints = old_backends.as_deref().map(endpoints_of);
        let previous = old_slots.as_deref().zip(old_endpoints.as_deref());
        let previous = previous.map(|(slots, backends)| Ring { slots, backends });
        let slots: Arc<[u32]> = self.builder.next(previous, &pool.members, seed).into();

        let backend_base = match had.filter(|_| old_backends.as_deref() == Some(&*pool.backends)) {
            Some(had) => had.backend_base,
            None => contents.backends(&pool.backends, &mut self.backends, draft)?,
        };
        let ring_base = match had.filter(|_| old_slots.as_deref() == Some(&*slots)) {
            Some(had) => had.ring_base,
            None => contents.ring(&slots, &mut self.rings, draft)?,
        };
        Ok(ServiceValue {
            ring_base: if slots.len() > 1 { ring_base } else { 0 },
            ring_len: slots.len() as u32,
            backend_base,
            backend_count: pool.backends.len() as u32,
            single: if slots.len() == 1 { slots[0] } else { 0 },
            ..ServiceValue::default()
        })
    }
}

fn full(map: &'static str) -> impl Fn(Exhausted) -> Full {
    move |at| Full { map, at }
}

/// Frontends that share all of this get the same ranges: the ports of one service, mostly.
#[derive(PartialEq, Eq, Hash)]
struct Situation {
    pool: *const Pool,
    had: Option<[u32; 5]>,
}

impl Situation {
    fn of(spec: &FrontendSpec, had: Option<&ServiceValue>) -> Self {
        Self {
            pool: Arc::as_ptr(&spec.pool),
            had: had.map(|had| {
                [
                    had.ring_base,
                    had.ring_len,
                    had.single,
                    had.backend_base,
                    had.backend_count,
                ]
            }),
        }
    }
}

/// What the ranges of the array maps hold, so that equal contents are kept once. Most plans never
/// ask, so it is looked through at the first question.
struct Contents<'a> {
    present: &'a Tables,
    rings: Option<HashMap<Arc<[u32]>, u32, Xxh3DefaultBuilder>>,
    backends: Option<HashMap<Box<[u8]>, u32, Xxh3DefaultBuilder>>,
}

impl<'a> Contents<'a> {
    fn new(present: &'a Tables) -> Self {
        Self {
            present,
            rings: None,
            backends: None,
        }
    }

    fn ring(
        &mut self,
        slots: &Arc<[u32]>,
        extents: &mut Extents,
        draft: &mut Draft,
    ) -> Result<u32, Full> {
        if slots.len() <= 1 {
            return Ok(0);
        }
        let known = self.rings.get_or_insert_with(|| {
            let rings = self.present.rings.iter();
            rings
                .map(|((base, _), slots)| (Arc::clone(slots), *base))
                .collect()
        });
        if let Some(base) = known.get(slots) {
            return Ok(*base);
        }
        let chunks = (slots.len() as u32).div_ceil(RING_CHUNK_SLOTS);
        let base = extents.allocate(chunks).map_err(full("RINGS"))?;
        known.insert(Arc::clone(slots), base);
        draft.ranges.push(Op::WriteRing(base, Arc::clone(slots)));
        Ok(base)
    }

    fn backends(
        &mut self,
        values: &Arc<[BackendValue]>,
        extents: &mut Extents,
        draft: &mut Draft,
    ) -> Result<u32, Full> {
        if values.is_empty() {
            return Ok(0);
        }
        let bytes = crate::sys::bytes_of(values);
        let known = self.backends.get_or_insert_with(|| {
            let backends = self.present.backends.iter();
            backends
                .map(|((base, _), values)| (crate::sys::bytes_of(values).into(), *base))
                .collect()
        });
        if let Some(base) = known.get(bytes) {
            return Ok(*base);
        }
        let len = values.len() as u32;
        let base = extents.allocate(len).map_err(full("BACKENDS"))?;
        known.insert(bytes.into(), base);
        draft
            .ranges
            .push(Op::WriteBackends(base, Arc::clone(values)));
        Ok(base)
    }
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
    services: Vec<Op>,
    service_removals: Vec<Op>,
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
            self.services,
            self.service_removals,
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
}

fn endpoints(desired: &Desired, present: &Tables, draft: &mut Draft) {
    let wanted = desired.endpoints.iter().map(|(at, value)| {
        let had = present.endpoints.get(at);
        let kept = had.filter(|had| {
            let flags = had.flags & ENDPOINT_HAS_VIP_FLOWS;
            **had == EndpointValue { flags, ..*value }
        });
        // A program may raise the flag between our look and our write. So whatever replaces an
        // entry has it: a needless lookup a packet, instead of flows that lose their translation.
        let flags = if had.is_some() {
            ENDPOINT_HAS_VIP_FLOWS
        } else {
            0
        };
        let fresh = EndpointValue { flags, ..*value };
        (*at, kept.copied().unwrap_or(fresh))
    });
    draft.compare(
        &wanted.collect(),
        &present.endpoints,
        Op::PutEndpoint,
        Op::RemoveEndpoint,
    );
    let gone = present.endpoints.iter().filter(|(at, had)| {
        let now = desired.endpoints.get(at);
        now.is_none_or(|now| now.endpoint != had.endpoint)
    });
    let gone: BTreeSet<OverlayAddr> = gone.map(|(at, _)| *at).collect();
    if !gone.is_empty() {
        draft.flow_removals.push(Op::DropVipFlows(gone));
    }
}

fn interfaces(desired: &Desired, present: &Tables, stats: &BTreeMap<u32, u32>, draft: &mut Draft) {
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

fn neighbours(desired: &Desired, present: &Tables, draft: &mut Draft) {
    draft.compare(&desired.peers, &present.peers, Op::PutPeer, Op::RemovePeer);
    let new = desired.node_addrs.difference(&present.node_addrs);
    draft.puts.extend(new.map(|addr| Op::PutNodeAddr(*addr)));
    let gone = present.node_addrs.difference(&desired.node_addrs);
    draft
        .removals
        .extend(gone.map(|addr| Op::RemoveNodeAddr(*addr)));
}

fn config(desired: &Desired, present: &Tables, draft: &mut Draft) {
    let written = present.config.generation;
    let same = NodeConfig {
        generation: written,
        ..desired.config
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
