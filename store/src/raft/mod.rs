//! Consensus among the managers: openraft over our disk, state and transport.
//!
//! * [`types`]: who takes part and what is agreed on.
//! * [`log`]: the log and the vote, on disk.
//! * [`machine`]: applies the log to the [`State`](crate::State), makes and takes snapshots.
//! * [`transport`]: calls between managers; the seam to the network.

mod blocking;
pub(crate) mod log;
pub(crate) mod machine;
mod transport;
mod types;

pub(crate) use transport::{Network, answer};
pub use transport::{NoTransport, RaftCall, RaftReply, RaftRequest, RaftTransport, TransportError};
pub(crate) use types::{Batch, LogId, Outcome, Raft, Vote};
pub use types::{Member, RaftId, TypeConfig};
