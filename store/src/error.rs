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
    /// A backup's log, which takes no part in the group that it was copied from.
    #[error(
        "`{}` is a copy from a backup, with which this manager cannot join those that went on since: \
        if all of them are lost, make it the only one with `swarmnet init --force-new-cluster`; if \
        not, demote it on one of them and promote it again", path.display()
    )]
    Copy { path: PathBuf },
    #[error("there is no log in `{}` to go on from", path.display())]
    Empty { path: PathBuf },
    #[error("cannot copy `{}`: {reason}", path.display())]
    NotCopied { path: PathBuf, reason: String },
    #[error("the managers cannot be changed: {0}")]
    Members(String),
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
    /// Nothing was written.
    #[error("this manager does not lead; the one at {} does", leader.addr)]
    NotLeader { leader: Member },
    /// Nothing was written.
    #[error(
        "the managers have no quorum, so nothing can be changed: {}",
        out_of_reach(missing)
    )]
    NoQuorum { missing: Vec<Member> },
    /// This manager lost its lead or the quorum on the way: whether it is written is for another
    /// leader, or for the quorum when it returns.
    #[error(
        "this manager lost its lead while the change was on its way, so see whether it took \
        effect, and try again if not: {}",
        out_of_reach(missing)
    )]
    InDoubt { missing: Vec<Member> },
    /// Whether it was written is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The newest state cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("the managers have no quorum: {}", out_of_reach(missing))]
pub struct ReadError {
    pub missing: Vec<Member>,
}

fn out_of_reach(missing: &[Member]) -> String {
    let addrs: Vec<_> = missing
        .iter()
        .map(|member| member.addr.to_string())
        .collect();
    match &addrs[..] {
        [] => "they are choosing a leader; try again".to_owned(),
        [addr] => format!("manager {addr} cannot be reached"),
        _ => format!("managers {} cannot be reached", addrs.join(", ")),
    }
}
