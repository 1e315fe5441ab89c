//! ARP. On overlay networks every question is answered here and none travels; on the gateway bridge it
//! travels, and only the sender is checked.

use dataplane_abi::{Be32, DropReason, VethValue, net::task_mac};

use crate::{
    overlay,
    packet::{Bytes, ETH_LEN, Mac},
    redirect,
    skb::{Skb, Verdict},
    vip,
};

/// Ethernet and IPv4, address lengths 6 and 4 (RFC 826).
const ETHERNET_IPV4: [u16; 3] = [1u16.to_be(), 0x0800u16.to_be(), u16::from_ne_bytes([6, 4])];
const REQUEST: u16 = 1u16.to_be();
const REPLY: u16 = 2u16.to_be();

/// Answers for endpoints and VIPs of the sender's network.
#[inline(always)]
pub fn answer(skb: Skb, bytes: Bytes, veth: &VethValue) -> Result<Verdict, DropReason> {
    if bytes.read::<[u16; 3]>(ETH_LEN)? != ETHERNET_IPV4 {
        return Err(DropReason::UnsupportedProtocol);
    }
    let sender = sender(bytes, veth)?;
    let operation = bytes.read::<u16>(ETH_LEN + 6)?;
    let target = read_addr(bytes, ETH_LEN + 24)?;
    if operation != REQUEST || target == veth.addr || sender.is_zero() {
        // Announcements and probes: all who need the address have it from the agent.
        return Err(DropReason::NotUnicast);
    }
    let mac = match overlay::endpoint(veth.vni, target) {
        Some(endpoint) => endpoint.mac,
        None if vip::service_at(veth.vni, target).is_some() => task_mac(target),
        None => return Err(DropReason::UnknownDestination),
    };
    reply(skb, veth, Mac::new(mac), target)
}

/// The address that the sender claims to have, once that and the MAC are its own. Zero in a probe
/// (RFC 5227): it has no address yet.
#[inline(always)]
pub fn sender(bytes: Bytes, veth: &VethValue) -> Result<Be32, DropReason> {
    let mac = Mac(bytes.read::<[u16; 3]>(ETH_LEN + 8)?);
    let addr = read_addr(bytes, ETH_LEN + 14)?;
    let own = addr == veth.addr || addr.is_zero();
    if !own || mac != Mac::new(veth.mac) {
        return Err(DropReason::SpoofedSource);
    }
    Ok(addr)
}

#[inline(always)]
fn read_addr(bytes: Bytes, offset: usize) -> Result<Be32, DropReason> {
    // Two halfwords: the address is not aligned to its size.
    let [a, b] = bytes.read::<[u16; 2]>(offset)?;
    Ok(Be32::from_raw(u32::from(a) | u32::from(b) << 16))
}

/// Turns the request round and sends it back.
#[inline(always)]
fn reply(skb: Skb, veth: &VethValue, mac: Mac, target: Be32) -> Result<Verdict, DropReason> {
    let asker = Mac::new(veth.mac);
    let halves = |addr: Be32| [addr.raw() as u16, (addr.raw() >> 16) as u16];
    let ([m0, m1, m2], [a0, a1, a2]) = (mac.0, asker.0);
    let ([t0, t1], [v0, v1]) = (halves(target), halves(veth.addr));
    skb.set_macs(asker, mac)?;
    skb.store(
        ETH_LEN + 6,
        &[REPLY, m0, m1, m2, t0, t1, a0, a1, a2, v0, v1],
    )?;
    Ok(redirect::out_of(skb.ifindex()))
}
