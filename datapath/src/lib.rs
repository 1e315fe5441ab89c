//! User space of the eBPF data plane.
//!
//! [`Datapath`] owns programs, maps and links in the kernel, all pinned, so that they outlive the
//! agent. Its [`Datapath::sync`] goes through three stages, the first two of them pure:
//!
//! 1. take the [`desired`] state to the managers' view and the node's own facts, and see where it
//!    became another;
//! 2. compare that part with what was last written ([`recorded`]), and order the operations ([`plan`]),
//!    building rings ([`maglev`], [`ring`]) and finding places in the array maps ([`extent`]);
//! 3. carry them out, and record each.
//!
//! So a change costs what it changes. A look beside the changes ([`Datapath::look`]) tells whether others
//! altered the maps; then [`Datapath::repair`] reads what the maps hold ([`tables`]) and plans for what
//! differs from the record as well. Nothing is recorded yet by a process that starts,
//! and no longer after an operation that failed: then all is read, and all compared. So a restarted
//! agent, a half-done sync and an entry altered by hand end in the same state.

mod attach;
mod bpffs;
mod datapath;
pub mod desired;
mod device;
mod error;
pub mod extent;
mod inherit;
pub mod inspect;
mod load;
mod local;
mod look;
pub mod maglev;
mod maps;
mod netlink;
mod pins;
pub mod plan;
mod ports;
mod query;
pub mod recorded;
mod repair;
pub mod ring;
mod sys;
pub mod tables;
pub mod trace;

pub use attach::{Ingress, UplinkMode};
pub use datapath::{Datapath, DatapathConfig, SyncReport};
pub use desired::Skipped;
pub use error::DatapathError;
pub use local::{Doubt, GATEWAY_PREFIX_LEN, HostPort, LocalState, LocalTask, LocalVeth};
pub use look::{Look, Sight};
pub use pins::FlowSearch;
pub use repair::Deviation;
