//! Fragments of flows that are translated: only the first has ports, and the others go where it went.
//!
//! Fragments of one packet may come between those of others and, behind the first, in any order. A
//! program cannot hold back one that comes before the first: what comes from outside the kernel puts in
//! order, in a namespace for that ([`detour`]).

use dataplane_abi::{
    Be32, DropReason, FRAGMENT_LIFETIME_NS, FragmentKey, FragmentValue, NodeConfig, ORDERED_MARK,
};

use crate::{
    entry, flow,
    maps::FRAGMENTS,
    packet::{Bytes, ETHERTYPE_IPV4, PROTO_TCP, PROTO_UDP, Packet},
    redirect,
    skb::{Skb, Verdict},
};

/// Where a first fragment went. What of it counts is its program's business.
#[derive(Clone, Copy)]
pub struct Way {
    /// Tunnel address of the node; zero when that is this one.
    pub vtep: Be32,
    pub endpoint: u32,
    /// What the translated address became.
    pub addr: Be32,
}

#[inline(always)]
fn key(packet: &Packet, scope: u32) -> FragmentKey {
    FragmentKey {
        src: packet.src,
        dst: packet.dst,
        scope,
        id: packet.id,
        proto: packet.proto,
        _pad: 0,
    }
}

/// Notes where a packet goes, if it is a first fragment.
#[inline(always)]
pub fn note(packet: &Packet, scope: u32, way: Way) -> Result<(), DropReason> {
    if !packet.is_fragment() {
        return Ok(());
    }
    let value = FragmentValue {
        since: flow::now(),
        vtep: way.vtep,
        addr: way.addr,
        endpoint: way.endpoint,
        bytes: packet.payload_len(),
        total: 0,
        _pad: 0,
    };
    FRAGMENTS
        .insert(&key(packet, scope), &value, 0)
        .map_err(|_| DropReason::FlowTableFull)
}

/// The way of a later fragment, if its first one came before it.
#[inline(always)]
pub fn way(packet: &Packet, scope: u32) -> Option<Way> {
    let key = key(packet, scope);
    let value = get(&key)?;
    let way = Way {
        vtep: value.vtep,
        endpoint: value.endpoint,
        addr: value.addr,
    };
    value.bytes += packet.payload_len();
    if packet.is_last_fragment() {
        value.total = packet.fragment_offset() + packet.payload_len();
    }
    // All of it went there: the sender may use the number again.
    if value.total != 0 && value.bytes >= value.total {
        // Another CPU may have removed it just now.
        let _ = FRAGMENTS.remove(&key);
    }
    Some(way)
}

#[inline(always)]
fn get(key: &FragmentKey) -> Option<&'static mut FragmentValue> {
    let value = FRAGMENTS.get_ptr_mut(key)?;
    // SAFETY: an entry evicted meanwhile may become another packet's. What is written through the
    // reference are counts: at worst one entry stays for its lifetime, or goes early.
    let value = unsafe { &mut *value };
    (flow::now().wrapping_sub(value.since) < FRAGMENT_LIFETIME_NS).then_some(value)
}

/// Sends a fragment from outside to where the kernel puts its packet together, and cuts it again as it
/// was, the first one first. `None`: it is none, comes from there, or is for no address of the node.
///
/// All take that way, the host's own too, as a later one does not tell whose it is.
#[inline(always)]
pub fn detour(skb: Skb, config: &NodeConfig, bytes: Bytes) -> Result<Option<Verdict>, DropReason> {
    if skb.mark() == ORDERED_MARK {
        skb.set_mark(0);
        return Ok(None);
    }
    if config.reassembly_ifindex == 0 {
        return Ok(None);
    }
    let Some(packet) = of_flow(bytes).filter(|packet| entry::is_node_addr(packet.dst)) else {
        return Ok(None);
    };
    // The detour is no hop: what the kernel takes off there, it gets beforehand.
    let ttl = packet.ttl.saturating_add(1);
    skb.set_ip(&packet, packet.src, packet.dst, ttl)?;
    Ok(Some(redirect::out_of(config.reassembly_ifindex)))
}

/// A fragment of TCP or UDP.
#[inline(always)]
fn of_flow(bytes: Bytes) -> Option<Packet> {
    if bytes.ether_type().ok()? != ETHERTYPE_IPV4 || !bytes.is_fragment().ok()? {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    matches!(packet.proto, PROTO_TCP | PROTO_UDP).then_some(packet)
}
