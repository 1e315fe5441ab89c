//! The log and the vote, on disk.

use std::{
    fmt::Debug,
    ops::RangeBounds,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    TypeConfig,
    blocking::blocking,
    types::{Entry, LogId, StorageError, StorageIoError, Vote},
};
use crate::disk::{Disk, DiskError, Slot};

/// Raft's log. A clone is the same log.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    /// Goes to disk with the next entry: to lose the last costs a restarted manager no more than
    /// learning it again.
    committed: Arc<Mutex<Option<LogId>>>,
}

impl LogStore {
    pub(crate) fn new(disk: Arc<Disk>) -> Result<Self, DiskError> {
        let committed = disk.get::<Option<LogId>>(Slot::Committed)?.flatten();
        Ok(Self {
            disk,
            committed: Arc::new(Mutex::new(committed)),
        })
    }

    /// Index of the last entry on disk.
    pub(crate) fn last_index(&self) -> Result<Option<u64>, DiskError> {
        Ok(log_state(&self.disk)?.last_log_id.map(|id| id.index))
    }

    /// The last entry on disk.
    pub(crate) async fn last(&self) -> Result<Option<LogId>, DiskError> {
        let state = blocking(&self.disk, log_state).await?;
        Ok(state.last_log_id)
    }

    /// Writes down what only the next entry would have. For an orderly stop.
    pub(crate) async fn flush(&self) -> Result<(), DiskError> {
        let committed = self.committed();
        blocking(&self.disk, move |disk| {
            disk.set(Slot::Committed, &committed)
        })
        .await
    }

    fn committed(&self) -> Option<LogId> {
        *self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let entries = blocking(&self.disk, move |disk| disk.log(range)).await;
        entries.map_err(|error| StorageIoError::read_logs(&error).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let state = blocking(&self.disk, log_state).await;
        state.map_err(|error| StorageIoError::read_logs(&error).into())
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        let saved = blocking(&self.disk, move |disk| disk.set(Slot::Vote, &vote)).await;
        saved.map_err(|error| StorageIoError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = blocking(&self.disk, |disk| disk.get(Slot::Vote)).await;
        vote.map_err(|error| StorageIoError::read_vote(&error).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        *self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| (entry.log_id.index, entry))
            .collect();
        let committed = self.committed();
        blocking(&self.disk, move |disk| disk.append(&entries, &committed))
            .await
            .map_err(|error| StorageIoError::write_logs(&error))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let truncated = blocking(&self.disk, move |disk| disk.truncate(log_id.index)).await;
        truncated.map_err(|error| StorageIoError::write_logs(&error).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = blocking(&self.disk, move |disk| disk.purge(log_id.index, &log_id)).await;
        purged.map_err(|error| StorageIoError::write_logs(&error).into())
    }
}

fn log_state(disk: &Disk) -> Result<LogState<TypeConfig>, DiskError> {
    let last_purged_log_id: Option<LogId> = disk.get(Slot::Purged)?;
    let last: Option<Entry> = disk.log_last()?;
    Ok(LogState {
        last_log_id: last.map(|entry| entry.log_id).or(last_purged_log_id),
        last_purged_log_id,
    })
}
