//! What an agent is told, and what it says back.
//!
//! A manager projects the store onto each node: the set of [`ViewObject`]s that node needs, each
//! under its [`ViewKey`]. The session begins with the agent's [`Hello`], which lists what it
//! already holds by content digest, so the first [`ManagerMessage::Update`] carries only what
//! differs: a first contact, a resume and a repair are the same thing. Updates are applied in
//! order and acknowledged.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};
use serde::{Deserialize, Serialize};

use crate::{
    codec,
    id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId},
    object::{
        Attachment, ContainerStatus, DataPathConfig, EndpointId, NodeDescription, Version, Vni,
    },
    probe::ProbeKeys,
    spec::{EndpointMode, NodeRole, PortSpec, Protocol, TaskSpec},
    state::TaskState,
    traffic::Policy,
};

/// Identity of an object in a node's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ViewKey {
    Cluster,
    Peer(NodeId),
    Network(NetworkId),
    Service(ServiceId),
    Endpoint(EndpointId),
    Task(TaskId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewObject {
    Cluster(ClusterView),
    Peer(PeerView),
    Network(NetworkView),
    Service(ServiceView),
    Endpoint(EndpointView),
    Task(Box<TaskAssignment>),
}

impl ViewObject {
    pub fn key(&self) -> ViewKey {
        match self {
            Self::Cluster(_) => ViewKey::Cluster,
            Self::Peer(peer) => ViewKey::Peer(peer.node),
            Self::Network(network) => ViewKey::Network(network.id),
            Self::Service(service) => ViewKey::Service(service.id),
            Self::Endpoint(endpoint) => ViewKey::Endpoint(endpoint.id),
            Self::Task(task) => ViewKey::Task(task.id),
        }
    }

    /// XXH3 of the encoded object.
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&codec::encode(self))
    }
}

/// A node's whole view: everything its agent acts upon. A clone shares all but what changes later,
/// and two that do are compared in the time of their differences.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeView {
    pub version: Version,
    pub cluster: Option<ClusterView>,
    pub peers: OrdMap<NodeId, PeerView>,
    pub networks: OrdMap<NetworkId, NetworkView>,
    pub services: OrdMap<ServiceId, ServiceView>,
    pub endpoints: OrdMap<EndpointId, EndpointView>,
    /// Tasks of this node.
    pub tasks: OrdMap<TaskId, TaskAssignment>,
}

impl NodeView {
    pub fn put(&mut self, object: ViewObject) {
        match object {
            ViewObject::Cluster(cluster) => self.cluster = Some(cluster),
            ViewObject::Peer(peer) => drop(self.peers.insert(peer.node, peer)),
            ViewObject::Network(network) => drop(self.networks.insert(network.id, network)),
            ViewObject::Service(service) => drop(self.services.insert(service.id, service)),
            ViewObject::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.id, endpoint)),
            ViewObject::Task(task) => drop(self.tasks.insert(task.id, *task)),
        }
    }

    pub fn remove(&mut self, key: ViewKey) {
        match key {
            ViewKey::Cluster => self.cluster = None,
            ViewKey::Peer(id) => drop(self.peers.remove(&id)),
            ViewKey::Network(id) => drop(self.networks.remove(&id)),
            ViewKey::Service(id) => drop(self.services.remove(&id)),
            ViewKey::Endpoint(id) => drop(self.endpoints.remove(&id)),
            ViewKey::Task(id) => drop(self.tasks.remove(&id)),
        }
    }

    /// Applies one update. Unknown removals are no error: the outcome is the same.
    pub fn apply(&mut self, update: Update) {
        update.removed.into_iter().for_each(|key| self.remove(key));
        update.put.into_iter().for_each(|object| self.put(object));
        self.version = update.version;
    }

    /// Every object, for digests and diffs.
    pub fn objects(&self) -> impl Iterator<Item = ViewObject> + '_ {
        let cluster = self.cluster.iter().cloned().map(ViewObject::Cluster);
        let peers = self.peers.values().cloned().map(ViewObject::Peer);
        let networks = self.networks.values().cloned().map(ViewObject::Network);
        let services = self.services.values().cloned().map(ViewObject::Service);
        let endpoints = self.endpoints.values().cloned().map(ViewObject::Endpoint);
        let tasks = self
            .tasks
            .values()
            .map(|task| ViewObject::Task(Box::new(task.clone())));
        cluster
            .chain(peers)
            .chain(networks)
            .chain(services)
            .chain(endpoints)
            .chain(tasks)
    }

    /// The digest of each object, for [`Hello::known`].
    pub fn digests(&self) -> Vec<(ViewKey, u64)> {
        self.objects()
            .map(|object| (object.key(), object.digest()))
            .collect()
    }

    /// Order-free digest of the whole view, for heartbeats.
    pub fn digest(&self) -> u64 {
        view_digest(self.objects().map(|object| object.digest()))
    }

    /// [`Self::digest`] from that of `former`, in the time of what differs.
    pub fn digest_after(&self, former: &Self, digest: u64) -> u64 {
        let cluster = |view: &Self| {
            let cluster = view.cluster.iter().cloned().map(ViewObject::Cluster);
            view_digest(cluster.map(|object| object.digest()))
        };
        [
            cluster(self).wrapping_sub(cluster(former)),
            shift(&former.peers, &self.peers, ViewObject::Peer),
            shift(&former.networks, &self.networks, ViewObject::Network),
            shift(&former.services, &self.services, ViewObject::Service),
            shift(&former.endpoints, &self.endpoints, ViewObject::Endpoint),
            shift(&former.tasks, &self.tasks, |task| {
                ViewObject::Task(Box::new(task))
            }),
        ]
        .into_iter()
        .fold(digest, u64::wrapping_add)
    }
}

