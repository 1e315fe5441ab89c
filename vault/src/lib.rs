//! Encryption at rest. What a manager keeps is sealed with its [`DataKey`], of its own and in its
//! [`KeyFile`]. When managers are to be locked, that file holds the data key sealed by the
//! cluster's [`UnlockKey`], which no disk has.

mod file;
mod key;

pub use file::{KeyFile, KeyFileError};
pub use key::{DataKey, ParseUnlockKeyError, UnlockKey};
