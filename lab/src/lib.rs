//! Nodes in network namespaces on one machine: a switch, nodes that run the real `swarmnet agent`,
//! and a client outside. The demo, the tests and the benchmarks stand on it.
//!
//! Everything a lab makes carries its name: namespaces `<name>-…`, a directory, a bpffs directory.
//! Dropping it removes all of it; [`Lab::clean`] does the same for one whose process was killed.

mod clean;
mod host;
pub mod meter;
mod node;
mod port;
pub mod progress;
mod wait;
mod xdp_pass;

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
pub use host::Host;
pub use node::Node;
pub use port::free_port;
pub use wait::{patience, wait_for};

/// The underlay of every lab: 192.168.77.0/24, node `n` at .n, the client at .100.
const UNDERLAY: [u8; 3] = [192, 168, 77];
const CLIENT: u8 = 100;

/// What to build.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// At most 10 characters: it begins interface and namespace names.
    pub name: String,
    /// Where state, run directories and logs go; made when missing.
    pub dir: PathBuf,
    pub nodes: u8,
    /// The first ones.
    pub managers: u8,
    /// The `swarmnet` binary.
    pub binary: PathBuf,
    pub uplink_mode: &'static str,
    /// MTU of every underlay link.
    pub mtu: u32,
    pub wiring: Wiring,
}

/// How the hosts are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// All on one switch (a bridge in a namespace of its own).
    Switch,
    /// Two nodes by one veth pair, nothing in between, and a client that is not plugged in: for
    /// measurements.
    BackToBack,
}

/// A task as `service ps` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    pub id: String,
    /// Number of its node in the lab.
    pub node: usize,
    /// What it has unless its service says otherwise.
    pub hostname: String,
}

/// A running lab.
pub struct Lab {
    spec: LabSpec,
    nodes: Vec<Node>,
    client: Host,
    keep: bool,
    /// Keeps the switch's ports polling, while this process lives.
    _polling: Vec<OwnedFd>,
}

