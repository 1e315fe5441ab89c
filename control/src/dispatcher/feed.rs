//! What one node is to be sent, round by round, for as long as its session goes on. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use model::{
    NetworkId, NodeId, TaskId,
    feed::{Update, ViewKey},
    object::Task,
};
use store::State;

use super::{
    hub::{Round, Work},
    ledger::Ledger,
};
use crate::projection::{Projection, Touch, networks_of_node};

#[derive(Debug)]
pub(crate) struct Feed {
    node: NodeId,
    ledger: Ledger,
    /// Networks that the node takes part in, as of the last round.
    networks: BTreeSet<NetworkId>,
    /// Tasks that the agent was told to stop before this session.
    released: BTreeSet<TaskId>,
    /// Objects that the last update was made from.
    looked_at: usize,
}

impl Feed {
    /// For an agent that says that it holds `known`.
    pub(crate) fn new(node: NodeId, known: Vec<(ViewKey, u64)>) -> Self {
        Self {
            node,
            ledger: Ledger::new(known),
            networks: BTreeSet::new(),
            released: BTreeSet::new(),
            looked_at: 0,
        }
    }

    /// How many objects the last update was made from: with a change, those that it touched.
    pub(crate) fn looked_at(&self) -> usize {
        self.looked_at
    }

    /// The digest of the view that the agent has been sent.
    pub(crate) fn digest(&self) -> u64 {
        self.ledger.digest()
    }

    /// Stops that this manager still holds back, but that the agent says it knows of: a manager
    /// before this one released them. To be asked ahead of the first update.
    pub(crate) fn find_released(&mut self, round: &Round) -> &BTreeSet<TaskId> {
        let nothing_held = BTreeSet::new();
        let networks = networks_of_node(&round.state, self.node);
        let projection = Projection::new(&round.state, self.node, networks, &nothing_held);
        let is_known = |task: &Task| {
            let known = projection.assignment(task);
            known.is_some_and(|object| self.ledger.holds(&object))
        };
        let tasks = round.state.tasks_of_node(self.node);
        let known = tasks.filter(|task| round.held.contains(&task.id) && is_known(task));
        self.released = known.map(|task| task.id).collect();
        &self.released
    }

    /// What takes the node to the round; with nothing in it, it is there.
    pub(crate) fn update(&mut self, round: &Round, work: &Work) -> Update {
        let (state, version) = (&*round.state, round.state.version());
        // What the agent was told once is not taken back.
        let held = match self.released.is_empty() {
            true => Cow::Borrowed(&*round.held),
            false => Cow::Owned(&*round.held - &self.released),
        };
        let touches = match work {
            Work::Touched(touches) => Some(touches),
            Work::All => None,
        };
        let networks = match touches {
            Some(touches) if !self.may_move(state, touches) => self.networks.clone(),
            _ => networks_of_node(state, self.node),
        };
        let is_same_part = networks == self.networks;
        self.networks.clone_from(&networks);
        let projection = Projection::new(state, self.node, networks, &held);
        let mut looked_at = 0;
        let update = match touches.filter(|_| is_same_part) {
            Some(touches) => {
                let objects = touches.iter().flat_map(|touch| projection.touched(*touch));
                let objects = objects.inspect(|_| looked_at += 1);
                self.ledger.update(version, objects)
            }
            None => {
                let objects = projection.objects().inspect(|_| looked_at += 1);
                self.ledger.replace(version, objects)
            }
        };
        self.looked_at = looked_at;
        update
    }

    /// Whether the node may take part in other networks after this.
    fn may_move(&self, state: &State, touches: &BTreeSet<Touch>) -> bool {
        touches.iter().any(|touch| match touch {
            Touch::Task { task: id, .. } => {
                let is_mine = state
                    .task(*id)
                    .is_some_and(|task| task.node == Some(self.node));
                is_mine || self.ledger.contains(ViewKey::Task(*id))
            }
            Touch::Network(_) => true,
            Touch::Cluster | Touch::Peer(_) | Touch::Service(_) => false,
        })
    }
}
