//! What can go wrong between an assignment and a running task.

use std::{io, path::PathBuf};

use model::TaskId;

use crate::signal::ParseSignalError;

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The image is neither `host` nor in the images directory.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("image {image} cannot be unpacked: {reason}")]
    BadImage { image: String, reason: String },
    #[error("no command specified")]
    NoCommand,
    #[error(transparent)]
    BadSignal(#[from] ParseSignalError),
    #[error("task {0} is not prepared on this node")]
    NotPrepared(TaskId),
    #[error("task {0} was started before; a task runs once")]
    AlreadyStarted(TaskId),
    #[error("task {0} is not running")]
    NotRunning(TaskId),
    /// Docker's sentence: what of the task's setup failed, or that its program cannot be executed.
    #[error("{0}")]
    Start(String),
    #[error("the shim `{shim}` cannot be run: {source}", shim = shim.display())]
    Shim {
        shim: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("task {task} did not come up within {seconds} s; its shim was killed")]
    StartTimeout { task: TaskId, seconds: u64 },
    #[error("task {task} still runs {seconds} s after SIGKILL; it hangs in the kernel")]
    StillRunning { task: TaskId, seconds: u64 },
    #[error("{what} `{path}`: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ExecError {
    /// Whether another try on this node would meet the same: the task is REJECTED, not FAILED.
    pub fn is_rejection(&self) -> bool {
        matches!(
            self,
            Self::NoSuchImage(_) | Self::BadImage { .. } | Self::NoCommand | Self::BadSignal(_)
        )
    }

    /// For `map_err`: an I/O error with what was tried on which path.
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
