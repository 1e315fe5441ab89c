//! How a task ended.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The end of a task's first process, and with it of the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, unless a signal ended it. 126 and 127 with `error` when it never ran.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why there is no ordinary exit: the program could not be executed, the shim was killed.
    pub error: Option<String>,
    pub at: Timestamp,
}

/// What Docker reports for a task that could not be run at all.
const CODE_UNKNOWN: i32 = 128;

impl Exit {
    pub(crate) fn with_error(code: Option<i32>, error: impl Into<String>) -> Self {
        Self {
            code,
            signal: None,
            error: Some(error.into()),
            at: Timestamp::now(),
        }
    }

    /// One number as a shell and Docker give it: the status, or 128 and the signal.
    pub fn status(&self) -> i32 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => CODE_UNKNOWN + signal,
            (None, None) => CODE_UNKNOWN,
        }
    }
}
