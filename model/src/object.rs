//! What the store keeps. Every object has a [`Meta`]; its version is that of the transaction that
//! wrote it last.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vault::UnlockKey;

use crate::{
    id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId},
    probe::ProbeKeys,
    spec::{
        ClusterSpec, EndpointMode, NetworkSpec, NodeRole, NodeSpec, PortSpec, ServiceSpec, TaskSpec,
    },
    state::TaskState,
};

/// Number of a transaction, counted from 1 without gaps. Of the store: the last one applied. Of an
/// object: the one that wrote it last; an update must name it, or it is refused as stale.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// That of the next transaction.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// VXLAN network identifier: 24 bits, host order (RFC 7348 section 5). Zero is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vni(u32);

impl Vni {
    /// The first one handed out, and the one of the `ingress` network.
    pub const FIRST: Self = Self(4096);
    /// The mesh's: packets from entry nodes to the nodes of backends, and back.
    pub const MESH: Self = Self::FIRST;

    pub const fn new(raw: u32) -> Option<Self> {
        if raw != 0 && raw < 1 << 24 {
            Some(Self(raw))
        } else {
            None
        }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one task's network presence in the data plane, cluster-wide: it travels in the inner
/// destination MAC of mesh packets. Counted up by the allocator and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub version: Version,
    /// Version at which the spec of a service or node changed last, of other objects anything. What was
    /// read at that version or later may be edited: what else changed since is not the user's.
    #[serde(default)]
    pub edited: Version,
    /// Version that made the object, which tells what was made before what, as dates by several
    /// leaders' clocks do not. Zero for what was made before objects had it.
    #[serde(default)]
    pub created: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Meta {
    /// For an object not yet in the store, which fills in the version.
    pub fn new(now: Timestamp) -> Self {
        Self {
            version: Version(0),
            edited: Version(0),
            created: Version(0),
            created_at: now,
            updated_at: now,
        }
    }
}

/// The one cluster object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub tokens: JoinTokens,
    pub ca: RootCa,
    pub data_path: DataPathConfig,
    /// Certificates that are void before their time, by their nodes.
    #[serde(default)]
    pub revoked: BTreeMap<NodeId, Revocation>,
    /// While the root is being replaced.
    #[serde(default)]
    pub rotation: Option<RootRotation>,
    /// Seals the data key of every manager, where they are to be locked.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
    /// Of the probes between nodes.
    #[serde(default)]
    pub probes: Probes,
}

impl Cluster {
    /// Whether the node left, or was removed: it is nobody any more, though it may be listed.
    pub fn has_left(&self, node: NodeId) -> bool {
        let revocation = self.revoked.get(&node);
        revocation.is_some_and(|revocation| revocation.of == Revoked::Membership)
    }
}

/// The keys of the probes, and when the last of them was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Probes {
    pub keys: ProbeKeys,
    pub rotated: Timestamp,
}

/// The root that is to take the place of the one in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRotation {
    pub ca: RootCa,
    /// Its key, certified by the root in force.
    pub cross_signed_pem: String,
}

/// Voids the certificates of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub of: Revoked,
    /// Those issued up to now are void.
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Revoked {
    /// The node left or was removed: it is nobody any more.
    Membership,
    /// The node was demoted: its certificate as a manager counts for nothing.
    Manager,
}

/// `SWMTKN-1-<digest of the root certificate, 50 base36>-<secret, 25 base36>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinTokens(..)")
    }
}

/// The root of the cluster's certificates.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    pub certificate_pem: String,
    /// Absent when an external CA keeps it for itself.
    pub key_pem: Option<String>,
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootCa(..)")
    }
}

/// What all nodes must agree on for the data plane. Fixed for the cluster's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPathConfig {
    /// Pools that overlay subnets are cut from, in order.
    pub default_addr_pool: Vec<Ipv4Net>,
    /// Prefix length of a subnet cut from a pool.
    pub subnet_len: u8,
    /// UDP port of VXLAN.
    pub port: u16,
    /// Every node builds the same rings from it.
    pub ring_seed: u64,
}

