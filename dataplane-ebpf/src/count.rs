//! Counters. They are per CPU, so plain additions do, except where a program can be interrupted
//! by another one on its CPU.

use core::arch::asm;

use dataplane_abi::{DropReason, ProgramId, drops::drop_index};

use crate::maps::{DROPS, STATS};

/// What a packet adds to a counter: a GSO packet stands for its segments.
#[derive(Clone, Copy)]
pub struct Volume {
    pub packets: u64,
    pub bytes: u64,
}

#[inline(always)]
pub fn dropped(program: ProgramId, reason: DropReason, volume: Volume) {
    if let Some(counter) = DROPS.get_ptr_mut(drop_index(program, reason)) {
        // SAFETY: this CPU's slot of a map value that lives as long as the program.
        let counter = unsafe { &mut *counter };
        counter.packets += volume.packets;
        counter.bytes += volume.bytes;
    }
}

#[inline(always)]
pub fn packet(stats: u32, volume: Volume, opens_flow: bool) {
    if let Some(counter) = STATS.get_ptr_mut(stats) {
        // SAFETY: as above.
        let counter = unsafe { &mut *counter };
        counter.packets += volume.packets;
        counter.bytes += volume.bytes;
        counter.new_flows += u64::from(opens_flow);
    }
}

/// A flow that a socket hook translated.
#[inline(always)]
pub fn socket_flow(stats: u32) {
    if let Some(counter) = STATS.get_ptr_mut(stats) {
        // SAFETY: a field of this CPU's slot of a map value that lives as long as the program.
        unsafe { increment(&raw mut (*counter).new_flows) };
    }
}

/// A connection that a socket hook refused.
#[inline(always)]
pub fn socket_refused(program: ProgramId, reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(drop_index(program, reason)) {
        // SAFETY: as above.
        unsafe { increment(&raw mut (*counter).packets) };
    }
}

/// Adds one in one instruction: a socket hook runs in process context, where a packet's program
/// may interrupt it. `core` has no atomic addition for this target.
///
/// # Safety
/// `counter` is aligned and part of a live map value.
#[inline(always)]
unsafe fn increment(counter: *mut u64) {
    // SAFETY: as the caller promises.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1u64) };
}