impl Lab {
    /// Makes the switch, the nodes' namespaces and the client; starts no agent.
    ///
    /// # Errors
    /// Names the command that failed; needs root and iproute2.
    pub fn new(spec: LabSpec) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root"
        );
        ensure!(
            spec.name.len() <= 10,
            "lab name `{}` is longer than 10 characters",
            spec.name
        );
        Self::clean(&spec.name, &spec.dir)?;
        fs::create_dir_all(&spec.dir)
            .with_context(|| format!("cannot create {}", spec.dir.display()))?;
        let hosts = match spec.wiring {
            Wiring::Switch => on_a_switch(&spec)?,
            Wiring::BackToBack => back_to_back(&spec)?,
        };
        let nodes = (1..)
            .zip(hosts)
            .map(|(number, host)| Node::new(host, &spec, number))
            .collect();
        let client = Host::create(&client_name(&spec))?;
        if spec.wiring == Wiring::Switch {
            plug(&spec, &client, CLIENT)?;
        }
        Ok(Self {
            _polling: poll_ports(&spec)?,
            spec,
            nodes,
            client,
            keep: false,
        })
    }

    /// Starts every agent, makes a cluster of them.
    ///
    /// # Errors
    /// What the failing command said.
    pub fn form_cluster(&mut self) -> Result<()> {
        self.form_cluster_by(&[])
    }

    /// With these flags of `init`.
    ///
    /// # Errors
    /// What the failing command said.
    pub fn form_cluster_by(&mut self, init: &[&str]) -> Result<()> {
        for node in &mut self.nodes {
            node.start()?;
        }
        let first = &self.nodes[0];
        let addr = first.addr().to_string();
        first.cli(&[&["init", "--advertise-addr", &addr], init].concat())?;
        let token = |role| first.cli(&["join-token", "-q", role]);
        let (manager, worker) = (token("manager")?, token("worker")?);
        let known = format!("{}:2377", first.addr());
        for (number, node) in (1..).zip(&self.nodes).skip(1) {
            let token = match number <= self.spec.managers {
                true => &manager,
                false => &worker,
            };
            node.cli(&["join", "--token", token.trim(), &known])?;
        }
        let expected = self.nodes.len();
        wait_for("every node to be ready", || {
            let nodes = self.nodes[0].cli_json(&["node", "ls"])?;
            let ready = nodes
                .iter()
                .filter(|node| node["Status"] == "Ready")
                .count();
            Ok((ready == expected).then_some(()))
        })
    }

    /// Waits until every node that is up acknowledged the newest version: what was asked for is in
    /// the kernels.
    ///
    /// # Errors
    /// At the deadline.
    pub fn settle(&self) -> Result<()> {
        wait_for("every node to apply the newest version", || {
            let rows = self.manager()?.cli_json(&["inspect", "nodes"])?;
            let behind = rows
                .iter()
                .filter(|row| row["state"] == "ready" && row["applied"] != row["current"])
                .count();
            Ok((behind == 0).then_some(()))
        })
    }

    /// The tasks of a service that run and should.
    ///
    /// # Errors
    /// What the command said.
    pub fn tasks(&self, service: &str) -> Result<Vec<RunningTask>> {
        let args = [
            "service",
            "ps",
            "--no-trunc",
            "--filter",
            "desired-state=running",
            service,
        ];
        let rows = self.manager()?.cli_json(&args)?;
        let running = rows.iter().filter(|row| {
            row["CurrentState"]
                .as_str()
                .is_some_and(|state| state.starts_with("Running"))
        });
        running.map(|row| self.running_task(row)).collect()
    }

    fn running_task(&self, row: &serde_json::Value) -> Result<RunningTask> {
        let id = row["ID"].as_str().context("a task has an id")?.to_owned();
        let hostname = row["Node"].as_str().context("a running task has a node")?;
        let at = self.nodes.iter().position(|node| node.name() == hostname);
        let node = at.with_context(|| format!("no node is called {hostname}"))? + 1;
        Ok(RunningTask {
            hostname: id.chars().take(12).collect(),
            id,
            node,
        })
    }

    /// Waits for so many running tasks.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_running(&self, service: &str, replicas: usize) -> Result<Vec<RunningTask>> {
        wait_for(&format!("{replicas} running tasks of {service}"), || {
            let tasks = self.tasks(service)?;
            Ok((tasks.len() == replicas).then_some(tasks))
        })
    }

    /// The network of a task.
    pub fn inside(&self, task: &RunningTask) -> Host {
        self.node(task.node).task_host(&task.id)
    }

    /// A manager whose agent runs.
    ///
    /// # Errors
    /// When all were killed.
    pub fn manager(&self) -> Result<&Node> {
        let mut running = self.managers().iter().filter(|node| node.is_running());
        running.next().context("no manager's agent runs")
    }

    pub fn managers(&self) -> &[Node] {
        &self.nodes[..self.spec.managers.into()]
    }

    /// Nodes count from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Cuts the node off from everybody, or connects it again.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn plug_in(&self, number: usize, is_plugged: bool) -> Result<()> {
        let (switch, port) = (switch_name(&self.spec), format!("p{number}"));
        let state = if is_plugged { "up" } else { "down" };
        let set = ["-n", &switch, "link", "set", &port, state];
        run(Command::new("ip").args(set)).map(drop)
    }

    /// A host on the underlay that is no node.
    pub fn client(&self) -> &Host {
        &self.client
    }

    pub fn client_addr(&self) -> Ipv4Addr {
        underlay_addr(CLIENT)
    }

    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }

    /// Leaves everything running when the lab is dropped.
    pub fn keep(mut self) {
        self.keep = true;
        self.nodes.iter_mut().for_each(Node::forget);
    }

    /// Removes what a lab of this name left: processes, namespaces, mounts, pins, files.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub fn clean(name: &str, dir: &Path) -> Result<()> {
        clean::clean(name, dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() {
            self.nodes.iter().for_each(Node::print_log_tail);
        }
        if let Err(err) = Self::clean(&self.spec.name, &self.spec.dir) {
            eprintln!("lab `{}` is not all gone: {err:#}", self.spec.name);
        }
    }
}

