//! Flows that a change of their ring displaced.
//!
//! A ring's slot names its owner and the one before. Nodes that skip versions have changed from
//! another ring, so the one before is not the same for all, and a slot that moves again forgets it. A
//! flow whose owner is not the slot's of now is therefore pinned: the owner's agent finds it in the
//! flow table, every agent is told, and writes it to PINS, in general long before the next change.
//! What is pinned is what changes moved, not what flows.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use dataplane_abi::{
    Be16, Be32, FlowKey, FlowValue, PinKey, PinValue, RingSlot,
    hash::{FlowTuple, ring_slot},
};
use model::{
    EndpointId, NodeId,
    feed::{NodeView, PINS_PER_NODE_MAX, Pin},
    spec::Protocol,
};
use tracing::warn;

use crate::{
    datapath::Datapath,
    error::DatapathError,
    inspect::is_live,
    maps::Maps,
    sys,
    tables::{Frontend, Port, Published, Tables},
};

impl Datapath {
    /// A search for displaced flows by the rings of now, which may be made on another thread while syncs
    /// go on here. Pins of `told`, which are in order, stay as long as their flows live: nodes that are
    /// behind may need them, though by the ring of now the flows are where they should be.
    pub fn flow_search(&self, told: Vec<Pin>) -> FlowSearch {
        let recorded = self.recorded.as_ref();
        FlowSearch {
            maps: Arc::clone(&self.maps_to_look_at),
            tables: recorded.map(|recorded| recorded.tables().clone()),
            told,
        }
    }

    /// Makes PINS hold `pins`, by their owners' nodes, and nothing else: by what it was last made to
    /// hold, as nobody else writes there, and by a look the first time, and after an error or an
    /// alteration by others ([`Self::is_altered`]).
    pub fn pin(
        &mut self,
        pins: &BTreeMap<NodeId, Vec<Pin>>,
        view: &NodeView,
        own: NodeId,
    ) -> Result<(), DatapathError> {
        let wanted = wanted(pins, view, own);
        let present = match self.pinned.take() {
            Some(present) => present,
            None => Arc::new(self.maps.pins()?),
        };
        self.maps.set_pins(&present, &wanted)?;
        self.pinned = Some(Arc::new(wanted));
        Ok(())
    }

    /// What PINS holds, by the owners' nodes: pins outlive the agent.
    pub fn pins(
        &self,
        view: &NodeView,
        own: NodeId,
    ) -> Result<BTreeMap<NodeId, Vec<Pin>>, DatapathError> {
        let mut by_node: BTreeMap<NodeId, Vec<Pin>> = BTreeMap::new();
        for ((client, frontend), value) in self.maps.pins()? {
            let mut peers = view.peers.values();
            let node = match value.vtep.is_zero() {
                true => Some(own),
                false => peers
                    .find(|peer| peer.vtep == Ipv4Addr::from(value.vtep))
                    .map(|peer| peer.node),
            };
            if let Some(node) = node {
                by_node.entry(node).or_default().push(Pin {
                    client,
                    frontend,
                    endpoint: EndpointId(value.endpoint),
                });
            }
        }
        Ok(by_node)
    }

    /// Packets of unknown flows are dropped, and not refused, for `more` from now.
    pub fn settle_in(&mut self, more: Duration) -> Result<(), DatapathError> {
        self.maps.set_unsettled(more)
    }
}

/// What PINS is to hold. Nobody hears of the flows of a node that is down any more: they end with their
/// endpoints, which stay in the view as long as they may be there.
fn wanted(
    pins: &BTreeMap<NodeId, Vec<Pin>>,
    view: &NodeView,
    own: NodeId,
) -> BTreeMap<PinOrder, PinValue> {
    let mut wanted = BTreeMap::new();
    for (node, pins) in pins {
        let Some(peer) = view.peers.get(node) else {
            continue;
        };
        let vtep = if *node == own {
            Be32::ZERO
        } else {
            peer.vtep.into()
        };
        let may_live = |pin: &&Pin| peer.up || view.endpoints.contains_key(&pin.endpoint);
        wanted.extend(pins.iter().filter(may_live).map(|pin| {
            let value = PinValue {
                endpoint: pin.endpoint.0,
                vtep,
            };
            (key_parts(pin), value)
        }));
    }
    wanted
}

