//! `sn_tc_uplink`: ingress of the uplink. The mesh's entry.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use dataplane_abi::{Be32, DropReason, FRAGMENT_MESH, NodeConfig, ProgramId};

use crate::{
    count,
    entry::Entry,
    fragment::{self, Way},
    guard,
    mesh::{self, Arrival},
    mesh_error,
    packet::{Bytes, ETHERTYPE_IPV4, PROTO_TCP, PROTO_UDP, Packet},
    service,
    skb::{Skb, Verdict},
};

#[classifier]
#[inline(always)]
pub fn sn_tc_uplink(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(ProgramId::TcUplink, uplink(skb))
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
        if let Some(verdict) = fragment::detour(skb, config, bytes)? {
            return Ok(verdict);
        }
    }
    let Some(entry) = Entry::find(bytes) else {
        return without_ports(skb, config, bytes);
    };
    let config = config?;
    let mut arrival = Arrival {
        endpoint: 0,
        entry: Be32::ZERO,
        hop: entry.hop(),
    };
    enter(skb, config, &entry, &mut arrival).or_else(|reason| {
        mesh::refuse(
            ProgramId::TcUplink,
            skb,
            config,
            &entry.packet,
            arrival,
            reason,
        )
    })
}

/// What names no port itself: an ICMP error, or a later fragment.
#[inline(always)]
fn without_ports(
    skb: Skb,
    config: Result<&NodeConfig, DropReason>,
    bytes: Bytes,
) -> Result<Verdict, DropReason> {
    if let Some(found) = mesh_error::find(skb, bytes) {
        return found.enter(skb, config?);
    }
    let Some(packet) = later_fragment(bytes) else {
        return Ok(TC_ACT_UNSPEC);
    };
    match fragment::way(&packet, FRAGMENT_MESH) {
        Some(way) => mesh::follow(skb, config?, &packet, way, false),
        None => Ok(TC_ACT_UNSPEC),
    }
}

#[inline(always)]
fn later_fragment(bytes: Bytes) -> Option<Packet> {
    if bytes.ether_type().ok()? != ETHERTYPE_IPV4 {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    let has_flow = matches!(packet.proto, PROTO_TCP | PROTO_UDP);
    (has_flow && packet.is_later_fragment()).then_some(packet)
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
        let way = Way {
            vtep: backend.vtep,
            endpoint: backend.endpoint,
            addr: Be32::ZERO,
        };
        fragment::note(&entry.packet, FRAGMENT_MESH, way)?;
        return mesh::forward(skb, config, &entry.packet, backend);
    }
    arrival.endpoint = backend.endpoint;
    mesh::deliver::<true>(skb, config, &entry.packet, entry.service, *arrival)
}
