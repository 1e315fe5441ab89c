//! The agent's side of tasks that are processes of the node.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use model::{TaskId, feed::TaskAssignment};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    cgroup,
    error::ExecError,
    exit::Exit,
    image::{self, Image},
    log::{LogQuery, LogReader},
    pidfd::PidFd,
    process_id::ProcessId,
    shim::{Report, complete_environment},
    signal::StopSignal,
    supervision::{KILL_TIMEOUT, Supervision, collect, kill_init, signal_init},
    task_dir::{ShimSpec, TaskDir},
};

/// The binary's hidden subcommand that calls [`crate::shim_main`].
pub const SHIM_COMMAND: &str = "task-shim";

/// From the start of a shim to the task's first instruction; longer means that it hangs.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often, and after which pause, a shim is looked for that is between two states.
const ADOPT_TRIES: usize = 500;
const ADOPT_PAUSE: Duration = Duration::from_millis(10);
/// Of these tries, how many wait for a live shim to say which process it started.
const INIT_TRIES: usize = 100;

#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// Tasks' directories and unpacked images; survives a restart of the agent.
    pub state_dir: PathBuf,
    /// For what lives as long as the node is up.
    pub run_dir: PathBuf,
    /// The `swarmnet` binary.
    pub shim: PathBuf,
    /// Mount point of cgroup2. Tasks run without cgroups of their own when it is none.
    pub cgroup_root: PathBuf,
    pub images_dir: PathBuf,
}

/// What the agent made ready around a task.
#[derive(Debug, Clone)]
pub struct TaskEnvironment {
    /// A network namespace, wired: the task's first instruction finds it so.
    pub netns: PathBuf,
    pub hostname: String,
    /// Contents of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Contents of `/etc/hosts`.
    pub hosts: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The task's pid 1, in the agent's pid namespace.
    pub pid: u32,
}

/// A task that an earlier agent left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub task: TaskId,
    pub state: AdoptedState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdoptedState {
    /// Can be started.
    Prepared,
    /// Its shim lives; `wait` and `stop` work as ever. 0 when its program is still about to be
    /// executed.
    Running { pid: u32 },
    /// While no agent was there, or before.
    Exited(Exit),
}

/// Runs tasks as processes of the node. Clones share the tasks. To drop it leaves them running:
/// [`ProcessExecutor::adopt`] of the next one finds them.
#[derive(Clone)]
pub struct ProcessExecutor(Arc<Inner>);

struct Inner {
    config: ExecutorConfig,
    tasks: Mutex<HashMap<TaskId, Supervision>>,
    /// One image is unpacked at a time.
    unpacking: tokio::sync::Mutex<()>,
}

impl ProcessExecutor {
    pub fn new(config: ExecutorConfig) -> Self {
        Self(Arc::new(Inner {
            config,
            tasks: Mutex::default(),
            unpacking: tokio::sync::Mutex::default(),
        }))
    }

    /// Makes ready all that a start needs: checks the spec, finds or unpacks the image, writes the
    /// task's files, makes its cgroup. May be repeated until the task is started.
    ///
    /// Returns one sentence for each thing asked for that this node cannot give (resource limits).
    ///
    /// # Errors
    /// [`ExecError::is_rejection`] tells a spec that cannot run here from a failure.
    pub async fn prepare(
        &self,
        task: &TaskAssignment,
        environment: &TaskEnvironment,
    ) -> Result<Vec<String>, ExecError> {
        let container = &task.spec.container;
        if let Some(signal) = &container.stop_signal {
            signal.parse::<StopSignal>()?;
        }
        let image = self.image(&container.image).await?;
        let args = arguments(task, &image)?;
        let dir = self.task_dir(task.id);
        if dir.is_starting() {
            return Err(ExecError::AlreadyStarted(task.id));
        }
        let config = &self.0.config;
        let cgroup = cgroup::create(&config.cgroup_root, task.id, &task.spec.resources);
        let or_image = |own: &Option<String>, image: String| {
            own.clone()
                .or(Some(image))
                .filter(|value| !value.is_empty())
        };
        let spec = ShimSpec {
            hostname: environment.hostname.clone(),
            netns: environment.netns.clone(),
            mount_point: config.run_dir.join("task-root"),
            read_only: container.read_only,
            args,
            env: complete_environment(
                &environment.hostname,
                container.tty,
                &image.config.env,
                &container.env,
            ),
            dir: or_image(&container.dir, image.config.working_dir),
            user: or_image(&container.user, image.config.user),
            cgroup: cgroup.path,
            shim_cgroup: cgroup.shims,
            init: container.init == Some(true),
            tty: container.tty,
            root: image.root,
        };
        write_files(&dir, &spec, environment)?;
        Ok(cgroup.notices)
    }

