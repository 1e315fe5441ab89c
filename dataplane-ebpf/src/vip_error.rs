//! ICMP errors about packets of flows to VIPs that are translated per packet: at the client's node, as
//! the flow itself.

use dataplane_abi::{DropReason, NodeConfig, ServiceValue, VethValue};

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
    let backend = vip::known_backend(config, veth, &sent, service);
    let is_oneself = backend.is_some_and(|backend| backend.addr == veth.addr);
    if is_oneself || vip::is_hairpin_reply(veth, &sent) {
        // The task talks to itself: as client about a reply, or as backend about a question.
        quote.rewrite(skb, packet, End::Src, (veth.addr, quote.src.1))?;
        quote.rewrite(skb, packet, End::Dst, (addr, quote.dst.1))?;
        return vip::into_self(skb, packet, addr, veth.addr, veth);
    }
    let backend = backend.ok_or(DropReason::IcmpUnknownFlow)?;
    quote.rewrite(skb, packet, End::Src, (backend.addr, quote.src.1))?;
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
    let addr = unsafe { (*flow).vip };
    quote.rewrite(skb, packet, End::Dst, (addr, quote.dst.1))?;
    skb.set_ip(packet, addr, packet.dst, packet.ttl)
}
