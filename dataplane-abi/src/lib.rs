//! The only thing that the eBPF programs and user space share: map keys and values, constants,
//! the flow hash and the drop reasons.
//!
//! Every map type is `repr(C)` with named, zeroed padding (hash maps compare each byte of a key),
//! and asserts its own size. Addresses and ports are in network order by type; all other integers
//! are in host order.

#![no_std]

pub mod bench;
pub mod drops;
pub mod hash;
pub mod maps;
pub mod net;
pub mod ports;
pub mod ring;
pub mod seat;

pub use drops::{DropReason, ProgramId};
pub use maps::*;
pub use net::{Be16, Be32};
pub use ports::PortWord;
pub use ring::*;

/// Version of the map layouts; part of the pin path, so that programs never read maps of another
/// shape.
pub const LAYOUT_VERSION: u32 = 10 + if ANOTHER_LAYOUT { 1_000 } else { 0 };

/// For tests of upgrades and downgrades: the same programs on maps of other sizes.
pub(crate) const ANOTHER_LAYOUT: bool = cfg!(feature = "another-layout");
