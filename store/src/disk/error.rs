//! What can go wrong below the log.

/// Names the record, not the file: whoever opened the file names it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Database(#[from] Box<redb::Error>),
    #[error("record {record}: {reason}")]
    Damaged { record: String, reason: String },
    #[error("the file is closed")]
    Closed,
    #[error("the thread that wrote to the disk panicked")]
    Panicked,
}

macro_rules! from_redb {
    ($($name:ident),+) => {$(
        impl From<redb::$name> for DiskError {
            fn from(error: redb::$name) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )+};
}

from_redb!(
    CommitError,
    DatabaseError,
    SetDurabilityError,
    StorageError,
    TableError,
    TransactionError
);
