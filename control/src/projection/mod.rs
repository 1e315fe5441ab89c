//! What one node is told of the store: pure functions from the state to [`ViewObject`]s.
//!
//! * every node: the cluster, all nodes but those that left, the `ingress` network;
//! * networks: those that the node has live tasks on;
//! * services: those with mesh ports everywhere, the others where one of their networks is, or a task
//!   that publishes ports on its node;
//! * endpoints: of those services, and on those networks, unless the task ended; on a node that is
//!   down those that had flows, as draining (docs/decisions/0017);
//! * tasks: the node's own, from ASSIGNED until the store forgets them.

mod touch;

use std::{collections::BTreeSet, net::SocketAddrV4};

use model::{
    NetworkId, NodeId, ServiceId, TaskId, TaskState,
    feed::{
        BackendState, ClusterView, EndpointView, NetworkView, PeerView, PublishedPort,
        ServiceNetwork, ServiceView, TaskAssignment, ViewKey, ViewObject,
    },
    object::{Service, Task},
    spec::{EndpointMode, PublishMode},
    traffic::Traffic,
};
use store::State;

use crate::presence::{Presence, presence};

pub(crate) use touch::{Touch, moves_rings, touched};

/// One node's part of one state of the store.
pub(crate) struct Projection<'a> {
    state: &'a State,
    node: NodeId,
    /// Networks that the node takes part in.
    networks: BTreeSet<NetworkId>,
    /// Tasks whose stop must wait until the nodes know that they drain.
    held: &'a BTreeSet<TaskId>,
}

impl<'a> Projection<'a> {
    /// `networks` is what [`networks_of_node`] says of this state and node.
    pub(crate) fn new(
        state: &'a State,
        node: NodeId,
        networks: BTreeSet<NetworkId>,
        held: &'a BTreeSet<TaskId>,
    ) -> Self {
        Self {
            state,
            node,
            networks,
            held,
        }
    }

    /// The whole view.
    pub(crate) fn objects(&self) -> impl Iterator<Item = ViewObject> + '_ {
        let state = self.state;
        let peers = state.nodes().filter_map(|node| self.peer(node.id));
        let networks = self.networks.iter().filter_map(|id| self.network(*id));
        let services = state.services().filter_map(|s| self.service(s.id));
        let endpoints = state.tasks().filter_map(|task| self.endpoint(task));
        let tasks = state
            .tasks_of_node(self.node)
            .filter_map(|task| self.assignment(task));
        self.cluster()
            .into_iter()
            .chain(peers)
            .chain(networks)
            .chain(services)
            .chain(endpoints)
            .chain(tasks)
    }

    /// What became of the objects that a change touched; `None` when the node has no (more) need
    /// of one.
    pub(crate) fn touched(&self, touch: Touch) -> Vec<(ViewKey, Option<ViewObject>)> {
        match touch {
            Touch::Cluster => vec![(ViewKey::Cluster, self.cluster())],
            Touch::Peer(id) => vec![(ViewKey::Peer(id), self.peer(id))],
            Touch::Network(id) => vec![(ViewKey::Network(id), self.network(id))],
            Touch::Service(id) => vec![(ViewKey::Service(id), self.service(id))],
            Touch::Task { task: id, endpoint } => {
                let task = self.state.task(id);
                let assignment = task.and_then(|task| self.assignment(task));
                let mut objects = vec![(ViewKey::Task(id), assignment)];
                if let Some(endpoint) = endpoint {
                    let view = task.and_then(|task| self.endpoint(task));
                    objects.push((ViewKey::Endpoint(endpoint), view));
                }
                objects
            }
        }
    }

    fn cluster(&self) -> Option<ViewObject> {
        self.state.cluster().map(|cluster| {
            ViewObject::Cluster(ClusterView {
                id: cluster.id,
                data_path: cluster.data_path.clone(),
                managers: self.managers(),
                role: self.state.node(self.node).map(|node| node.role()),
                probe_keys: cluster.probes.keys.clone(),
            })
        })
    }

    fn managers(&self) -> Vec<SocketAddrV4> {
        let nodes = self.state.nodes();
        nodes
            .filter_map(|node| node.manager.map(|manager| manager.addr))
            .collect()
    }

    fn peer(&self, id: NodeId) -> Option<ViewObject> {
        let presence = presence(self.state, id);
        let node = self.state.node(id)?;
        (presence != Presence::Gone).then(|| {
            ViewObject::Peer(PeerView {
                node: id,
                hostname: node.description.hostname.clone(),
                vtep: node.vtep,
                up: presence == Presence::Up,
            })
        })
    }

    fn network(&self, id: NetworkId) -> Option<ViewObject> {
        let network = self.state.network(id)?;
        if !network.spec.ingress && !self.networks.contains(&id) {
            return None;
        }
        Some(ViewObject::Network(NetworkView {
            id,
            name: network.spec.name.clone(),
            vni: network.vni,
            subnet: network.subnet,
            gateway: network.gateway,
            internal: network.spec.internal,
        }))
    }

    fn service(&self, id: ServiceId) -> Option<ViewObject> {
        let service = self.state.service(id)?;
        let networks = self.service_networks(service);
        let traffic = traffic(service);
        let ports: Vec<_> = mesh_ports(service)
            .map(|port| PublishedPort {
                addresses: traffic.addresses_of(port.protocol, port.published),
                ..port
            })
            .collect();
        if networks.is_empty() && ports.is_empty() && !self.hosts_ports_of(id) {
            return None;
        }
        Some(ViewObject::Service(ServiceView {
            id,
            name: service.spec.name.clone(),
            mode: service.endpoint.mode,
            networks,
            ports,
            policy: traffic.policy,
        }))
    }

    /// Whether a task here publishes ports of the service on this node alone.
    fn hosts_ports_of(&self, service: ServiceId) -> bool {
        let mut tasks = self.state.tasks_of_node(self.node);
        tasks.any(|task| {
            task.service == service && !task.host_ports.is_empty() && backend_state(task).is_some()
        })
    }

    /// The service's networks that this node takes part in. With VIPs, one without an address is
    /// left out until the allocator has given it: no VIP means DNS round robin to the nodes.
    fn service_networks(&self, service: &Service) -> Vec<ServiceNetwork> {
        let here = |network: &NetworkId| self.networks.contains(network);
        let attached = service.spec.task.networks.iter();
        attached
            .filter(|attachment| here(&attachment.network))
            .filter_map(|attachment| {
                let vips = &service.endpoint.vips;
                let vip = vips.iter().find(|vip| vip.network == attachment.network);
                if vip.is_none() && service.endpoint.mode == EndpointMode::Vip {
                    return None;
                }
                Some(ServiceNetwork {
                    network: attachment.network,
                    vip: vip.map(|vip| vip.addr),
                    aliases: attachment.aliases.clone(),
                })
            })
            .collect()
    }

    fn endpoint(&self, task: &Task) -> Option<ViewObject> {
        let (id, node) = (task.endpoint?, task.node?);
        let state = backend_state_on(presence(self.state, node), task)?;
        let addresses: Vec<_> = task
            .attachments
            .iter()
            .filter(|attachment| self.networks.contains(&attachment.network))
            .copied()
            .collect();
        let service = self.state.service(task.service);
        let meshed = service.is_some_and(|s| is_meshed(s));
        if addresses.is_empty() && !meshed && node != self.node {
            return None;
        }
        Some(ViewObject::Endpoint(EndpointView {
            id,
            task: task.id,
            task_name: task.name(),
            service: task.service,
            slot: task.slot,
            node,
            addresses,
            state,
            weight: weight(self.state, task),
        }))
    }

    pub(crate) fn assignment(&self, task: &Task) -> Option<ViewObject> {
        if task.node != Some(self.node) || task.status.state < TaskState::Assigned {
            return None;
        }
        let desired = match task.desired {
            _ if self.held.contains(&task.id) => TaskState::Running,
            // Nodes know one way to stop; what is left of the task afterwards is the managers'.
            desired if desired.asks_to_stop() => TaskState::Shutdown,
            desired => desired,
        };
        Some(ViewObject::Task(Box::new(TaskAssignment {
            id: task.id,
            name: task.name(),
            service: task.service,
            service_name: task.service_name.clone(),
            slot: task.slot,
            endpoint: task.endpoint?,
            spec: task.spec.clone(),
            host_ports: task.host_ports.clone(),
            attachments: task.attachments.clone(),
            state: task.status.state,
            desired,
        })))
    }
}

