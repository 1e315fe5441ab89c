//! What was last written to the maps: what a change is planned from, without a look at the kernel.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
    ops::Range,
};

use dataplane_abi::{ENDPOINT_HAS_VIP_FLOWS, EndpointValue, PortWord, RingPlace, ServiceValue};
use imbl::OrdMap;

use crate::{
    desired::Touched,
    plan::Op,
    tables::{Frontend, OverlayAddr, Published, Tables, ring_slots},
};

/// The maps as a look at them found them, and as every operation since has left them. Whoever fails
/// to carry one out knows no longer what they hold, and has to look again.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    tables: Tables,
    /// Of `FRONTENDS`, by index.
    elements: OrdMap<u32, ServiceValue>,
    naming: Naming,
}

/// How often the tables name each place of the array maps.
#[derive(Debug, Clone, Default)]
struct Naming {
    /// By place and length.
    rings: Count<(RingPlace, u32)>,
    backends: Count<(u32, u32)>,
    elements: Count<u32>,
    stats: Count<u32>,
}

/// Places of the array maps that nothing names any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Chunks.
    pub rings: Vec<Range<u32>>,
    pub backends: Vec<Range<u32>>,
    pub frontends: Vec<Range<u32>>,
    pub stats: Vec<Range<u32>>,
}

