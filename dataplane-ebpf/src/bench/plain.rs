//! The least that a balancer does which keeps no connection table, with the maps of the balancer
//! that `--peer-object` expects: look up the VIP, hash, ring, backend, one IPIP header (RFC 2003). It counts
//! nothing, checks no route and knows no other case. The benchmark shows it as a floor, and tests
//! the option with it.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, HashMap},
    programs::XdpContext,
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

const VIPS: u32 = 512;
/// Fewer than VIPs: those of TCP and UDP share one.
const RINGS: u32 = 128;
const RING: u32 = 65_537;
const REALS: u32 = 4_096;

/// Address (room for IPv6), port, protocol.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vip {
    addr: [u32; 4],
    port: u16,
    proto: u8,
    _pad: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Meta {
    flags: u32,
    number: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Real {
    addr: [u32; 4],
    flags: u8,
    _pad: [u8; 3],
}

#[map(name = "vip_map")]
static VIP_MAP: HashMap<Vip, Meta> = HashMap::with_max_entries(VIPS, 0);
#[map(name = "ch_rings")]
static CH_RINGS: Array<u32> = Array::with_max_entries(RINGS * RING, 0);
#[map(name = "reals")]
static REALS_MAP: Array<Real> = Array::with_max_entries(REALS, 0);
/// First entry: MAC of the next hop.
#[map(name = "ctl_array")]
static CTL_ARRAY: Array<u64> = Array::with_max_entries(16, 0);

#[xdp]
pub fn balancer_plain(ctx: XdpContext) -> u32 {
    balance(&ctx).unwrap_or(XDP_DROP)
}

#[inline(always)]
fn balance(ctx: &XdpContext) -> Option<u32> {
    const ETHERNET: usize = 14;
    const IPV4: usize = 20;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    if read::<u16>(ctx, 12)? != 0x0800u16.to_be() {
        return Some(XDP_PASS);
    }
    let ip = read::<[u32; 5]>(ctx, ETHERNET)?;
    let proto = ip[2].to_ne_bytes()[1];
    if ip[0].to_ne_bytes()[0] != 0x45 || !matches!(proto, TCP | UDP) {
        return Some(XDP_PASS);
    }
    let ports = read::<u32>(ctx, ETHERNET + IPV4)?;
    let vip = Vip {
        addr: [ip[4], 0, 0, 0],
        port: (ports >> 16) as u16,
        proto,
        _pad: 0,
    };
    // SAFETY: nobody removes VIPs while the benchmark runs.
    let Some(meta) = (unsafe { VIP_MAP.get(vip) }) else {
        return Some(XDP_PASS);
    };
    let mixed = (u64::from(ip[3]) << 32 | u64::from(ports)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let slot = ((mixed >> 32) * u64::from(RING)) >> 32;
    let real = REALS_MAP.get(*CH_RINGS.get(meta.number * RING + slot as u32)?)?;
    let next_hop = CTL_ARRAY.get(0)?.to_ne_bytes();

    let len = (ctx.data_end() - ctx.data() - ETHERNET + IPV4) as u16;
    let own = read::<[u16; 3]>(ctx, 0)?;
    // SAFETY: the context is valid while the program runs.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4 as i32)) } != 0 {
        return None;
    }
    let half = |i: usize| u16::from_ne_bytes([next_hop[i], next_hop[i + 1]]);
    write(ctx, 0, [half(0), half(2), half(4)])?;
    write(ctx, 6, own)?;
    write(ctx, 12, 0x0800u16.to_be())?;
    let src = u32::from_ne_bytes([172, 16, 0, 1]);
    let mut outer = [
        u32::from_ne_bytes([0x45, 0, (len >> 8) as u8, len as u8]),
        0,
        u32::from_ne_bytes([64, 4, 0, 0]),
        src,
        real.addr[0],
    ];
    let sum = outer.iter().fold(0u64, |sum, word| {
        sum + u64::from(*word & 0xffff) + u64::from(*word >> 16)
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    outer[2] |= u32::from(!(sum as u16)) << 16;
    write(ctx, ETHERNET, outer)?;
    Some(XDP_TX)
}

#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison bounds the read.
    Some(unsafe { *(at as *const T) })
}

#[inline(always)]
fn write<T>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: as above.
    unsafe { *(at as *mut T) = value };
    Some(())
}