/// A search that is to be made: it reads the flow tables whole.
pub struct FlowSearch {
    maps: Arc<Maps>,
    /// As it begins; absent while nothing is recorded.
    tables: Option<Tables>,
    told: Vec<Pin>,
}

impl FlowSearch {
    /// Live connections to tasks of this node that are not of the slot's owner of now, in order. Of more
    /// than can be told, those that need it most.
    pub fn make(self) -> Result<Vec<Pin>, DatapathError> {
        let flows = self.maps.connections()?;
        if flows.is_empty() {
            return Ok(Vec::new());
        }
        let tables = match self.tables {
            Some(tables) => tables,
            None => self.maps.observe()?,
        };
        let now = sys::monotonic();
        let live = flows
            .iter()
            .filter(|(key, flow)| is_live(key.proto, flow, now));
        let displaced = live.filter_map(|(key, flow)| {
            let owners = owners(&tables, key, flow)?;
            let pin = Pin {
                client: SocketAddrV4::new(
                    key.client.into(),
                    flow.client_port(key.client_port).to_host(),
                ),
                frontend: SocketAddrV4::new(flow.node_addr.into(), flow.published.to_host()),
                endpoint: EndpointId(flow.endpoint),
            };
            let is_told = || self.told.binary_search(&pin).is_ok();
            Some((Need::of(flow.endpoint, owners, is_told)?, pin))
        });
        let displaced: Vec<_> = displaced.collect();
        if displaced.len() > PINS_PER_NODE_MAX {
            warn!(
                flow.displaced = displaced.len(),
                "only {PINS_PER_NODE_MAX} of the flows that changes displaced outlive the next ones"
            );
        }
        Ok(most_needed(displaced, PINS_PER_NODE_MAX))
    }
}

/// What a flow is without its pin, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Lost: its slot names others.
    Lost,
    /// Lost at the next move of its slot.
    LostNext,
    /// Lost to nodes that are behind, if at all.
    LostToSome,
}

impl Need {
    /// Of a flow that `endpoint` has, by the owners that its slot names, of now and before. `None`: it
    /// needs no pin.
    fn of(
        endpoint: u32,
        [owner, before]: [u32; 2],
        is_told: impl FnOnce() -> bool,
    ) -> Option<Self> {
        match endpoint {
            _ if endpoint == owner => is_told().then_some(Self::LostToSome),
            _ if endpoint == before => Some(Self::LostNext),
            _ => Some(Self::Lost),
        }
    }
}

/// Of more than `most` those that need it most; in order of pins, each once.
fn most_needed(mut displaced: Vec<(Need, Pin)>, most: usize) -> Vec<Pin> {
    displaced.sort_unstable();
    displaced.dedup();
    displaced.truncate(most);
    let mut pins: Vec<_> = displaced.into_iter().map(|(_, pin)| pin).collect();
    pins.sort_unstable();
    pins
}

/// A [`PinKey`] that can be ordered.
pub(crate) type PinOrder = (SocketAddrV4, SocketAddrV4);

fn key_parts(pin: &Pin) -> PinOrder {
    (pin.client, pin.frontend)
}

pub(crate) fn pin_key((client, frontend): PinOrder) -> PinKey {
    PinKey {
        client: (*client.ip()).into(),
        node_addr: (*frontend.ip()).into(),
        client_port: Be16::from_host(client.port()),
        published: Be16::from_host(frontend.port()),
        proto: Protocol::Tcp.number(),
        _pad: 0,
        _pad2: 0,
    }
}

pub(crate) fn pin_order(key: &PinKey) -> PinOrder {
    let socket = |addr: Be32, port: Be16| SocketAddrV4::new(addr.into(), port.to_host());
    (
        socket(key.client, key.client_port),
        socket(key.node_addr, key.published),
    )
}

