//! Affinity that times out: a client keeps its backend, whatever becomes of the ring, until it was
//! silent for too long, or the backend takes no new flows or its node does not answer (docs/decisions/0016).

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use dataplane_abi::{ClientKey, ClientValue, FLOW_TOUCH_NS, ServiceValue};

use crate::{doubt, flow, maps::CLIENTS, service};

/// The index of the backend that a packet of a client goes to: `by_ring`, unless the client keeps
/// another. Packets in the middle of a connection follow the client's last flow however old that is,
/// and note nothing: whose else they may be, that backend's node finds out.
#[inline(always)]
pub fn index(service: &ServiceValue, client: u64, by_ring: u16, is_established: bool) -> u16 {
    if service.affinity_secs == 0 {
        return by_ring;
    }
    let kept = kept(service, client, u32::from(!is_established));
    if kept != NOBODY {
        return kept as u16;
    }
    if !is_established {
        note(service, client, by_ring.into());
    }
    by_ring
}

/// No index: those have 16 bits.
const NOBODY: u32 = u32::MAX;

/// The index of the backend that a client keeps, or [`NOBODY`]. Not inlined, as `flow::find_seat`; few
/// plain numbers for the same reason.
#[inline(never)]
fn kept(service: &ServiceValue, client: u64, may_begin: u32) -> u32 {
    let Some(known) = CLIENTS.get_ptr_mut(key(service, client)) else {
        return NOBODY;
    };
    // SAFETY: an entry evicted meanwhile may become another client's: what is written through the
    // reference are single words, its time of now and a place that is compared before it is used.
    let known = unsafe { &mut *known };
    let now = flow::now();
    let is_kept = service.keeps_client(known.last_seen, now);
    if may_begin != 0 && !is_kept {
        return NOBODY;
    }
    if is_kept && now.wrapping_sub(known.last_seen) > FLOW_TOUCH_NS {
        known.last_seen = now;
    }
    let index = place(service, known);
    let Ok(backend) = service::backend(service, index as u16) else {
        return NOBODY;
    };
    let is_own = backend.endpoint == known.endpoint;
    let takes_flow = || service::takes_new_flows(backend) && !doubt::is_avoided(backend.vtep);
    match is_own && (may_begin == 0 || takes_flow()) {
        true => index,
        false => NOBODY,
    }
}

/// Lets the client have the backend at `index`, if that takes new flows. Not inlined, either.
#[inline(never)]
fn note(service: &ServiceValue, client: u64, index: u32) {
    if let Ok(backend) = service::backend(service, index as u16)
        && service::takes_new_flows(backend)
    {
        let value = ClientValue {
            last_seen: flow::now(),
            endpoint: backend.endpoint,
            index,
        };
        // Without the entry the client goes by the ring.
        let _ = CLIENTS.insert(key(service, client), value, 0);
    }
}

#[inline(always)]
fn key(service: &ServiceValue, client: u64) -> ClientKey {
    ClientKey {
        client,
        service: service.affinity_key,
        _pad: 0,
    }
}

/// Where a client's endpoint is among the service's backends, if it is there; mostly where it was last
/// time.
#[inline(always)]
fn place(service: &ServiceValue, known: &mut ClientValue) -> u32 {
    let last = service::backend(service, known.index as u16);
    if last.is_ok_and(|backend| backend.endpoint == known.endpoint) {
        return known.index;
    }
    known.index = find(service, known.endpoint);
    known.index
}

/// Where an endpoint must be if it is there: backends are in ascending order of theirs.
#[inline(always)]
fn find(service: &ServiceValue, endpoint: u32) -> u32 {
    let mut search = Search {
        service,
        endpoint,
        lower: unknown_zero(service),
    };
    // SAFETY: the callback takes a `Search`, which outlives the call.
    unsafe { bpf_loop(ROUNDS, narrow as *mut c_void, (&raw mut search).cast(), 0) };
    search.lower
}

/// As many as an index has bits.
const ROUNDS: u32 = 16;

struct Search<'a> {
    service: &'a ServiceValue,
    endpoint: u32,
    /// So many are known to have smaller ids.
    lower: u32,
}

/// One bit of the index, from the highest on.
unsafe extern "C" fn narrow(nth: u32, search: *mut c_void) -> i64 {
    // SAFETY: `find` passes its own.
    let search = unsafe { &mut *search.cast::<Search>() };
    let lower = search.lower + (1 << ((ROUNDS - 1).wrapping_sub(nth) % ROUNDS));
    if let Ok(last) = service::backend(search.service, lower.wrapping_sub(1) as u16)
        && last.endpoint < search.endpoint
    {
        search.lower = lower;
    }
    0
}

/// Before Linux 6.7 the verifier takes what the first round finds for what every round finds
/// (docs/verifier.md).
#[inline(always)]
fn unknown_zero(service: &ServiceValue) -> u32 {
    // SAFETY: a field behind a reference.
    let count = || unsafe { (&raw const service.backend_count).read_volatile() };
    count().wrapping_sub(count())
}
