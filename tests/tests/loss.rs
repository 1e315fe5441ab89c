//! Nothing is lost on a planned change: streams that send without pause and connections made one
//! after the other, through every node, while everything is changed that an operator changes.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cluster, Load, LoadSpec, Task};

/// Requests while each change is made, and after it. `SWARMNET_LOSS_REQUESTS` sets more in all.
const REQUESTS_PER_CHANGE: u64 = 1_000;
/// A thousand streams in all.
const STREAMS_PER_ENTRY: usize = 334;

/// A trial has the machine for itself: two of them starve each other.
static TURN: Mutex<()> = Mutex::new(());

struct Trial {
    cluster: Cluster,
    load: Option<Load>,
    tasks: Vec<Task>,
    requests: u64,
    /// Given on when the cluster is gone: fields are dropped in order.
    _turn: MutexGuard<'static, ()>,
}

impl Trial {
    fn new(changes: u64) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster::new()?;
        // A client that closes first keeps the port for a minute; a thousand a second wear them out.
        let reuse = ["-q", "-w", "net.ipv4.tcp_tw_reuse=1"];
        cluster.client().run("sysctl", &reuse)?;
        let tasks = cluster.serve("web", 3, &["--publish", "8080:80"])?;
        cluster.settle()?;
        let spec = LoadSpec {
            streams: STREAMS_PER_ENTRY,
            askers: 2,
        };
        let load = Load::start(cluster.client(), &cluster.entries(8080)?, spec)?;
        let wanted = std::env::var("SWARMNET_LOSS_REQUESTS").ok();
        let wanted = wanted.map(|wanted| wanted.parse::<u64>()).transpose()?;
        Ok(Self {
            _turn: turn,
            cluster,
            load: Some(load),
            tasks,
            requests: wanted.map_or(REQUESTS_PER_CHANGE, |wanted| wanted.div_ceil(changes)),
        })
    }

    fn node(&self) -> &lab::Node {
        self.cluster.node(1)
    }

    /// Carries out a change, to its end on all nodes, and some load after it.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let outcome = change(self).and_then(|()| self.cluster.settle());
        let load = self.load.as_ref().expect("it goes on");
        let outcome = outcome.and_then(|()| load.go_on(self.requests));
        if outcome.is_err() {
            for node in self.cluster.nodes() {
                println!("{}", node.cli(&["inspect", "drops"])?);
            }
        }
        outcome.map_err(|err| err.context(name.to_owned()))
    }

    fn update(&self, options: &[&str]) -> Result<()> {
        let update = ["service", "update", "--detach"];
        let args = [&update[..], options, &["web"]].concat();
        self.node().cli(&args).map(drop)
    }

    fn scale(&mut self, replicas: usize) -> Result<()> {
        let wanted = format!("web={replicas}");
        self.node()
            .cli(&["service", "scale", "--detach", &wanted])?;
        self.tasks = self.cluster.wait_running("web", replicas)?;
        Ok(())
    }

    /// All tasks are others.
    fn replace(&mut self, order: &str) -> Result<()> {
        let args = format!("{} 80 {order}", self.cluster.whoami());
        self.update(&["--update-order", order, "--args", &args])?;
        let ids = |tasks: &[Task]| -> BTreeSet<String> {
            tasks.iter().map(|task| task.id.clone()).collect()
        };
        let old = ids(&self.tasks);
        self.tasks = wait_for("the tasks to be replaced", || {
            let tasks = self.cluster.tasks("web")?;
            let done = tasks.len() == old.len() && ids(&tasks).is_disjoint(&old);
            Ok(done.then_some(tasks))
        })?;
        Ok(())
    }

    fn restart_agents(&mut self, binary: Option<&PathBuf>, kill: bool) -> Result<()> {
        for number in 1..=3 {
            let node = self.cluster.node_mut(number);
            if kill {
                node.kill()?
            } else {
                node.stop()?
            }
            if let Some(binary) = binary {
                node.set_binary(binary.clone());
            }
            node.start()?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let load = self.load.take().expect("it goes on");
        let report = load.end()?;
        let drops = self.node().cli(&["inspect", "drops"])?;
        println!(
            "{} requests, the slowest of {:.1?}, and {} echoes, none lost\n{drops}",
            report.requests, report.slowest, report.echoes
        );
        Ok(())
    }
}

#[test]
fn nothing_is_lost_while_the_service_changes() -> Result<()> {
    let mut trial = Trial::new(7)?;
    trial.change("scale up", |trial| trial.scale(6))?;
    trial.change("scale down", |trial| trial.scale(3))?;
    trial.change("start-first", |trial| trial.replace("start-first"))?;
    trial.change("stop-first", |trial| trial.replace("stop-first"))?;
    trial.change("publish another port", |trial| {
        trial.update(&["--publish-add", "8081:80"])
    })?;
    trial.change("unpublish it", |trial| {
        trial.update(&["--publish-rm", "8081:80"])
    })?;
    trial.change("another service", |trial| {
        trial.cluster.serve("other", 3, &["--publish", "9090:80"])?;
        trial.node().cli(&["service", "rm", "other"]).map(drop)
    })?;
    trial.end()
}

#[test]
fn nothing_is_lost_while_agents_are_killed_upgraded_and_downgraded() -> Result<()> {
    let mut trial = Trial::new(3)?;
    trial.change("kill", |trial| trial.restart_agents(None, true))?;
    let another = Cluster::another_layout()?;
    let usual = another.with_file_name("swarmnet");
    trial.change("upgrade", |trial| {
        trial.restart_agents(Some(&another), false)
    })?;
    for node in trial.cluster.nodes() {
        let log = std::fs::read_to_string(node.log_path())?;
        ensure!(
            log.contains("hooks taken over from a build with another map layout"),
            "{} runs no other layout",
            node.name()
        );
    }
    trial.change("downgrade", |trial| {
        trial.restart_agents(Some(&usual), false)
    })?;
    trial.end()
}
