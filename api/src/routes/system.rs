//! What this daemon is: `_ping`, `version`, `info`.

use std::{collections::HashMap, fs};

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bollard_stubs::models as docker;
use store::Standing;

use super::{Ctx, leader};
use crate::{
    convert,
    local_node::{LocalStatus, MemberState},
    version,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn ping(State(node): State<Ctx>) -> Response {
    let swarm = match node.status().state {
        MemberState::Inactive => "inactive",
        MemberState::Locked => "locked",
        MemberState::Restored => "error",
        MemberState::Pending => "pending",
        MemberState::Worker => "active/worker",
        MemberState::Manager => "active/manager",
    };
    let mut response = "OK".into_response();
    let headers = response.headers_mut();
    headers.insert("Swarm", HeaderValue::from_static(swarm));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

pub(super) async fn version() -> Json<docker::SystemVersion> {
    Json(docker::SystemVersion {
        platform: Some(docker::SystemVersionPlatform {
            name: "swarmnet".to_owned(),
        }),
        components: Some(vec![docker::SystemVersionComponents {
            name: "Engine".to_owned(),
            version: VERSION.to_owned(),
            // What the client prints of a component it takes from here.
            details: Some(HashMap::from(
                [
                    ("ApiVersion", version::MAX.to_string()),
                    ("MinAPIVersion", version::MIN.to_string()),
                    ("Os", "linux".to_owned()),
                    ("Arch", go_arch().to_owned()),
                    ("KernelVersion", kernel_version()),
                    ("Experimental", "false".to_owned()),
                ]
                .map(|(key, value)| (key.to_owned(), value)),
            )),
        }]),
        version: Some(VERSION.to_owned()),
        api_version: Some(version::MAX.to_string()),
        min_api_version: Some(version::MIN.to_string()),
        git_commit: Some(String::new()),
        go_version: Some(String::new()),
        os: Some("linux".to_owned()),
        arch: Some(go_arch().to_owned()),
        kernel_version: Some(kernel_version()),
        experimental: Some(false),
        build_time: Some(String::new()),
    })
}

/// Go's name of this machine's architecture.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel_version() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

pub(super) async fn info(State(node): State<Ctx>) -> Json<docker::SystemInfo> {
    let description = node.description();
    let status = node.status();
    Json(docker::SystemInfo {
        id: status.node.map(|node| node.to_string()),
        // Tasks are processes, not containers: see `/tasks`.
        containers: Some(0),
        containers_running: Some(0),
        containers_paused: Some(0),
        containers_stopped: Some(0),
        images: Some(0),
        driver: Some("process".to_owned()),
        driver_status: Some(Vec::new()),
        plugins: Some(docker::PluginsInfo {
            volume: Some(Vec::new()),
            network: Some(vec!["overlay".to_owned()]),
            authorization: None,
            log: Some(Vec::new()),
        }),
        memory_limit: Some(true),
        swap_limit: Some(true),
        cpu_cfs_period: Some(true),
        cpu_cfs_quota: Some(true),
        cpu_shares: Some(true),
        cpu_set: Some(true),
        pids_limit: Some(true),
        ipv4_forwarding: Some(true),
        debug: Some(false),
        system_time: Some(jiff::Timestamp::now().to_string()),
        cgroup_driver: Some(docker::SystemInfoCgroupDriverEnum::CGROUPFS),
        cgroup_version: Some(docker::SystemInfoCgroupVersionEnum::_2),
        kernel_version: Some(kernel_version()),
        operating_system: Some(operating_system()),
        os_type: Some("linux".to_owned()),
        architecture: Some(description.architecture),
        ncpu: Some(description.nano_cpus / 1_000_000_000),
        mem_total: Some(description.memory_bytes),
        name: Some(description.hostname),
        labels: Some(Vec::new()),
        experimental_build: Some(false),
        server_version: Some(VERSION.to_owned()),
        live_restore_enabled: Some(true),
        security_options: Some(Vec::new()),
        swarm: Some(swarm_info(&node, &status)),
        warnings: Some(warnings(&node)),
        ..Default::default()
    })
}

/// What the client prints below everything else.
fn warnings(node: &Ctx) -> Vec<String> {
    let Some(manager) = node.manager() else {
        return Vec::new();
    };
    let store = manager.store();
    if *store.standing().borrow() != Standing::Vacant {
        return Vec::new();
    }
    let sentence = leader::no_quorum(store.unreachable()).message;
    vec![format!("WARNING: {sentence}")]
}

fn swarm_info(node: &Ctx, status: &LocalStatus) -> docker::SwarmInfo {
    let managers = status
        .remote_managers
        .iter()
        .map(|manager| docker::PeerNode {
            node_id: manager.node.map(|node| node.to_string()),
            addr: Some(manager.addr.to_string()),
        });
    let mut info = docker::SwarmInfo {
        node_id: Some(status.node.map(|node| node.to_string()).unwrap_or_default()),
        node_addr: Some(status.addr.map(|addr| addr.to_string()).unwrap_or_default()),
        local_node_state: Some(match status.state {
            MemberState::Inactive => docker::LocalNodeState::INACTIVE,
            MemberState::Locked => docker::LocalNodeState::LOCKED,
            MemberState::Restored => docker::LocalNodeState::ERROR,
            MemberState::Pending => docker::LocalNodeState::PENDING,
            MemberState::Worker | MemberState::Manager => docker::LocalNodeState::ACTIVE,
        }),
        control_available: Some(false),
        error: Some(status.error.clone().unwrap_or_default()),
        remote_managers: (!status.remote_managers.is_empty()).then(|| managers.collect()),
        ..Default::default()
    };
    if let Ok(state) = super::state(node) {
        info.control_available = Some(true);
        info.nodes = Some(state.nodes().count() as i64);
        let is_manager = |node: &&std::sync::Arc<model::object::Node>| node.manager.is_some();
        info.managers = Some(state.nodes().filter(is_manager).count() as i64);
        info.cluster = state
            .cluster()
            .map(|cluster| convert::cluster_info(cluster));
    }
    info
}
