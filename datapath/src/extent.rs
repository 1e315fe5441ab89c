//! Ranges of an array map: which are in use, which may be.
//!
//! What is in use is never kept here as a fact of its own: before each plan the allocator is told
//! which ranges the kernel's tables name ([`Extents::settle`]). A range that they name no longer
//! rests until no program that read the old name can still be running, then is free again. So a
//! plan that failed half way, an entry altered by hand and a restart all end in the same state.

use std::{ops::Range, time::Duration};

/// How long a range rests after nothing names it: longer than any program run. At least one later
/// sync must come as well.
pub const GRACE: Duration = Duration::from_secs(1);

/// A point in the life of the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Counts syncs.
    pub sync: u64,
    /// Monotonic.
    pub at: Duration,
}

impl Moment {
    fn is_past_grace_of(self, since: Self) -> bool {
        self.sync > since.sync && self.at.saturating_sub(since.at) >= GRACE
    }
}

/// No run of free indexes is long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted {
    pub wanted: u32,
    pub in_use: u32,
    /// Indexes that rest.
    pub resting: u32,
    pub capacity: u32,
}

/// Allocator of ranges of the indexes `first..end`.
#[derive(Debug, Clone)]
pub struct Extents {
    bounds: Range<u32>,
    in_use: Ranges,
    /// Allocated since the last settling.
    new: Vec<Range<u32>>,
    resting: Vec<(Ranges, Moment)>,
    free: Ranges,
}

impl Extents {
    pub fn new(bounds: Range<u32>) -> Self {
        Self {
            in_use: Ranges::default(),
            new: Vec::new(),
            resting: Vec::new(),
            free: Ranges::from_iter([bounds.clone()]),
            bounds,
        }
    }

    /// Takes note of what the tables name now. Ranges beyond the bounds are cut off.
    pub fn settle(&mut self, named: impl IntoIterator<Item = Range<u32>>, now: Moment) {
        let bounds = Ranges::from_iter([self.bounds.clone()]);
        let named = Ranges::from_iter(named).intersect(&bounds);
        let held = Ranges::from_iter(self.in_use.0.drain(..).chain(self.new.drain(..)));
        let released = held.subtract(&named);
        if !released.is_empty() {
            self.resting.push((released, now));
        }
        self.resting
            .retain(|(_, since)| !now.is_past_grace_of(*since));
        self.in_use = named;
        self.free = self
            .resting
            .iter()
            .fold(bounds.subtract(&self.in_use), |free, (resting, _)| {
                free.subtract(resting)
            });
    }

    /// Ends every rest, and forgets what was allocated since the last settling and never written:
    /// for a caller that has itself waited until no program runs that began before that settling.
    pub fn end_rest(&mut self, now: Moment) {
        self.resting.clear();
        self.new.clear();
        self.settle(self.in_use.0.clone(), now);
    }

    /// First index of a free run of `len` (at least one) indexes, lowest first.
    pub fn allocate(&mut self, len: u32) -> Result<u32, Exhausted> {
        assert!(len > 0, "an empty range has no place");
        let run = self.free.0.iter().find(|run| run.end - run.start >= len);
        let Some(start) = run.map(|run| run.start) else {
            return Err(Exhausted {
                wanted: len,
                in_use: self.in_use.len(),
                resting: self.resting.iter().map(|(ranges, _)| ranges.len()).sum(),
                capacity: self.bounds.end - self.bounds.start,
            });
        };
        self.take(start, len);
        Ok(start)
    }

    fn take(&mut self, start: u32, len: u32) {
        let runs = &mut self.free.0;
        let index = runs
            .iter()
            .position(|run| run.start == start)
            .expect("the caller found the run");
        runs[index].start += len;
        if runs[index].is_empty() {
            runs.remove(index);
        }
        self.new.push(start..start + len);
    }

    pub fn bounds(&self) -> Range<u32> {
        self.bounds.clone()
    }

    /// Indexes named at the last settling.
    pub fn in_use(&self) -> u32 {
        self.in_use.len()
    }
}

/// Disjoint, non-empty, ascending and not adjacent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ranges(Vec<Range<u32>>);

impl FromIterator<Range<u32>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u32>>>(ranges: I) -> Self {
        let mut ranges: Vec<Range<u32>> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl Ranges {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    fn subtract(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut cuts = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while let Some(cut) = cuts.peek() {
                if cut.end <= start {
                    cuts.next();
                    continue;
                }
                if cut.start >= range.end {
                    break;
                }
                if cut.start > start {
                    left.push(start..cut.start);
                }
                start = cut.end;
                if start >= range.end {
                    break;
                }
            }
            if start < range.end {
                left.push(start..range.end);
            }
        }
        Self(left)
    }

