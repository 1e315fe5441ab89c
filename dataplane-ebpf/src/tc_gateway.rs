//! `sn_tc_gateway`: ingress of the host side of a task's gateway veth. Replies of mesh flows
//! leave here; what is not for another task of the node goes on to the bridge.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use dataplane_abi::{DropReason, FLOW_BRIDGED, FRAGMENT_GATEWAY, ProgramId, VethValue};

use crate::{
    arp, bridge, flow, fragment, guard,
    maps::VETHS,
    mesh, mesh_error,
    packet::{Bytes, ETHERTYPE_ARP, ETHERTYPE_IPV4, Mac, Packet},
    service,
    skb::{Skb, Verdict},
};

#[classifier]
#[inline(always)]
pub fn sn_tc_gateway(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(ProgramId::TcGateway, gateway(skb))
}

#[inline(always)]
fn gateway(skb: Skb) -> Result<Verdict, DropReason> {
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    let veth = unsafe { VETHS.get(skb.ifindex()) }.ok_or(DropReason::UnknownInterface)?;
    guard::untagged(skb)?;
    let bytes = skb.bytes();
    if bytes.mac_src()? != Mac::new(veth.mac) {
        return Err(DropReason::SpoofedSource);
    }
    match bytes.ether_type()? {
        ETHERTYPE_IPV4 => ipv4(skb, bytes, veth),
        // A task that speaks for the bridge would get its neighbours' packets.
        ETHERTYPE_ARP => arp::sender(bytes, veth).map(|_| TC_ACT_UNSPEC),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(skb: Skb, bytes: Bytes, veth: &VethValue) -> Result<Verdict, DropReason> {
    let packet = Packet::parse(bytes)?;
    if packet.src != veth.addr {
        return Err(DropReason::SpoofedSource);
    }
    guard::not_source_routed(skb, &packet)?;
    let config = service::config()?;
    guard::not_into_tunnel(config, &packet)?;
    if packet.is_later_fragment()
        && let Some(way) = fragment::way(&packet, FRAGMENT_GATEWAY)
    {
        if way.addr.is_zero() {
            return Ok(TC_ACT_UNSPEC);
        }
        return mesh::follow_reply(skb, config, &packet, way);
    }
    if packet.has_ports()
        && let Some(flow) = flow::of_reply(&packet)
    {
        if flow.flags & FLOW_BRIDGED == 0 {
            return mesh::reply(skb, config, &packet, flow);
        }
        return bridge::reply(&packet, flow);
    }
    if let Some(outcome) = mesh_error::reply(skb, config, &packet) {
        return outcome;
    }
    bridge::admit(config, bytes, &packet)
}