fn underlay_addr(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(UNDERLAY[0], UNDERLAY[1], UNDERLAY[2], host)
}

fn switch_name(spec: &LabSpec) -> String {
    format!("{}-sw", spec.name)
}

fn client_name(spec: &LabSpec) -> String {
    format!("{}-client", spec.name)
}

fn create_nodes(spec: &LabSpec) -> Result<Vec<Host>> {
    (1..=spec.nodes)
        .map(|number| Host::create(&format!("{}-n{number}", spec.name)))
        .collect()
}

fn on_a_switch(spec: &LabSpec) -> Result<Vec<Host>> {
    let switch = Host::create(&switch_name(spec))?;
    switch.ip(&[
        "link",
        "add",
        "br0",
        "mtu",
        &spec.mtu.to_string(),
        "type",
        "bridge",
    ])?;
    switch.ip(&["link", "set", "br0", "up"])?;
    let hosts = create_nodes(spec)?;
    for (number, host) in (1..).zip(&hosts) {
        plug(spec, host, number)?;
    }
    Ok(hosts)
}

fn back_to_back(spec: &LabSpec) -> Result<Vec<Host>> {
    ensure!(
        spec.nodes == 2,
        "back to back are two nodes, not {}",
        spec.nodes
    );
    let hosts = create_nodes(spec)?;
    let mtu = spec.mtu.to_string();
    hosts[0].ip(&[
        "link",
        "add",
        "eth0",
        "mtu",
        &mtu,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "mtu",
        &mtu,
        "netns",
        hosts[1].name(),
    ])?;
    for (number, host) in (1..).zip(&hosts) {
        set_up(host, number)?;
    }
    Ok(hosts)
}

/// Gives the host an `eth0` on the switch.
fn plug(spec: &LabSpec, host: &Host, number: u8) -> Result<()> {
    let mtu = spec.mtu.to_string();
    let port = format!("p{number}");
    let switch = switch_name(spec);
    host.ip(&[
        "link", "add", "eth0", "mtu", &mtu, "type", "veth", "peer", "name", &port, "mtu", &mtu,
        "netns", &switch,
    ])?;
    let plugged = ["link", "set", port.as_str(), "master", "br0", "up"];
    run(Command::new("ip").args(["-n", &switch]).args(plugged))?;
    if spec.uplink_mode == "xdp" {
        // A veth's sender leaves checksums to a NIC that never comes; XDP cannot see that.
        host.run("ethtool", &["-K", "eth0", "tx", "off"])?;
    }
    set_up(host, number)
}

/// Makes the switch's ports take what XDP sends out of the nodes.
fn poll_ports(spec: &LabSpec) -> Result<Vec<OwnedFd>> {
    if spec.wiring != Wiring::Switch || spec.uplink_mode != "xdp" {
        return Ok(Vec::new());
    }
    let name = switch_name(spec);
    let switch = Host::at(&name, Path::new("/run/netns").join(&name));
    let attach = |number| xdp_pass::attach(&format!("p{number}"));
    switch.within(|| {
        let ports = (1..=spec.nodes).map(attach);
        let ports: std::io::Result<_> = ports.collect();
        ports.context("cannot attach an XDP program to the switch's ports")
    })
}

fn set_up(host: &Host, number: u8) -> Result<()> {
    host.ip(&[
        "address",
        "add",
        &format!("{}/24", underlay_addr(number)),
        "dev",
        "eth0",
    ])?;
    host.ip(&["link", "set", "lo", "up"])?;
    host.ip(&["link", "set", "eth0", "up"]).map(drop)
}

/// Runs a command and gives its output, or an error that quotes it.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
