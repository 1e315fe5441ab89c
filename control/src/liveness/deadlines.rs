//! Until when each node must be heard of. Pure.
//!
//! Somebody looks at a period. When a look comes late, the manager itself did not run meanwhile: beats
//! that came could not be heard, so that time counts against no node.

use std::{collections::HashMap, time::Duration};

use model::NodeId;
use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Deadlines {
    nodes: HashMap<NodeId, Instant>,
    /// When the next look is due.
    next_look: Instant,
}

impl Deadlines {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            nodes: HashMap::new(),
            next_look: now + LOOK,
        }
    }

    /// The node was heard of, and will be again within `grace`.
    pub(crate) fn beat(&mut self, node: NodeId, now: Instant, grace: Duration) {
        // With a look overdue, the rest is added by that look, for all alike.
        self.nodes.insert(node, now.min(self.next_look) + grace);
    }

    /// Puts an expired node back, unless it was heard of in the meantime.
    pub(crate) fn retry(&mut self, node: NodeId, deadline: Instant) {
        self.nodes.entry(node).or_insert(deadline);
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    pub(crate) fn is_watched(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    pub(crate) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// The nodes whose time is over; they are not watched any more. By as much as the look is late all
    /// deadlines are put off.
    pub(crate) fn look(&mut self, now: Instant) -> Vec<NodeId> {
        let late = now.saturating_duration_since(self.next_look);
        for deadline in self.nodes.values_mut() {
            *deadline += late;
        }
        self.next_look = now + LOOK;
        let expired = self.nodes.extract_if(|_, deadline| *deadline <= now);
        expired.map(|(node, _)| node).collect()
    }
}
