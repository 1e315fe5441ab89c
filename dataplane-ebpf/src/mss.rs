//! The maximum segment size that both ends of a mesh connection tell each other, lowered to what the
//! tunnel carries (RFC 4459 section 3.2): neither has to find out by losing packets.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use dataplane_abi::{Be16, DropReason, NodeConfig};

use crate::{
    packet::{Packet, TCP_SYN},
    skb::Skb,
};

/// IPv4 and TCP headers without options, which the size does not count (RFC 6691).
const HEADERS_LEN: u32 = 20 + 20;
const TCP_LEN: usize = 20;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LEN: u8 = 4;
/// Options that are looked at: as many as fit before the one searched for.
const OPTIONS_MAX: u32 = 37;

/// Of a SYN or its answer; the option is never raised and never added.
#[inline(always)]
pub fn clamp(skb: Skb, config: &NodeConfig, packet: &Packet) -> Result<(), DropReason> {
    if packet.tcp_flags & TCP_SYN == 0 {
        return Ok(());
    }
    let mut search = Search {
        skb,
        // Of which the verifier shall know nothing: before Linux 6.7 it follows a callback of
        // `bpf_loop` once, took the option for the first one, its offset for an even one, and cut
        // the code for odd ones out.
        at: packet.l4 + TCP_LEN + skb.unknown_zero() as usize,
        end: packet.l4 + packet.l4_len,
        told: None,
    };
    // A plain loop would have the verifier follow each way through the options.
    // SAFETY: the callback takes a `Search`, which outlives the call.
    unsafe {
        bpf_loop(
            OPTIONS_MAX,
            step as *mut c_void,
            (&raw mut search).cast(),
            0,
        )
    };
    let limit = config.tunnel_mtu.saturating_sub(HEADERS_LEN);
    match search.told {
        Some(told) if u32::from(told) > limit => {
            let (old, new) = (Be16::from_host(told), Be16::from_host(limit as u16));
            skb.set_half(packet, search.at, old, new)
        }
        _ => Ok(()),
    }
}

struct Search {
    skb: Skb,
    /// Of the next option; of the size, once it is found.
    at: usize,
    /// Of the header.
    end: usize,
    told: Option<u16>,
}

/// Looks at one option; 1 ends the search.
unsafe extern "C" fn step(_: u32, search: *mut c_void) -> i64 {
    // SAFETY: `clamp` passes its own.
    let search = unsafe { &mut *search.cast::<Search>() };
    if search.at + usize::from(OPTION_MSS_LEN) > search.end {
        return 1;
    }
    let Ok([kind, len, high, low]) = search.skb.load(search.at) else {
        return 1;
    };
    match kind {
        OPTION_NOP => search.at += 1,
        OPTION_MSS if len == OPTION_MSS_LEN => {
            search.told = Some(u16::from_be_bytes([high, low]));
            search.at += 2;
            return 1;
        }
        // Options of no length have no end.
        _ if kind == OPTION_END || len < 2 => return 1,
        _ => search.at += usize::from(len),
    }
    0
}