    /// Starts a prepared task and returns when its program runs. A start whose future is dropped
    /// goes on; the task can then be waited for and stopped as any.
    ///
    /// # Errors
    /// [`ExecError::Start`] has Docker's sentence when the program cannot be executed.
    pub async fn start(&self, task: TaskId) -> Result<Started, ExecError> {
        let dir = self.task_dir(task);
        if dir.spec().is_none() {
            return Err(ExecError::NotPrepared(task));
        }
        if dir.is_starting() {
            return Err(ExecError::AlreadyStarted(task));
        }
        dir.mark_starting()
            .map_err(ExecError::io("write into", dir.path()))?;
        let (shim, report) = self.spawn_shim(&dir)?;
        let supervision = Supervision::of(shim, dir.clone(), self.cgroup(task));
        let mut exit = supervision.exit();
        self.tasks().insert(task, supervision);
        let Ok(report) = timeout(START_TIMEOUT, read_report(report)).await else {
            self.kill_shim(task, &dir)?;
            let seconds = START_TIMEOUT.as_secs();
            return Err(ExecError::StartTimeout { task, seconds });
        };
        match report {
            Some(Report::Started { pid }) => Ok(Started { pid: pid as u32 }),
            Some(Report::NotFirst) => Err(ExecError::AlreadyStarted(task)),
            Some(Report::Failed(sentence)) => {
                // So that whoever is told may remove the task at once.
                let _ = exit.wait_for(Option::is_some).await;
                Err(ExecError::Start(sentence))
            }
            None => {
                let exit = self.wait(task).await?;
                Err(ExecError::Start(exit.error.unwrap_or_default()))
            }
        }
    }

    /// Sends `signal` to the task's pid 1, and SIGKILL to all of it if it has not ended after
    /// `grace`. Returns when it has ended. Like any pid 1, a program without a handler for the
    /// signal ignores it.
    ///
    /// Cancel-safe in that a task half stopped can be stopped again.
    pub async fn stop(
        &self,
        task: TaskId,
        signal: StopSignal,
        grace: Duration,
    ) -> Result<Exit, ExecError> {
        let mut exit = self.exit(task)?;
        let dir = self.task_dir(task);
        let failed = || ExecError::io("signal the task of", dir.path());
        signal_init(&dir, signal.number()).map_err(failed())?;
        if let Some(exit) = wait_for(&mut exit, grace).await {
            return Ok(exit);
        }
        if !kill_init(&dir).map_err(failed())? {
            // Not far enough for a pid 1: then there is only the shim.
            self.kill_shim(task, &dir)?;
        }
        let seconds = KILL_TIMEOUT.as_secs();
        wait_for(&mut exit, KILL_TIMEOUT)
            .await
            .ok_or(ExecError::StillRunning { task, seconds })
    }