/// By how much the digest of a view with `new` is above that of one with `old`.
fn shift<K: Ord, V: Clone + PartialEq>(
    old: &OrdMap<K, V>,
    new: &OrdMap<K, V>,
    object: fn(V) -> ViewObject,
) -> u64 {
    let digest = |value: &V| object(value.clone()).digest();
    old.diff(new).fold(0, |shift, item| match item {
        DiffItem::Add(_, come) => shift.wrapping_add(digest(come)),
        DiffItem::Remove(_, gone) => shift.wrapping_sub(digest(gone)),
        DiffItem::Update { old, new } => shift
            .wrapping_add(digest(new.1))
            .wrapping_sub(digest(old.1)),
    })
}

/// Combines object digests into a view's: a wrapping sum, so both sides can keep it up to date
/// object by object.
pub fn view_digest(digests: impl IntoIterator<Item = u64>) -> u64 {
    digests.into_iter().fold(0, u64::wrapping_add)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub id: ClusterId,
    pub data_path: DataPathConfig,
    /// Where the managers are, in the order of their nodes' ids.
    #[serde(default)]
    pub managers: Vec<SocketAddrV4>,
    /// What the node whose view this is is to be; not said by managers of old.
    #[serde(default)]
    pub role: Option<NodeRole>,
    /// For the probes between nodes; none from managers of old, and then there are no probes.
    #[serde(default)]
    pub probe_keys: ProbeKeys,
}

/// Another node, or this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    pub node: NodeId,
    pub hostname: String,
    /// Tunnel address.
    pub vtep: Ipv4Addr,
    /// False once the managers hold it for down.
    pub up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    pub id: NetworkId,
    pub name: String,
    pub vni: Vni,
    pub subnet: ipnet::Ipv4Net,
    pub gateway: Ipv4Addr,
    /// No way out of the network.
    pub internal: bool,
}

/// A service as the nodes that may send to it see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub id: ServiceId,
    pub name: String,
    pub mode: EndpointMode,
    pub networks: Vec<ServiceNetwork>,
    /// Ports published through the mesh.
    pub ports: Vec<PublishedPort>,
    pub policy: Policy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    pub network: NetworkId,
    /// `None` with DNS round robin.
    pub vip: Option<Ipv4Addr>,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// On every node.
    pub published: u16,
    /// In the task.
    pub target: u16,
    /// The addresses that it is on; none means all.
    pub addresses: Vec<Ipv4Addr>,
}

/// Whether a backend gets flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Reachable by its own address; gets no service traffic yet.
    Starting,
    /// Gets new flows.
    Active,
    /// Keeps the flows it has.
    Draining,
}

/// A task as the data plane sees it. GONE is its absence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub id: EndpointId,
    pub task: TaskId,
    /// `service.slot.task`.
    pub task_name: String,
    pub service: ServiceId,
    pub slot: Option<u64>,
    pub node: NodeId,
    /// Only networks that the receiving node takes part in.
    pub addresses: Vec<Attachment>,
    pub state: BackendState,
    /// Its share of new flows, relative to the service's other endpoints; at least one.
    pub weight: u32,
}

