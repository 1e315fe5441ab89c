//! Applies the log to the state, and makes and takes snapshots of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
    sync::Arc,
};

use model::codec;
use openraft::{
    EntryPayload, Membership, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine,
};
use tokio::sync::{broadcast, watch};

use super::{
    Batch, Member, Outcome, RaftId, TypeConfig,
    blocking::blocking,
    types::{Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIoError, StoredMembership},
};
use crate::{
    Commit, State, Superseded,
    disk::{Disk, DiskError, Slot, StoredSnapshot},
};

/// Commits that a receiver may be behind before it loses some and has to start anew.
const COMMITS_KEPT: usize = 1024;

/// Where the applied state is shown.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) state: watch::Sender<Arc<State>>,
    pub(crate) commits: broadcast::Sender<Arc<Commit>>,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Machine {
    disk: Arc<Disk>,
    applied: Applied,
    publisher: Publisher,
}

/// A state, and the place in the log that it is at.
#[derive(Debug, Clone, Default)]
struct Applied {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// As of the snapshot on disk, or new.
    pub(crate) fn load(disk: Arc<Disk>) -> Result<(Self, Publisher), DiskError> {
        let applied = match disk.snapshot()? {
            Some(snapshot) => Applied::decode(snapshot)?,
            None => Applied::default(),
        };
        let publisher = Publisher {
            state: watch::Sender::new(Arc::new(applied.state.clone())),
            commits: broadcast::Sender::new(COMMITS_KEPT),
        };
        let machine = Self {
            disk,
            applied,
            publisher: publisher.clone(),
        };
        Ok((machine, publisher))
    }

    /// Applies what the log on disk has beyond the state.
    fn replay(&mut self) -> Result<(), DiskError> {
        let first = self.applied.last.map_or(0, |last| last.index + 1);
        let entries: Vec<Entry> = self.disk.log(first..)?;
        for entry in entries {
            self.apply_entry(entry);
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: Entry) -> Outcome {
        self.applied.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::Applied,
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Applied
            }
            EntryPayload::Normal(batch) => match self.apply_batch(batch) {
                Ok(()) => Outcome::Applied,
                Err(superseded) => Outcome::Superseded(superseded),
            },
        }
    }

    /// Each transaction is based on the one before, so if the first applies, all do.
    fn apply_batch(&mut self, batch: Batch) -> Result<(), Superseded> {
        for set in batch.0 {
            let commit = self.applied.state.apply(set)?;
            self.publisher
                .state
                .send_replace(Arc::new(self.applied.state.clone()));
            // After the state, so that who hears of a commit finds it there. Fails when nobody
            // listens.
            let _ = self.publisher.commits.send(Arc::new(commit));
        }
        Ok(())
    }
}

/// Rewrites what is on disk to the log of a group that has one member, under the new name `id`: a
/// snapshot of all that the log had, at a version of its own, and no log. Safe to be repeated if it was
/// cut short. `false` when there is nothing on disk.
pub(crate) fn detach(disk: &Arc<Disk>, id: RaftId, member: Member) -> Result<bool, DiskError> {
    let (mut machine, _) = Machine::load(Arc::clone(disk))?;
    machine.replay()?;
    let applied = &mut machine.applied;
    let Some(last) = applied.last else {
        return Ok(false);
    };
    applied.state.leap();
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, member)]));
    applied.membership = StoredMembership::new(Some(last), alone);
    disk.set_snapshot(&applied.meta(), &codec::encode(&applied.state))?;
    disk.purge(last.index, &last)?;
    disk.set(Slot::Committed, &Some(last))?;
    disk.set(Slot::RaftId, &id)?;
    disk.set(Slot::IsCopy, &false)?;
    Ok(true)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(entries
            .into_iter()
            .map(|entry| self.apply_entry(entry))
            .collect())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            disk: Arc::clone(&self.disk),
            applied: self.applied.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let stored = StoredSnapshot {
            meta: meta.clone(),
            bytes: snapshot.into_inner(),
        };
        let installed = blocking(&self.disk, move |disk| {
            disk.set_snapshot(&stored.meta, &stored.bytes)?;
            Applied::decode(stored)
        })
        .await;
        self.applied = installed
            .map_err(|error| StorageIoError::write_snapshot(Some(meta.signature()), &error))?;
        self.publisher
            .state
            .send_replace(Arc::new(self.applied.state.clone()));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let stored = blocking(&self.disk, |disk| disk.snapshot()).await;
        let stored = stored.map_err(|error| StorageIoError::read_snapshot(None, &error))?;
        Ok(stored.map(|stored| Snapshot {
            meta: stored.meta,
            snapshot: Box::new(Cursor::new(stored.bytes)),
        }))
    }
}

impl Applied {
    fn decode(snapshot: StoredSnapshot<SnapshotMeta>) -> Result<Self, DiskError> {
        let state = codec::decode(&snapshot.bytes).map_err(|error| DiskError::Damaged {
            record: "snapshot".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            state,
            last: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership,
        })
    }

    fn meta(&self) -> SnapshotMeta {
        let id = self
            .last
            .map_or_else(|| "empty".to_owned(), |last| last.to_string());
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: id,
        }
    }
}

/// Writes one state down while the machine goes on.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    disk: Arc<Disk>,
    applied: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let meta = self.applied.meta();
        let applied = self.applied.clone();
        let stored = meta.clone();
        let bytes = blocking(&self.disk, move |disk| {
            let bytes = codec::encode(&applied.state);
            disk.set_snapshot(&stored, &bytes)?;
            Ok(bytes)
        })
        .await
        .map_err(|error| StorageIoError::write_snapshot(Some(meta.signature()), &error))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}