    /// Waits for the end of a started or adopted task; at once when it has ended. Cancel-safe.
    pub async fn wait(&self, task: TaskId) -> Result<Exit, ExecError> {
        let mut exit = self.exit(task)?;
        let ended = exit.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|exit| exit.clone())
            .ok_or(ExecError::NotRunning(task))
    }

    /// Removes all of a task, after killing it if it runs. One that is not there is no error.
    pub async fn remove(&self, task: TaskId) -> Result<(), ExecError> {
        if self.exit(task).is_ok() {
            self.stop(task, StopSignal::KILL, Duration::ZERO).await?;
        }
        self.tasks().remove(&task);
        let cgroup = self.cgroup(task);
        cgroup::remove(&cgroup)
            .await
            .map_err(ExecError::io("remove the cgroup", cgroup))?;
        let dir = self.task_dir(task);
        image::remove_tree(dir.path()).map_err(ExecError::io("remove", dir.path()))
    }

    /// Takes over what an earlier agent left: call once, before anything else. Tasks that were
    /// being started when it died, or whose shim was killed, are cleaned up and have exited with an
    /// error.
    pub async fn adopt(&self) -> Result<Vec<Adopted>, ExecError> {
        let tasks = self.0.config.state_dir.join("tasks");
        let entries = match fs::read_dir(&tasks) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(ExecError::io("read", tasks)(err)),
        };
        let mut adopted = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ExecError::io("read", &tasks))?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            // Not one of ours otherwise.
            if let Some(task) = id {
                adopted.push(Adopted {
                    task,
                    state: self.adopt_one(task).await?,
                });
            }
        }
        Ok(adopted)
    }

    /// A task's output so far, and with `follow` what comes until it ends.
    pub fn logs(&self, task: TaskId, query: LogQuery) -> Result<LogReader, ExecError> {
        let dir = self.task_dir(task);
        LogReader::open(dir.path(), query).map_err(ExecError::io("read the logs in", dir.path()))
    }

    async fn adopt_one(&self, task: TaskId) -> Result<AdoptedState, ExecError> {
        let dir = self.task_dir(task);
        let failed = || ExecError::io("adopt the task in", dir.path());
        for attempt in 0..ADOPT_TRIES {
            if let Some(shim) = live_shim(&dir).map_err(failed())? {
                let init = dir.init();
                if init.is_none() && attempt < INIT_TRIES {
                    sleep(ADOPT_PAUSE).await;
                    continue;
                }
                let pid = init.map_or(0, |init| init.pid as u32);
                let supervision = Supervision::of(shim, dir, self.cgroup(task));
                self.tasks().insert(task, supervision);
                return Ok(AdoptedState::Running { pid });
            }
            if !dir.is_starting() {
                return Ok(AdoptedState::Prepared);
            }
            // Without the lock a shim could come up late, started by an agent that has died; with
            // it, that shim finds the record of its end and runs nothing.
            if let Some(_lock) = dir.lock().map_err(failed())? {
                let exit = collect(&dir, &self.cgroup(task)).await;
                self.tasks().insert(task, Supervision::ended(exit.clone()));
                return Ok(AdoptedState::Exited(exit));
            }
            // A shim holds it: one that is about to say who it is, or one that is dying.
            sleep(ADOPT_PAUSE).await;
        }
        Err(failed()(io::Error::other(
            "its shim neither comes up nor ends",
        )))
    }

    async fn image(&self, reference: &str) -> Result<Image, ExecError> {
        let _one = self.0.unpacking.lock().await;
        let config = &self.0.config;
        let (images, unpacked) = (config.images_dir.clone(), config.state_dir.join("images"));
        let reference = reference.to_owned();
        let found =
            tokio::task::spawn_blocking(move || image::resolve(&images, &unpacked, &reference));
        found.await.expect("looking for an image does not panic")
    }

    /// Starts the shim; the pipe carries its report.
    fn spawn_shim(&self, dir: &TaskDir) -> Result<(PidFd, pipe::Receiver), ExecError> {
        let shim = &self.0.config.shim;
        let errors = dir.file("shim.err");
        let failed = |source| ExecError::Shim {
            shim: shim.clone(),
            source,
        };
        let stderr = File::create(&errors).map_err(ExecError::io("create", errors))?;
        let mut child = Command::new(shim)
            .arg(SHIM_COMMAND)
            .arg(dir.path())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        // Not yet waited for, so the pid is the child's, even if it has ended.
        let pidfd = PidFd::open(child.id() as i32).map_err(failed)?;
        let stdout: OwnedFd = child.stdout.take().expect("it is piped").into();
        let report = pipe::Receiver::from_owned_fd(stdout).map_err(failed)?;
        Ok((pidfd, report))
    }

    fn kill_shim(&self, task: TaskId, dir: &TaskDir) -> Result<(), ExecError> {
        let killed = self.tasks().get(&task).map_or(Ok(()), Supervision::kill);
        killed.map_err(ExecError::io("kill the shim of", dir.path()))
    }

    fn exit(&self, task: TaskId) -> Result<watch::Receiver<Option<Exit>>, ExecError> {
        let tasks = self.tasks();
        let supervision = tasks.get(&task).ok_or(ExecError::NotRunning(task))?;
        Ok(supervision.exit())
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Supervision>> {
        self.0.tasks.lock().expect("no holder of the lock panics")
    }

    fn task_dir(&self, task: TaskId) -> TaskDir {
        TaskDir::new(self.0.config.state_dir.join("tasks").join(task.to_string()))
    }

    fn cgroup(&self, task: TaskId) -> PathBuf {
        cgroup::path_of(&self.0.config.cgroup_root, task)
    }
}

