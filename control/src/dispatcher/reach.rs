//! How far the nodes are, and how far all live ones: kept up to date node by node, so that neither an
//! acknowledgement nor a round looks at them all. Pure.

use std::collections::{BTreeMap, HashMap};

use model::{NodeId, Version, object::NodeState};
use store::State;

#[derive(Debug, Default)]
pub(super) struct Reach {
    /// What each node acknowledged, and whether it counts. Of nodes that are down, too: what is in a
    /// kernel stays there.
    nodes: HashMap<NodeId, Node>,
    /// How many live nodes are at each version.
    live: BTreeMap<Version, usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Node {
    reached: Version,
    is_live: bool,
}

impl Reach {
    /// What the node has reached; 0 when it has not been heard of.
    pub(super) fn of(&self, node: NodeId) -> Version {
        self.nodes.get(&node).copied().unwrap_or_default().reached
    }

    /// The lowest version that any live node has reached. With none there is nobody to wait for.
    pub(super) fn of_all(&self) -> Version {
        let lowest = self.live.first_key_value();
        lowest.map_or(Version(u64::MAX), |(version, _)| *version)
    }

    /// The node, if it is one, has reached `version`.
    pub(super) fn ack(&mut self, node: NodeId, version: Version) {
        let Some(before) = self.nodes.get(&node).copied() else {
            return;
        };
        let reached = before.reached.max(version);
        self.set(node, Node { reached, ..before });
    }

    /// Looks at all nodes anew.
    pub(super) fn follow_all(&mut self, state: &State) {
        let known = self.nodes.keys().copied();
        let nodes: Vec<_> = known.chain(state.nodes().map(|node| node.id)).collect();
        nodes.into_iter().for_each(|node| self.follow(state, node));
    }

    /// The node may have come, gone, or changed between live and down in `state`.
    pub(super) fn follow(&mut self, state: &State, node: NodeId) {
        let before = self.nodes.get(&node).copied().unwrap_or_default();
        match state.node(node) {
            Some(stored) => {
                let is_live = stored.status.state != NodeState::Down;
                self.set(node, Node { is_live, ..before });
            }
            None => {
                self.set(node, Node::default());
                self.nodes.remove(&node);
            }
        }
    }

    fn set(&mut self, id: NodeId, node: Node) {
        let before = self.nodes.insert(id, node).unwrap_or_default();
        if before == node {
            return;
        }
        if before.is_live
            && let Some(count) = self.live.get_mut(&before.reached)
        {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&before.reached);
            }
        }
        if node.is_live {
            *self.live.entry(node.reached).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{World, node};

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ack(u64),
        Down,
        Up,
        Gone,
    }

    fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
        let event = prop_oneof![
            4 => (1..20u64).prop_map(Event::Ack),
            1 => Just(Event::Down),
            1 => Just(Event::Up),
            1 => Just(Event::Gone),
        ];
        prop::collection::vec((0..4usize, event), 0..60)
    }

    proptest! {
        #[test]
        fn the_lowest_is_what_a_look_at_all_live_nodes_finds(events in events()) {
            let mut world = World::new();
            let nodes: Vec<_> = (0..4).map(|_| node("one")).collect();
            let (mut reach, mut acked) = (Reach::default(), HashMap::new());
            for (which, event) in events {
                let id = nodes[which].id;
                match event {
                    Event::Ack(version) => {
                        reach.ack(id, Version(version));
                        if world.state.node(id).is_some() {
                            let acked: &mut Version = acked.entry(id).or_default();
                            *acked = Version(version).max(*acked);
                        }
                    }
                    Event::Gone => {
                        world.write(|tx| tx.remove(store::Key::Node(id)));
                        acked.remove(&id);
                    }
                    Event::Down | Event::Up => world.write(|tx| {
                        let stored = tx.state().node(id).map(|node| (**node).clone());
                        let mut node = stored.unwrap_or_else(|| nodes[which].clone());
                        node.status.state = match event {
                            Event::Down => NodeState::Down,
                            _ => NodeState::Ready,
                        };
                        tx.put(node).unwrap();
                    }),
                }
                reach.follow(&world.state, id);
                let live = world.state.nodes().filter(|n| n.status.state != NodeState::Down);
                let live: HashMap<_, _> = live
                    .map(|node| (node.id, acked.get(&node.id).copied().unwrap_or_default()))
                    .collect();
                let lowest = live.values().min().copied();
                prop_assert_eq!(reach.of_all(), lowest.unwrap_or(Version(u64::MAX)));
                let mut anew = Reach::default();
                anew.follow_all(&world.state);
                acked.iter().for_each(|(id, version)| anew.ack(*id, *version));
                prop_assert_eq!(anew.of_all(), reach.of_all());
            }
        }
    }
}
