//! The directory of one task: what the agent and the shim tell each other, and what outlives both.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{exit::Exit, process_id::ProcessId};

/// What the shim runs: written by `prepare`, read by the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimSpec {
    pub hostname: String,
    pub netns: PathBuf,
    pub root: Root,
    /// An empty directory; each task mounts its root there in its own mount namespace.
    pub mount_point: PathBuf,
    pub read_only: bool,
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// Complete: defaults, the image's and the user's.
    pub env: Vec<String>,
    pub dir: Option<String>,
    pub user: Option<String>,
    /// For the task's processes.
    pub cgroup: Option<PathBuf>,
    /// For the shim.
    pub shim_cgroup: Option<PathBuf>,
    /// Put a reaping init before the program.
    pub init: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Root {
    /// The node's own.
    Host,
    /// Under an overlay of the task's own, so the image stays as it is.
    Image(PathBuf),
}

/// `<state>/tasks/<task>`. Every record is written whole or not at all.
#[derive(Debug, Clone)]
pub(crate) struct TaskDir(PathBuf);

impl TaskDir {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn spec(&self) -> Option<ShimSpec> {
        self.read("task.json")
    }

    pub fn write_spec(&self, spec: &ShimSpec) -> io::Result<()> {
        self.write("task.json", spec)
    }

    /// The shim, once it has come up.
    pub fn shim(&self) -> Option<ProcessId> {
        self.read("shim.json")
    }

    pub fn write_shim(&self, shim: &ProcessId) -> io::Result<()> {
        self.write("shim.json", shim)
    }

    /// The task's pid 1, recorded before its program is executed.
    pub fn init(&self) -> Option<ProcessId> {
        self.read("init.json")
    }

    pub fn write_init(&self, init: &ProcessId) -> io::Result<()> {
        self.write("init.json", init)
    }

    pub fn exit(&self) -> Option<Exit> {
        self.read(EXIT_FILE)
    }

    pub fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        self.write(EXIT_FILE, exit)
    }

    /// Says that a shim is being started: once in the task's life, so that there is never a second
    /// shim. False when it was said before.
    pub fn mark_starting(&self) -> io::Result<bool> {
        match File::create_new(self.file("starting")) {
            Ok(_) => Ok(true),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(err) => Err(err),
        }
    }

    pub fn is_starting(&self) -> bool {
        self.file("starting").exists()
    }

    /// The lock that a shim holds as long as it lives, or `None` while another process holds it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = File::create(self.file("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(err)) => Err(err),
        }
    }

    /// A record, or `None` when it is not there. One cut short by a power failure is not there:
    /// what it told of did not survive either.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let new = self.file(&format!(".{name}.{}", std::process::id()));
        fs::write(&new, serde_json::to_vec(value)?)?;
        fs::rename(&new, self.file(name))
    }
}

pub(crate) const EXIT_FILE: &str = "exit.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_torn_one_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let task = TaskDir::new(dir.path().to_owned());
        assert_eq!(task.exit(), None);
        let exit = Exit::with_error(Some(127), "x");
        task.write_exit(&exit).unwrap();
        assert_eq!(task.exit(), Some(exit));
        fs::write(task.file(EXIT_FILE), b"{\"code\":1").unwrap();
        assert_eq!(task.exit(), None);
    }

    #[test]
    fn the_lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let task = TaskDir::new(dir.path().to_owned());
        let held = task.lock().unwrap();
        assert!(held.is_some());
        assert!(task.lock().unwrap().is_none());
        drop(held);
        assert!(task.lock().unwrap().is_some());
    }
}