/// A task for this node to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAssignment {
    pub id: TaskId,
    pub name: String,
    pub service: ServiceId,
    pub service_name: String,
    pub slot: Option<u64>,
    pub endpoint: EndpointId,
    pub spec: TaskSpec,
    /// To publish on this node alone; one without a number gets one here.
    #[serde(default)]
    pub host_ports: Vec<PortSpec>,
    pub attachments: Vec<Attachment>,
    /// What is known of its state: a fresh agent starts from it.
    pub state: TaskState,
    /// `Shutdown` comes only after every node acknowledged that the task is draining.
    pub desired: TaskState,
}

/// Agent to manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First, once.
    Hello(Box<Hello>),
    /// The update with this version is in the kernel.
    Ack { version: Version },
    /// `seq` comes back in [`ManagerMessage::StatusAck`] when the statuses are committed.
    Status {
        seq: u64,
        statuses: Vec<TaskStatusUpdate>,
    },
    /// At the period that the manager named; `digest` is of the applied view.
    Heartbeat { applied: Version, digest: u64 },
    /// All of this node's pins, in place of those it named before; at most [`PINS_PER_NODE_MAX`].
    /// Comes before the acknowledgement of the version that they belong to.
    Pins(Vec<Pin>),
}

/// Where a live TCP connection of the mesh is whose slot belongs to another endpoint by now: changes of
/// the service's backends displaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pin {
    pub client: SocketAddrV4,
    /// What the client sends to.
    pub frontend: SocketAddrV4,
    pub endpoint: EndpointId,
}

/// Bounds the message: what exceeds it is not found again after a change.
pub const PINS_PER_NODE_MAX: usize = 32_768;

/// What a node says of itself; which node it is, its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub description: NodeDescription,
    pub vtep: Ipv4Addr,
    pub applied: Version,
    /// What the agent holds.
    pub known: Vec<(ViewKey, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatusUpdate {
    pub task: TaskId,
    pub timestamp: jiff::Timestamp,
    pub state: TaskState,
    pub message: String,
    pub err: Option<String>,
    pub container: Option<ContainerStatus>,
    /// Host ports, as it publishes them.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

/// Manager to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerMessage {
    /// First, and again when the period changes.
    Welcome {
        heartbeat: Duration,
    },
    Update(Update),
    /// Whom the node is to trust, in PEM; after the welcome, and again when that changes.
    Trust {
        roots_pem: String,
    },
    StatusAck {
        seq: u64,
    },
    HeartbeatAck,
    /// All pins of another node. Held by managers as long as they run, and never in the store.
    Pins {
        node: NodeId,
        pins: Vec<Pin>,
    },
    /// Every node that is up has applied this version, and its pins as of then have been sent.
    Settled {
        version: Version,
    },
}

/// Takes the view to `version`: removals first, then puts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Update {
    pub version: Version,
    pub removed: Vec<ViewKey>,
    pub put: Vec<ViewObject>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(node: u128, up: bool) -> ViewObject {
        ViewObject::Peer(PeerView {
            node: NodeId::from_raw(node),
            hostname: format!("n{node}"),
            vtep: Ipv4Addr::LOCALHOST,
            up,
        })
    }

    fn cluster() -> ViewObject {
        ViewObject::Cluster(ClusterView {
            id: ClusterId::from_raw(1),
            data_path: DataPathConfig::default(),
            managers: Vec::new(),
            role: None,
            probe_keys: ProbeKeys::default(),
        })
    }

    proptest! {
        #[test]
        fn digest_is_carried_over_changes(
            updates in prop::collection::vec((prop::collection::vec((0u128..40, any::<bool>()), 0..9), 0u128..40), 1..9),
        ) {
            let mut view = NodeView::default();
            let mut digest = view.digest();
            for (put, removed) in updates {
                let former = view.clone();
                let put = put.into_iter().map(|(node, up)| peer(node, up));
                view.apply(Update {
                    version: Version(1),
                    removed: vec![ViewKey::Peer(NodeId::from_raw(removed))],
                    put: put.chain([cluster()]).collect(),
                });
                digest = view.digest_after(&former, digest);
                prop_assert_eq!(digest, view.digest());
            }
        }
    }
}
