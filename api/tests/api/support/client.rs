//! The stock `docker` command.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::{Child, Command};

use super::in_time;

/// Whether there is a client to test with. Without one the test is skipped, except in CI.
pub fn docker_is_here() -> bool {
    let found = std::process::Command::new("docker")
        .arg("--version")
        .output()
        .is_ok();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "no `docker` client in PATH; install Debian's docker-cli"
    );
    if !found {
        eprintln!("skipped: no `docker` client in PATH");
    }
    found
}

/// Runs `docker` against a socket, with a configuration of its own.
pub struct Client {
    dir: PathBuf,
}

impl Client {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// For files that a command reads.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.dir.join("config"))
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_API_VERSION")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Output {
        in_time(&args.join(" "), self.command(args).output())
            .await
            .unwrap()
    }

    /// What it prints; panics when it fails.
    pub async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "docker {args:?}: {stdout}{stderr}");
        stdout
    }

    /// What it complains of; panics when it succeeds.
    pub async fn err(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        let (stdout, stderr) = texts(&output);
        assert!(
            !output.status.success(),
            "docker {args:?} succeeded: {stdout}"
        );
        stderr
    }

    /// Starts it and leaves it running until dropped.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (text(&output.stdout), text(&output.stderr))
}
