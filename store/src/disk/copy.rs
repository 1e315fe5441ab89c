//! A copy of the file, made while it is written to.

use std::fs::File;

use redb::{
    Builder, Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction,
    backends::FileBackend,
};

use super::{CACHE_BYTES, Disk, LOG, META, Result, Slot, snapshot::SNAPSHOT};

impl Disk {
    /// Writes what was last committed to an empty file, as one commit and on disk when it returns.
    /// Values stay sealed with the data key. The copy is marked as one: a manager that went on from
    /// an old log, under the name of one that has gone further, would break what it has promised to
    /// the others since.
    pub(crate) fn copy_to(&self, file: File) -> Result<()> {
        let copy = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(FileBackend::new(file)?)?;
        let into = copy.begin_write()?;
        self.read(|from| {
            copy_table(from, &into, META)?;
            copy_table(from, &into, LOG)?;
            copy_table(from, &into, SNAPSHOT)
        })?;
        self.put(&into, Slot::IsCopy, &true)?;
        into.commit()?;
        Ok(())
    }

    /// Whether the file was made by [`Disk::copy_to`], and not made another's since.
    pub(crate) fn is_copy(&self) -> Result<bool> {
        Ok(self.get(Slot::IsCopy)?.unwrap_or(false))
    }
}

fn copy_table<K: Key, V: Value>(
    from: &ReadTransaction,
    into: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<()> {
    let (from, mut into) = (from.open_table(table)?, into.open_table(table)?);
    for entry in from.iter()? {
        let (key, value) = entry?;
        into.insert(key.value(), value.value())?;
    }
    Ok(())
}
