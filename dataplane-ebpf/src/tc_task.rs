//! `sn_tc_task`: ingress of the host side of a task's overlay veth. What the task sends.

use aya_ebpf::{macros::classifier, programs::TcContext};
use dataplane_abi::{DropReason, ProgramId, VethValue};

use crate::{
    arp, count, guard,
    maps::VETHS,
    overlay,
    packet::{Bytes, ETHERTYPE_ARP, ETHERTYPE_IPV4, Mac, Packet},
    redirect, refuse, service,
    skb::{Skb, Verdict},
    too_big, vip,
};

#[classifier]
#[inline(always)]
pub fn sn_tc_task(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(ProgramId::TcTask, task(skb))
}

#[inline(always)]
fn task(skb: Skb) -> Result<Verdict, DropReason> {
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    let veth = unsafe { VETHS.get(skb.ifindex()) }.ok_or(DropReason::UnknownInterface)?;
    guard::untagged(skb)?;
    let bytes = skb.bytes();
    if bytes.mac_src()? != Mac::new(veth.mac) {
        return Err(DropReason::SpoofedSource);
    }
    match bytes.ether_type()? {
        ETHERTYPE_IPV4 => ipv4(skb, bytes, veth),
        ETHERTYPE_ARP => arp::answer(skb, bytes, veth),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(skb: Skb, bytes: Bytes, veth: &VethValue) -> Result<Verdict, DropReason> {
    let dst_mac = bytes.mac_dst()?;
    if dst_mac.is_group() {
        return Err(DropReason::NotUnicast);
    }
    let packet = Packet::parse(bytes)?;
    if packet.src != veth.addr {
        return Err(DropReason::SpoofedSource);
    }
    guard::not_source_routed(skb, &packet)?;
    let config = service::config()?;
    count::packet(veth.stats, skb.volume(), false);
    let Some(endpoint) = overlay::endpoint(veth.vni, packet.dst) else {
        let vip = vip::service_at(veth.vni, packet.dst).ok_or(DropReason::UnknownDestination)?;
        return vip::outbound(skb, config, veth, &packet, vip);
    };
    if endpoint.vtep.is_zero() {
        return overlay::deliver(skb, veth.vni, endpoint, &packet, Mac::new(veth.mac));
    }
    if let Err(reason) = too_big::check(skb, config, &packet) {
        return refuse::into_sender(skb, config, veth, &packet, reason);
    }
    // Our own ARP answer gave the task the right one, unless the endpoint moved since.
    if dst_mac != Mac::new(endpoint.mac) {
        skb.set_macs(Mac::new(endpoint.mac), Mac::new(veth.mac))?;
    }
    redirect::into_tunnel(skb, config, veth.vni, endpoint.vtep, packet.tos)
}
