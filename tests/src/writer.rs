//! Changes that are asked for all the time, whatever becomes of the managers.

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Node, wait_for};

use crate::Cluster;

/// Makes networks at one manager after the other for as long as it may, and remembers those whose
/// making was acknowledged.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    thread: Option<JoinHandle<()>>,
}

/// What a writer was told.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub names: BTreeSet<String>,
    /// Attempts that were refused, or whose outcome is open.
    pub refused: usize,
    /// The longest time from one acknowledgement to the next.
    pub longest: Duration,
    last: Instant,
}

impl Writer {
    pub fn start(cluster: &Cluster) -> Self {
        Self::start_at(&cluster.managers().iter().collect::<Vec<_>>())
    }

    /// Asks these managers only.
    pub fn start_at(managers: &[&Node]) -> Self {
        let hosts: Vec<_> = managers.iter().map(|node| node.host_url()).collect();
        let stop = Arc::<AtomicBool>::default();
        let acknowledged = Arc::new(Mutex::new(Acknowledged::none()));
        let thread = std::thread::spawn({
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            move || {
                for (number, host) in hosts.iter().cycle().enumerate() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("w{number}");
                    let done = docker(host, &["network", "create", "-d", "overlay", &name]);
                    acknowledged.lock().unwrap().note(name, done);
                }
            }
        });
        Self {
            stop,
            acknowledged,
            thread: Some(thread),
        }
    }

    /// Waits until more is acknowledged than was.
    ///
    /// # Errors
    /// At the deadline.
    pub fn go_on(&self) -> Result<()> {
        let count = || self.acknowledged.lock().unwrap().names.len();
        let before = count();
        wait_for("a write to be acknowledged", || {
            Ok((count() > before + 1).then_some(()))
        })
    }

    pub fn end(mut self) -> Acknowledged {
        self.join();
        self.acknowledged.lock().unwrap().clone()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer does not panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

impl Acknowledged {
    fn none() -> Self {
        Self {
            names: BTreeSet::new(),
            refused: 0,
            longest: Duration::ZERO,
            last: Instant::now(),
        }
    }

    fn note(&mut self, name: String, done: bool) {
        if !done {
            self.refused += 1;
            return;
        }
        self.names.insert(name);
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }

    /// Every manager lists each of them, once.
    ///
    /// # Errors
    /// Names a manager and what it lacks.
    pub fn are_there(&self, cluster: &Cluster) -> Result<()> {
        for node in cluster.managers() {
            let listed = node.docker(&["network", "ls", "--format", "{{.Name}}"])?;
            for name in &self.names {
                let found = listed.lines().filter(|line| line == name).count();
                ensure!(found == 1, "{} lists {name} {found} times", node.name());
            }
        }
        Ok(())
    }
}

fn docker(host: &str, args: &[&str]) -> bool {
    let mut command = Command::new("docker");
    let output = command.env("DOCKER_HOST", host).args(args).output();
    output.expect("docker is installed").status.success()
}
