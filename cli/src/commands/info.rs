//! `info`: this node, and the cluster it is in.

use std::fmt::{Result as FmtResult, Write};

use anyhow::Result;
use bollard_stubs::models::{LocalNodeState, SwarmInfo, SwarmSpecCaConfigExternalCas, SystemInfo};
use clap::Args;

use crate::{
    client::{Client, Route},
    output::{Format, print_objects},
    units::{human_duration, show_bytes},
};

#[derive(Debug, Args)]
pub struct Info {
    /// json, or a Go template of fields such as '{{.Swarm.NodeID}}'
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: Format,
}

impl Info {
    pub async fn run(self, client: &Client) -> Result<()> {
        let text = client.get_text(Route::new("info")).await?;
        match &self.format {
            Format::Table => print!("{}", pretty(&serde_json::from_str(&text)?)),
            Format::Json => println!("{text}"),
            format => print!("{}", print_objects(format, &[text])?),
        }
        Ok(())
    }
}

fn pretty(info: &SystemInfo) -> String {
    let mut out = String::new();
    let swarm = info.swarm.clone().unwrap_or_default();
    write_swarm(&mut out, &swarm)
        .and_then(|()| write_host(&mut out, info))
        .expect("a string takes all writes");
    out
}

fn write_swarm(out: &mut String, swarm: &SwarmInfo) -> FmtResult {
    let state = swarm.local_node_state.unwrap_or(LocalNodeState::INACTIVE);
    writeln!(out, "Swarm: {state}")?;
    if matches!(state, LocalNodeState::INACTIVE | LocalNodeState::LOCKED) {
        return Ok(());
    }
    writeln!(
        out,
        " NodeID: {}",
        swarm.node_id.as_deref().unwrap_or_default()
    )?;
    if let Some(error) = swarm.error.as_deref().filter(|error| !error.is_empty()) {
        writeln!(out, " Error: {error}")?;
    }
    let is_manager = swarm.control_available.unwrap_or_default();
    writeln!(out, " Is Manager: {is_manager}")?;
    if is_manager {
        write_cluster(out, swarm)?;
    }
    writeln!(
        out,
        " Node Address: {}",
        swarm.node_addr.as_deref().unwrap_or_default()
    )?;
    let mut managers: Vec<&str> = swarm
        .remote_managers
        .iter()
        .flatten()
        .filter_map(|manager| manager.addr.as_deref())
        .collect();
    managers.sort_unstable();
    if !managers.is_empty() {
        writeln!(out, " Manager Addresses:")?;
    }
    managers
        .iter()
        .try_for_each(|addr| writeln!(out, "  {addr}"))
}

fn write_cluster(out: &mut String, swarm: &SwarmInfo) -> FmtResult {
    let cluster = swarm.cluster.clone().unwrap_or_default();
    let spec = cluster.spec.unwrap_or_default();
    let orchestration = spec.orchestration.unwrap_or_default();
    let raft = spec.raft.unwrap_or_default();
    let pools = cluster.default_addr_pool.unwrap_or_default();
    let duration = |nanos: Option<i64>| {
        human_duration(jiff::SignedDuration::from_nanos(nanos.unwrap_or_default()))
    };
    writeln!(out, " ClusterID: {}", cluster.id.unwrap_or_default())?;
    writeln!(out, " Managers: {}", swarm.managers.unwrap_or_default())?;
    writeln!(out, " Nodes: {}", swarm.nodes.unwrap_or_default())?;
    writeln!(out, " Default Address Pool: {}  ", pools.join("  "))?;
    writeln!(
        out,
        " SubnetSize: {}",
        cluster.subnet_size.unwrap_or_default()
    )?;
    writeln!(
        out,
        " Data Path Port: {}",
        cluster.data_path_port.unwrap_or_default()
    )?;
    writeln!(
        out,
        " Orchestration:\n  Task History Retention Limit: {}",
        orchestration
            .task_history_retention_limit
            .unwrap_or_default()
    )?;
    writeln!(out, " Raft:")?;
    writeln!(
        out,
        "  Snapshot Interval: {}",
        raft.snapshot_interval.unwrap_or_default()
    )?;
    writeln!(
        out,
        "  Number of Old Snapshots to Retain: {}",
        raft.keep_old_snapshots.unwrap_or_default()
    )?;
    writeln!(
        out,
        "  Heartbeat Tick: {}",
        raft.heartbeat_tick.unwrap_or_default()
    )?;
    writeln!(
        out,
        "  Election Tick: {}",
        raft.election_tick.unwrap_or_default()
    )?;
    let heartbeat = spec.dispatcher.unwrap_or_default().heartbeat_period;
    writeln!(
        out,
        " Dispatcher:\n  Heartbeat Period: {}",
        duration(heartbeat)
    )?;
    let ca = spec.ca_config.unwrap_or_default();
    writeln!(
        out,
        " CA Configuration:\n  Expiry Duration: {}\n  Force Rotate: {}",
        duration(ca.node_cert_expiry),
        ca.force_rotate.unwrap_or_default()
    )?;
    write_external_cas(out, &ca.external_cas.unwrap_or_default())?;
    let encryption = spec.encryption_config.unwrap_or_default();
    let locks = encryption.auto_lock_managers.unwrap_or_default();
    let rotates = cluster.root_rotation_in_progress.unwrap_or_default();
    writeln!(
        out,
        " Autolock Managers: {locks}\n Root Rotation In Progress: {rotates}"
    )
}

