//! Away from nodes that do not answer (docs/decisions/0015).

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use dataplane_abi::{
    Be32, DOUBT_TRIES, NodeConfig, PEER_RETURNING, PEER_SUSPECTED, RingSlot, ServiceValue,
    hash::nth_hash,
};

use crate::{maps::PEERS, service};

/// Which nodes new flows avoid, by their `PEER_*`.
const AVOIDED_BY_NEW: u32 = PEER_SUSPECTED;
/// And packets of flows that may have begun at another one's while a node did not answer. They find
/// the way back to it, if they are its own, as all packets of flows that are not known do
/// ([`crate::owner`]).
const AVOIDED_BY_ESTABLISHED: u32 = PEER_SUSPECTED | PEER_RETURNING;

/// The index of the backend for `hash`, whose slot is `slot`: the first of its choices whose node does
/// not have to be avoided. Of who has none of those, and of the node's own where these come first, the
/// slot's.
#[inline(always)]
pub fn choice(
    config: &NodeConfig,
    service: &ServiceValue,
    hash: u32,
    slot: RingSlot,
    is_established: bool,
) -> u16 {
    if is_needless(config, service) || service.is_near(is_established) {
        return slot.now;
    }
    search(service, hash, slot.now.into(), avoided_by(is_established)) as u16
}

/// The same for a `slot` of the ring that all nodes share, also where the node's own come first.
#[inline(always)]
pub fn shared_choice(
    config: &NodeConfig,
    service: &ServiceValue,
    hash: u32,
    slot: RingSlot,
    is_established: bool,
) -> u16 {
    if is_needless(config, service) {
        return slot.now;
    }
    search(service, hash, slot.now.into(), avoided_by(is_established)) as u16
}

/// Nobody is doubted, or there is no other choice.
#[inline(always)]
fn is_needless(config: &NodeConfig, service: &ServiceValue) -> bool {
    config.doubted == 0 || service.ring_len <= 1
}

#[inline(always)]
fn avoided_by(is_established: bool) -> u32 {
    match is_established {
        true => AVOIDED_BY_ESTABLISHED,
        false => AVOIDED_BY_NEW,
    }
}

/// Whether new flows avoid the node with this tunnel address.
#[inline(always)]
pub fn is_avoided(vtep: Be32) -> bool {
    if !service::config().is_ok_and(|config| config.doubted != 0) {
        return false;
    }
    let peer = PEERS.get_ptr(vtep);
    // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
    peer.is_some_and(|peer| unsafe { (*peer).flags } & AVOIDED_BY_NEW != 0)
}

/// Not inlined: the verifier walks what follows once, and the packet's parser keeps its stack.
#[inline(never)]
fn search(service: &ServiceValue, hash: u32, owner: u32, avoided: u32) -> u32 {
    let mut look = Look {
        service,
        hash,
        avoided,
        found: owner,
    };
    // SAFETY: the callback takes a `Look`, which outlives the call.
    unsafe {
        bpf_loop(
            DOUBT_TRIES,
            look_at as *mut c_void,
            (&raw mut look).cast(),
            0,
        )
    };
    look.found
}

struct Look<'a> {
    service: &'a ServiceValue,
    hash: u32,
    avoided: u32,
    /// Index of a backend.
    found: u32,
}

/// Looks at one choice; 1 ends the search.
unsafe extern "C" fn look_at(nth: u32, look: *mut c_void) -> i64 {
    // SAFETY: `search` passes its own.
    let look = unsafe { &mut *look.cast::<Look>() };
    let Ok(slot) = service::slot(look.service, nth_hash(look.hash, nth)) else {
        return 1;
    };
    let Ok(backend) = service::backend(look.service, slot.now) else {
        return 1;
    };
    if let Some(peer) = PEERS.get_ptr(backend.vtep) {
        // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
        if unsafe { (*peer).flags } & look.avoided != 0 {
            return 0;
        }
    }
    look.found = slot.now.into();
    1
}
