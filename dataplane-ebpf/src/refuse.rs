//! Packets that are dropped and whose senders hear of it: a RST, or an ICMP error. They count as
//! dropped all the same.

use dataplane_abi::{Be32, DropReason, NodeConfig, ProgramId, VethValue, net::task_mac};

use crate::{
    count,
    packet::{Mac, Packet},
    quote, redirect, reset,
    skb::{Skb, Verdict},
    too_big,
};

/// Has `program` drop `packet`, unchanged so far, for `reason`. If its sender is to hear of it, makes the packet
/// the answer and has `send` bring it there: behind an Ethernet header that is still the packet's, a
/// RST from `packet.dst`, an ICMP error from `router`.
///
/// Where that fails too, the reason stays the first one.
#[inline(always)]
pub fn refuse(
    program: ProgramId,
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    router: Be32,
    reason: DropReason,
    send: impl FnOnce() -> Result<Verdict, DropReason>,
) -> Result<Verdict, DropReason> {
    let volume = skb.volume();
    let turned = if reason == DropReason::TooBig && !quote::is_error(skb, packet) {
        too_big::turn_round(skb, config, packet, router)
    } else if reset::is_due(packet, reason) {
        reset::turn_round(skb, packet)
    } else {
        return Err(reason);
    };
    if turned.is_err() {
        return Err(reason);
    }
    let verdict = send().map_err(|_| reason)?;
    count::dropped(program, reason, volume);
    Ok(verdict)
}

/// [`refuse`] for a packet that a task sent into an overlay network: what its sender hears comes from
/// whom it sent to, there being no router.
#[inline(always)]
pub fn into_sender(
    skb: Skb,
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    reason: DropReason,
) -> Result<Verdict, DropReason> {
    let program = ProgramId::TcTask;
    refuse(program, skb, config, packet, packet.dst, reason, || {
        skb.set_macs(Mac::new(veth.mac), Mac::new(task_mac(packet.dst)))?;
        Ok(redirect::into_task(skb.ifindex()))
    })
}
