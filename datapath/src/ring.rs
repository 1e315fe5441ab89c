//! From the backends that a frontend has, and the ring it had, to the ring it shall have.

use std::{collections::HashMap, sync::Arc};

use dataplane_abi::RingSlot;
use model::EndpointId;

use crate::maglev::{self, Member};

/// A frontend's ring as the kernel has it: slots (see [`RingSlot`]) that index `backends`, which are
/// in ascending order of endpoint. No slot: no backend. One slot: the kernel keeps it in the
/// frontend's own entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring<'a> {
    pub slots: &'a [u32],
    pub backends: &'a [EndpointId],
}

impl Ring<'_> {
    /// Owner of the slot that covers the middle of slot `slot` of a ring of `len`, by `part` of the
    /// slot: with rings of one length, the same slot.
    ///
    /// Between lengths, a slot may cover the ends of two; the flows beyond the one in its middle
    /// lose their former owner.
    fn slot_at(&self, slot: usize, len: usize) -> Option<RingSlot> {
        let at = if self.slots.len() == len {
            slot
        } else {
            let (middle, whole) = (2 * slot as u64 + 1, 2 * len as u64);
            (middle * self.slots.len() as u64 / whole) as usize
        };
        self.slots.get(at).copied().map(RingSlot::from_raw)
    }

    /// Whether this is what [`RingBuilder::next`] would make of itself: the common case, told in one
    /// pass.
    fn is_settled(&self, members: &[Member], owners: &[u16]) -> bool {
        let same_members = || {
            let members = members.iter().map(|member| member.endpoint);
            self.backends.iter().copied().eq(members)
        };
        let same_owners = || {
            let mut slots = self.slots.iter().zip(owners);
            slots.all(|(raw, owner)| {
                let slot = RingSlot::from_raw(*raw);
                slot.now == *owner && usize::from(slot.before) < members.len()
            })
        };
        let several = || self.slots.iter().any(|slot| *slot != self.slots[0]);
        self.slots.len() == owners.len() && same_members() && several() && same_owners()
    }

    /// Digest of the present owners; see [`maglev::digest`].
    pub fn digest(&self) -> u64 {
        maglev::digest(self.slots.iter().map(|raw| {
            let owner = self.backends.get(usize::from(RingSlot::from_raw(*raw).now));
            owner.map_or(u32::MAX, |endpoint| endpoint.0)
        }))
    }
}

/// Builds rings, each once a plan: a service's VIPs and ports have the same members.
#[derive(Debug, Default)]
pub struct RingBuilder {
    built: HashMap<Key, Arc<[u16]>>,
}

/// Seed, length, members.
type Key = (u64, u32, Arc<[Member]>);

impl RingBuilder {
    /// Rings are many, so they are kept no longer than a plan.
    pub fn forget(&mut self) {
        self.built.clear();
    }

    fn owners(&mut self, members: &Arc<[Member]>, len: u32, seed: u64) -> Arc<[u16]> {
        let key = (seed, len, Arc::clone(members));
        let built = self.built.entry(key);
        Arc::clone(built.or_insert_with(|| maglev::build(members, len, seed).into()))
    }

    /// Slots for `members` (ascending by endpoint; weight zero takes no new flow, but keeps those it
    /// has), given the ring before.
    ///
    /// `now` is the Maglev ring of the members with weight. `before` is the owner before the slot's
    /// last change, as long as it is a member still; else `now` itself. One that is cut off stays
    /// through further changes, as flows of the others are pinned (docs/decisions/0017). When all
    /// slots are alike, one is enough.
    pub fn next(
        &mut self,
        previous: Option<Ring<'_>>,
        members: &Arc<[Member]>,
        seed: u64,
    ) -> Vec<u32> {
        let len = maglev::ring_len(members.len());
        let owners = match len {
            0 => return Vec::new(),
            1 => Arc::from([0u16].as_slice()),
            _ => self.owners(members, len, seed),
        };
        assert!(!owners.is_empty(), "some member has weight");
        if let Some(ring) = previous.filter(|ring| ring.is_settled(members, &owners)) {
            return ring.slots.to_vec();
        }
        let positions = previous.map(|ring| (ring, positions(ring.backends, members)));
        let slots: Vec<u32> = owners
            .iter()
            .enumerate()
            .map(|(slot, now)| {
                let old = positions.as_ref().and_then(|(ring, positions)| {
                    let old = ring.slot_at(slot, owners.len())?;
                    Some((place(positions, old.now), place(positions, old.before)))
                });
                RingSlot {
                    now: *now,
                    before: before(*now, old, members),
                }
                .to_raw()
            })
            .collect();
        if slots.iter().all(|slot| *slot == slots[0]) {
            return vec![slots[0]];
        }
        slots
    }
}