/// The shim if it lives, and not just as a zombie.
fn live_shim(dir: &TaskDir) -> io::Result<Option<PidFd>> {
    let Some(shim) = dir
        .shim()
        .as_ref()
        .map(ProcessId::open)
        .transpose()?
        .flatten()
    else {
        return Ok(None);
    };
    if shim.has_exited()? {
        shim.reap();
        return Ok(None);
    }
    Ok(Some(shim))
}

/// The program and its arguments, from the spec and the image as Docker combines them: a command
/// of the spec replaces the image's entrypoint and default arguments.
fn arguments(task: &TaskAssignment, image: &Image) -> Result<Vec<String>, ExecError> {
    let container = &task.spec.container;
    let own = !container.command.is_empty();
    let program = if own {
        &container.command
    } else {
        &image.config.entrypoint
    };
    let rest = if own || !container.args.is_empty() {
        &container.args
    } else {
        &image.config.cmd
    };
    let args: Vec<String> = program.iter().chain(rest).cloned().collect();
    if args.is_empty() {
        Err(ExecError::NoCommand)
    } else {
        Ok(args)
    }
}

fn write_files(dir: &TaskDir, spec: &ShimSpec, around: &TaskEnvironment) -> Result<(), ExecError> {
    let write = |path: PathBuf, contents: &str| {
        fs::write(&path, contents).map_err(ExecError::io("write", path))
    };
    make_dir(dir.path())?;
    if let Some(parent) = spec.mount_point.parent() {
        make_dir(parent)?;
    }
    write(dir.file("resolv.conf"), &around.resolv_conf)?;
    write(dir.file("hosts"), &around.hosts)?;
    write(dir.file("hostname"), &format!("{}\n", around.hostname))?;
    dir.write_spec(spec)
        .map_err(ExecError::io("write into", dir.path()))
}

fn make_dir(path: &Path) -> Result<(), ExecError> {
    fs::create_dir_all(path).map_err(ExecError::io("create", path))
}

/// The shim's one line; `None` when it died without one.
async fn read_report(pipe: pipe::Receiver) -> Option<Report> {
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).await.ok()?;
    serde_json::from_str(&line).ok()
}

/// The task's end, if it comes within `limit`.
async fn wait_for(exit: &mut watch::Receiver<Option<Exit>>, limit: Duration) -> Option<Exit> {
    let ended = timeout(limit, exit.wait_for(Option::is_some)).await.ok()?;
    ended.ok()?.clone()
}
