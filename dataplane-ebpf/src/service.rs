//! From a frontend to a backend: ring, slot, backend.

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, DropReason, NodeConfig, RingSlot, ServiceValue, hash::ring_slot,
};

use crate::{
    maps::{BACKENDS, CONFIG, RINGS},
    packet::Packet,
};

/// This node's configuration, once the agent wrote it.
#[inline(always)]
pub fn config() -> Result<&'static NodeConfig, DropReason> {
    match CONFIG.get(0) {
        Some(config) if config.generation != 0 => Ok(config),
        _ => Err(DropReason::NotConfigured),
    }
}

/// What chooses a packet's slot: the node of its backend computes the same.
#[inline(always)]
pub fn hash(service: &ServiceValue, packet: &Packet, seed: u64) -> u32 {
    service.hash(packet.tuple(), seed)
}

/// The ring's slot of a flow.
#[inline(always)]
pub fn slot(service: &ServiceValue, hash: u32) -> Result<RingSlot, DropReason> {
    match service.ring_len {
        0 => Err(DropReason::NoBackend),
        1 => Ok(RingSlot::from_raw(service.single)),
        len => slot_at(service, ring_slot(hash, len)),
    }
}

/// The slot by which a packet enters: among the node's own backends where the service prefers those,
/// else the ring's.
#[inline(always)]
pub fn entry_slot(
    service: &ServiceValue,
    hash: u32,
    is_established: bool,
) -> Result<RingSlot, DropReason> {
    // Only then, as there are no two rings of one slot.
    if service.is_near(is_established) {
        return near_slot(service, hash);
    }
    slot(service, hash)
}

/// The flow's slot among the node's own backends, if they have some.
#[inline(always)]
pub fn near_slot(service: &ServiceValue, hash: u32) -> Result<RingSlot, DropReason> {
    slot_at(
        service,
        ring_slot(hash, service.ring_len) + service.ring_len,
    )
}

#[inline(always)]
fn slot_at(service: &ServiceValue, slot: u32) -> Result<RingSlot, DropReason> {
    let place = service.ring;
    let chunk = RINGS
        .get_ptr(place.chunk_of(slot))
        .ok_or(DropReason::NoBackend)?;
    let word = place.word_of(slot) as usize;
    // SAFETY: the remainder is inside of the chunk; map values outlive the program's run.
    let word = unsafe { *(&raw const (*chunk).words).cast::<u32>().add(word) };
    Ok(place.slot(word, slot))
}

/// A backend by its index in the service.
#[inline(always)]
pub fn backend(service: &ServiceValue, index: u16) -> Result<&'static BackendValue, DropReason> {
    let index = u32::from(index);
    if index >= service.backend_count {
        return Err(DropReason::NoBackend);
    }
    let backend = BACKENDS
        .get_ptr(service.backend_base + index)
        .ok_or(DropReason::NoBackend)?;
    // SAFETY: elements of an array map live as long as the program.
    Ok(unsafe { &*backend })
}

/// Whether the backend takes new flows. Rings name only such backends, unless all that is left of
/// a service is draining: then the ring still serves the flows that exist.
#[inline(always)]
pub fn takes_new_flows(backend: &BackendValue) -> bool {
    backend.state == BACKEND_ACTIVE
}