impl Default for DataPathConfig {
    fn default() -> Self {
        Self {
            default_addr_pool: vec![
                Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("8 is a prefix length"),
            ],
            subnet_len: 24,
            port: 4789,
            ring_seed: 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    pub description: NodeDescription,
    pub status: NodeStatus,
    /// Names the key that signed the certificate which the node showed last.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Tunnel address.
    pub vtep: Ipv4Addr,
    /// Of a node whose manager takes part in the Raft group, or is to.
    #[serde(default)]
    pub manager: Option<ManagerStatus>,
}

impl Node {
    /// What the node is now. One that is to become a worker is a manager until the others go on
    /// without it.
    pub fn role(&self) -> NodeRole {
        match self.manager {
            Some(_) => NodeRole::Manager,
            None => self.spec.role,
        }
    }
}

/// A manager's name in the Raft group: random, kept with its log, never used again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A node's part in the Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    pub raft: RaftId,
    /// Where the other nodes reach it.
    pub addr: SocketAddrV4,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    pub hostname: String,
    /// `linux`.
    pub os: String,
    /// `x86_64`.
    pub architecture: String,
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    /// Version of the agent.
    pub engine_version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// Where the node was reached from, or says it is.
    pub addr: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not heard of since the leader took office.
    Unknown,
    Down,
    Ready,
    Disconnected,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    pub vni: Vni,
    pub subnet: Ipv4Net,
    /// The first host address unless the user chose; nothing answers there but the data plane.
    pub gateway: Ipv4Addr,
    #[serde(default)]
    pub cursor: AllocationCursor,
}

/// Where the allocator's searches begin: after what was handed out last, so that a number given
/// back rests as long as possible. Only a hint; what is in use is what objects hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AllocationCursor {
    /// Address of a task or VIP on this network.
    pub addr: Option<Ipv4Addr>,
    /// Kept in the ingress network for the cluster: the last dynamic port ...
    pub port: Option<u16>,
    /// ... and the newest network's VNI ...
    pub vni: Option<Vni>,
    /// ... and subnet, when it was cut from a pool.
    pub subnet: Option<Ipv4Net>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// For `rollback`: one step back.
    pub previous_spec: Option<ServiceSpec>,
    /// Version at which `spec.task` or a port of host mode changed last; a task with a lower one is out of date. Set by
    /// the store, whatever a transaction puts here.
    pub spec_version: Version,
    pub endpoint: ServiceEndpoint,
    pub update_status: Option<UpdateStatus>,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceEndpoint {
    pub mode: EndpointMode,
    /// As the spec's, each `published` filled in.
    pub ports: Vec<PortSpec>,
    /// One for each attached network, when the mode is VIP.
    pub vips: Vec<Vip>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    pub network: NetworkId,
    pub addr: Ipv4Addr,
    /// Prefix length of the network's subnet.
    pub prefix_len: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    /// Version at which it began: tasks made by that or a later one are its own. Zero for one that began
    /// before updates had it.
    #[serde(default)]
    pub since: Version,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// One shot at running one slot of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// The service's name when the task was made.
    pub service_name: String,
    /// 1.. for replicated services, `None` for global ones.
    pub slot: Option<u64>,
    /// Set by the scheduler; a global task has it from the start.
    pub node: Option<NodeId>,
    pub spec: TaskSpec,
    /// The service's `spec_version` that it was made from.
    pub spec_version: Version,
    /// The service's ports of host mode, as they were when it was made.
    #[serde(default)]
    pub host_ports: Vec<PortSpec>,
    pub desired: TaskState,
    pub status: TaskStatus,
    /// Filled in by the allocator, as is `endpoint`.
    pub attachments: Vec<Attachment>,
    pub endpoint: Option<EndpointId>,
}

impl Task {
    /// `service.slot.task` or `service.node.task`, as Docker names the container.
    pub fn name(&self) -> String {
        match (self.slot, self.node) {
            (Some(slot), _) => format!("{}.{slot}.{}", self.service_name, self.id),
            (None, Some(node)) => format!("{}.{node}.{}", self.service_name, self.id),
            (None, None) => format!("{}.{}", self.service_name, self.id),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub timestamp: Timestamp,
    pub state: TaskState,
    /// What happened, for a person.
    pub message: String,
    /// Why it failed.
    pub err: Option<String>,
    pub container: Option<ContainerStatus>,
    /// What it publishes on its node while it runs: its host ports, each with its number.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    pub container_id: String,
    /// Process id in the node's pid namespace; 0 when it does not run.
    pub pid: u32,
    pub exit_code: Option<i32>,
}

/// A task's address on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkId,
    pub addr: Ipv4Addr,
    /// Prefix length of the network's subnet.
    pub prefix_len: u8,
}
