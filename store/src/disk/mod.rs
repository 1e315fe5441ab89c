//! The one file that a manager's log, vote and snapshot are in: a redb database.
//!
//! What is acknowledged must be found again, or its loss be noticed. Hence commits are in two
//! phases (two fsyncs): redb then trusts the newest commit and refuses a file in which it is
//! damaged, where after a commit in one phase it would take the one before, as if the newest had
//! never been acknowledged. And since a damaged page shows only when its checksum is looked at,
//! the whole file is verified whenever it is opened.
//!
//! Each value is sealed with the manager's data key (see [`record`]), which lies beside the file,
//! plain or sealed in its turn ([`vault::KeyFile`]).

mod copy;
mod error;
#[cfg(test)]
pub(crate) mod failing;
mod open;
mod record;
mod snapshot;

use std::{
    ops::RangeBounds,
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError, RwLock},
};

use model::codec;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use vault::DataKey;

pub(crate) use error::DiskError;
use open::CACHE_BYTES;
pub(crate) use snapshot::StoredSnapshot;

/// The file in the store's directory.
pub(crate) const FILE: &str = "store.redb";

/// Single values, by [`Slot`].
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Log entries by their index.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

type Result<T, E = DiskError> = std::result::Result<T, E>;

/// A place for a single value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Slot {
    RaftId,
    Vote,
    Committed,
    /// Id of the last log entry that was purged.
    Purged,
    Snapshot,
    /// Whether the file is a copy, of which another group may go on: see [`Disk::copy_to`].
    IsCopy,
}

impl Slot {
    const fn name(self) -> &'static str {
        match self {
            Self::RaftId => "raft_id",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::Snapshot => "snapshot",
            Self::IsCopy => "is_copy",
        }
    }
}

/// The open file. Every call may block on the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// Of all values.
    vault: DataKey,
    /// `None` once closed, so that closing does not wait for every last reference to go.
    database: RwLock<Option<Database>>,
    /// The first that Raft met.
    failure: OnceLock<String>,
}

impl Disk {
    pub(crate) fn note_failure(&self, error: &DiskError) {
        // Those after the first follow from it.
        let _ = self.failure.set(error.to_string());
    }

    pub(crate) fn failure_seen(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, slot: Slot) -> Result<Option<T>> {
        self.read(|tx| {
            let table = tx.open_table(META)?;
            match table.get(slot.name())? {
                Some(found) => self.decode(slot.name(), 0, found.value()).map(Some),
                None => Ok(None),
            }
        })
    }

    /// On disk when it returns.
    pub(crate) fn set<T: Serialize>(&self, slot: Slot, value: &T) -> Result<()> {
        self.write(Durability::Immediate, |tx| self.put(tx, slot, value))
    }

    /// Entries with their indexes, in order.
    pub(crate) fn log<T: DeserializeOwned>(&self, range: impl RangeBounds<u64>) -> Result<Vec<T>> {
        self.read(|tx| {
            let table = tx.open_table(LOG)?;
            table
                .range(range)?
                .map(|entry| {
                    let (index, bytes) = entry?;
                    self.decode("log", index.value(), bytes.value())
                })
                .collect()
        })
    }

    pub(crate) fn log_last<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.read(|tx| {
            let table = tx.open_table(LOG)?;
            match table.last()? {
                Some((index, bytes)) => self.decode("log", index.value(), bytes.value()).map(Some),
                None => Ok(None),
            }
        })
    }

    /// Adds entries, and notes on the way what is known to be committed. On disk when it returns.
    pub(crate) fn append<T: Serialize, C: Serialize>(
        &self,
        entries: &[(u64, T)],
        committed: &C,
    ) -> Result<()> {
        self.write(Durability::Immediate, |tx| {
            let mut table = tx.open_table(LOG)?;
            for (index, entry) in entries {
                let bytes = self.encode("log", *index, entry);
                table.insert(index, bytes.as_slice())?;
            }
            self.put(tx, Slot::Committed, committed)
        })
    }

    /// Removes the entries from `first` on. On disk when it returns.
    pub(crate) fn truncate(&self, first: u64) -> Result<()> {
        self.write(Durability::Immediate, |tx| {
            tx.open_table(LOG)?.retain_in(first.., |_, _| false)?;
            Ok(())
        })
    }

    /// Removes the entries up to `last`, whose id is `purged`. Safe to lose: the entries come
    /// back together with the older id, and the snapshot that stands for them is on disk.
    pub(crate) fn purge<T: Serialize>(&self, last: u64, purged: &T) -> Result<()> {
        self.write(Durability::None, |tx| {
            tx.open_table(LOG)?.retain_in(..=last, |_, _| false)?;
            self.put(tx, Slot::Purged, purged)
        })
    }

    /// Leaves the file clean and gives up its lock. Everything fails from now on.
    pub(crate) fn close(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
    }

    fn read<T>(&self, f: impl FnOnce(&redb::ReadTransaction) -> Result<T>) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let tx = database.as_ref().ok_or(DiskError::Closed)?.begin_read()?;
        f(&tx)
    }

    fn write<T>(
        &self,
        durability: Durability,
        f: impl FnOnce(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let mut tx = database.as_ref().ok_or(DiskError::Closed)?.begin_write()?;
        tx.set_durability(durability)?;
        tx.set_two_phase_commit(true);
        let value = f(&tx)?;
        tx.commit()?;
        Ok(value)
    }

    fn put<T: Serialize>(&self, tx: &WriteTransaction, slot: Slot, value: &T) -> Result<()> {
        let bytes = self.encode(slot.name(), 0, value);
        tx.open_table(META)?.insert(slot.name(), bytes.as_slice())?;
        Ok(())
    }

    fn encode<T: Serialize + ?Sized>(&self, table: &str, key: u64, value: &T) -> Vec<u8> {
        record::seal(&self.vault, table, key, &codec::encode(value))
    }

    fn decode<T: DeserializeOwned>(&self, table: &str, key: u64, bytes: &[u8]) -> Result<T> {
        let plain = record::open(&self.vault, table, key, bytes)?;
        codec::decode(&plain).map_err(|source| DiskError::Damaged {
            record: format!("{table} {key}"),
            reason: source.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
