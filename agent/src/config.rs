//! What an agent is told at its start.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use model::{ClusterId, NodeId, object::NodeDescription};
use serde::{Deserialize, Serialize};

/// The node's settings.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Survives reboots: credentials, the last view, tasks.
    pub state_dir: PathBuf,
    /// Sockets and namespaces.
    pub run_dir: PathBuf,
    /// On a bpf file system: pinned programs, maps and links.
    pub pin_dir: PathBuf,
    /// Root of the cgroup v2 hierarchy.
    pub cgroup: PathBuf,
    /// Interface towards the clients; the one with the tunnel address when absent.
    pub uplink: Option<String>,
    pub uplink_mode: datapath::UplinkMode,
    /// Root file systems of images.
    pub images_dir: PathBuf,
    /// The binary that has the shim's hidden subcommand.
    pub shim: PathBuf,
    pub description: NodeDescription,
}

impl AgentConfig {
    pub(crate) fn datapath(&self) -> datapath::DatapathConfig {
        datapath::DatapathConfig {
            pin_dir: self.pin_dir.clone(),
            cgroup: self.cgroup.clone(),
            uplink_mode: self.uplink_mode,
            ingress: None,
        }
    }
}

/// Who this node is in its cluster, beside its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub addr: Ipv4Addr,
    /// Tunnel address.
    pub vtep: Ipv4Addr,
    pub managers: Vec<SocketAddrV4>,
}
