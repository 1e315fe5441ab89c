use std::{
    net::{Ipv4Addr, TcpListener},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use lab::{Lab, LabSpec, RunningTask, Wiring, wait_for};
use signer::Signer;

/// A cluster of three nodes, the first its manager unless more are asked for, and a client outside.
pub struct Cluster {
    lab: Lab,
    whoami: String,
}

impl Cluster {
    /// # Errors
    /// What the lab could not do.
    pub fn new() -> Result<Self> {
        Self::with_uplink_mode("tc")
    }

    /// # Errors
    /// What the lab could not do.
    pub fn with_uplink_mode(uplink_mode: &'static str) -> Result<Self> {
        Self::with(uplink_mode, 1500, 3, 1)
    }

    /// On an underlay of this MTU.
    ///
    /// # Errors
    /// What the lab could not do.
    pub fn with_mtu(mtu: u32) -> Result<Self> {
        Self::with("tc", mtu, 3, 1)
    }

    /// Of three managers.
    ///
    /// # Errors
    /// What the lab could not do.
    pub fn of_managers() -> Result<Self> {
        Self::with("tc", 1500, 3, 3)
    }

    /// Of so many nodes, the first of them managers.
    ///
    /// # Errors
    /// What the lab could not do.
    pub fn of(nodes: u8, managers: u8) -> Result<Self> {
        Self::with("tc", 1500, nodes, managers)
    }

    /// Nodes on which no agent runs yet, and which are in no cluster.
    ///
    /// # Errors
    /// What the lab could not do.
    pub fn of_strangers(nodes: u8) -> Result<Self> {
        Self::lab("tc", 1500, nodes, 1)
    }

    /// Of two managers and a worker, whose certificates are signed by an external CA on the client's
    /// host.
    ///
    /// # Errors
    /// What the lab could not do.
    pub fn with_external_ca() -> Result<(Self, Signer)> {
        let mut cluster = Self::lab("tc", 1500, 3, 2)?;
        let signer = cluster.signer()?;
        let root = cluster.dir().join("external-root.pem");
        std::fs::write(&root, signer.root_pem())?;
        let external = external_ca(&signer, Some(&root));
        cluster.form_cluster_by(&["--external-ca", &external])?;
        Ok((cluster, signer))
    }

    /// An external CA on the client's host.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn signer(&self) -> Result<Signer> {
        let listener = self.client().within(|| {
            let addr = self.client_addr();
            Ok(TcpListener::bind((addr, 0))?)
        })?;
        Ok(Signer::start(listener)?)
    }

    fn with(uplink_mode: &'static str, mtu: u32, nodes: u8, managers: u8) -> Result<Self> {
        let mut cluster = Self::lab(uplink_mode, mtu, nodes, managers)?;
        cluster.form_cluster()?;
        Ok(cluster)
    }

    /// Without a cluster on it.
    fn lab(uplink_mode: &'static str, mtu: u32, nodes: u8, managers: u8) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}{}", std::process::id(), char::from(b'a' + nth as u8));
        let binaries = binaries_dir()?;
        let lab = Lab::new(LabSpec {
            dir: Path::new("/var/lib/swarmnet-tests").join(&name),
            name,
            nodes,
            managers,
            binary: binaries.join("swarmnet"),
            uplink_mode,
            mtu,
            wiring: Wiring::Switch,
        })?;
        let whoami = binaries
            .join("whoami")
            .to_str()
            .context("path is no UTF-8")?
            .to_owned();
        Ok(Self { lab, whoami })
    }

    /// Creates a service of the lab's server, listening on 80, and waits until its tasks run.
    ///
    /// # Errors
    /// What the command said.
    pub fn serve(&self, name: &str, replicas: usize, options: &[&str]) -> Result<Vec<RunningTask>> {
        let count = replicas.to_string();
        let head = [
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--replicas",
            &count,
        ];
        let tail = ["--", &self.whoami, "80"];
        self.manager()?.cli(&[&head[..], options, &tail].concat())?;
        self.wait_running(name, replicas)
    }
}

impl Cluster {
    /// The number of the node that leads, in the eyes of a manager that runs; not one that was
    /// killed.
    ///
    /// # Errors
    /// At the deadline.
    pub fn leader(&self) -> Result<usize> {
        wait_for("a leader", || {
            let nodes = self.manager()?.cli_json(&["node", "ls"])?;
            let leads = nodes.iter().find(|node| node["ManagerStatus"] == "Leader");
            let name = leads.and_then(|node| node["Hostname"].as_str());
            let number = name.and_then(|name| self.nodes().iter().position(|n| n.name() == name));
            Ok(number
                .map(|index| index + 1)
                .filter(|number| self.node(*number).is_running()))
        })
    }

    /// The virtual address of a service.
    ///
    /// # Errors
    /// What the command said.
    pub fn vip(&self, service: &str) -> Result<Ipv4Addr> {
        let format = "{{(index .Endpoint.VirtualIPs 0).Addr}}";
        let inspect = ["service", "inspect", "--format", format, service];
        let shown = self.node(1).docker(&inspect)?;
        Ok(shown.split('/').next().context("an address")?.parse()?)
    }

    /// The address of a task's eth0.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn overlay_addr(&self, task: &RunningTask) -> Result<Ipv4Addr> {
        let show = ["-4", "-o", "address", "show", "dev", "eth0"];
        let shown = self.inside(task).ip(&show)?;
        let cidr = shown.split_whitespace().nth(3);
        let cidr = cidr.context("eth0 has an address")?;
        Ok(cidr.split('/').next().context("an address")?.parse()?)
    }

    /// Path of the lab's server, for `--args`.
    pub fn whoami(&self) -> &str {
        &self.whoami
    }

    /// The `swarmnet` whose maps have another layout.
    ///
    /// # Errors
    /// When it is not built.
    pub fn another_layout() -> Result<PathBuf> {
        let binary = binaries_dir()?.join("swarmnet-another-layout");
        anyhow::ensure!(
            binary.exists(),
            "{} is missing: run `cargo xtask test`",
            binary.display()
        );
        Ok(binary)
    }

    /// A published port on each node, which the client outside asks from an address of its own for
    /// each: two of its connections from one port to two nodes could meet at one task, where only
    /// one of them can be.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn entries(&self, port: u16) -> Result<Vec<(Ipv4Addr, u16)>> {
        for (number, node) in (101..).zip(self.nodes()) {
            let source = Ipv4Addr::new(192, 168, 77, number).to_string();
            let (local, to) = (format!("{source}/24"), node.addr().to_string());
            let client = self.client();
            client.ip(&["address", "replace", &local, "dev", "eth0"])?;
            client.ip(&["route", "replace", &to, "dev", "eth0", "src", &source])?;
        }
        Ok(self
            .nodes()
            .iter()
            .map(|node| (node.addr(), port))
            .collect())
    }
}

impl Deref for Cluster {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// The flag's value for an external CA.
pub fn external_ca(signer: &Signer, root: Option<&Path>) -> String {
    let cacert = root.map_or_else(String::new, |root| format!(",cacert={}", root.display()));
    format!("protocol=cfssl,url={}{cacert}", signer.url())
}

/// `target/<profile>`: the test's binary lies in its `deps`.
fn binaries_dir() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir = test
        .parent()
        .and_then(Path::parent)
        .context("a test lies in target/<profile>/deps")?;
    let binary = dir.join("swarmnet");
    anyhow::ensure!(
        binary.exists(),
        "{} is missing: run `cargo xtask test`",
        binary.display()
    );
    Ok(dir.to_owned())
}