impl Recorded {
    pub fn new(observed: Tables) -> Self {
        let mut recorded = Self::default();
        for (at, index) in observed.published() {
            let value = observed.services.get(&Frontend::Published(at));
            recorded.elements.extend(value.map(|value| (index, *value)));
            recorded.naming.elements.up(index);
        }
        let services = observed.services.values();
        services.for_each(|service| recorded.naming.turn(None, Some(service)));
        let locals = observed.locals.values().map(|local| local.stats);
        let veths = observed.veths.values().map(|veth| veth.stats);
        locals
            .chain(veths)
            .for_each(|index| recorded.naming.stats.up(index));
        recorded.tables = observed;
        recorded
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Takes note of an operation that was carried out.
    pub fn note(&mut self, op: &Op) {
        let (tables, naming) = (&mut self.tables, &mut self.naming);
        match op {
            Op::ResetStats(_) | Op::DropFlows(_) | Op::DropVipFlows(_) => {}
            Op::PutEndpoint(at, value) => drop(tables.endpoints.insert(*at, *value)),
            Op::PutVeth(ifindex, value) => {
                let had = tables.veths.insert(*ifindex, *value);
                naming
                    .stats
                    .turn(had.map(|had| had.stats), Some(value.stats));
            }
            Op::PutLocal(endpoint, value) => {
                let had = tables.locals.insert(*endpoint, *value);
                naming
                    .stats
                    .turn(had.map(|had| had.stats), Some(value.stats));
            }
            Op::PutNetns(cookie, value) => drop(tables.netns.insert(*cookie, *value)),
            Op::PutTarget(at, value) => drop(tables.targets.insert(*at, *value)),
            Op::PutPeer(addr, value) => drop(tables.peers.insert(*addr, *value)),
            Op::PutNodeAddr(addr) => drop(tables.node_addrs.insert(*addr)),
            Op::WriteBackends(base, values) => {
                let place = (*base, values.len() as u32);
                tables.backends.insert(place, values.clone());
                naming.backends.idle.insert(place);
            }
            Op::WriteRing(place, slots) => {
                let place = (*place, slots.len() as u32);
                tables.rings.insert(place, slots.clone());
                naming.rings.idle.insert(place);
            }
            Op::WriteFrontend(index, value) => {
                self.elements.insert(*index, *value);
                naming.elements.idle.insert(*index);
            }
            Op::PutVip(at, value) => self.turn(Frontend::Vip(*at), Some(*value)),
            Op::PutAddressed(at, index) => {
                let had = tables.addressed.insert(*at, *index);
                naming.elements.turn(had, Some(*index));
                self.lead(*at, Some(*index));
            }
            Op::SetPort(port, word) => {
                let had = match *word == PortWord::default() {
                    true => tables.ports.remove(port),
                    false => tables.ports.insert(*port, *word),
                };
                let had = had.and_then(PortWord::frontend);
                naming.elements.turn(had, word.frontend());
                self.lead(Published::everywhere(*port), word.frontend());
            }
            Op::RemoveVip(at) => self.turn(Frontend::Vip(*at), None),
            Op::RemoveAddressed(at) => {
                let had = tables.addressed.remove(at);
                naming.elements.turn(had, None);
                self.lead(*at, None);
            }
            Op::RemoveEndpoint(at) => drop(tables.endpoints.remove(at)),
            Op::RemoveVeth(ifindex) => {
                let had = tables.veths.remove(ifindex);
                naming.stats.turn(had.map(|had| had.stats), None);
            }
            Op::RemoveLocal(endpoint) => {
                let had = tables.locals.remove(endpoint);
                naming.stats.turn(had.map(|had| had.stats), None);
            }
            Op::RemoveNetns(cookie) => drop(tables.netns.remove(cookie)),
            Op::RemoveTarget(at) => drop(tables.targets.remove(at)),
            Op::RemovePeer(addr) => drop(tables.peers.remove(addr)),
            Op::RemoveNodeAddr(addr) => drop(tables.node_addrs.remove(addr)),
            Op::PutConfig(value) => tables.config = *value,
        }
    }

    fn lead(&mut self, at: Published, index: Option<u32>) {
        let value = index.and_then(|index| self.elements.get(&index).copied());
        self.turn(Frontend::Published(at), value);
    }

    fn turn(&mut self, frontend: Frontend, value: Option<ServiceValue>) {
        let services = &mut self.tables.services;
        let had = match value {
            Some(value) => services.insert(frontend, value),
            None => services.remove(&frontend),
        };
        self.naming.turn(had.as_ref(), value.as_ref());
    }

    /// After a plan: the places that nothing names any more, which are forgotten here.
    pub fn release(&mut self) -> Released {
        let rings = self.naming.rings.idle();
        let backends = self.naming.backends.idle();
        let frontends = self.naming.elements.idle();
        forget(&mut self.tables.rings, &rings);
        forget(&mut self.tables.backends, &backends);
        forget(&mut self.elements, &frontends);
        let single = |index: &u32| *index..index.saturating_add(1);
        let chunks = |(place, len): &(RingPlace, u32)| place.chunks(*len);
        Released {
            rings: rings.iter().map(chunks).collect(),
            backends: backends
                .iter()
                .map(|(base, count)| *base..*base + *count)
                .collect(),
            frontends: frontends.iter().map(single).collect(),
            stats: self.naming.stats.idle().iter().map(single).collect(),
        }
    }

    /// Where others made the maps hold something else. Of what is whole in every plan, nothing.
    pub fn differences(&self, observed: &Tables) -> Touched {
        let (had, found) = (&self.tables, observed);
        Touched {
            endpoints: {
                let both = [had, found].into_iter();
                let both = both.flat_map(|tables| tables.endpoints.keys());
                let altered = both.filter(|at| !is_endpoint_alike(had, found, at));
                altered.copied().collect()
            },
            frontends: {
                let both = [had, found].into_iter().flat_map(frontends);
                let altered = both.filter(|at| !is_frontend_alike(had, found, at));
                with_same_counters(found, altered.collect())
            },
        }
    }
}

/// But for the flag, which programs write.
pub(crate) fn is_endpoint_alike(one: &Tables, other: &Tables, at: &OverlayAddr) -> bool {
    let flagged = |value: &EndpointValue| EndpointValue {
        flags: value.flags | ENDPOINT_HAS_VIP_FLOWS,
        ..*value
    };
    let value = |tables: &Tables| tables.endpoints.get(at).map(flagged);
    value(one) == value(other)
}

/// Whether packets for it are led alike.
pub(crate) fn is_frontend_alike(one: &Tables, other: &Tables, at: &Frontend) -> bool {
    leads_to(one, at) == leads_to(other, at)
}

fn forget<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, keys: &[K]) {
    for key in keys {
        map.remove(key);
    }
}

