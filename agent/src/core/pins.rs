//! Flows that changes displaced: found here, told to all nodes, and those of all nodes in the maps.
//!
//! To find them, the flow tables are read whole, on another thread. A search sees each flow that was
//! there when it began. Of those that begin meanwhile it may miss any, as of those that begin after it:
//! they are where the ring of now has them, or a node that is behind sent them, and they are found by
//! the search after the last node is in step; or they avoid a node that is doubted, and are found
//! within five seconds and one search. So who waits for pins waits for a search that began after what
//! he asks about, and not for one that was under way already. Until then, packets of unknown flows are
//! dropped in silence, as they are after a change, and the view is not acknowledged.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use datapath::FlowSearch;
use model::{
    NodeId, Version,
    feed::{AgentMessage, NodeView, Pin},
};
use tracing::{debug, error};

use super::{Core, aside::Aside};

/// From the moment that all nodes have a change to the end of its consequences: flows that other
/// nodes opened by the ring before are told of meanwhile.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Default)]
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
    pub(super) search: Aside<Vec<Pin>>,
    pub(super) waits: Waits,
}

impl PinBook {
    /// Every node has the rings of this one.
    fn is_settled(&self) -> bool {
        self.settled >= self.moved
    }
}

/// What waits for searches.
#[derive(Default)]
pub(super) struct Waits {
    /// For the one that is under way.
    awaited: Option<Wait>,
    /// For the next one, which begins when that one is over.
    asked: Option<Wait>,
}

/// What follows a search.
#[derive(Debug, Default, PartialEq)]
struct Wait {
    /// This view is acknowledged, and with it all before.
    acknowledges: Option<Arc<NodeView>>,
    /// Packets of unknown flows are refused again, once every node is in step.
    settles: bool,
}

impl Waits {
    /// A search is to begin from now on.
    fn ask(&mut self, settles: bool) {
        self.asked.get_or_insert_default().settles |= settles;
    }

    /// Makes the acknowledgement of `view` wait for the last search that was asked for. Gives it back
    /// when there is none.
    pub(super) fn put_off(&mut self, view: Arc<NodeView>) -> Option<Arc<NodeView>> {
        match self.asked.as_mut().or(self.awaited.as_mut()) {
            Some(wait) => {
                wait.acknowledges = Some(view);
                None
            }
            None => Some(view),
        }
    }

    /// A search begins.
    fn begin(&mut self) {
        self.awaited = self.asked.take();
    }

    /// It is over.
    fn end(&mut self) -> Wait {
        self.awaited.take().unwrap_or_default()
    }
}

impl Core {
    /// Has displaced flows looked for; a search that is under way is as good as another.
    pub(super) fn look_for_flows(&mut self) {
        if self.pins.search.is_idle() {
            self.begin_search();
        }
    }

    /// Has displaced flows looked for as they are from now on.
    fn ask_for_search(&mut self, settles: bool) {
        self.pins.waits.ask(settles);
        self.look_for_flows();
    }

    fn begin_search(&mut self) {
        self.pins.waits.begin();
        match self.search() {
            Ok(search) => self.pins.search.begin(|| search.make()),
            Err(err) => self.heed_flows(Err(err)),
        }
    }

    fn search(&mut self) -> Result<FlowSearch> {
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
        let keep = match self.pins.is_settled() {
            true => Vec::new(),
            false => self.pins.by_node.get(&own).cloned().unwrap_or_default(),
        };
        Ok(self.datapath.flow_search(keep))
    }

    /// A search is over: tells of the flows, and goes on with what waited for that.
    pub(super) fn heed_flows(&mut self, found: Result<Vec<Pin>>) {
        if let Err(err) = found.and_then(|found| self.tell_pins(found)) {
            error!("flows may end at the next change: {err:#}");
        }
        let Wait {
            acknowledges,
            settles,
        } = self.pins.waits.end();
        if settles && self.pins.is_settled() {
            self.settle_in();
        }
        if let Some(view) = acknowledges {
            self.acknowledge(view);
        }
        if self.pins.waits.asked.is_some() {
            self.begin_search();
        }
    }

    /// Tells of this node's displaced flows, if they are others than before.
    fn tell_pins(&mut self, found: Vec<Pin>) -> Result<()> {
        let known = self.pins.by_node.entry(self.local.node).or_default();
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

    /// A change of rings is in the maps. Where every node is in step after the search, it was a matter of
    /// this node alone, such as a task that is gone: nobody is behind.
    pub(super) fn rings_changed(&mut self) {
        self.pins.moved = self.view.version;
        self.ask_for_search(true);
    }

    /// The managers may have lost what they were told.
    pub(super) fn repeat_pins(&mut self) {
        self.pins.is_told = false;
        self.ask_for_search(false);
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
        if !was_settled && self.pins.is_settled() {
            // Once more: nodes that were behind have sent new flows here by their old rings.
            self.ask_for_search(true);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(version: u64) -> Arc<NodeView> {
        Arc::new(NodeView {
            version: Version(version),
            ..NodeView::default()
        })
    }

    fn acknowledged(wait: &Wait) -> Option<u64> {
        let view = wait.acknowledges.as_ref();
        view.map(|view| view.version.0)
    }

    /// As its pins may be lacking, and so for whatever the view says by then.
    #[test]
    fn view_is_acknowledged_after_a_search_that_began_after_its_rings_moved() {
        let mut waits = Waits::default();
        waits.begin();
        waits.ask(true);
        assert_eq!(waits.put_off(view(1)), None);
        let under_way = waits.end();
        assert_eq!(acknowledged(&under_way), None, "it began before");
        waits.begin();
        // The next one moves no ring, and still comes after the first one.
        assert_eq!(waits.put_off(view(2)), None);
        // The one after that does.
        waits.ask(true);
        assert_eq!(waits.put_off(view(3)), None);
        assert_eq!(acknowledged(&waits.end()), Some(2));
        waits.begin();
        let last = waits.end();
        assert_eq!((acknowledged(&last), last.settles), (Some(3), true));
    }

    /// Searches that come of themselves hold nobody up.
    #[test]
    fn view_that_moves_no_ring_waits_for_nothing() {
        let mut waits = Waits::default();
        waits.begin();
        assert_eq!(waits.put_off(view(1)), Some(view(1)));
        assert_eq!(waits.end(), Wait::default());
    }
}
