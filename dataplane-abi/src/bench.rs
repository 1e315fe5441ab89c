//! What the benchmark's driver program and its user space share. No program of a node reads it.

use crate::net::{Be16, Be32};

/// Bytes at the head of each packet that the driver writes anew: Ethernet, IPv4 with up to one
/// option word, TCP, and the first of the payload. Packets are at least so long.
pub const DRIVE_HEAD_LEN: usize = 64;

/// `DRIVE[0]`, array: which packets the driver sends. Written by user space before a run, and read
/// by it afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Drive {
    /// Packets so far: the next one's number.
    pub sent: u64,
    /// Packets that came back longer than they were sent: wrapped.
    pub grown: u64,
    /// Length of the packets.
    pub len: u32,
    /// How many flows there are, a power of two; [`DRIVE_AS_IS`] leaves addresses and ports alone.
    pub flows: u32,
    /// Binary logarithm of `flows`.
    pub flow_bits: u32,
    /// Odd, so that packet numbers are scattered over all flows before one comes again.
    pub stride: u32,
    /// Services, each with as many of the flows.
    pub services: u32,
    /// Added to `dst` from one service to the next.
    pub dst_step: u32,
    /// Added to `dst_port` from one service to the next.
    pub dst_port_step: u32,
    /// Of flow 0; each next 256 flows have the next address.
    pub src: Be32,
    pub dst: Be32,
    /// Of flow 0; flows of one address differ in it.
    pub src_port: Be16,
    pub dst_port: Be16,
    /// What each packet begins with, before the fields above are put in.
    pub head: [u64; DRIVE_HEAD_LEN / 8],
}

/// `Drive::flows`: every packet is `head`.
pub const DRIVE_AS_IS: u32 = 0;

const _: () = assert!(core::mem::size_of::<Drive>() == 128);

// SAFETY: `repr(C)` of integers and arrays of them; the assertion holds the sum of the fields.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Drive {}
