//! The shim: one small process a task, between the agent and the task's program. It lives in a
//! session of its own and on when the agent is killed; it keeps the task's output and writes down
//! how the task ended. When the shim itself is killed, the kernel kills the task.

mod capabilities;
mod container;
mod environment;
mod exec;
mod init;
mod mounts;
mod supervise;
mod sys;
mod user;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
};

use nix::{
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use crate::{exit::Exit, process_id::ProcessId, task_dir::TaskDir};

pub(crate) use environment::complete as complete_environment;

/// What the shim tells the agent that started it: one JSON line on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The task's program runs; its pid in the agent's pid namespace.
    Started { pid: i32 },
    /// Nothing runs, and why.
    Failed(String),
    /// The task has, or had, another shim.
    NotFirst,
}

/// Runs a task to its end. For the binary's hidden subcommand: `args` are those after its name, one
/// task directory. Must be called before any other thread is started, because it forks.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter();
    let (Some(dir), None) = (args.next(), args.next()) else {
        eprintln!("usage: task-shim <task directory>; the node agent calls this");
        std::process::exit(2);
    };
    let dir = TaskDir::new(PathBuf::from(dir));
    if let Err(err) = run(&dir) {
        let error = format!("the task's shim failed: {err}");
        eprintln!("{error}");
        if dir.exit().is_none() {
            let _ = dir.write_exit(&Exit::with_error(None, &error));
        }
        report(&Report::Failed(error));
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn run(dir: &TaskDir) -> io::Result<()> {
    // Signals to the agent's process group are not for the shim; blocked rather than ignored,
    // because ignoring would be inherited by the task.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    sys::take_usual_priority();
    let _ = setsid(); // fails only for a process group leader, which then has its own already
    std::env::set_current_dir("/")?;

    let Some(_lock) = dir.lock()? else {
        report(&Report::NotFirst);
        return Ok(());
    };
    if dir.exit().is_some() || dir.init().is_some() {
        report(&Report::NotFirst);
        return Ok(());
    }
    dir.write_shim(&ProcessId::of(std::process::id() as i32)?)?;
    let spec = dir.spec().ok_or_else(|| {
        io::Error::other(format!("`{}` is missing", dir.file("task.json").display()))
    })?;
    supervise::run(dir, &spec)
}

/// Tells the agent. It may be gone, which is as well: the same stands in the task's directory.
fn report(report: &Report) {
    let mut line = serde_json::to_vec(report).expect("a report always serializes");
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}
