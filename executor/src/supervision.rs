//! Watches one shim from the agent: knows the moment it ends, and sees to it that nothing of the
//! task is left then.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{cgroup, exit::Exit, pidfd::PidFd, process_id::ProcessId, task_dir::TaskDir};

/// From SIGKILL to the end of a task; longer means that it hangs in the kernel.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A task with a shim, now or before.
#[derive(Debug)]
pub(crate) struct Supervision {
    exit: watch::Receiver<Option<Exit>>,
    /// `None` when the task had ended before.
    shim: Option<Arc<PidFd>>,
    /// Stopped with the executor, not with the task: the shim lives on.
    watcher: Option<JoinHandle<()>>,
}

impl Supervision {
    /// Of a task that has ended.
    pub fn ended(exit: Exit) -> Self {
        Self {
            exit: watch::channel(Some(exit)).1,
            shim: None,
            watcher: None,
        }
    }

    /// Of a live shim. Needs a tokio runtime.
    pub fn of(shim: PidFd, dir: TaskDir, cgroup: PathBuf) -> Self {
        let (sender, exit) = watch::channel(None);
        let shim = Arc::new(shim);
        let watched = shim.clone();
        let watcher = tokio::spawn(async move {
            if let Err(err) = watched.exited().await {
                tracing::error!(task.dir = %dir.path().display(), error = %err, "cannot wait for a task's shim");
                return;
            }
            sender.send_replace(Some(collect(&dir, &cgroup).await));
        });
        Self {
            exit,
            shim: Some(shim),
            watcher: Some(watcher),
        }
    }

    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// Kills the shim, and with it, by the kernel, what it has started.
    pub fn kill(&self) -> io::Result<()> {
        let shim = self.shim.as_ref();
        shim.map_or(Ok(()), |shim| shim.signal(libc::SIGKILL))
    }
}

impl Drop for Supervision {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
    }
}

/// The end of a task whose shim is gone. A shim that was killed left no record: then one is made,
/// after what the kernel may have left of the task is killed.
pub(crate) async fn collect(dir: &TaskDir, cgroup: &Path) -> Exit {
    let exit = match dir.exit() {
        Some(exit) => exit,
        None => clean_up(dir).await,
    };
    if let Err(err) = cgroup::remove(cgroup).await {
        tracing::warn!(cgroup.path = %cgroup.display(), error = %err, "cannot remove a task's cgroup");
    }
    exit
}

async fn clean_up(dir: &TaskDir) -> Exit {
    let exit = Exit::with_error(None, "the task's shim died, and the task with it");
    let killed = async {
        kill_init(dir)?;
        if let Some(init) = open_init(dir)? {
            timeout(KILL_TIMEOUT, init.exited()).await??;
        }
        dir.write_exit(&exit)
    };
    if let Err(err) = killed.await {
        tracing::error!(task.dir = %dir.path().display(), error = %err, "cannot clean up after a dead shim");
    }
    exit
}

/// Kills the task's pid 1, and so all of its pid namespace. False when it never had one.
pub(crate) fn kill_init(dir: &TaskDir) -> io::Result<bool> {
    signal_init(dir, libc::SIGKILL)
}

/// Sends a signal to the task's pid 1. False when it never had one.
pub(crate) fn signal_init(dir: &TaskDir, signal: i32) -> io::Result<bool> {
    let Some(init) = dir.init() else {
        return Ok(false);
    };
    if let Some(init) = init.open()? {
        init.signal(signal)?;
    }
    Ok(true)
}

fn open_init(dir: &TaskDir) -> io::Result<Option<PidFd>> {
    let init = dir.init().as_ref().map(ProcessId::open);
    Ok(init.transpose()?.flatten())
}
