//! What a user asks for. Optional fields stay optional, so that a spec reads back as it was
//! written; the `..._or_default` methods give the value in force.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::id::NetworkId;

pub type Labels = BTreeMap<String, String>;

/// A service: a task template, how many, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    pub name: String,
    pub labels: Labels,
    pub task: TaskSpec,
    pub mode: ServiceMode,
    pub update: Option<UpdateConfig>,
    pub rollback: Option<UpdateConfig>,
    pub endpoint: EndpointSpec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    /// `replicas` tasks in slots 1..=replicas.
    Replicated { replicas: u64 },
    /// One task on every eligible node.
    Global,
}

/// Replicas of one service: as many as its ring can name backends.
pub const REPLICAS_MAX: u64 = 65_535;

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What every task of a service is made from. Two tasks are alike exactly when this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub resources: Resources,
    pub restart: Option<RestartPolicy>,
    pub placement: Placement,
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Raised by `service update --force` to replace tasks without any other change.
    pub force_update: u64,
}

/// What runs in a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Image reference as the user (or client) wrote it.
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub dir: Option<String>,
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub tty: bool,
    pub read_only: bool,
    pub init: Option<bool>,
    /// Signal name (`SIGTERM`, `TERM`) or number.
    pub stop_signal: Option<String>,
    /// From the stop signal to SIGKILL.
    pub stop_grace_period: Option<Duration>,
    pub dns: DnsConfig,
    /// Lines for `/etc/hosts`: `address name...`.
    pub hosts: Vec<String>,
}

pub const STOP_GRACE_PERIOD_DEFAULT: Duration = Duration::from_secs(10);

impl ContainerSpec {
    pub fn stop_grace_period_or_default(&self) -> Duration {
        self.stop_grace_period.unwrap_or(STOP_GRACE_PERIOD_DEFAULT)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limit_nano_cpus: Option<i64>,
    pub limit_memory_bytes: Option<i64>,
    pub limit_pids: Option<i64>,
    pub reserve_nano_cpus: Option<i64>,
    pub reserve_memory_bytes: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Option<Duration>,
    /// 0 is without bound.
    pub max_attempts: u64,
    pub window: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

pub const RESTART_DELAY_DEFAULT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `node.role==manager`, as written.
    pub constraints: Vec<String>,
    /// Spread descriptors, as written (`node.labels.zone`).
    pub preferences: Vec<String>,
    /// 0 is without bound.
    pub max_replicas: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentSpec {
    /// Resolved when the spec is accepted.
    pub network: NetworkId,
    #[serde(default)]
    pub aliases: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

/// How tasks are replaced when the template changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Slots worked on at once; 0 is all.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    pub monitor: Option<Duration>,
    /// 0.0 to 1.0.
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Eq for UpdateConfig {}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: None,
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

pub const UPDATE_MONITOR_DEFAULT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortSpec>,
}

impl EndpointSpec {
    /// Ports of the tasks' nodes only.
    pub fn host_ports(&self) -> impl Iterator<Item = &PortSpec> {
        let ports = self.ports.iter();
        ports.filter(|port| port.mode == PublishMode::Host)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EndpointMode {
    /// One virtual address a network.
    #[default]
    Vip,
    /// DNS answers with the addresses of the tasks.
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PublishMode {
    /// On every node, through the mesh.
    #[default]
    Ingress,
    /// On the node of the task only.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    pub name: Option<String>,
    pub protocol: Protocol,
    /// Port in the task.
    pub target: u16,
    /// Port on the nodes; `None` asks for a free one.
    pub published: Option<u16>,
    pub mode: PublishMode,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub name: String,
    pub labels: Labels,
    pub ipv6: bool,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub subnet: Option<Ipv4Net>,
    pub ip_range: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub options: Labels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NodeRole {
    #[default]
    Worker,
    Manager,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    /// Keeps its tasks, gets no new ones.
    Pause,
    /// Its tasks move away.
    Drain,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub name: Option<String>,
    pub labels: Labels,
    pub role: NodeRole,
    pub availability: Availability,
}

/// Settings of the cluster that a user may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    pub name: String,
    pub labels: Labels,
    /// Ended tasks kept for each slot.
    pub task_history_limit: u64,
    pub snapshot_interval: u64,
    pub max_snapshots: u64,
    pub dispatcher_heartbeat: Duration,
    pub cert_expiry: Duration,
    /// Whether a manager that starts wants the unlock key.
    pub autolock: bool,
    /// Another number than before has the root certificate replaced.
    pub force_rotate: u64,
    /// Who signs certificates in place of the managers: one after the other is asked.
    pub external_cas: Vec<ExternalCa>,
}

/// An authority outside of the cluster that signs by CFSSL's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalCa {
    /// `https://HOST[:PORT]/PATH`, to which requests are posted.
    pub url: String,
    /// The root that it signs by; that of the cluster when absent.
    pub root_pem: Option<String>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            labels: Labels::new(),
            task_history_limit: 5,
            snapshot_interval: 10_000,
            max_snapshots: 0,
            dispatcher_heartbeat: Duration::from_secs(5),
            cert_expiry: Duration::from_secs(90 * 24 * 3600),
            autolock: false,
            force_rotate: 0,
            external_cas: Vec::new(),
        }
    }
}
