//! Flows that changes displaced: found here, told to all nodes, and those of all nodes in the maps.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use model::{
    NodeId, Version,
    feed::{AgentMessage, Pin},
};
use tracing::{debug, error};

use super::Core;

/// From the moment that all nodes have a change to the end of its consequences: flows that other
/// nodes opened by the ring before are told of meanwhile.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct PinBook {
    /// By the node of the owner, this one included.
    by_node: BTreeMap<NodeId, Vec<Pin>>,
    /// What a former agent left in the map is among them.
    is_loaded: bool,
    /// The managers have heard of this node's.
    is_told: bool,
    /// The view's version when rings last moved here.
    moved: Version,
    /// What every node has applied, as far as this one has heard.
    settled: Version,
}

impl PinBook {
    /// Every node has the rings of this one.
    fn is_settled(&self) -> bool {
        self.settled >= self.moved
    }
}

impl Core {
    /// Looks for displaced flows, and tells of them if there are others than before.
    pub(super) fn tell_pins(&mut self) {
        if let Err(err) = self.find_pins() {
            error!("flows may end at the next change: {err:#}");
        }
    }

    fn find_pins(&mut self) -> Result<()> {
        let own = self.local.node;
        if !self.pins.is_loaded {
            self.pins.by_node = self.datapath.pins(&self.view, own)?;
            self.pins
                .by_node
                .values_mut()
                .for_each(|pins| pins.sort_unstable());
            // Whatever the former agent heard: those pins stay until every node has this view.
            self.pins.moved = self.view.version;
            self.pins.is_loaded = true;
        }
        let is_settled = self.pins.is_settled();
        let known = self.pins.by_node.entry(own).or_default();
        let keep = if is_settled { &[] } else { &known[..] };
        let found = tokio::task::block_in_place(|| self.datapath.displaced_flows(keep))?;
        let is_news = *known != found;
        if is_news {
            debug!(flow.displaced = found.len(), "flows that changes displaced");
            known.clone_from(&found);
        }
        self.write_pins()?;
        if is_news || !self.pins.is_told {
            self.pins.is_told = true;
            self.say(AgentMessage::Pins(found));
        }
        Ok(())
    }

    /// A change of rings is in the maps.
    pub(super) fn rings_changed(&mut self) {
        self.pins.moved = self.view.version;
        self.tell_pins();
        if self.pins.is_settled() {
            // A matter of this node alone, such as a task that is gone: nobody is behind.
            self.settle_in();
        }
    }

    /// The managers may have lost what they were told.
    pub(super) fn repeat_pins(&mut self) {
        self.pins.is_told = false;
        self.tell_pins();
    }

    pub(super) fn hear_pins(&mut self, node: NodeId, pins: Vec<Pin>) {
        self.pins.by_node.insert(node, pins);
        if let Err(err) = self.write_pins() {
            error!("flows may end at the next change: {err:#}");
        }
    }

    /// Every node has applied `version`.
    pub(super) fn hear_settled(&mut self, version: Version) {
        let was_settled = self.pins.is_settled();
        self.pins.settled = version.max(self.pins.settled);
        if was_settled || !self.pins.is_settled() {
            return;
        }
        // Once more: nodes that were behind have sent new flows here by their old rings.
        self.tell_pins();
        self.settle_in();
    }

    fn settle_in(&mut self) {
        if let Err(err) = self.datapath.settle_in(SETTLE) {
            error!("connections that nobody has are not refused yet: {err:#}");
        }
    }

    fn write_pins(&mut self) -> Result<()> {
        let own = self.local.node;
        let (pins, view) = (&self.pins.by_node, &self.view);
        tokio::task::block_in_place(|| self.datapath.pin(pins, view, own))?;
        Ok(())
    }
}
