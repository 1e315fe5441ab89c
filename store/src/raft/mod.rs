//! Consensus among the managers: openraft over our disk, state and transport.
//!
//! * [`types`]: who takes part and what is agreed on.
//! * [`log`]: the log and the vote, on disk.
//! * [`machine`]: applies the log to the [`State`](crate::State), makes and takes snapshots.
//! * [`transport`]: calls between managers; the seam to the network.
//! * [`ahead`]: a leader's entries go to the others while it writes them down.

mod ahead;
mod blocking;
pub(crate) mod log;
pub(crate) mod machine;
mod transport;
mod types;

#[cfg(test)]
pub(crate) use blocking::DISK_TAKES;
pub(crate) use transport::{Network, answer};
pub use transport::{NoTransport, RaftCall, RaftReply, RaftRequest, RaftTransport, TransportError};
pub(crate) use types::{Batch, LogId, Outcome, Raft, Vote};
pub use types::{Member, RaftId, TypeConfig};
