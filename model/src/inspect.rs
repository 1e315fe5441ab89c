//! Rows of `swarmnet inspect`: what this node's data plane holds, read from the kernel's maps and
//! the agent's tables, not from the store (`nodes` alone comes from the managers, with what the
//! leader's own agent doubts).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What can be inspected; the last path segment of `/swarmnet/inspect/<table>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    Vips,
    Dns,
    Services,
    Endpoints,
    Backends,
    Flows,
    Drops,
    Nodes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    pub network: String,
    pub vni: u32,
    pub vip: Ipv4Addr,
    pub service: String,
    pub active: usize,
    pub draining: usize,
    pub choice: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRow {
    pub network: String,
    pub name: String,
    /// `vip`, `tasks`, `dnsrr`, `task`, `alias`.
    pub kind: String,
    pub addresses: Vec<Ipv4Addr>,
}

/// A published port or a VIP, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    pub service: String,
    /// `*:8080/tcp -> 80`, with `(this node)` when it is so published there alone, or `10.0.1.2 (my-net)`.
    pub frontend: String,
    pub backends: usize,
    /// Whom new flows go to on this node: `spread`, or `local` while it has active tasks that are
    /// preferred, and `client-ip` with affinity, with its timeout if there is one.
    pub choice: String,
    /// Slots of the Maglev ring; 1 for a single backend without a ring.
    pub ring_len: u32,
    /// XXH3 over the endpoint ids of the ring: equal on all nodes.
    pub ring_digest: String,
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
    /// Of backends on this node (published ports), or of clients on it (VIPs).
    pub live_flows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    pub endpoint: u32,
    pub task: String,
    pub network: String,
    pub vni: u32,
    pub addr: Ipv4Addr,
    pub mac: String,
    /// Hostname of its node.
    pub node: String,
    /// `local` or the tunnel address.
    pub via: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendRow {
    pub service: String,
    pub task: String,
    pub endpoint: u32,
    pub node: String,
    pub state: String,
    /// Share of this node's new flows, in per cent.
    pub share: f64,
    /// Counted at the backend's node; zero elsewhere.
    pub packets: u64,
    pub bytes: u64,
    pub new_flows: u64,
    pub live_flows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    pub service: String,
    pub protocol: String,
    /// `syn`, `established`, `closing`; of UDP, `open`.
    pub state: String,
    pub client: String,
    /// The address and port that the client sent to.
    pub frontend: String,
    pub task: String,
    pub backend: String,
    /// Entry node's hostname, or `local`.
    pub entry: String,
    /// Since its entry was made; none where an earlier build made it.
    pub age_ms: Option<u64>,
    pub idle_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    pub reason: String,
    pub explanation: String,
    /// By all programs.
    pub packets: u64,
    pub bytes: u64,
    /// Those that dropped any.
    pub programs: Vec<ProgramDrops>,
}

/// What one program dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramDrops {
    /// Its name in the kernel, such as `sn_tc_task`.
    pub program: String,
    pub packets: u64,
    pub bytes: u64,
}

/// What `swarmnet trace` asks: the query of `/swarmnet/trace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceQuery {
    /// `tcp` or `udp`.
    pub proto: String,
    pub src: Ipv4Addr,
    pub src_port: u16,
    pub dst: Ipv4Addr,
    pub dst_port: u16,
    /// Of TCP: not the first packet.
    #[serde(default)]
    pub established: bool,
    /// One of the fragments that the packet comes in.
    #[serde(default)]
    pub fragment: bool,
    #[serde(default)]
    pub from: TraceFrom,
}

/// Where a packet in question begins: `outside`, `node`, or `task:` and a name or id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum TraceFrom {
    /// It comes in by the node's uplink.
    #[default]
    Outside,
    /// A socket of the node itself.
    Node,
    /// A task of the node.
    Task(String),
}

impl From<TraceFrom> for String {
    fn from(from: TraceFrom) -> Self {
        match from {
            TraceFrom::Outside => "outside".to_owned(),
            TraceFrom::Node => "node".to_owned(),
            TraceFrom::Task(task) => format!("task:{task}"),
        }
    }
}

impl From<String> for TraceFrom {
    fn from(text: String) -> Self {
        match text.strip_prefix("task:") {
            Some(task) => Self::Task(task.to_owned()),
            None if text == "node" => Self::Node,
            None => Self::Outside,
        }
    }
}

/// One look of a program at its tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// `port`, `ring slot`, `backend`, …
    pub at: String,
    pub found: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAnswer {
    pub steps: Vec<TraceStep>,
    /// `stack`, `dropped`, `task` or `tunnel`.
    pub outcome: String,
    /// Task or node.
    pub to: Option<String>,
    /// Of a drop, as `inspect drops` has it.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub id: String,
    pub hostname: String,
    pub state: String,
    pub vtep: Ipv4Addr,
    /// Last version that the node acknowledged.
    pub applied: u64,
    /// The store's version.
    pub current: u64,
    /// What is wrong with it, as the leader's own node sees it by probes: `suspected`, `returning`.
    #[serde(default)]
    pub doubt: Option<String>,
}

/// An agent's answer to [`Table::Nodes`]: another node that it doubts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtRow {
    pub node: String,
    /// As in [`NodeRow::doubt`].
    pub doubt: String,
}
