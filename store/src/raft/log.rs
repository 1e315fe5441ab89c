//! The log and the vote, on disk.
//!
//! The entries of a leader go to the others while it writes them down itself ([`Network::send_ahead`]), and
//! may be lost here when they are already there. So a leader that comes back must not make others in their
//! place: it leads no more in the term in which it did ([`without_office`]).

use std::{
    fmt::Debug,
    ops::RangeBounds,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    raft::AppendEntriesRequest,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    RaftId, TypeConfig,
    blocking::blocking,
    transport::Network,
    types::{Entry, LogId, StorageError, StorageIoError, Vote},
};
use crate::disk::{Disk, DiskError, Slot};

/// Raft's log. A clone is the same log.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    id: RaftId,
    known: Arc<Mutex<Known>>,
    /// To the others. Only Raft's own, which alone appends, has one.
    network: Option<Network>,
}

/// What need not be read.
#[derive(Debug)]
struct Known {
    /// Goes to disk with the next entry: to lose the last costs a restarted manager no more than
    /// learning it again.
    committed: Option<LogId>,
    /// As Raft has it.
    vote: Option<Vote>,
    /// The last entry; `None` when it is not known.
    last: Option<LogId>,
}

impl LogStore {
    /// Of the manager `id`.
    pub(crate) fn new(disk: Arc<Disk>, id: RaftId) -> Result<Self, DiskError> {
        let known = Known {
            committed: disk.get::<Option<LogId>>(Slot::Committed)?.flatten(),
            vote: None,
            last: None,
        };
        Ok(Self {
            disk,
            id,
            known: Arc::new(Mutex::new(known)),
            network: None,
        })
    }

    /// The same log; what is appended to it goes to the others at the same time, if this manager leads.
    pub(crate) fn sending(&self, network: Network) -> Self {
        Self {
            network: Some(network),
            ..self.clone()
        }
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
        self.known().committed
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the leader of these entries would have the others append; `None` when it is another's, or it is
    /// not known what they follow.
    fn request(&self, entries: &[(u64, Entry)]) -> Option<AppendEntriesRequest<TypeConfig>> {
        let known = self.known();
        let (vote, prev) = (known.vote?, known.last?);
        let (index, first) = entries.first()?;
        let leads = vote.is_committed()
            && vote.leader_id.voted_for == Some(self.id)
            && vote.leader_id.term == first.log_id.leader_id.term;
        (leads && prev.index + 1 == *index).then(|| AppendEntriesRequest {
            vote,
            prev_log_id: Some(prev),
            entries: entries.iter().map(|(_, entry)| entry.clone()).collect(),
            leader_commit: known.committed,
        })
    }
}

/// The vote that is kept on disk and found there: that of a leader for itself is as of before it won, and so
/// it needs another term to lead again. Those who voted for it are not free to vote for another by that.
fn without_office(vote: Vote, id: RaftId) -> Vote {
    match vote.leader_id.voted_for == Some(id) {
        true => Vote::new(vote.leader_id.term, id),
        false => vote,
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
        let kept = without_office(*vote, self.id);
        let saved = blocking(&self.disk, move |disk| disk.set(Slot::Vote, &kept)).await;
        saved.map_err(|error| StorageIoError::write_vote(&error))?;
        self.known().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let kept = blocking(&self.disk, |disk| disk.get(Slot::Vote)).await;
        let kept = kept.map_err(|error| StorageIoError::read_vote(&error))?;
        // Versions before this one kept it as it was.
        let vote = kept.map(|vote| without_office(vote, self.id));
        self.known().vote = vote;
        Ok(vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.known().committed = committed;
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
        if let Some(network) = &self.network
            && let Some(request) = self.request(&entries)
        {
            network.send_ahead(&request);
        }
        let last = entries.last().map(|(_, entry)| entry.log_id);
        let committed = self.committed();
        blocking(&self.disk, move |disk| disk.append(&entries, &committed))
            .await
            .map_err(|error| StorageIoError::write_logs(&error))?;
        self.known().last = last;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.known().last = None;
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
