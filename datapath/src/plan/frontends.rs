//! VIPs and published ports: which entries they get, and where those lead.
//!
//! A VIP has its entry in a hash. A published port has a word that names an element of `FRONTENDS`;
//! neighbouring ports that mean the same share one. An element is never changed: what is new gets
//! a new one, to which the words turn one by one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use dataplane_abi::{
    BackendValue, PortWord, RingForm, RingPlace, SERVICE_NEAR, SERVICE_NEAR_DRAINS, ServiceValue,
};
use model::ServiceId;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::{Draft, Full, Op, Planner, full};
use crate::{
    desired::{FrontendSpec, Pool, Wanted},
    extent::Extents,
    ring::Ring,
    tables::{Frontend, OverlayAddr, Port, Published, Tables, endpoints_of, ring_slots},
};

/// What one entry serves: a VIP, or neighbouring ports.
#[derive(Debug)]
pub(super) struct Entry {
    pub frontend: Frontend,
    /// Of the ports, the first included; one for a VIP.
    count: usize,
    service: ServiceId,
    /// Without counters and generation.
    value: ServiceValue,
}

impl Entry {
    /// Whether `next` goes on where this one ends, and means the same.
    fn goes_on_with(&self, next: &Self) -> bool {
        let (Frontend::Published(_), Frontend::Published(at)) = (self.frontend, next.frontend)
        else {
            return false;
        };
        self.ports().last().and_then(Published::next) == Some(at)
            && (self.service, self.value) == (next.service, next.value)
    }

    /// None for a VIP.
    fn ports(&self) -> impl Iterator<Item = Published> + use<> {
        let first = match self.frontend {
            Frontend::Vip(_) => None,
            Frontend::Published(first) => Some(first),
        };
        std::iter::successors(first, |at| at.next()).take(self.count)
    }
}

impl Planner {
    /// The entries that are wanted, in order of frontends, with rings and backends in their
    /// places.
    pub(super) fn entries(
        &mut self,
        wanted: &Wanted,
        present: &Tables,
        draft: &mut Draft,
    ) -> Result<Vec<Entry>, Full> {
        let mut contents = Contents::new(wanted, present);
        let mut decided: HashMap<Situation, ServiceValue> = HashMap::new();
        let mut entries: Vec<Entry> = Vec::new();
        let specs = wanted.frontends.iter();
        for (frontend, spec) in specs.filter_map(|(at, spec)| Some((at, spec.as_ref()?))) {
            let had = present.services.get(frontend);
            let value = match decided.get(&Situation::of(spec, had)) {
                Some(value) => *value,
                None => {
                    let seed = wanted.node.config.ring_seed;
                    let value =
                        self.ranges(&spec.pool, had, present, seed, &mut contents, draft)?;
                    decided.insert(Situation::of(spec, had), value);
                    value
                }
            };
            let entry = Entry {
                frontend: *frontend,
                count: 1,
                service: spec.service,
                value: ServiceValue {
                    port_shift: spec.port_shift,
                    flags: spec.flags | value.flags,
                    affinity_secs: spec.affinity.secs,
                    affinity_key: spec.affinity.key,
                    ..value
                },
            };
            match entries.last_mut().filter(|last| last.goes_on_with(&entry)) {
                Some(last) => last.count += 1,
                None => entries.push(entry),
            }
        }
        Ok(entries)
    }

