//! ICMP errors about packets of flows to VIPs that are translated per packet: at the client's node, as
//! the flow itself.

use dataplane_abi::{BackendValue, DropReason, NodeConfig, ServiceValue, VethValue};

use crate::{
    packet::Packet,
    quote::{End, Quote},
    skb::{Skb, Verdict},
    vip,
};

/// An error that a task of this node sent to a VIP: about what it got from there.
#[inline(always)]
pub fn outbound(
    skb: Skb,
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    service: &ServiceValue,
    quote: &Quote,
) -> Result<Verdict, DropReason> {
    let addr = packet.dst;
    if quote.dst.0 != veth.addr {
        return Err(DropReason::IcmpUnknownFlow);
    }
    let sent = quote.backward();
    let known = vip::known_backend(config, veth, &sent, service);
    // The task talks to itself: as client about a reply, or as backend about a question.
    let is_client = |backend: &BackendValue| backend.addr == veth.addr;
    let own_ports = match vip::hairpin_reply(veth, &sent) {
        _ if known.backend.is_some_and(is_client) => Some((quote.src.1, known.client_port)),
        Some(client_port) => Some((client_port, quote.dst.1)),
        None => None,
    };
    if let Some((src_port, dst_port)) = own_ports {
        quote.rewrite(skb, packet, End::Src, (veth.addr, src_port))?;
        quote.rewrite(skb, packet, End::Dst, (addr, dst_port))?;
        return vip::into_self(skb, packet, addr, veth.addr, veth);
    }
    let backend = known.backend.ok_or(DropReason::IcmpUnknownFlow)?;
    quote.rewrite(skb, packet, End::Src, (backend.addr, quote.src.1))?;
    if known.client_port != quote.dst.1 {
        quote.rewrite(skb, packet, End::Dst, (veth.addr, known.client_port))?;
    }
    vip::to_backend(skb, config, veth, packet, backend)
}

/// An error on its way to a client: if a backend sent it about a packet to a VIP, the client gets it
/// as if the VIP had.
#[inline(always)]
pub fn inbound(skb: Skb, vni: u32, packet: &Packet) -> Result<(), DropReason> {
    let Some(quote) = Quote::of(skb, packet) else {
        return Ok(());
    };
    if quote.dst.0 != packet.src {
        return Ok(());
    }
    let Some(flow) = vip::flow_of_reply(vni, packet.dst, &quote.backward()) else {
        return Ok(());
    };
    // SAFETY: an entry evicted meanwhile reads as another flow's: the client finds no socket for it.
    let (addr, client_port) = unsafe { ((*flow).vip, (*flow).client_port(quote.src.1)) };
    quote.rewrite(skb, packet, End::Dst, (addr, quote.dst.1))?;
    if client_port != quote.src.1 {
        quote.rewrite(skb, packet, End::Src, (quote.src.0, client_port))?;
    }
    skb.set_ip(packet, addr, packet.dst, packet.ttl)
}
