//! Who may have an established flow that is not known where its packet was sent.

use dataplane_abi::{BackendValue, Be32, NodeConfig, PinKey, ServiceValue};

use crate::{maps::PINS, mesh::Arrival, packet::Packet, service};

/// Who may have a flow.
#[derive(Clone, Copy)]
pub struct Owner {
    pub endpoint: u32,
    /// Zero when it is here.
    pub vtep: Be32,
}

impl Owner {
    #[inline(always)]
    fn of(backend: &BackendValue) -> Self {
        Self {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
        }
    }
}

/// The owner that the flow's pin names; without one, the slot's other owner.
#[inline(always)]
pub fn find(
    config: &NodeConfig,
    packet: &Packet,
    published: &ServiceValue,
    arrival: Arrival,
) -> Option<Owner> {
    let pin = pin(packet);
    if let Some(owner) = pin
        && owner.endpoint != arrival.endpoint
    {
        return Some(owner);
    }
    let hash = service::hash(published, packet, config.ring_seed);
    let slot = service::slot(published, hash).ok()?;
    let now = service::backend(published, slot.now).ok()?;
    let before = service::backend(published, slot.before).ok()?;
    // A pin that led here in vain is of an earlier connection from the same port.
    if now.endpoint == arrival.endpoint || pin.is_some() {
        let asked = before.endpoint == arrival.endpoint;
        return (!asked).then_some(Owner::of(before));
    }
    // Nodes learn of a change one after the other. The sender knows another ring than this node: if
    // an older one, its flows are the slot's owner's of now too, if a newer one, that one's before.
    (!arrival.second_hop).then_some(Owner::of(now))
}

#[inline(always)]
fn pin(packet: &Packet) -> Option<Owner> {
    let key = PinKey {
        client: packet.src,
        node_addr: packet.dst,
        client_port: packet.src_port,
        published: packet.dst_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    };
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    let pin = unsafe { PINS.get(key) }?;
    Some(Owner {
        endpoint: pin.endpoint,
        vtep: pin.vtep,
    })
}
