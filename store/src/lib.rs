//! The replicated store: typed objects, transactions, Raft, and the log on disk.
//!
//! A manager opens a [`Store`], reads its [`State`] (persistent maps: to keep one costs nothing),
//! and changes it with [`Store::write`]:
//!
//! ```text
//!  write(f)          f runs on a Transaction over the newest state, with what is not yet
//!    │               committed on top; its changes and their time become a ChangeSet
//!  Writer            gathers ChangeSets while the log entry before is under way
//!    │
//!  openraft          one log entry for all that gathered; LogStore sends it to the other managers
//!    │               and meanwhile appends it: redb, fsync
//!    │
//!  Machine           applies each ChangeSet to the State, if it was computed from just that
//!    │               version; shows the state (watch) and the commit (broadcast)
//!  write returns
//! ```
//!
//! * [`Version`](model::Version) counts transactions, not log entries: it has no gaps, a
//!   transaction knows its own, and many share an entry.
//! * Applying is deterministic. Ids, times and everything random are in the change set.
//! * A change set names the version it was computed from and applies to no other, so a write by a
//!   leader of yesterday cannot overwrite what it has not seen, whatever happens to elections.
//! * The state lives in memory. On disk are the log, the vote and a snapshot; a start reads the
//!   snapshot and replays the log behind it.
//! * Only the leader writes, and only while a quorum answers it ([`Standing`]); what begins without
//!   one is refused at once, what loses it on its way fails within seconds.
//! * One file, one place where values are sealed with the manager's data key (`disk/record.rs`),
//!   one seam to other managers ([`raft::RaftTransport`]).
//!
//! # Figures
//! `cargo run --release -p swarmnet-store --example writes`, with two fsyncs a commit, on 2 cores
//! of a virtual machine with ext4 on a virtio disk, while compilers ran beside it:
//!
//! | writers at once | writes/s | p50 | p99 |
//! |---|---|---|---|
//! | 1 | 400 to 1 100 | 0.4 to 0.5 ms | 8 ms |
//! | 16 | 4 200 to 8 200 | 1.5 to 2 ms | 9 to 20 ms |
//! | 256 | 32 000 to 36 000 | 6 to 7 ms | 16 ms |
//!
//! A new store opens in 50 ms, one of 200 000 objects in 1.9 s.

mod disk;
mod election;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod object;
mod question;
pub mod raft;
#[cfg(test)]
mod sim;
mod standing;
mod state;
mod store;
mod transaction;
mod writer;

pub use error::{ReadError, StoreError, WriteError};
pub use object::{Change, ChangeSet, Commit, Counters, Key, Object};
pub use standing::{Members, Standing};
pub use state::{State, Superseded};
pub use store::{Start, Store, StoreConfig};
pub use transaction::{StaleObject, Transaction};
