//! The benchmark's driver: a program that makes the next packet and calls the program under test.
//!
//! `BPF_PROG_TEST_RUN` with repeats runs a program on one packet again and again. A program that
//! wraps packets would from the second repeat on be timed with an already wrapped one. So the
//! repeats are the driver's: it takes back what the program before added, writes the headers of the
//! next flow, and goes on in the program under test by a tail call.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::XdpContext,
};
use dataplane_abi::bench::{DRIVE_AS_IS, DRIVE_HEAD_LEN, Drive};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What to send.
#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, 0);
/// The program under test. A program array holds programs that all know fragments or all do not.
#[map]
static PROGRAM: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static PROGRAM_FRAGS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Packets that [`sink`] took.
#[map]
static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[xdp]
pub fn drive(ctx: XdpContext) -> u32 {
    if next_packet(&ctx).is_some() {
        // SAFETY: what the program under test does is its own affair.
        unsafe { PROGRAM.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

#[xdp(frags)]
pub fn drive_frags(ctx: XdpContext) -> u32 {
    if next_packet(&ctx).is_some() {
        // SAFETY: as above.
        unsafe { PROGRAM_FRAGS.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn next_packet(ctx: &XdpContext) -> Option<()> {
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: a map value that lives as long as the program. One test run uses it at a time.
    let drive = unsafe { &mut *drive };
    let len = (ctx.data_end() - ctx.data()) as u32;
    if len != drive.len {
        drive.grown += 1;
        let added = len.wrapping_sub(drive.len) as i32;
        // SAFETY: the context is valid while the program runs.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, added) } != 0 {
            return None;
        }
    }
    let head = ctx.data();
    if head + DRIVE_HEAD_LEN > ctx.data_end() {
        return None;
    }
    let words = head as *mut u64;
    for (index, word) in drive.head.iter().enumerate() {
        // SAFETY: inside of the bounds that were compared.
        unsafe { *words.add(index) = *word };
    }
    if drive.flows != DRIVE_AS_IS {
        let number = drive.sent as u32;
        let flow = number.wrapping_mul(drive.stride) & drive.flows.wrapping_sub(1);
        let service = ((flow as u64 * drive.services as u64) >> (drive.flow_bits & 31)) as u32;
        let src = drive.src.to_host() + (flow >> 8);
        let dst = drive.dst.to_host() + service * drive.dst_step;
        let src_port = drive.src_port.to_host() + (flow & 0xff) as u16;
        let dst_port = drive.dst_port.to_host() + (service * drive.dst_port_step) as u16;
        // SAFETY: as above; addresses and ports of an IPv4 header without options.
        unsafe {
            *((head + 26) as *mut u32) = src.to_be();
            *((head + 30) as *mut u32) = dst.to_be();
            *((head + 34) as *mut u16) = src_port.to_be();
            *((head + 36) as *mut u16) = dst_port.to_be();
        }
    }
    // A locked addition waits for the stores before it, so that the program under test neither
    // overlaps with the driver nor reads what is still on its way to the cache.
    // SAFETY: an aligned field of the map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut drive.sent, in(reg) 1u64) };
    Some(())
}

/// Takes live packets, and counts them.
#[xdp]
pub fn sink(_: XdpContext) -> u32 {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: this CPU's slot of a map value that lives as long as the program.
        unsafe { *sunk += 1 };
    }
    XDP_DROP
}

// What the driver alone costs, for each verdict; and with room made at the head.

#[xdp]
pub fn nop_tx(_: XdpContext) -> u32 {
    XDP_TX
}

#[xdp(frags)]
pub fn nop_tx_frags(_: XdpContext) -> u32 {
    XDP_TX
}

#[xdp]
pub fn nop_pass(_: XdpContext) -> u32 {
    XDP_PASS
}

#[xdp(frags)]
pub fn nop_pass_frags(_: XdpContext) -> u32 {
    XDP_PASS
}

/// As much room as VXLAN's headers take.
const ROOM: i32 = -50;

#[xdp]
pub fn nop_wrap(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_xdp_adjust_head(ctx.ctx, ROOM) };
    XDP_TX
}

#[xdp(frags)]
pub fn nop_wrap_frags(ctx: XdpContext) -> u32 {
    // SAFETY: as above.
    unsafe { bpf_xdp_adjust_head(ctx.ctx, ROOM) };
    XDP_TX
}
