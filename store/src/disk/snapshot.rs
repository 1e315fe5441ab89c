//! The snapshot of the state machine, in chunks, so that log entries can be written in between.

use redb::{Durability, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Disk, DiskError, META, Result, Slot, record};

/// Chunks by the snapshot's number and their own.
pub(super) const SNAPSHOT: TableDefinition<'_, (u64, u32), &[u8]> =
    TableDefinition::new("snapshot");

const CHUNK_LEN: usize = 256 * 1024;

/// Written last, so that a snapshot is there whole or not at all.
#[derive(Debug, Serialize, Deserialize)]
struct Head<M> {
    /// Counted up; the chunks' key.
    number: u64,
    chunks: u32,
    meta: M,
}

/// A snapshot and what it is of.
#[derive(Debug)]
pub(crate) struct StoredSnapshot<M> {
    pub(crate) meta: M,
    pub(crate) bytes: Vec<u8>,
}

impl Disk {
    pub(crate) fn snapshot<M: DeserializeOwned>(&self) -> Result<Option<StoredSnapshot<M>>> {
        self.read(|tx| {
            let table = tx.open_table(META)?;
            let Some(found) = table.get(Slot::Snapshot.name())? else {
                return Ok(None);
            };
            let head: Head<M> = self.decode(Slot::Snapshot.name(), 0, found.value())?;
            let chunks = tx.open_table(SNAPSHOT)?;
            let mut bytes = Vec::new();
            for number in 0..head.chunks {
                let chunk = chunks.get((head.number, number))?;
                let chunk = chunk.ok_or_else(|| DiskError::Damaged {
                    record: format!("snapshot {} chunk {number}", head.number),
                    reason: "it is missing".to_owned(),
                })?;
                bytes.extend_from_slice(&record::open(
                    &self.vault,
                    &chunk_table(head.number),
                    number.into(),
                    chunk.value(),
                )?);
            }
            Ok(Some(StoredSnapshot {
                meta: head.meta,
                bytes,
            }))
        })
    }

    /// Replaces the snapshot. On disk when it returns; until then the old one is in force.
    pub(crate) fn set_snapshot<M: Serialize>(&self, meta: &M, bytes: &[u8]) -> Result<()> {
        let number = self.unused_snapshot_number()?;
        let mut chunks = 0;
        for chunk in bytes.chunks(CHUNK_LEN) {
            let table = chunk_table(number);
            let sealed = record::seal(&self.vault, &table, chunks.into(), chunk);
            self.write(Durability::None, |tx| {
                tx.open_table(SNAPSHOT)?
                    .insert((number, chunks), sealed.as_slice())?;
                Ok(())
            })?;
            chunks += 1;
        }
        let head = Head {
            number,
            chunks,
            meta,
        };
        self.write(Durability::Immediate, |tx| {
            // Also what a crash left of one never finished.
            tx.open_table(SNAPSHOT)?
                .retain(|(found, _), _| found == number)?;
            self.put(tx, Slot::Snapshot, &head)
        })
    }

    /// Greater than that of any chunk, used or left over.
    fn unused_snapshot_number(&self) -> Result<u64> {
        self.read(|tx| {
            let table = tx.open_table(SNAPSHOT)?;
            let last = table.last()?;
            Ok(last.map_or(0, |(key, _)| key.value().0 + 1))
        })
    }
}

fn chunk_table(number: u64) -> String {
    format!("snapshot {number}")
}
