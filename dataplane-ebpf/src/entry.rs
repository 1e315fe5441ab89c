//! The mesh's entry, the same for XDP and tc: is the packet for a published port, and for which
//! backend? Nothing is kept per flow.

use dataplane_abi::{BackendValue, Be32, DropReason, NodeConfig, PublishedKey, ServiceValue};

use crate::{
    maps::{NODE_ADDRS, PUBLISHED},
    packet::{Bytes, ETHERTYPE_IPV4, Packet},
    service,
};

/// A packet for a published port of this node.
pub struct Entry {
    pub packet: Packet,
    pub service: &'static ServiceValue,
}

impl Entry {
    /// `None`: not ours, the host's own stack goes on with it. Packets that do not parse are not
    /// ours either.
    #[inline(always)]
    pub fn find(bytes: Bytes) -> Option<Self> {
        if bytes.ether_type().ok()? != ETHERTYPE_IPV4 {
            return None;
        }
        let packet = Packet::parse(bytes).ok()?;
        if !packet.has_ports() {
            return None;
        }
        // The port first: it sorts out nearly all that is not ours with one look.
        let service = published(&packet)?;
        is_node_addr(packet.dst).then_some(Self { packet, service })
    }

    /// Where the packet goes.
    #[inline(always)]
    pub fn backend(&self, config: &NodeConfig) -> Result<&'static BackendValue, DropReason> {
        if self.packet.is_fragment() {
            return Err(DropReason::Fragmented);
        }
        let slot = service::slot(self.service, self.packet.hash(config.ring_seed))?;
        let backend = service::backend(self.service, slot.now)?;
        if self.packet.is_syn() && !service::takes_new_flows(backend) {
            return Err(DropReason::NoBackend);
        }
        Ok(backend)
    }
}

/// The service that is published on the packet's destination port.
#[inline(always)]
pub fn published(packet: &Packet) -> Option<&'static ServiceValue> {
    let key = PublishedKey {
        addr: Be32::ZERO,
        port: packet.dst_port,
        proto: packet.proto,
        _pad: 0,
    };
    // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
    unsafe { PUBLISHED.get(key) }
}

#[inline(always)]
pub fn is_node_addr(addr: Be32) -> bool {
    NODE_ADDRS.get_ptr(addr).is_some()
}
