//! Until when each node must be heard of.

use std::collections::HashMap;

use model::NodeId;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Deadlines(HashMap<NodeId, Instant>);

impl Deadlines {
    pub(crate) fn beat(&mut self, node: NodeId, deadline: Instant) {
        self.0.insert(node, deadline);
    }

    /// Puts an expired node back, unless it was heard of in the meantime.
    pub(crate) fn retry(&mut self, node: NodeId, deadline: Instant) {
        self.0.entry(node).or_insert(deadline);
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    pub(crate) fn is_watched(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    /// The nodes whose time is over; they are not watched any more.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<NodeId> {
        self.0
            .extract_if(|_, deadline| *deadline <= now)
            .map(|(node, _)| node)
            .collect()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }
}