/// All that a packet for the frontend is led by.
fn leads_to<'a>(tables: &'a Tables, frontend: &Frontend) -> impl PartialEq + use<'a> {
    let word = match frontend {
        Frontend::Vip(_) => None,
        Frontend::Published(at) if at.addr.is_unspecified() => tables.ports.get(&at.port).copied(),
        Frontend::Published(at) => {
            let index = tables.addressed.get(at);
            index.map(|index| PortWord::new(*index, true))
        }
    };
    let service = tables.services.get(frontend);
    let ring = service.and_then(|of| tables.rings.get(&(of.ring, ring_slots(of))));
    let backends = service.and_then(|of| tables.backends.get(&(of.backend_base, of.backend_count)));
    (word, service, ring, backends)
}

/// Adds the frontends that count where one of these does: a word that others turned to another
/// port's element makes both ports count there, and only who sees both can tell whose it is.
fn with_same_counters(tables: &Tables, mut these: BTreeSet<Frontend>) -> BTreeSet<Frontend> {
    let services = || tables.services.iter();
    let counters: HashSet<u32> = services()
        .filter(|(frontend, _)| these.contains(frontend))
        .map(|(_, service)| service.stats)
        .collect();
    let alike = services().filter(|(_, service)| counters.contains(&service.stats));
    these.extend(alike.map(|(frontend, _)| *frontend));
    these
}

pub(crate) fn frontends(tables: &Tables) -> impl Iterator<Item = Frontend> {
    let ports = tables.ports.keys().copied().map(Published::everywhere);
    let published = ports.chain(tables.addressed.keys().copied());
    let services = tables.services.keys().copied();
    services.chain(published.map(Frontend::Published))
}

impl Naming {
    fn turn(&mut self, had: Option<&ServiceValue>, has: Option<&ServiceValue>) {
        self.rings.turn(had.and_then(ring), has.and_then(ring));
        self.backends
            .turn(had.and_then(backends), has.and_then(backends));
        let stats = |of: &ServiceValue| of.stats;
        self.stats.turn(had.map(stats), has.map(stats));
    }
}

/// Place and length of a service's ring.
fn ring(of: &ServiceValue) -> Option<(RingPlace, u32)> {
    (of.ring_len > 1).then_some((of.ring, ring_slots(of)))
}

/// Base and number of a service's backends.
fn backends(of: &ServiceValue) -> Option<(u32, u32)> {
    (of.backend_count > 0).then_some((of.backend_base, of.backend_count))
}

/// How often each thing is named; and those that are not, to be looked at after the plan.
#[derive(Debug, Clone)]
struct Count<K> {
    named: HashMap<K, u32>,
    idle: BTreeSet<K>,
}

impl<K> Default for Count<K> {
    fn default() -> Self {
        Self {
            named: HashMap::new(),
            idle: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Hash + Copy> Count<K> {
    fn up(&mut self, key: K) {
        *self.named.entry(key).or_default() += 1;
    }

    fn down(&mut self, key: K) {
        let Some(count) = self.named.get_mut(&key) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.named.remove(&key);
            self.idle.insert(key);
        }
    }

    fn turn(&mut self, had: Option<K>, has: Option<K>) {
        has.into_iter().for_each(|key| self.up(key));
        had.into_iter().for_each(|key| self.down(key));
    }

    /// What is idle still. It is not told again.
    fn idle(&mut self) -> Vec<K> {
        let idle = std::mem::take(&mut self.idle);
        let idle = idle.into_iter();
        idle.filter(|key| !self.named.contains_key(key)).collect()
    }
}
