//! A task's network presence on this node: its namespace, its interfaces, its gateway-side address,
//! and the record on disk from which a restarted agent takes them up again.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use datapath::{HostPort, LocalTask, LocalVeth};
use dataplane_abi::net::task_mac;
use ipnet::Ipv4Net;
use model::{EndpointId, TaskId, object::Attachment, spec::PortSpec};
use serde::{Deserialize, Serialize};

use crate::{
    disk, gateway,
    links::{self, HostVeths, TaskLinksSpec},
    netns::Netns,
    repair::Repairs,
};

/// What is needed to find a task's network again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub task: TaskId,
    pub endpoint: EndpointId,
    pub gateway: Ipv4Addr,
    pub attachments: Vec<Attachment>,
    /// Published on this node alone, each with its number.
    #[serde(default)]
    pub host_ports: Vec<PortSpec>,
}

/// Where namespaces and records are kept.
#[derive(Debug, Clone)]
pub struct NetworkPaths {
    pub netns_dir: PathBuf,
    pub record_dir: PathBuf,
}

impl NetworkPaths {
    pub fn netns(&self, task: TaskId) -> PathBuf {
        self.netns_dir.join(task.to_string())
    }

    fn record(&self, task: TaskId) -> PathBuf {
        self.record_dir.join(format!("{task}.json"))
    }

    /// All records; a file that does not parse is left for a person and named.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn records(&self) -> Result<Vec<NetworkRecord>> {
        disk::make_dir(&self.record_dir)?;
        let entries = fs::read_dir(&self.record_dir)
            .with_context(|| format!("cannot list {}", self.record_dir.display()))?;
        let mut records = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                match read_record(&path) {
                    Ok(record) => records.push(record),
                    Err(err) => {
                        tracing::warn!(file.path = %path.display(), "task network record ignored: {err:#}")
                    }
                }
            }
        }
        Ok(records)
    }
}

fn read_record(path: &Path) -> Result<NetworkRecord> {
    let content = disk::read(path)?.context("it vanished")?;
    Ok(serde_json::from_slice(&content)?)
}

/// Makes the network, record first, so that an agent killed in between cleans up after itself.
///
/// # Errors
/// Names the step; [`destroy`] removes what was made.
pub async fn create(
    paths: &NetworkPaths,
    record: &NetworkRecord,
    underlay_mtu: u32,
) -> Result<LocalTask> {
    disk::write_atomic(
        &paths.record(record.task),
        &serde_json::to_vec_pretty(record)?,
    )?;
    let netns = Netns::ensure(&paths.netns(record.task))?;
    ensure(record, underlay_mtu, &netns, &mut Repairs::default()).await
}

/// Mends what is not as it should be of a task's network that is there.
///
/// # Errors
/// Names the step.
pub async fn mend(
    paths: &NetworkPaths,
    record: &NetworkRecord,
    underlay_mtu: u32,
    repairs: &mut Repairs,
) -> Result<LocalTask> {
    let netns = Netns::open(&paths.netns(record.task))?;
    ensure(record, underlay_mtu, &netns, repairs).await
}

async fn ensure(
    record: &NetworkRecord,
    underlay_mtu: u32,
    netns: &Netns,
    repairs: &mut Repairs,
) -> Result<LocalTask> {
    let spec = links_spec(record, underlay_mtu)?;
    let veths = links::ensure_task_links(&spec, netns, repairs).await?;
    local_task(record, netns, &veths).await
}

/// Takes up the network of a task that runs already; `None` when it is not whole.
///
/// # Errors
/// When netlink fails.
pub async fn adopt(paths: &NetworkPaths, record: &NetworkRecord) -> Result<Option<LocalTask>> {
    let Ok(netns) = Netns::open(&paths.netns(record.task)) else {
        return Ok(None);
    };
    let found = links::find_host_veths(record.endpoint, record.attachments.len()).await?;
    match found {
        Some(veths) => local_task(record, &netns, &veths).await.map(Some),
        None => Ok(None),
    }
}

/// Removes all of it. Goes on after a failure and returns the first.
///
/// # Errors
/// The first failure.
pub async fn destroy(paths: &NetworkPaths, record: &NetworkRecord) -> Result<()> {
    let links = links::remove_task_links(record.endpoint, record.attachments.len()).await;
    let netns = match Netns::open(&paths.netns(record.task)) {
        Ok(netns) => netns.remove(),
        Err(_) => Ok(()),
    };
    links?;
    netns?;
    disk::remove(&paths.netns(record.task))?;
    Ok(disk::remove(&paths.record(record.task))?)
}

fn links_spec(record: &NetworkRecord, underlay_mtu: u32) -> Result<TaskLinksSpec> {
    let overlays: Result<Vec<_>, _> = record
        .attachments
        .iter()
        .map(|at| Ipv4Net::new(at.addr, at.prefix_len))
        .collect();
    Ok(TaskLinksSpec {
        endpoint: record.endpoint,
        overlays: overlays.context("the task's address has no valid prefix length")?,
        gateway: Ipv4Net::new(record.gateway, gateway::subnet().prefix_len())?,
        gateway_addr: gateway::bridge_addr(),
        underlay_mtu,
    })
}

async fn local_task(record: &NetworkRecord, netns: &Netns, veths: &HostVeths) -> Result<LocalTask> {
    let veth = |ifindex, addr: Ipv4Addr| LocalVeth {
        ifindex,
        addr,
        mac: task_mac(addr.into()),
    };
    let overlays = record
        .attachments
        .iter()
        .zip(&veths.overlays)
        .map(|(at, ifindex)| (at.network, veth(*ifindex, at.addr)))
        .collect();
    Ok(LocalTask {
        endpoint: record.endpoint,
        netns_cookie: netns
            .cookie()
            .context("cannot read the namespace's cookie")?,
        netns_id: links::namespace_id(netns).await?,
        gateway: veth(veths.gateway, record.gateway),
        overlays,
        host_ports: record.host_ports.iter().filter_map(host_port).collect(),
    })
}

/// `None` for one that has no number, which no record has.
fn host_port(port: &PortSpec) -> Option<HostPort> {
    Some(HostPort {
        proto: port.protocol.number(),
        published: port.published?,
        target: port.target,
    })
}
