//! Flows that a ring has forgotten.
//!
//! A ring's slot names its owner and the one before. A flow whose owner is neither, because its slot
//! moved more than once, is pinned: the owner's agent finds it in the flow table, every agent is told,
//! and writes it to PINS. What is pinned is what several changes moved, not what flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
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
    sys,
    tables::{Frontend, Port, Published, Tables},
};

impl Datapath {
    /// Live connections to tasks of this node that their ring names neither as now nor as before, in
    /// order.
    pub fn forgotten_flows(&self) -> Result<Vec<Pin>, DatapathError> {
        let flows = self.maps.connections()?;
        if flows.is_empty() {
            return Ok(Vec::new());
        }
        let tables = self.maps.observe()?;
        let now = sys::monotonic();
        let live = flows
            .iter()
            .filter(|(key, flow)| is_live(key.proto, flow, now));
        let forgotten = live.filter(|(key, flow)| is_forgotten(&tables, key, flow));
        let pins = forgotten.map(|(key, flow)| Pin {
            client: SocketAddrV4::new(key.client.into(), key.client_port.to_host()),
            frontend: SocketAddrV4::new(flow.node_addr.into(), flow.published.to_host()),
            endpoint: EndpointId(flow.endpoint),
        });
        let mut pins: Vec<Pin> = pins.collect();
        pins.sort_unstable();
        if pins.len() > PINS_PER_NODE_MAX {
            warn!(
                pins = pins.len(),
                "too many flows live through several changes; those beyond {PINS_PER_NODE_MAX} are cut"
            );
            pins.truncate(PINS_PER_NODE_MAX);
        }
        Ok(pins)
    }

    /// Makes PINS hold `pins`, by their owners' nodes, and nothing else.
    pub fn pin(
        &mut self,
        pins: &BTreeMap<NodeId, Vec<Pin>>,
        view: &NodeView,
        own: NodeId,
    ) -> Result<(), DatapathError> {
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
            wanted.extend(pins.iter().map(|pin| {
                let value = PinValue {
                    endpoint: pin.endpoint.0,
                    vtep,
                };
                (key_parts(pin), value)
            }));
        }
        self.maps.set_pins(&wanted)
    }

    /// What PINS holds, by the owners' nodes: pins outlive the agent.
    pub fn pins(
        &self,
        view: &NodeView,
        own: NodeId,
    ) -> Result<BTreeMap<NodeId, Vec<Pin>>, DatapathError> {
        let mut by_node: BTreeMap<NodeId, Vec<Pin>> = BTreeMap::new();
        for (key, value) in self.maps.pins()? {
            let mut peers = view.peers.values();
            let node = match value.vtep.is_zero() {
                true => Some(own),
                false => peers
                    .find(|peer| peer.vtep == Ipv4Addr::from(value.vtep))
                    .map(|peer| peer.node),
            };
            let (client, frontend) = pin_order(&key);
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

fn is_forgotten(tables: &Tables, key: &FlowKey, flow: &FlowValue) -> bool {
    let owners = owners(tables, key, flow);
    owners.is_some_and(|owners| !owners.contains(&flow.endpoint))
}

/// Endpoints that the flow's slot names; `None` when its port is published no more.
fn owners(tables: &Tables, key: &FlowKey, flow: &FlowValue) -> Option<BTreeSet<u32>> {
    let at = Published::everywhere(Port {
        proto: key.proto,
        number: flow.published.to_host(),
    });
    let own = Published {
        addr: flow.node_addr.into(),
        ..at
    };
    let of = |at| tables.services.get(&Frontend::Published(at));
    let service = of(own).or_else(|| of(at))?;
    let (slots, backends) = (tables.slots(service)?, tables.backends(service)?);
    let tuple = FlowTuple {
        src: key.client,
        src_port: key.client_port,
        dst_port: flow.published,
        proto: key.proto,
    };
    let hash = service.hash(tuple, tables.config.ring_seed);
    if slots.is_empty() {
        return Some(BTreeSet::new());
    }
    let slot = RingSlot::from_raw(*slots.get(ring_slot(hash, slots.len() as u32) as usize)?);
    let names = [slot.now, slot.before].into_iter();
    let names = names.filter_map(|index| backends.get(usize::from(index)));
    Some(names.map(|backend| backend.endpoint).collect())
}
