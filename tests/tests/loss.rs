//! Nothing is lost on a planned change: streams that send without pause and connections made one
//! after the other, through every node, while everything is changed that an operator changes.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use swarmnet_tests::{Cluster, Load, LoadSpec};

/// Requests while each change is made, and after it. `SWARMNET_LOSS_REQUESTS` sets more in all.
const REQUESTS_PER_CHANGE: u64 = 1_000;
const STREAMS_PER_ENTRY: usize = 334;

struct Trial {
    cluster: Cluster,
    load: Option<Load>,
    requests: u64,
}

impl Trial {
    fn new(replicas: usize, changes: u64) -> Result<Self> {
        let cluster = Cluster::new()?;
        // A client that closes first keeps the port for a minute; a thousand a second wear them out.
        let reuse = ["-q", "-w", "net.ipv4.tcp_tw_reuse=1"];
        cluster.client().run("sysctl", &reuse)?;
        cluster.serve("web", replicas, &["--publish", "8080:80"])?;
        cluster.settle()?;
        let spec = LoadSpec {
            streams: STREAMS_PER_ENTRY,
            askers: 2,
        };
        let load = Load::start(cluster.client(), &cluster.entries(8080)?, spec)?;
        let wanted = std::env::var("SWARMNET_LOSS_REQUESTS").ok();
        let wanted = wanted.map(|wanted| wanted.parse::<u64>()).transpose()?;
        Ok(Self {
            cluster,
            load: Some(load),
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
        outcome.map_err(|err| err.context(name.to_owned()))
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
        let (requests, echoes) = load.end()?;
        let drops = self.node().cli(&["inspect", "drops"])?;
        println!("{requests} requests and {echoes} echoes, none lost\n{drops}");
        ensure!(echoes > requests, "the streams paused: {echoes} echoes");
        Ok(())
    }
}

#[test]
fn nothing_is_lost_while_agents_are_killed_upgraded_and_downgraded() -> Result<()> {
    let mut trial = Trial::new(3, 3)?;
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