fn write_external_cas(out: &mut String, all: &[SwarmSpecCaConfigExternalCas]) -> FmtResult {
    if !all.is_empty() {
        writeln!(out, "  External CAs:")?;
    }
    all.iter().try_for_each(|external| {
        let protocol = external.protocol.map(|protocol| protocol.to_string());
        let (protocol, url) = (protocol.unwrap_or_default(), external.url.as_deref());
        writeln!(out, "    {protocol}: {}", url.unwrap_or_default())
    })
}

fn write_host(out: &mut String, info: &SystemInfo) -> FmtResult {
    let mut field = |name: &str, value: Option<String>| match value {
        Some(value) if !value.is_empty() => writeln!(out, "{name}: {value}"),
        _ => Ok(()),
    };
    field("Server Version", info.server_version.clone())?;
    field("Kernel Version", info.kernel_version.clone())?;
    field("Operating System", info.operating_system.clone())?;
    field("OSType", info.os_type.clone())?;
    field("Architecture", info.architecture.clone())?;
    field("CPUs", info.ncpu.map(|cpus| cpus.to_string()))?;
    field("Total Memory", info.mem_total.map(show_bytes))?;
    field("Name", info.name.clone())?;
    field("State Dir", info.docker_root_dir.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn node_outside_a_cluster_says_so() {
        let info = serde_json::from_value(json!({
            "Swarm": {"LocalNodeState": "inactive"}, "ServerVersion": "0.1.0", "NCPU": 2,
        }));
        assert_eq!(
            pretty(&info.unwrap()),
            "Swarm: inactive\nServer Version: 0.1.0\nCPUs: 2\n"
        );
    }

    #[test]
    fn manager_shows_dockers_swarm_block() {
        let info: SystemInfo = serde_json::from_value(json!({"Swarm": {
            "NodeID": "n", "NodeAddr": "10.0.0.1", "LocalNodeState": "active",
            "ControlAvailable": true, "Managers": 1, "Nodes": 3,
            "RemoteManagers": [{"NodeID": "n", "Addr": "10.0.0.1:2377"}],
            "Cluster": {
                "ID": "c", "DefaultAddrPool": ["10.0.0.0/8"], "SubnetSize": 24, "DataPathPort": 4789,
                "RootRotationInProgress": false,
                "Spec": {
                    "Orchestration": {"TaskHistoryRetentionLimit": 5},
                    "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "ElectionTick": 10, "HeartbeatTick": 1},
                    "Dispatcher": {"HeartbeatPeriod": 5_000_000_000_i64},
                    "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000_i64, "ForceRotate": 2,
                        "ExternalCAs": [{"Protocol": "cfssl", "URL": "https://ca.example/sign"}]},
                },
            },
        }}))
        .unwrap();
        let want = "Swarm: active\n NodeID: n\n Is Manager: true\n ClusterID: c\n Managers: 1\n \
            Nodes: 3\n Default Address Pool: 10.0.0.0/8  \n SubnetSize: 24\n Data Path Port: 4789\n \
            Orchestration:\n  Task History Retention Limit: 5\n Raft:\n  Snapshot Interval: 10000\n  \
            Number of Old Snapshots to Retain: 0\n  Heartbeat Tick: 1\n  Election Tick: 10\n \
            Dispatcher:\n  Heartbeat Period: 5 seconds\n CA Configuration:\n  Expiry Duration: 3 \
            months\n  Force Rotate: 2\n  External CAs:\n    cfssl: https://ca.example/sign\n Autolock Managers: false\n Root Rotation In Progress: \
            false\n Node Address: 10.0.0.1\n \
            Manager Addresses:\n  10.0.0.1:2377\n";
        assert_eq!(pretty(&info), want);
    }
}
