//! A task's output on disk, bounded.
//!
//! Files `log.<number>` in the task's directory, the numbers rising; the shim deletes the oldest
//! when there are too many, and never renames one, so a follower cannot lose its place. A record is
//! one line in the form that Kubernetes' container runtimes write (CRI):
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z stdout F the bytes of the line as they came
//! ```
//!
//! `P` instead of `F` marks a piece whose line goes on in the next record. Unlike JSON this keeps
//! bytes that are not UTF-8, and it can be read from the end.

mod reader;
mod record;
mod writer;

pub use reader::{LogQuery, LogReader};
pub use record::{LogRecord, LogStream};
pub(crate) use writer::LogWriter;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Bounds of a task's log on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogLimits {
    /// A new file begins when the current one has reached this size.
    pub file_bytes: u64,
    pub files: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            file_bytes: 10 << 20,
            files: 5,
        }
    }
}

fn log_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("log.{number}"))
}

/// Numbers of the log files in `dir`, rising.
fn log_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("log."));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
