//! Fragments of flows that are translated: only the first has ports, and the others go where it went.
//!
//! Fragments of one packet may come between those of others and, behind the first, in any order. A
//! program cannot hold back one that comes before the first.

use dataplane_abi::{
    Be32, DropReason, FRAGMENT_LIFETIME_NS, FRAGMENT_STRAY, FragmentKey, FragmentValue,
};

use crate::{flow, maps::FRAGMENTS, packet::Packet};

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
        flags: 0,
    };
    insert(&key(packet, scope), &value)
}

/// Notes that a later fragment went to the host's stack, for want of its first.
#[inline(always)]
pub fn note_stray(packet: &Packet, scope: u32) -> Result<(), DropReason> {
    let value = FragmentValue {
        since: flow::now(),
        flags: FRAGMENT_STRAY,
        ..FragmentValue::default()
    };
    insert(&key(packet, scope), &value)
}

#[inline(always)]
fn insert(key: &FragmentKey, value: &FragmentValue) -> Result<(), DropReason> {
    FRAGMENTS
        .insert(key, value, 0)
        .map_err(|_| DropReason::FlowTableFull)
}

/// Whether a first fragment comes too late: a later one went to the host's stack.
#[inline(always)]
pub fn is_late(packet: &Packet, scope: u32) -> bool {
    packet.is_fragment()
        && get(&key(packet, scope)).is_some_and(|value| value.flags & FRAGMENT_STRAY != 0)
}

/// The way of a later fragment, if its first one came before it.
#[inline(always)]
pub fn way(packet: &Packet, scope: u32) -> Option<Way> {
    let key = key(packet, scope);
    let value = get(&key)?;
    if value.flags & FRAGMENT_STRAY != 0 {
        return None;
    }
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
