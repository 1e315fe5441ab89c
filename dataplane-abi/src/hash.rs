//! The flow hash: every node, the kernel's programs and `swarmnet trace` compute the same one.

use crate::net::{Be16, Be32};

/// What identifies a flow at its entry. The destination address is left out, so that a flow that
/// arrives at another node finds the same backend.
#[derive(Clone, Copy, Debug)]
pub struct FlowTuple {
    pub src: Be32,
    pub src_port: Be16,
    pub dst_port: Be16,
    pub proto: u8,
}

/// 32 bits from the tuple, well mixed: the 64-bit finalizer of MurmurHash3 (Appleby's fmix64), keyed
/// by the cluster's seed. It is a bijection, of 64 bits that address and ports fill.
#[inline(always)]
pub const fn flow_hash(tuple: FlowTuple, seed: u64) -> u32 {
    let ports = (tuple.src_port.to_host() as u64) << 16 | tuple.dst_port.to_host() as u64;
    let flow = (tuple.src.to_host() as u64) << 32 | ports;
    (fmix64(flow ^ seed.wrapping_add(tuple.proto as u64)) >> 32) as u32
}

/// As [`flow_hash`], for all flows of a client.
#[inline(always)]
pub const fn client_hash(client: Be32, seed: u64) -> u32 {
    let tuple = FlowTuple {
        src: client,
        src_port: Be16::ZERO,
        dst_port: Be16::ZERO,
        proto: 0,
    };
    flow_hash(tuple, seed)
}

#[inline(always)]
const fn fmix64(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// The slot of a ring with `len` slots, by multiply and shift (Lemire): no division.
#[inline(always)]
pub const fn ring_slot(hash: u32, len: u32) -> u32 {
    ((hash as u64 * len as u64) >> 32) as u32
}

/// The hash whose slot is the `nth` choice of a flow: 2^32 divided by the golden ratio apart, so that
/// the first few are spread over the whole ring. The zeroth is the flow's own.
#[inline(always)]
pub const fn nth_hash(hash: u32, nth: u32) -> u32 {
    hash.wrapping_add(nth.wrapping_mul(0x9e37_79b9))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{FlowTuple, flow_hash, ring_slot};
    use crate::net::{Be16, Be32};

    /// Nodes of different builds must agree: the value is part of the protocol.
    #[test]
    fn hash_of_a_known_flow_stays_what_it_is() {
        let tuple = FlowTuple {
            src: Be32::from_host(0xcb00_7109),
            src_port: Be16::from_host(40_000),
            dst_port: Be16::from_host(8080),
            proto: 6,
        };
        assert_eq!(flow_hash(tuple, 0x5eed), 0xe406_849c);
    }

    proptest! {
        #[test]
        fn slots_are_inside_of_the_ring(hash: u32, len in 1u32..=crate::RING_LEN_MAX) {
            prop_assert!(ring_slot(hash, len) < len);
        }
    }
}
