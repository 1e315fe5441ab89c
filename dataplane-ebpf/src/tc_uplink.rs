//! `sn_tc_uplink`: ingress of the uplink. The mesh's entry.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use dataplane_abi::{Be32, DropReason, NodeConfig};

use crate::{
    count,
    entry::Entry,
    guard,
    mesh::{self, Arrival},
    mesh_error,
    owner::Hop,
    service,
    skb::{Skb, Verdict},
};

#[classifier]
#[inline(always)]
pub fn sn_tc_uplink(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(uplink(skb))
}

#[inline(always)]
fn uplink(skb: Skb) -> Result<Verdict, DropReason> {
    // A tagged packet is for a VLAN device above, not for this one's addresses.
    if skb.has_vlan_tag() {
        return Ok(TC_ACT_UNSPEC);
    }
    let bytes = skb.bytes();
    let config = service::config();
    if let Ok(config) = config {
        guard::not_of_gateway_network(config, bytes)?;
    }
    let Some(entry) = Entry::find(bytes) else {
        return match mesh_error::find(skb, bytes) {
            Some(found) => found.enter(skb, config?),
            None => Ok(TC_ACT_UNSPEC),
        };
    };
    let config = config?;
    let mut arrival = Arrival {
        endpoint: 0,
        entry: Be32::ZERO,
        hop: Hop::FORWARD,
    };
    enter(skb, config, &entry, &mut arrival)
        .or_else(|reason| mesh::refuse(skb, config, &entry.packet, arrival, reason))
}

#[inline(always)]
fn enter(
    skb: Skb,
    config: &NodeConfig,
    entry: &Entry,
    arrival: &mut Arrival,
) -> Result<Verdict, DropReason> {
    let backend = entry.backend(config)?;
    count::packet(entry.service.stats, skb.volume(), entry.packet.is_syn());
    if !backend.vtep.is_zero() {
        return mesh::forward(skb, config, &entry.packet, backend);
    }
    arrival.endpoint = backend.endpoint;
    mesh::deliver(skb, config, &entry.packet, entry.service, *arrival)
}
