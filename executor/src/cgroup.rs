//! A cgroup for each task: its limits, and one handle that kills all of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{TaskId, spec::Resources};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::time::sleep;

/// Under the cgroup2 root: the parent of all tasks.
const PARENT: &str = "swarmnet";

/// `cpu.max` counts in this many microseconds.
const CPU_PERIOD_US: i64 = 100_000;

/// A task's cgroup, and what of its limits could not be had.
#[derive(Debug)]
pub(crate) struct TaskCgroup {
    /// `None` when there is no writable cgroup2: the task then stays in the agent's.
    pub path: Option<PathBuf>,
    /// One cgroup for all shims.
    pub shims: Option<PathBuf>,
    /// One sentence for each limit that is not in force.
    pub notices: Vec<String>,
}

/// A limit as cgroup2 takes it.
struct Limit {
    controller: &'static str,
    file: &'static str,
    value: String,
}

/// Makes the task's cgroup and sets its limits there. A limit that cannot be had is told, and the
/// task runs without it, as with Docker.
pub(crate) fn create(root: &Path, task: TaskId, resources: &Resources) -> TaskCgroup {
    let limits = limits(resources);
    let (path, shims) = match make(root, task) {
        Ok(made) => made,
        Err(err) => {
            let reason = format!("no cgroup can be made under `{}`: {err}", root.display());
            return TaskCgroup {
                path: None,
                shims: None,
                notices: limits.iter().map(|limit| limit.refused(&reason)).collect(),
            };
        }
    };
    let notices = limits.iter().filter_map(|limit| {
        let set = enable(root, limit.controller)
            .and_then(|()| fs::write(path.join(limit.file), &limit.value));
        set.err().map(|err| limit.refused(&err.to_string()))
    });
    TaskCgroup {
        notices: notices.collect(),
        path: Some(path),
        shims: Some(shims),
    }
}

/// How often, and after which pause, a cgroup is tried whose last processes are dying.
const REMOVE_TRIES: usize = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// Kills what is left in a cgroup (nothing, normally) and removes it. A missing one is no error.
pub(crate) async fn remove(path: &Path) -> io::Result<()> {
    for _ in 1..REMOVE_TRIES {
        match remove_now(path) {
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy => sleep(REMOVE_PAUSE).await,
            done => return done,
        }
    }
    remove_now(path)
}

/// As [`remove`], but does not wait for what it kills.
pub(crate) fn remove_now(path: &Path) -> io::Result<()> {
    // Kernels before 5.14 lack the file; the pid namespace's end has killed everything by then.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    match fs::remove_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Where the cgroup of a task is, made or not.
pub(crate) fn path_of(root: &Path, task: TaskId) -> PathBuf {
    root.join(PARENT).join(task.to_string())
}

fn make(root: &Path, task: TaskId) -> io::Result<(PathBuf, PathBuf)> {
    if statfs(root)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(io::Error::other("it is not a cgroup2 mount"));
    }
    let path = path_of(root, task);
    let shims = root.join(PARENT).join("shims");
    fs::create_dir_all(&path)?;
    fs::create_dir_all(&shims)?;
    Ok((path, shims))
}

impl Limit {
    fn refused(&self, reason: &str) -> String {
        let Self {
            controller, value, ..
        } = self;
        format!("the {controller} limit ({value}) is not in force: {reason}")
    }
}

fn limits(resources: &Resources) -> Vec<Limit> {
    let memory = resources.limit_memory_bytes.map(|bytes| Limit {
        controller: "memory",
        file: "memory.max",
        value: bytes.to_string(),
    });
    // A billion nano-CPUs is one CPU, so a whole period in each period.
    let cpu = resources.limit_nano_cpus.map(|nano| Limit {
        controller: "cpu",
        file: "cpu.max",
        value: format!("{} {CPU_PERIOD_US}", nano / (1_000_000_000 / CPU_PERIOD_US)),
    });
    let pids = resources.limit_pids.map(|count| Limit {
        controller: "pids",
        file: "pids.max",
        value: count.to_string(),
    });
    let all = [memory, cpu, pids].into_iter().flatten();
    // 0 is Docker's "no limit".
    all.filter(|limit| !limit.value.starts_with('0')).collect()
}

/// Hands `controller` down to the tasks' cgroups.
fn enable(root: &Path, controller: &str) -> io::Result<()> {
    let present = fs::read_to_string(root.join("cgroup.controllers"))?;
    if !present
        .split_ascii_whitespace()
        .any(|name| name == controller)
    {
        let found = present.trim();
        return Err(io::Error::other(format!(
            "cgroup2 at `{}` has no {controller} controller (it has: {found})",
            root.display()
        )));
    }
    for parent in [root.to_owned(), root.join(PARENT)] {
        fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_cgroup2_reads_them() {
        let resources = Resources {
            limit_nano_cpus: Some(1_500_000_000),
            limit_memory_bytes: Some(64 << 20),
            limit_pids: Some(0),
            ..Resources::default()
        };
        let written: Vec<_> = limits(&resources)
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect();
        let want = [
            ("memory.max", "67108864".to_owned()),
            ("cpu.max", "150000 100000".to_owned()),
        ];
        assert_eq!(written, want);
    }

    #[test]
    fn without_cgroup2_a_limit_is_refused_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let resources = Resources {
            limit_pids: Some(7),
            ..Resources::default()
        };
        let made = create(dir.path(), TaskId::from_raw(1), &resources);
        assert_eq!(made.path, None);
        assert!(made.notices[0].starts_with("the pids limit (7) is not in force: no cgroup"));
        assert!(made.notices[0].ends_with("it is not a cgroup2 mount"));
    }
}
