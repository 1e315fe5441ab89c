//! Encryption at rest. What a manager keeps is sealed with its [`DataKey`], of its own and in its
//! [`KeyFile`]. When managers are to be locked, that file holds the data key sealed by the
//! cluster's [`UnlockKey`], which no disk has. Beside it a key that all nodes of a cluster share, for
//! what they tell each other by single packets ([`ProbeKey`]).

mod file;
mod key;
mod probe;

pub use file::{KeyFile, KeyFileError};
pub use key::{DataKey, ParseUnlockKeyError, UnlockKey};
pub use probe::ProbeKey;
