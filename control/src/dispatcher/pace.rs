//! When rings may move again. A slot of a ring names its owner and the one before, so a connection
//! outlives one move by the rings alone. Before the next one, those that the last one moved have to be
//! pinned everywhere (docs/decisions/0006), and are as soon as every node has acknowledged it: so the
//! next one waits for that. Pure; the rounds feed it.

use std::{collections::BTreeSet, time::Duration};

use model::{NodeId, Version};
use tokio::time::Instant;

/// How long a move waits for the last one to be everywhere.
pub(crate) const PACE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The last version that moved rings.
    moved: Version,
    /// Until it is everywhere: how long it may take.
    deadline: Option<Instant>,
    /// Nodes that are waited for until then, unless they have it by now or went down. A look asks for
    /// one after the other, and ends at the first that has to be waited for: so each is asked for but
    /// once, however many acknowledge.
    waiting: BTreeSet<NodeId>,
    /// Nodes that were waited for in vain. No other move waits for them until they have caught up.
    late: BTreeSet<NodeId>,
}

impl Pace {
    /// Rings move with this version; `live` is what each live node has reached. One that comes later
    /// begins with all that there is by then.
    pub(crate) fn moved(
        &mut self,
        version: Version,
        live: impl Iterator<Item = (NodeId, Version)>,
        now: Instant,
    ) {
        let (mut late, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        for (node, reached) in live.filter(|(_, reached)| *reached < version) {
            let is_late = self.late.contains(&node) && reached < self.moved;
            let nodes = if is_late { &mut late } else { &mut waiting };
            nodes.insert(node);
        }
        *self = Self {
            moved: version,
            deadline: Some(now + PACE_MAX),
            waiting,
            late,
        };
    }

    /// Whether rings may move again.
    pub(crate) fn is_open(&self) -> bool {
        self.deadline.is_none()
    }

    /// When to call [`Self::look`] again though nothing was acknowledged.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes note of what was acknowledged: `reached` is what a node has reached, `None` of one that is
    /// not live. Gives those that are waited for no longer.
    pub(crate) fn look(
        &mut self,
        reached: impl Fn(NodeId) -> Option<Version>,
        now: Instant,
    ) -> Vec<NodeId> {
        let Some(deadline) = self.deadline else {
            return Vec::new();
        };
        let moved = self.moved;
        let is_behind = |node: NodeId| reached(node).is_some_and(|reached| reached < moved);
        while let Some(first) = self.waiting.first() {
            if is_behind(*first) {
                break;
            }
            self.waiting.pop_first();
        }
        if self.waiting.is_empty() {
            self.deadline = None;
            return Vec::new();
        }
        if now < deadline {
            return Vec::new();
        }
        self.deadline = None;
        let waited_for = std::mem::take(&mut self.waiting).into_iter();
        let waited_for: Vec<_> = waited_for.filter(|node| is_behind(*node)).collect();
        self.late.extend(&waited_for);
        waited_for
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn nodes() -> [NodeId; 2] {
        [NodeId::from_raw(1), NodeId::from_raw(2)]
    }

    /// What both have reached.
    fn all(first: u64, second: u64) -> impl Iterator<Item = (NodeId, Version)> {
        nodes().into_iter().zip([Version(first), Version(second)])
    }

    fn at(first: u64, second: u64) -> impl Fn(NodeId) -> Option<Version> {
        move |wanted| {
            let mut all = all(first, second);
            all.find_map(|(node, version)| (node == wanted).then_some(version))
        }
    }

    #[test]
    fn a_move_waits_until_every_live_node_has_the_last_one() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.is_open());
        pace.moved(Version(7), all(6, 6), now);
        assert_eq!(pace.look(at(7, 6), now), []);
        assert!(!pace.is_open());
        assert_eq!(pace.look(at(7, 9), now), []);
        assert!(pace.is_open());
        // A node that went down is not waited for.
        pace.moved(Version(10), all(9, 9), now);
        let second_is_down = |node| at(10, 9)(node).filter(|_| node == nodes()[0]);
        assert_eq!(pace.look(second_is_down, now), []);
        assert!(pace.is_open());
    }

    #[test]
    fn a_node_that_hangs_holds_up_one_move_only() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.moved(Version(7), all(6, 6), now);
        let deadline = pace.next_deadline().unwrap();
        assert_eq!(pace.look(at(7, 6), deadline - Duration::from_millis(1)), []);
        assert!(!pace.is_open());
        assert_eq!(pace.look(at(7, 6), deadline), [nodes()[1]]);
        assert!(pace.is_open());
        pace.moved(Version(8), all(7, 6), deadline);
        assert_eq!(pace.look(at(8, 6), deadline), []);
        assert!(pace.is_open());
        // It caught up, so it is waited for again.
        pace.moved(Version(9), all(8, 8), deadline);
        assert_eq!(pace.look(at(9, 8), deadline), []);
        assert!(!pace.is_open());
    }

    /// In the order that is worst for a look: each acknowledgement is that of the node that was found
    /// to be behind.
    #[test]
    fn what_acknowledgements_cost_grows_with_their_number_alone() {
        const NODES: u128 = 1000;
        for is_backwards in [false, true] {
            let (mut pace, now) = (Pace::default(), Instant::now());
            let ids: Vec<_> = (1..=NODES).map(NodeId::from_raw).collect();
            pace.moved(Version(7), ids.iter().map(|id| (*id, Version(6))), now);
            let (asked, acked) = (Cell::new(0), Cell::new(0));
            let reached = |node: NodeId| {
                asked.set(asked.get() + 1);
                let place = match is_backwards {
                    false => node.raw(),
                    true => NODES + 1 - node.raw(),
                };
                Some(Version(if place <= acked.get() { 7 } else { 6 }))
            };
            for count in 1..=NODES {
                acked.set(count);
                assert_eq!(pace.look(reached, now), []);
                assert_eq!(pace.is_open(), count == NODES);
            }
            assert!(asked.get() <= 2 * NODES, "{} nodes asked for", asked.get());
        }
    }
}
