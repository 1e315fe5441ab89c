//! A node with an executor, for tests that run real tasks. Needs root.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use model::{
    EndpointId, ServiceId, TaskId, TaskState,
    feed::TaskAssignment,
    spec::{ContainerSpec, TaskSpec},
};
use swarmnet_executor::{
    ExecutorConfig, LogQuery, LogRecord, LogStream, ProcessExecutor, StopSignal, TaskEnvironment,
};

/// Bound of every wait: far above what the slowest machine needs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A network namespace with a name of its own, gone with this value.
pub struct Netns(String);

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sn-exec-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip")
        .args(args)
        .status()
        .expect("iproute2 is installed");
    if !std::thread::panicking() {
        assert!(status.success(), "ip {args:?}");
    }
}

/// A node's directories, namespace and executor.
pub struct Node {
    pub dir: PathBuf,
    pub netns: Netns,
    pub executor: ProcessExecutor,
    _keep: Option<tempfile::TempDir>,
}

pub fn config(dir: &Path) -> ExecutorConfig {
    let cgroup_root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(PathBuf::from)
        .find(|root| {
            root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists()
        });
    ExecutorConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        shim: env!("CARGO_BIN_EXE_swarmnet-task-shim").into(),
        cgroup_root: cgroup_root.unwrap_or_default(),
        images_dir: dir.join("images"),
    }
}

impl Node {
    pub fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path().to_owned();
        Self {
            executor: ProcessExecutor::new(config(&dir)),
            netns: Netns::new(),
            _keep: Some(keep),
            dir,
        }
    }

    /// The agent is restarted: the executor and all it knows are gone, and made anew.
    pub fn restart_agent(&mut self) {
        self.executor = ProcessExecutor::new(config(&self.dir));
    }

    pub fn environment(&self) -> TaskEnvironment {
        TaskEnvironment {
            netns: self.netns.path(),
            hostname: "web-1".to_owned(),
            resolv_conf: "nameserver 127.0.0.11\n".to_owned(),
            hosts: "10.0.1.3 web-1\n".to_owned(),
        }
    }

    pub fn task_dir(&self, task: TaskId) -> PathBuf {
        self.dir.join("state/tasks").join(task.to_string())
    }

    /// A pid that the shim recorded: `shim` or `init`.
    pub fn pid(&self, task: TaskId, which: &str) -> i32 {
        let text = fs::read(self.task_dir(task).join(format!("{which}.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        json["pid"].as_i64().unwrap() as i32
    }

    pub async fn start(&self, container: ContainerSpec) -> TaskId {
        let task = assignment(container);
        self.executor
            .prepare(&task, &self.environment())
            .await
            .unwrap();
        self.executor.start(task.id).await.unwrap();
        task.id
    }

    /// Starts `sh -c script` on the node's own root.
    pub async fn sh(&self, script: &str) -> TaskId {
        self.start(sh(script)).await
    }

    /// Runs to the end: the exit status and standard output.
    pub async fn run(&self, container: ContainerSpec) -> (i32, String) {
        let task = self.start(container).await;
        let exit = self.executor.wait(task).await.unwrap();
        (exit.status(), self.output(task, LogStream::Stdout).await)
    }

    pub async fn records(&self, task: TaskId, query: LogQuery) -> Vec<LogRecord> {
        let mut reader = self.executor.logs(task, query).unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next().await.unwrap() {
            records.push(record);
        }
        records
    }

    pub async fn output(&self, task: TaskId, stream: LogStream) -> String {
        let records = self.records(task, LogQuery::default()).await;
        let of_stream = records.into_iter().filter(|record| record.stream == stream);
        let lines = of_stream.map(|record| String::from_utf8(record.message).unwrap());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Follows the log until the task has written this line.
    pub async fn wait_for_line(&self, task: TaskId, line: &str) {
        let follow = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut reader = self.executor.logs(task, follow).unwrap();
        let found = async {
            while let Some(record) = reader.next().await.unwrap() {
                if record.message == line.as_bytes() {
                    return;
                }
            }
            panic!("the task ended without writing {line:?}");
        };
        tokio::time::timeout(DEADLINE, found)
            .await
            .expect("the line comes");
    }
}

impl Drop for Node {
    /// Kills what a failed test has left.
    fn drop(&mut self) {
        let tasks = fs::read_dir(self.dir.join("state/tasks"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let exited = task.path().join("exit.json").exists();
            let shim = fs::read(task.path().join("shim.json")).ok();
            let shim =
                shim.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
            if let Some(pid) = shim.and_then(|shim| shim["pid"].as_i64())
                && !exited
            {
                // SAFETY: kill takes integers only.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
            // There is none after most tests; of what was just killed the kernel keeps it.
            let cgroups = config(&self.dir).cgroup_root.join("swarmnet");
            let _ = fs::remove_dir(cgroups.join(task.file_name()));
        }
    }
}

pub fn sh(script: &str) -> ContainerSpec {
    ContainerSpec {
        image: "host".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ContainerSpec::default()
    }
}

pub fn assignment(container: ContainerSpec) -> TaskAssignment {
    TaskAssignment {
        id: TaskId::generate(),
        name: "web.1.x".to_owned(),
        service: ServiceId::generate(),
        service_name: "web".to_owned(),
        slot: Some(1),
        endpoint: EndpointId(1),
        spec: TaskSpec {
            container,
            ..TaskSpec::default()
        },
        host_ports: Vec::new(),
        attachments: Vec::new(),
        state: TaskState::Assigned,
        desired: TaskState::Running,
    }
}

/// Whether a process is there and not a zombie.
pub fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map_or('-', |(_, rest)| rest.chars().next().unwrap_or('-'));
    !matches!(state, '-' | 'Z' | 'X')
}

/// Waits for a state that nothing announces.
pub async fn eventually(what: &str, mut state: impl FnMut() -> bool) {
    let waiting = async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(DEADLINE, waiting).await;
    reached.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn term() -> StopSignal {
    "SIGTERM".parse().unwrap()
}