/// The former owner that a slot names. `old` is what it named, as far as they are members still.
fn before(now: u16, old: Option<(Option<u16>, Option<u16>)>, members: &[Member]) -> u16 {
    let is_cut_off = |place: u16| members[usize::from(place)].is_cut_off;
    match old {
        // Unchanged: who was before stays before.
        Some((Some(owner), former)) if owner == now => former.unwrap_or(now),
        Some((Some(owner), Some(former))) if is_cut_off(former) && !is_cut_off(owner) => former,
        Some((Some(owner), _)) => owner,
        Some((None, former)) => former.unwrap_or(now),
        None => now,
    }
}

/// Where each of the old backends is among `members`.
fn positions(old: &[EndpointId], members: &[Member]) -> Vec<Option<u16>> {
    old.iter()
        .map(|endpoint| {
            let place = members.binary_search_by_key(endpoint, |member| member.endpoint);
            place.ok().map(|place| place as u16)
        })
        .collect()
}

fn place(positions: &[Option<u16>], index: u16) -> Option<u16> {
    positions.get(usize::from(index)).copied().flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 7;

    /// A ring and its backends, owned.
    #[derive(Debug, Clone, PartialEq, Default)]
    struct Owned {
        slots: Vec<u32>,
        backends: Vec<EndpointId>,
    }

    impl Owned {
        fn ring(&self) -> Ring<'_> {
            Ring {
                slots: &self.slots,
                backends: &self.backends,
            }
        }

        fn owner(&self, hash: u32, part: fn(RingSlot) -> u16) -> u32 {
            let slot = dataplane_abi::hash::ring_slot(hash, self.slots.len() as u32);
            let index = part(RingSlot::from_raw(self.slots[slot as usize]));
            self.backends[usize::from(index)].0
        }
    }

    fn now(slot: RingSlot) -> u16 {
        slot.now
    }

    fn before(slot: RingSlot) -> u16 {
        slot.before
    }

    /// `(endpoint, active)`.
    fn step(previous: Option<&Owned>, backends: &[(u32, bool)]) -> Owned {
        let members: Arc<[Member]> = backends
            .iter()
            .map(|(id, active)| Member {
                endpoint: EndpointId(*id),
                weight: u32::from(*active),
                is_cut_off: false,
            })
            .collect();
        next(previous, &members)
    }

    fn next(previous: Option<&Owned>, members: &Arc<[Member]>) -> Owned {
        let mut builder = RingBuilder::default();
        Owned {
            slots: builder.next(previous.map(Owned::ring), members, SEED),
            backends: members.iter().map(|m| m.endpoint).collect(),
        }
    }

    #[test]
    fn one_backend_needs_no_ring() {
        let one = step(None, &[(5, true)]);
        assert_eq!(one.slots, [RingSlot { now: 0, before: 0 }.to_raw()]);
        assert!(step(None, &[]).slots.is_empty());
    }

    #[test]
    fn replaced_single_backend_is_the_one_before() {
        let old = step(None, &[(5, true)]);
        let new = step(Some(&old), &[(5, false), (9, true)]);
        assert_eq!(new.slots, [RingSlot { now: 1, before: 0 }.to_raw()]);
        assert_eq!(new.owner(1 << 31, now), 9);
        assert_eq!(new.owner(1 << 31, before), 5);
        let gone = step(Some(&new), &[(9, true)]);
        assert_eq!(gone.slots, [RingSlot { now: 0, before: 0 }.to_raw()]);
    }

    #[test]
    fn drained_backend_stays_reachable_where_it_was() {
        let old = step(None, &[(1, true), (2, true), (3, true)]);
        let new = step(Some(&old), &[(1, true), (2, false), (3, true)]);
        assert_eq!(old.slots.len(), new.slots.len());
        for hash in (0..=u32::MAX).step_by(1 << 16) {
            assert_ne!(new.owner(hash, now), 2);
            if old.owner(hash, now) != new.owner(hash, now) {
                assert_eq!(new.owner(hash, before), old.owner(hash, now));
            }
        }
    }

    /// Of the others' flows each owner tells; of those of one that is cut off, only the slots do.
    #[test]
    fn cut_off_backend_stays_reachable_where_it_was_through_any_further_changes() {
        let old = step(None, &[(1, true), (2, true), (3, true)]);
        let mut ring = Owned {
            slots: old.slots.clone(),
            backends: old.backends.clone(),
        };
        let mut moved = 0;
        for others in [&[1, 3][..], &[1, 3, 4], &[3, 4], &[3, 4, 5, 6], &[6]] {
            let member = |id: &u32| Member {
                endpoint: EndpointId(*id),
                weight: u32::from(*id != 2),
                is_cut_off: *id == 2,
            };
            let mut members: Vec<_> = others.iter().chain([&2]).map(member).collect();
            members.sort_by_key(|member| member.endpoint);
            let next = next(Some(&ring), &members.into());
            for hash in (0..=u32::MAX).step_by(1 << 16) {
                if old.owner(hash, now) == 2 {
                    assert_eq!(next.owner(hash, before), 2, "beside {others:?}");
                    moved += u32::from(next.owner(hash, now) != ring.owner(hash, now));
                }
            }
            ring = next;
        }
        assert!(moved > 1 << 16, "slots have moved more than once: {moved}");
    }

    /// Eleven backends need a longer ring than ten: each flow's former owner is known all the same.
    #[test]
    fn longer_ring_knows_the_former_owner_of_every_flow() {
        let ten: Vec<_> = (1..=10).map(|id| (id, true)).collect();
        let eleven: Vec<_> = (1..=11).map(|id| (id, true)).collect();
        let old = step(None, &ten);
        let new = step(Some(&old), &eleven);
        assert!(new.slots.len() > old.slots.len());
        for hash in (0..=u32::MAX).step_by((1 << 14) + 1) {
            if new.owner(hash, now) != old.owner(hash, now) {
                assert_eq!(new.owner(hash, before), old.owner(hash, now));
            }
        }
    }

    #[test]
    fn last_active_backend_keeps_the_ring_for_the_drained() {
        let old = step(None, &[(1, true), (2, true)]);
        let new = step(Some(&old), &[(1, true), (2, false)]);
        assert_eq!(new.slots.len(), 1_024);
        assert_eq!(new.ring().digest(), maglev::digest([1]));
        let gone = step(Some(&new), &[(1, true)]);
        assert_eq!(gone.slots.len(), 1);
        assert_eq!(gone.ring().digest(), new.ring().digest());
    }

    #[test]
    fn ring_that_was_damaged_is_no_ring() {
        let damaged = Owned {
            slots: vec![u32::MAX; 1_024],
            backends: vec![EndpointId(1)],
        };
        let backends = [(1, true), (2, true)];
        assert_eq!(step(Some(&damaged), &backends), step(None, &backends));
    }

    fn some_backends() -> impl Strategy<Value = Vec<(u32, bool)>> {
        prop::collection::btree_map(1u32..30, any::<bool>(), 0..12).prop_map(|backends| {
            let mut backends: Vec<_> = backends.into_iter().collect();
            if backends.iter().all(|(_, active)| !active) {
                backends.iter_mut().for_each(|(_, active)| *active = true);
            }
            backends
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Over any course of changes: a second look changes nothing; `now` does not depend on
        /// history; each slot names members; and the owner of a flow at the last ring of the same
        /// length is still named, when it is a member.
        #[test]
        fn changes_keep_the_owner_before(course in prop::collection::vec(some_backends(), 1..6)) {
            let mut last: Option<Owned> = None;
            for backends in course {
                let next = step(last.as_ref(), &backends);
                prop_assert_eq!(&step(Some(&next), &backends), &next);
                prop_assert_eq!(next.ring().digest(), step(None, &backends).ring().digest());
                for raw in &next.slots {
                    let slot = RingSlot::from_raw(*raw);
                    prop_assert!(usize::from(slot.now.max(slot.before)) < backends.len());
                    prop_assert!(backends[usize::from(slot.now)].1);
                }
                if let Some(last) = last.filter(|last| !last.slots.is_empty() && !next.slots.is_empty()) {
                    let exact = last.slots.len() == next.slots.len() || last.slots.len() == 1;
                    for hash in (0..=u32::MAX).step_by(1 << 22).filter(|_| exact) {
                        let owner = last.owner(hash, now);
                        if backends.iter().any(|(id, _)| *id == owner) {
                            prop_assert!(
                                [next.owner(hash, now), next.owner(hash, before)].contains(&owner)
                            );
                        }
                    }
                }
                last = Some(next);
            }
        }
    }
}