    pub(super) fn frontends(
        &mut self,
        wanted: &Wanted,
        entries: &[Entry],
        present: &Tables,
        stats: &BTreeMap<Frontend, u32>,
        draft: &mut Draft,
    ) -> Result<(), Full> {
        let mut words = Words::default();
        for entry in entries {
            let value = ServiceValue {
                stats: stats[&entry.frontend],
                ..entry.value
            };
            match entry.frontend {
                Frontend::Vip(at) => vip(at, value, present, draft),
                Frontend::Published(_) => {
                    let index = self.place(entry, value, present, &mut words.taken, draft)?;
                    entry.ports().for_each(|at| words.lead(at, index));
                }
            }
        }
        words.turn(wanted, present, draft);
        for (frontend, spec) in &wanted.frontends {
            match frontend {
                Frontend::Vip(at) if spec.is_none() && present.services.contains_key(frontend) => {
                    draft.frontend_removals.push(Op::RemoveVip(*at));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The element of `FRONTENDS` with this value: one that some of the ports lead to already, else
    /// a new one.
    fn place(
        &mut self,
        entry: &Entry,
        value: ServiceValue,
        present: &Tables,
        taken: &mut HashSet<u32>,
        draft: &mut Draft,
    ) -> Result<u32, Full> {
        let had = |at: Published| {
            let had = present.services.get(&Frontend::Published(at))?;
            Some((present.place(at)?, *had))
        };
        let bounds = self.frontends.bounds();
        let fits = |(index, had): &(u32, ServiceValue)| {
            bounds.contains(index) && !taken.contains(index) && is_same(had, &value)
        };
        let index = match entry.ports().filter_map(had).find(fits) {
            Some((index, _)) => index,
            None => {
                let index = self.frontends.allocate(1).map_err(full("FRONTENDS"))?;
                let had = present.services.get(&entry.frontend);
                let value = succeed(had, value);
                draft.ranges.push(Op::WriteFrontend(index, value));
                index
            }
        };
        taken.insert(index);
        Ok(index)
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
        let mut slots = self.builder.next(previous, &pool.members, seed);
        let len = slots.len();
        if let Some(near) = pool.near.as_ref().filter(|_| len > 1) {
            let old_slots = had.and_then(|had| present.near_slots(had));
            let previous = old_slots.as_deref().zip(old_endpoints.as_deref());
            let previous = previous.map(|(slots, backends)| Ring { slots, backends });
            let near = self.builder.next(previous, &near.members, seed);
            slots.extend(near.iter().cycle().take(len));
        }
        let flags = match &pool.near {
            Some(near) if slots.len() > len && near.drains => SERVICE_NEAR | SERVICE_NEAR_DRAINS,
            Some(_) if slots.len() > len => SERVICE_NEAR,
            _ => 0,
        };
        let slots: Arc<[u32]> = slots.into();
        let old_slots = had.and_then(|had| present.all_slots(had));

        let backend_base = match had.filter(|_| old_backends.as_deref() == Some(&*pool.backends)) {
            Some(had) => had.backend_base,
            None => contents.backends(&pool.backends, &mut self.backends, draft)?,
        };
        let ring = match had.filter(|_| old_slots.as_deref() == Some(&*slots)) {
            Some(had) => had.ring,
            None => contents.ring(&slots, &mut self.rings, draft)?,
        };
        Ok(ServiceValue {
            ring: if len > 1 { ring } else { RingPlace::default() },
            ring_len: len as u32,
            backend_base,
            backend_count: pool.backends.len() as u32,
            single: if len == 1 { slots[0] } else { 0 },
            flags,
            ..ServiceValue::default()
        })
    }
}

fn vip(at: OverlayAddr, value: ServiceValue, present: &Tables, draft: &mut Draft) {
    let had = present.services.get(&Frontend::Vip(at));
    if !had.is_some_and(|had| is_same(had, &value)) {
        draft.frontends.push(Op::PutVip(at, succeed(had, value)));
    }
}

/// Whether the agent wrote `value` when it wrote `had`.
fn is_same(had: &ServiceValue, value: &ServiceValue) -> bool {
    let generation = had.generation;
    *had == ServiceValue {
        generation,
        ..*value
    }
}

/// `value` as what comes after `had`.
fn succeed(had: Option<&ServiceValue>, value: ServiceValue) -> ServiceValue {
    let generation = had.map_or(0, |had| had.generation).wrapping_add(1);
    ServiceValue {
        generation,
        ..value
    }
}

/// Where published ports shall lead.
#[derive(Default)]
struct Words {
    ports: BTreeMap<Port, PortWord>,
    addressed: BTreeMap<Published, u32>,
    /// Elements of `FRONTENDS` that have their ports.
    taken: HashSet<u32>,
}

impl Words {
    fn lead(&mut self, at: Published, index: u32) {
        let word = self.ports.entry(at.port).or_default();
        if at.addr.is_unspecified() {
            *word = PortWord::new(index, word.is_by_address());
        } else {
            *word = PortWord::new(word.frontend().unwrap_or(0), true);
            self.addressed.insert(at, index);
        }
    }

    fn turn(self, wanted: &Wanted, present: &Tables, draft: &mut Draft) {
        for (at, index) in &self.addressed {
            if present.addressed.get(at) != Some(index) {
                draft.frontends.push(Op::PutAddressed(*at, *index));
            }
        }
        for (port, word) in &self.ports {
            if present.ports.get(port) != Some(word) {
                draft.ports.push(Op::SetPort(*port, *word));
            }
        }
        let published = wanted
            .frontends
            .keys()
            .filter_map(|frontend| match frontend {
                Frontend::Vip(_) => None,
                Frontend::Published(at) => Some(*at),
            });
        let published: Vec<Published> = published.collect();
        let ports: BTreeSet<Port> = published.iter().map(|at| at.port).collect();
        let withdrawn = ports
            .into_iter()
            .filter(|port| !self.ports.contains_key(port));
        let withdrawn = withdrawn.filter(|port| present.ports.contains_key(port));
        let nowhere = PortWord::default();
        draft
            .ports
            .extend(withdrawn.map(|port| Op::SetPort(port, nowhere)));
        let gone = published
            .into_iter()
            .filter(|at| !self.addressed.contains_key(at));
        let gone = gone.filter(|at| present.addressed.contains_key(at));
        draft
            .frontend_removals
            .extend(gone.map(Op::RemoveAddressed));
    }
}

/// Frontends that share all of this get the same ranges: the ports of one service, mostly.
#[derive(PartialEq, Eq, Hash)]
struct Situation {
    pool: *const Pool,
    had: Option<(RingPlace, [u32; 5])>,
}

impl Situation {
    fn of(spec: &FrontendSpec, had: Option<&ServiceValue>) -> Self {
        Self {
            pool: Arc::as_ptr(&spec.pool),
            had: had.map(|had| {
                let rest = [
                    had.ring_len,
                    had.single,
                    had.backend_base,
                    had.backend_count,
                    had.flags & SERVICE_NEAR,
                ];
                (had.ring, rest)
            }),
        }
    }
}

/// What the ranges hold that the frontends in question name, so that equal contents are kept once:
/// those are of one service. Most plans never ask, so it is looked through at the first question.
struct Contents<'a> {
    wanted: &'a Wanted,
    present: &'a Tables,
    rings: Option<HashMap<Arc<[u32]>, RingPlace, Xxh3DefaultBuilder>>,
    backends: Option<HashMap<Box<[u8]>, u32, Xxh3DefaultBuilder>>,
}

impl<'a> Contents<'a> {
    fn new(wanted: &'a Wanted, present: &'a Tables) -> Self {
        Self {
            wanted,
            present,
            rings: None,
            backends: None,
        }
    }

    fn services(&self) -> impl Iterator<Item = &'a ServiceValue> {
        let present = self.present;
        let frontends = self.wanted.frontends.keys();
        frontends.filter_map(|frontend| present.services.get(frontend))
    }

    fn ring(
        &mut self,
        slots: &Arc<[u32]>,
        extents: &mut Extents,
        draft: &mut Draft,
    ) -> Result<RingPlace, Full> {
        if slots.len() <= 1 {
            return Ok(RingPlace::default());
        }
        let present = self.present;
        let known = self.rings.take().unwrap_or_else(|| {
            let ring = |of: &ServiceValue| {
                let slots = present.rings.get(&(of.ring, ring_slots(of)))?;
                Some((Arc::clone(slots), of.ring))
            };
            self.services().filter_map(ring).collect()
        });
        let known = self.rings.insert(known);
        if let Some(place) = known.get(slots) {
            return Ok(*place);
        }
        let form = RingForm::of(slots);
        let chunks = form.chunks(slots.len() as u32);
        let first = extents.allocate(chunks).map_err(full("RINGS"))?;
        let place = RingPlace::new(first, form);
        known.insert(Arc::clone(slots), place);
        draft.ranges.push(Op::WriteRing(place, Arc::clone(slots)));
        Ok(place)
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
        let present = self.present;
        let known = self.backends.take().unwrap_or_else(|| {
            let backends = |of: &ServiceValue| {
                let values = present.backends.get(&(of.backend_base, of.backend_count))?;
                Some((crate::sys::bytes_of(values).into(), of.backend_base))
            };
            self.services().filter_map(backends).collect()
        });
        let known = self.backends.insert(known);
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
