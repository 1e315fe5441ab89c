//! How far a node takes part in the cluster, as far as the managers know.

use model::{NodeId, object::NodeState};
use store::State;

use crate::tunnel;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is heard of, or was a moment ago.
    Up,
    /// The managers hear nothing of it. Its tasks may live on, and other nodes may reach them.
    Down,
    /// It left or was removed, or has no tunnel address (any more): it is nobody, whatever it sends.
    Gone,
}

pub(crate) fn presence(state: &State, id: NodeId) -> Presence {
    let has_left = || state.cluster().is_some_and(|cluster| cluster.has_left(id));
    let node = state.node(id).filter(|node| node.vtep != tunnel::NONE);
    match node.map(|node| node.status.state) {
        Some(NodeState::Down) if !has_left() => Presence::Down,
        Some(NodeState::Down) | None => Presence::Gone,
        Some(_) => Presence::Up,
    }
}
