//! What nobody may send, whatever it is for. Each program asks before it looks at anything else.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use dataplane_abi::{Be32, DropReason, NodeConfig};

use crate::{
    packet::{Bytes, ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN, PROTO_UDP, Packet},
    skb::Skb,
};

/// The longest options of an IPv4 header.
const OPTIONS_MAX: u32 = 40;
/// Options (RFC 791 section 3.1): two without a length, and the two that choose the packet's way.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Tags are lost where a packet goes from one network to another, and a task has no VLANs.
#[inline(always)]
pub fn untagged(skb: Skb) -> Result<(), DropReason> {
    match skb.has_vlan_tag() {
        true => Err(DropReason::VlanTagged),
        false => Ok(()),
    }
}

/// A task may not choose the way of its packets through others.
#[inline(always)]
pub fn not_source_routed(skb: Skb, packet: &Packet) -> Result<(), DropReason> {
    if packet.l4 == ETH_LEN + IPV4_LEN {
        return Ok(());
    }
    let mut walk = Walk {
        skb,
        // As in `mss`: whether an option is the first must not be known, nor where it lies.
        at: ETH_LEN + IPV4_LEN + skb.unknown_zero() as usize,
        end: packet.l4,
        found: None,
    };
    // As there: a plain loop would have the verifier follow each way through the options.
    // SAFETY: the callback takes a `Walk`, which outlives the call.
    unsafe { bpf_loop(OPTIONS_MAX, step as *mut c_void, (&raw mut walk).cast(), 0) };
    match walk.found {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

/// Over the options of a header.
struct Walk {
    skb: Skb,
    /// Of the next option.
    at: usize,
    /// Of the header.
    end: usize,
    found: Option<DropReason>,
}

/// Looks at one option; 1 ends the walk.
unsafe extern "C" fn step(_: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `not_source_routed` passes its own.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    if walk.at >= walk.end {
        return 1;
    }
    let Ok([kind]) = walk.skb.load(walk.at) else {
        walk.found = Some(DropReason::Truncated);
        return 1;
    };
    match kind {
        END => return 1,
        NO_OPERATION => walk.at += 1,
        LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => {
            walk.found = Some(DropReason::SourceRouted);
            return 1;
        }
        _ => match walk.skb.load(walk.at + 1) {
            Ok([len]) if len >= 2 => walk.at += usize::from(len),
            _ => {
                walk.found = Some(DropReason::BadIpHeader);
                return 1;
            }
        },
    }
    0
}

/// A task's packets to the tunnel's port, of whatever host, leave with an address of this node: to
/// the others they would be packets of the tunnel.
#[inline(always)]
pub fn not_into_tunnel(config: &NodeConfig, packet: &Packet) -> Result<(), DropReason> {
    if packet.proto == PROTO_UDP && packet.has_ports() && packet.dst_port == config.data_port {
        return Err(DropReason::ForgedTunnel);
    }
    Ok(())
}

/// The network that the tasks' gateway sides share is this node's own. From outside nothing comes from
/// there, and nothing may go there but by a published port.
#[inline(always)]
pub fn not_of_gateway_network(config: &NodeConfig, bytes: Bytes) -> Result<(), DropReason> {
    let Ok(ETHERTYPE_IPV4) = bytes.ether_type() else {
        return Ok(());
    };
    let Ok([src, dst]) = bytes.read::<[u32; 2]>(ETH_LEN + 12) else {
        return Ok(());
    };
    match is_of_gateway(config, src) || is_of_gateway(config, dst) {
        true => Err(DropReason::ForgedTaskAddress),
        false => Ok(()),
    }
}

/// As [`not_of_gateway_network`], once the destination is known to be the node's.
#[inline(always)]
pub fn not_from_gateway_network(config: &NodeConfig, src: Be32) -> Result<(), DropReason> {
    match is_of_gateway(config, src.raw()) {
        true => Err(DropReason::ForgedTaskAddress),
        false => Ok(()),
    }
}

#[inline(always)]
fn is_of_gateway(config: &NodeConfig, addr: u32) -> bool {
    (addr ^ config.gateway_addr.raw()) & config.gateway_mask.raw() == 0
}