/// The networks that a node takes part in: `ingress`, and those of its tasks that are assigned and
/// have not ended.
pub(crate) fn networks_of_node(state: &State, node: NodeId) -> BTreeSet<NetworkId> {
    let live =
        |task: &Task| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
    let ingress = state.networks().filter(|network| network.spec.ingress);
    let attached = state
        .tasks_of_node(node)
        .filter(|task| live(task))
        .flat_map(|task| task.attachments.iter().map(|a| a.network));
    ingress.map(|network| network.id).chain(attached).collect()
}

/// What a task is to those who might send to it; `None` when it is not there (yet, or any more).
fn backend_state(task: &Task) -> Option<BackendState> {
    let state = task.status.state;
    if state < TaskState::Assigned || state.is_terminal() {
        None
    } else if task.desired.asks_to_stop() {
        Some(BackendState::Draining)
    } else if state == TaskState::Running && task.desired >= TaskState::Running {
        Some(BackendState::Active)
    } else {
        Some(BackendState::Starting)
    }
}

/// What it is on its node. Nobody hears what becomes of a task whose node is down: what it has, it
/// may go on with.
fn backend_state_on(node: Presence, task: &Task) -> Option<BackendState> {
    let state = backend_state(task)?;
    match (node, state) {
        (Presence::Up, state) => Some(state),
        (Presence::Down, BackendState::Active | BackendState::Draining) => {
            Some(BackendState::Draining)
        }
        (Presence::Down, BackendState::Starting) | (Presence::Gone, _) => None,
    }
}

/// The task's part of its service's rings, which move when it changes; `None` when it has none.
fn ring_share(state: &State, id: TaskId) -> Option<u32> {
    let task = state.task(id)?;
    let on_node = backend_state_on(presence(state, task.node?), task);
    (on_node == Some(BackendState::Active)).then(|| weight(state, task))
}

/// What the service's labels give to tasks on this one's node.
fn weight(state: &State, task: &Task) -> u32 {
    let node = task.node.and_then(|node| state.node(node));
    match (state.service(task.service), node) {
        (Some(service), Some(node)) => traffic(service).weight_on(&node.spec.labels),
        _ => 1,
    }
}

fn mesh_ports(service: &Service) -> impl Iterator<Item = PublishedPort> + '_ {
    let ports = service.endpoint.ports.iter();
    ports
        .filter(|port| port.mode == PublishMode::Ingress)
        .filter_map(|port| {
            Some(PublishedPort {
                protocol: port.protocol,
                published: port.published?,
                target: port.target,
                addresses: Vec::new(),
            })
        })
}

/// How the service's traffic goes. Its labels were checked when they came.
fn traffic(service: &Service) -> Traffic {
    Traffic::of(&service.spec.labels).unwrap_or_default()
}

/// Whether every node may be asked for the service.
fn is_meshed(service: &Service) -> bool {
    mesh_ports(service).next().is_some()
}

#[cfg(test)]
mod tests;
