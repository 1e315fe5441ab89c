//! What can go wrong with the store.

use std::{io, path::PathBuf, time::Duration};

use vault::KeyFileError;

use crate::{StaleObject, Superseded, raft::Member};

/// The store cannot be opened or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} `{}`: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "`{}` is in use by another process; stop that one first, or give this one a state \
         directory of its own", path.display()
    )]
    Taken { path: PathBuf },
    #[error(
        "`{}` is damaged ({reason}); move it away and restore a backup, or let this node join \
         again", path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    /// The key to what it keeps is not to be had; [`KeyFileError::Locked`] when it asks for an
    /// unlock key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(
        "`{}` has format {found}, this version of swarmnet reads up to {known}; start the newer \
         swarmnet that wrote it", path.display()
    )]
    NewerFormat {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("the manager with its log in `{}` was not elected within {after:?}; is the disk too \
         slow?", path.display())]
    NotElected { path: PathBuf, after: Duration },
    #[error("the store in `{}` has stopped: {reason}", path.display())]
    Stopped { path: PathBuf, reason: String },
}

/// A transaction that was not committed. `E` is what the caller's function refuses with.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E> {
    /// The function said no.
    #[error("{0}")]
    Refused(E),
    /// It wrote an object that has changed since it was read.
    #[error(transparent)]
    Stale(#[from] StaleObject),
    /// Another leader's write came first. Nothing was written; try again.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// This manager does not lead. Nothing was written, unless it led when the write began: then
    /// its successor may have taken it over.
    #[error("this manager is not the leader{}", leader_hint(.leader.as_ref()))]
    NotLeader { leader: Option<Member> },
    /// Whether it was written is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn leader_hint(leader: Option<&Member>) -> String {
    match leader {
        Some(leader) => format!("; ask the one at {}", leader.addr),
        None => " and knows of none; is there a quorum of managers?".to_owned(),
    }
}
