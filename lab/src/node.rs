use std::{
    fs::{self, OpenOptions},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Host, LabSpec, clean::bpf_dir, run, underlay_addr, wait_for};

/// A node: a host that runs `swarmnet agent`.
pub struct Node {
    host: Host,
    number: u8,
    binary: PathBuf,
    dir: PathBuf,
    pin_dir: PathBuf,
    uplink_mode: &'static str,
    agent: Option<Child>,
}

impl Node {
    pub(crate) fn new(host: Host, spec: &LabSpec, number: u8) -> Self {
        Self {
            host,
            number,
            binary: spec.binary.clone(),
            dir: spec.dir.join(format!("n{number}")),
            pin_dir: bpf_dir(&spec.name).join(format!("n{number}")),
            uplink_mode: spec.uplink_mode,
            agent: None,
        }
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its hostname, as `node ls` shows it.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    pub fn addr(&self) -> Ipv4Addr {
        underlay_addr(self.number)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/docker.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where its agent pins maps, programs and links.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Starts the agent and waits until its API answers.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub fn start(&mut self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.host.command(&self.binary)?;
        command
            .arg("agent")
            .args(["--state-dir".as_ref(), self.state_dir().as_os_str()])
            .args(["--run-dir".as_ref(), self.run_dir().as_os_str()])
            .args(["--bpf-dir".as_ref(), self.pin_dir.as_os_str()])
            .args(["--uplink", "eth0", "--uplink-mode", self.uplink_mode])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("cannot start the agent")?;
        self.agent = Some(child);
        let socket = self.socket();
        let up = wait_for("the agent's API", || {
            let child = self.agent.as_mut().expect("just started");
            if let Some(status) = child.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket)
                .is_ok()
                .then_some(Ok(())))
        });
        let up = up.with_context(|| format!("the agent does not come up\n{}", self.log_tail()))?;
        up.map_err(|status| anyhow::anyhow!("the agent ended: {status}\n{}", self.log_tail()))
    }

    /// Whether its agent was started, and not ended by the lab since.
    pub fn is_running(&self) -> bool {
        self.agent.is_some()
    }

    /// SIGKILL, as a crash would.
    ///
    /// # Errors
    /// When no agent runs.
    pub fn kill(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When no agent runs.
    pub fn stop(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        kill(Pid::from_raw(agent.id() as i32), Signal::SIGTERM)?;
        agent.wait()?;
        Ok(())
    }

    /// Which `swarmnet` the next [`Self::start`] runs.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Stops the agent's process for a while (SIGSTOP) or lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When no agent runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        Ok(kill(Pid::from_raw(agent.id() as i32), signal)?)
    }

    /// The agent's process is not ended with this value.
    pub(crate) fn forget(&mut self) {
        self.agent = None;
    }

    /// Process id of the agent, if it was started.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// `swarmnet <args>` on this node; gives standard output.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        run(&mut self.command(args)?)
    }

    /// `swarmnet <args>` that must fail with exit status 1; gives what it said on standard error.
    ///
    /// # Errors
    /// When it succeeds, or ends in another way.
    pub fn cli_error(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args)?.output()?;
        ensure!(
            output.status.code() == Some(1),
            "`swarmnet {}`: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// `swarmnet <args> --format json`: an object a line.
    ///
    /// # Errors
    /// What the command said, or what is no JSON.
    pub fn cli_json(&self, args: &[&str]) -> Result<Vec<serde_json::Value>> {
        let text = self.cli(&[args, &["--format", "json"]].concat())?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// What `swarmnet node ls` on this node has of the one with this name.
    ///
    /// # Errors
    /// What the command said, or when it lists no such node.
    pub fn listed(&self, name: &str) -> Result<serde_json::Value> {
        let nodes = self.cli_json(&["node", "ls"])?;
        let node = nodes.into_iter().find(|node| node["Hostname"] == name);
        node.with_context(|| format!("node {name} is not listed"))
    }

    /// `swarmnet <args>` on this node, for the caller to run.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.host.command(&self.binary)?;
        command
            .args(["--host", &self.host_url()])
            .args(args)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// The network of a task that runs on this node.
    pub fn task_host(&self, task: &str) -> Host {
        Host::at(task, self.run_dir().join("netns").join(task))
    }

    /// For `--host` and `DOCKER_HOST`.
    pub fn host_url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The stock `docker` client against this node.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host_url())
            .args(args)
            .stdin(Stdio::null());
        run(&mut command)
    }

    /// The end of the agent's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn print_log_tail(&self) {
        eprintln!("---- end of {}'s log\n{}", self.name(), self.log_tail());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}