/// Endpoints that the flow's slot names, of now and before; `None` when its port is published no
/// more.
fn owners(tables: &Tables, key: &FlowKey, flow: &FlowValue) -> Option<[u32; 2]> {
    let port = Port {
        proto: key.proto,
        number: flow.published.to_host(),
    };
    let of = |addr| {
        let at = Published {
            addr,
            ..Published::everywhere(port)
        };
        tables.services.get(&Frontend::Published(at))
    };
    let service = of(flow.node_addr.into()).or_else(|| of(Ipv4Addr::UNSPECIFIED))?;
    let (slots, backends) = (tables.slots(service)?, tables.backends(service)?);
    let tuple = FlowTuple {
        src: key.client,
        src_port: flow.client_port(key.client_port),
        dst_port: flow.published,
        proto: key.proto,
    };
    let hash = service.hash(tuple, tables.config.ring_seed);
    let slot = slots.get(ring_slot(hash, slots.len() as u32) as usize)?;
    let slot = RingSlot::from_raw(*slot);
    let endpoint = |index: u16| Some(backends.get(usize::from(index))?.endpoint);
    Some([endpoint(slot.now)?, endpoint(slot.before)?])
}

#[cfg(test)]
mod tests {
    use model::{
        ServiceId, TaskId,
        feed::{BackendState, EndpointView, PeerView, ViewObject},
    };

    use super::*;

    #[test]
    fn pins_of_a_node_that_is_down_go_with_their_endpoints() {
        let (own, other) = (NodeId::from_raw(1), NodeId::from_raw(2));
        let pin = |endpoint: u16| Pin {
            client: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 4_000 + endpoint),
            frontend: "192.0.2.1:8080".parse().unwrap(),
            endpoint: EndpointId(endpoint.into()),
        };
        let pins = [(other, vec![pin(1), pin(2)])].into();
        let kept = |view: &NodeView| -> Vec<u32> {
            let wanted = wanted(&pins, view, own);
            wanted.values().map(|value| value.endpoint).collect()
        };
        let peer = |up| {
            ViewObject::Peer(PeerView {
                node: other,
                hostname: "other".to_owned(),
                vtep: Ipv4Addr::new(192, 0, 2, 2),
                up,
            })
        };
        let mut view = NodeView::default();
        assert!(kept(&view).is_empty(), "it left");
        view.put(peer(true));
        view.put(ViewObject::Endpoint(EndpointView {
            id: EndpointId(2),
            task: TaskId::from_raw(2),
            task_name: "web.2".to_owned(),
            service: ServiceId::from_raw(1),
            slot: Some(2),
            node: other,
            addresses: Vec::new(),
            state: BackendState::Draining,
            weight: 1,
        }));
        assert_eq!(kept(&view), [1, 2], "the view may be behind");
        view.put(peer(false));
        assert_eq!(kept(&view), [2]);
    }

    /// In the order of what is lost without them, not of when the change was or of their clients.
    #[test]
    fn pins_that_nothing_else_replaces_are_the_last_to_be_cut() {
        let pin = |port| Pin {
            client: format!("203.0.113.9:{port}").parse().unwrap(),
            frontend: "192.0.2.1:8080".parse().unwrap(),
            endpoint: EndpointId(7),
        };
        let told = || true;
        let needs =
            [[7, 9], [9, 7], [9, 9], [7, 7], [8, 9]].map(|owners| Need::of(7, owners, told));
        let displaced: Vec<_> = needs
            .into_iter()
            .map(Option::unwrap)
            .zip((1..).map(pin))
            .collect();
        let kept = |most| most_needed(displaced.clone(), most);
        assert_eq!(kept(2), [3, 5].map(pin));
        assert_eq!(kept(3), [2, 3, 5].map(pin));
        assert_eq!(kept(9), [1, 2, 3, 4, 5].map(pin));
        assert_eq!(Need::of(7, [7, 9], || false), None, "nobody was told of it");
    }
}
