//! Ranges of an array map: which are in use, which may be.
//!
//! What is in use is told by what the tables name: all of it at once after a look at the kernel
//! ([`Extents::settle`]), or what they name no longer after a plan was carried out
//! ([`Extents::release`]). A released range rests until no program that read the old name can still
//! be running, then is free again. So a plan that failed half way, an entry altered by hand and a
//! restart all end in the same state.

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

/// Allocator of ranges of the indexes `first..end`: those that neither are free nor rest are in use.
#[derive(Debug, Clone)]
pub struct Extents {
    bounds: Range<u32>,
    /// Allocated for the plan in the making.
    new: Vec<Range<u32>>,
    resting: Vec<(Ranges, Moment)>,
    free: Ranges,
}

impl Extents {
    pub fn new(bounds: Range<u32>) -> Self {
        Self {
            new: Vec::new(),
            resting: Vec::new(),
            free: Ranges::from_iter([bounds.clone()]),
            bounds,
        }
    }

    /// Takes note of what the tables name now. Ranges beyond the bounds are cut off.
    pub fn settle(&mut self, named: impl IntoIterator<Item = Range<u32>>, now: Moment) {
        let named = Ranges::from_iter(named);
        let whole = Ranges::from_iter([self.bounds.clone()]);
        let held = self
            .resting
            .iter()
            .fold(whole.subtract(&self.free), |held, (resting, _)| {
                held.subtract(resting)
            });
        let released = held.subtract(&named);
        for (resting, _) in &mut self.resting {
            *resting = resting.subtract(&named);
        }
        self.resting.push((released, now));
        self.free = self
            .resting
            .iter()
            .fold(whole.subtract(&named), |free, (resting, _)| {
                free.subtract(resting)
            });
        self.begin(now);
    }

    /// Takes note of what the tables name no longer; nothing else of theirs is in these ranges.
    pub fn release(&mut self, ranges: impl IntoIterator<Item = Range<u32>>, now: Moment) {
        let ranges = Ranges::from_iter(ranges);
        if !ranges.is_empty() {
            self.resting.push((ranges, now));
        }
    }

    /// A new plan begins: what was allocated for the last one is in use, what rested long is free.
    pub fn begin(&mut self, now: Moment) {
        self.new.clear();
        let rested = self
            .resting
            .extract_if(.., |(_, since)| now.is_past_grace_of(*since));
        let rested: Vec<Range<u32>> = rested.flat_map(|(ranges, _)| ranges.0).collect();
        self.free_up(rested);
        self.resting.retain(|(ranges, _)| !ranges.is_empty());
    }

    /// Ends every rest, and takes back what was allocated since the last beginning and never written:
    /// for a caller that has itself waited until no program runs that began before.
    pub fn end_rest(&mut self) {
        let rested = self.resting.drain(..).flat_map(|(ranges, _)| ranges.0);
        let rested: Vec<Range<u32>> = rested.chain(self.new.drain(..)).collect();
        self.free_up(rested);
    }

    fn free_up(&mut self, ranges: Vec<Range<u32>>) {
        if !ranges.is_empty() {
            self.free = Ranges::from_iter(self.free.0.drain(..).chain(ranges));
        }
    }

    /// First index of a free run of `len` (at least one) indexes, lowest first.
    pub fn allocate(&mut self, len: u32) -> Result<u32, Exhausted> {
        assert!(len > 0, "an empty range has no place");
        let run = self.free.0.iter().find(|run| run.end - run.start >= len);
        let Some(start) = run.map(|run| run.start) else {
            return Err(Exhausted {
                wanted: len,
                in_use: self.in_use(),
                resting: self.resting(),
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

    fn in_use(&self) -> u32 {
        self.bounds.end - self.bounds.start - self.free.len() - self.resting()
    }

    fn resting(&self) -> u32 {
        self.resting.iter().map(|(ranges, _)| ranges.len()).sum()
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
        extents.end_rest();
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
