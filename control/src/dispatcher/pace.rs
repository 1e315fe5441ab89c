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
    /// Nodes that were waited for in vain. No other move waits for them until they have caught up.
    late: BTreeSet<NodeId>,
}

impl Pace {
    /// Rings move with this version.
    pub(crate) fn moved(&mut self, version: Version, now: Instant) {
        self.moved = version;
        self.deadline = Some(now + PACE_MAX);
    }

    /// Whether rings may move again.
    pub(crate) fn is_open(&self) -> bool {
        self.deadline.is_none()
    }

    /// When to call [`Self::look`] again though nothing was acknowledged.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes note of what each live node has reached. Gives those that are waited for no longer.
    pub(crate) fn look(
        &mut self,
        live: impl Iterator<Item = (NodeId, Version)>,
        now: Instant,
    ) -> Vec<NodeId> {
        let behind: BTreeSet<_> = live
            .filter(|(_, reached)| *reached < self.moved)
            .map(|(node, _)| node)
            .collect();
        self.late.retain(|node| behind.contains(node));
        let Some(deadline) = self.deadline else {
            return Vec::new();
        };
        let waited_for: Vec<_> = behind.difference(&self.late).copied().collect();
        if waited_for.is_empty() {
            self.deadline = None;
            return Vec::new();
        }
        if now < deadline {
            return Vec::new();
        }
        self.deadline = None;
        self.late.extend(&waited_for);
        waited_for
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> [NodeId; 2] {
        [NodeId::from_raw(1), NodeId::from_raw(2)]
    }

    /// What both have reached.
    fn at(first: u64, second: u64) -> impl Iterator<Item = (NodeId, Version)> {
        nodes().into_iter().zip([Version(first), Version(second)])
    }

    #[test]
    fn a_move_waits_until_every_live_node_has_the_last_one() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.is_open());
        pace.moved(Version(7), now);
        assert_eq!(pace.look(at(7, 6), now), []);
        assert!(!pace.is_open());
        assert_eq!(pace.look(at(7, 9), now), []);
        assert!(pace.is_open());
        // A node that went down is not waited for.
        pace.moved(Version(10), now);
        assert_eq!(pace.look(at(10, 9).take(1), now), []);
        assert!(pace.is_open());
    }

    #[test]
    fn a_node_that_hangs_holds_up_one_move_only() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.moved(Version(7), now);
        let deadline = pace.next_deadline().unwrap();
        assert_eq!(pace.look(at(7, 6), deadline - Duration::from_millis(1)), []);
        assert!(!pace.is_open());
        assert_eq!(pace.look(at(7, 6), deadline), [nodes()[1]]);
        assert!(pace.is_open());
        pace.moved(Version(8), deadline);
        assert_eq!(pace.look(at(8, 6), deadline), []);
        assert!(pace.is_open());
        // It caught up, so it is waited for again.
        assert_eq!(pace.look(at(8, 8), deadline), []);
        pace.moved(Version(9), deadline);
        assert_eq!(pace.look(at(9, 8), deadline), []);
        assert!(!pace.is_open());
    }
}