    fn intersect(&self, other: &Self) -> Self {
        self.subtract(&self.subtract(other))
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "one range is a case like another"
)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(sync: u64, millis: u64) -> Moment {
        Moment {
            sync,
            at: Duration::from_millis(millis),
        }
    }

    fn indexes(ranges: &Ranges) -> BTreeSet<u32> {
        ranges.0.iter().cloned().flatten().collect()
    }

    #[test]
    fn released_range_rests_for_a_second_and_a_sync() {
        let mut extents = Extents::new(0..8);
        extents.settle([0..8], at(1, 0));
        extents.settle([4..8], at(2, 100));
        assert_eq!(extents.allocate(1).unwrap_err().resting, 4);
        extents.settle([4..8], at(2, 5_000));
        assert!(extents.allocate(1).is_err(), "no later sync yet");
        extents.settle([4..8], at(3, 1_099));
        assert!(extents.allocate(1).is_err(), "not a second yet");
        extents.settle([4..8], at(4, 1_100));
        assert_eq!(extents.allocate(4), Ok(0));
    }

    #[test]
    fn awaited_readers_end_every_rest() {
        let mut extents = Extents::new(0..8);
        extents.settle([0..8], at(1, 0));
        extents.settle([2..8], at(2, 1));
        assert!(extents.allocate(1).is_err());
        extents.end_rest(at(2, 1));
        assert_eq!(extents.allocate(2), Ok(0));
        assert!(extents.allocate(1).is_err());
    }

    #[test]
    fn exhaustion_says_how_full_it_is() {
        let mut extents = Extents::new(1..11);
        extents.settle([1..4, 20..30], at(1, 0));
        assert_eq!(
            extents.allocate(8),
            Err(Exhausted {
                wanted: 8,
                in_use: 3,
                resting: 0,
                capacity: 10
            })
        );
    }

    #[test]
    fn overlapping_names_are_one_range() {
        let mut extents = Extents::new(0..10);
        extents.settle([0..4, 2..6, 6..7], at(1, 0));
        assert_eq!(extents.in_use(), 7);
        assert_eq!(extents.allocate(3), Ok(7));
        assert!(extents.allocate(1).is_err());
    }

    fn some_ranges() -> impl Strategy<Value = Vec<Range<u32>>> {
        prop::collection::vec(
            (0u32..60, 0u32..12).prop_map(|(at, len)| at..at + len),
            0..8,
        )
    }

    proptest! {
        #[test]
        fn set_operations_are_those_of_sets(a in some_ranges(), b in some_ranges()) {
            let (a, b) = (Ranges::from_iter(a), Ranges::from_iter(b));
            let (set_a, set_b) = (indexes(&a), indexes(&b));
            prop_assert_eq!(indexes(&a.subtract(&b)), &set_a - &set_b);
            prop_assert_eq!(indexes(&a.intersect(&b)), &set_a & &set_b);
            prop_assert_eq!(a.len() as usize, set_a.len());
        }

        /// Over any course of syncs, a new range overlaps neither what is named, nor what was named
        /// within the grace, nor another new range.
        #[test]
        fn new_ranges_are_nobodys(
            steps in prop::collection::vec(
                (prop::collection::vec(any::<bool>(), 0..6), prop::collection::vec(1u32..9, 0..5), 0u64..900),
                1..30,
            ),
        ) {
            let mut extents = Extents::new(0..64);
            let mut held: Vec<Range<u32>> = Vec::new();
            let mut past: Vec<(Range<u32>, Moment)> = Vec::new();
            let mut now = at(0, 0);
            for (keep, wanted, wait) in steps {
                now = Moment { sync: now.sync + 1, at: now.at + Duration::from_millis(wait) };
                let mut keep = keep.into_iter();
                held.retain(|range| {
                    let keep = keep.next().unwrap_or(true);
                    if !keep {
                        past.push((range.clone(), now));
                    }
                    keep
                });
                extents.settle(held.iter().cloned(), now);
                for len in wanted {
                    let Ok(start) = extents.allocate(len) else { continue };
                    let new = start..start + len;
                    prop_assert!(new.end <= 64);
                    for other in &held {
                        prop_assert!(new.end <= other.start || other.end <= new.start);
                    }
                    for (other, since) in &past {
                        let apart = new.end <= other.start || other.end <= new.start;
                        prop_assert!(apart || now.is_past_grace_of(*since));
                    }
                    held.push(new);
                }
            }
        }
    }
}
