//! User space of the eBPF data plane.
//!
//! [`Datapath`] owns programs, maps and links in the kernel, all pinned, so that they outlive the
//! agent. Its [`Datapath::sync`] goes through four stages, the middle two of them pure:
//!
//! 1. read what the maps hold ([`tables`]);
//! 2. make from the managers' view and the node's own facts what they shall hold ([`desired`]);
//! 3. compare, and order the operations ([`plan`]), building rings ([`maglev`], [`ring`]) and finding
//!    places in the array maps ([`extent`]);
//! 4. carry them out.
//!
//! No state of its own stands between two syncs but caches: a restarted agent, a half-done sync and
//! an entry altered by hand are all the same to the next one.

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
pub mod maglev;
mod maps;
mod netlink;
mod pins;
pub mod plan;
mod ports;
mod query;
mod repair;
pub mod ring;
mod sys;
pub mod tables;
pub mod trace;

pub use attach::{Ingress, UplinkMode};
pub use datapath::{Datapath, DatapathConfig, SyncReport};
pub use desired::Skipped;
pub use error::DatapathError;
pub use local::{GATEWAY_PREFIX_LEN, HostPort, LocalState, LocalTask, LocalVeth};
pub use repair::Deviation;
