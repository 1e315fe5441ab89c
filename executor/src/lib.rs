//! Runs a task's command in its own namespaces.
//!
//! [`ProcessExecutor`] is the agent's side: it prepares, starts, stops and removes tasks and finds
//! them again after the agent was restarted. [`shim_main`] is the other side: one process a task
//! that outlives the agent, keeps the task's output ([`LogReader`]) and records its [`Exit`].
//!
//! A task's directory `<state>/tasks/<task>` holds what both know: `task.json` (what to run),
//! `shim.json` and `init.json` (which processes), `exit.json` (how it ended), `log.<number>`, the
//! task's `resolv.conf`, `hosts` and `hostname`, and the upper layer of an image's overlay.

mod cgroup;
mod error;
mod executor;
mod exit;
mod image;
mod log;
mod pidfd;
mod process_id;
mod shim;
mod signal;
mod supervision;
mod task_dir;

pub use error::ExecError;
pub use executor::{
    Adopted, AdoptedState, ExecutorConfig, ProcessExecutor, SHIM_COMMAND, Started, TaskEnvironment,
};
pub use exit::Exit;
pub use log::{LogQuery, LogReader, LogRecord, LogStream};
pub use shim::shim_main;
pub use signal::{ParseSignalError, StopSignal};
