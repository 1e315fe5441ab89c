//! What the searches for a flow's port at its task share ([`dataplane_abi::seat`]).

use dataplane_abi::Be32;

/// Zero, of which the verifier knows nothing, as of the address that it is made of: "none so far" of a
/// search in rounds of `bpf_loop` (docs/verifier.md).
#[inline(always)]
pub fn none(addr: &Be32) -> u16 {
    // SAFETY: a reference is valid to read.
    let read = || unsafe { (&raw const *addr).read_volatile() }.raw() as u16;
    read().wrapping_sub(read())
}
