use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::run;

/// A network namespace: a host of the lab, or a task on one.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    path: PathBuf,
}

impl Host {
    /// # Errors
    /// When the name is taken or root is missing.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Self {
            name: name.to_owned(),
            path: Path::new("/run/netns").join(name),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace bound to `path`, such as a task's.
    pub(crate) fn at(name: &str, path: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            path,
        }
    }

    fn net_option(&self) -> String {
        format!("--net={}", self.path.display())
    }

    /// `ip …` on this host.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        run(Command::new("nsenter")
            .arg(self.net_option())
            .arg("ip")
            .args(args))
    }

    /// A command that will run on this host: in its network namespace, under its hostname.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let netns = File::open(&self.path)
            .with_context(|| format!("network namespace `{}` is gone", self.name))?;
        let hostname = self.name.clone();
        let mut command = Command::new(program);
        let enter = move || -> io::Result<()> {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWUTS)?;
            Ok(nix::unistd::sethostname(&hostname)?)
        };
        // SAFETY: between fork and exec the closure makes three system calls on data made before
        // the fork, and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the output.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(args).stdin(Stdio::null());
        command
            .output()
            .with_context(|| format!("cannot run {program}"))
    }

    /// Runs a program that must succeed; gives its standard output.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program)?.args(args).stdin(Stdio::null()))
    }

    /// Starts a program in the background; the caller ends it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Child> {
        let mut command = self.command(program)?;
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Runs `work` on a thread of this host, so that the sockets it opens are the host's.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(&self.path)
            .with_context(|| format!("network namespace `{}` is gone", self.name))?;
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
