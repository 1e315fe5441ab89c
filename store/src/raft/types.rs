//! Who takes part, and what is agreed on.

use std::{io::Cursor, net::SocketAddr};

pub use model::object::RaftId;
use serde::{Deserialize, Serialize};

use crate::{ChangeSet, Superseded};

/// Where a manager is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub addr: SocketAddr,
}

/// openraft wants one for a member whose address it has not learnt.
impl Default for Member {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }
}

/// Transactions in one log entry, each based on the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Batch(pub(crate) Vec<ChangeSet>);

/// What became of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Applied,
    /// Nothing was applied: another entry came between.
    Superseded(Superseded),
}

openraft::declare_raft_types!(
    /// The types that openraft is used with.
    pub TypeConfig:
        D = Batch,
        R = Outcome,
        NodeId = RaftId,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;
pub(crate) type StorageIoError = openraft::StorageIOError<RaftId>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Member>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
