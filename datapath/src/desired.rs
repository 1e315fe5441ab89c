//! From what the managers say ([`NodeView`]) and what the node is ([`LocalState`]) to what the maps
//! shall hold. Pure; in order of keys throughout, so that every node decides alike.
//!
//! Here is what one endpoint, one service and the node ask for; [`Desired`] puts it together, and
//! keeps it from change to change.

mod standing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use dataplane_abi::{
    BACKEND_ACTIVE, BACKEND_DRAINING, BACKENDS_PER_SERVICE_MAX, BackendValue, Be16, Be32,
    EndpointValue, LocalEndpoint, NETNS_NODE, NETNS_TASK, NETNS_VNIS_MAX, NetnsValue, NodeConfig,
    PeerValue, SERVICE_AFFINITY, SERVICE_DIRECT_RETURN, SERVICE_OF_NODE, TargetValue, VETH_GATEWAY,
    VETH_OVERLAY, VethValue,
    net::{mesh_mac, task_mac, tunnel_mtu},
};
use model::{
    EndpointId, NetworkId, NodeId, ServiceId, TaskId, Vni,
    feed::{BackendState, ClusterView, EndpointView, NodeView, PeerView, ServiceView},
    object::Attachment,
    spec::EndpointMode,
    traffic::Policy,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    local::{Doubt, GATEWAY_PREFIX_LEN, LocalState, LocalTask, LocalVeth},
    maglev::Member,
    tables::{Frontend, OverlayAddr, Port, Published, Target},
};

use standing::claimed_by;
pub use standing::{Desired, Touched, Wanted};

/// The view cannot be put into tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    #[error("the view has no cluster: wait for the managers' first update before a sync")]
    NoCluster,
    #[error(
        "this node, {0}, is not among the view's peers, so its tunnel address is not known: wait \
         for the managers' next update"
    )]
    UnknownSelf(NodeId),
}

/// Something in the view that the maps cannot hold; the rest is in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    #[error(
        "task {task}: network {network} is not in the view, so its interface {ifindex} stays shut"
    )]
    UnknownNetwork {
        task: TaskId,
        network: NetworkId,
        ifindex: u32,
    },
    #[error(
        "task {task}: it has {count} networks, and VIPs are found in the first {NETNS_VNIS_MAX} only"
    )]
    TooManyNetworks { task: TaskId, count: usize },
    #[error("service {service}: {frontend} belongs to service {owner}; change one of them")]
    FrontendTaken {
        service: ServiceId,
        frontend: Frontend,
        owner: ServiceId,
    },
    #[error(
        "service {service}: of {count} backends only the first {BACKENDS_PER_SERVICE_MAX} are used"
    )]
    TooManyBackends { service: ServiceId, count: usize },
}

const _: () = assert!(
    model::spec::REPLICAS_MAX == BACKENDS_PER_SERVICE_MAX as u64,
    "who scales a service is told when its ring cannot name so many"
);

/// What the maps shall hold about the node itself and its tasks: little, and made anew each time.
/// Indexes into `STATS` and generations are left zero: the plan chooses them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeTables {
    pub config: NodeConfig,
    pub veths: BTreeMap<u32, VethValue>,
    pub locals: BTreeMap<u32, LocalEndpoint>,
    pub netns: BTreeMap<u64, NetnsValue>,
    pub targets: BTreeMap<Target, TargetValue>,
    pub peers: BTreeMap<Ipv4Addr, PeerValue>,
    pub node_addrs: BTreeSet<Ipv4Addr>,
    pub skipped: Vec<Skipped>,
}

/// What one service asks for, or one task for ports of this node alone.
#[derive(Debug, Clone, PartialEq, Default)]
struct Asked {
    frontends: BTreeMap<Frontend, FrontendSpec>,
    skipped: Vec<Skipped>,
}

impl Asked {
    fn claim(&mut self, frontend: Frontend, spec: FrontendSpec) {
        if let Some(owner) = self.frontends.get(&frontend) {
            self.skipped.push(Skipped::FrontendTaken {
                service: spec.service,
                frontend,
                owner: owner.service,
            });
            return;
        }
        self.frontends.insert(frontend, spec);
    }
}

/// Indexes into `STATS`, `RINGS` and `BACKENDS` are the plan's.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontendSpec {
    pub service: ServiceId,
    pub pool: Arc<Pool>,
    /// From the published port to the task's; zero keeps it.
    pub port_shift: u16,
    /// `SERVICE_*`.
    pub flags: u32,
    pub affinity: Affinity,
}

/// How long clients keep their backends, as in [`ServiceValue`](dataplane_abi::ServiceValue).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Affinity {
    pub secs: u16,
    pub key: u32,
}

impl Affinity {
    /// Services that share a key take each other's clients for new ones: an endpoint is of one service.
    fn of(service: &ServiceView) -> Self {
        match service.policy.affinity_secs {
            0 => Self::default(),
            secs => Self {
                secs,
                key: xxh3_64(&service.id.raw().to_be_bytes()) as u32,
            },
        }
    }
}

/// The backends of a frontend, in ascending order of endpoint. Frontends of one service share it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub backends: Arc<[BackendValue]>,
    /// As `backends`; weight zero gets no new flows.
    pub members: Arc<[Member]>,
    /// Of this node's own, which come first; `None` when that is not wished, or there are none.
    pub near: Option<Near>,
}

/// Where this node's own backends come first.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    /// As the pool's, of which those that are elsewhere weigh nothing.
    pub members: Arc<[Member]>,
    /// All of them drain.
    pub drains: bool,
}

impl Pool {
    /// The part of it that is here. If all that get new flows are elsewhere, those that drain here
    /// keep theirs.
    fn of_this_node(&self) -> Arc<Self> {
        let (members, _) = self.members_here();
        let here = || {
            self.backends
                .iter()
                .zip(&members)
                .filter(|(at, _)| at.vtep.is_zero())
        };
        Arc::new(Self {
            backends: here().map(|(backend, _)| *backend).collect(),
            members: here().map(|(_, member)| *member).collect(),
            near: None,
        })
    }

    /// With what is here before all else.
    fn near_first(self: &Arc<Self>) -> Arc<Self> {
        if self.backends.iter().all(|backend| !backend.vtep.is_zero()) {
            return Arc::clone(self);
        }
        let (members, drains) = self.members_here();
        let near = Near {
            members: members.into(),
            drains,
        };
        Arc::new(Self {
            near: Some(near),
            ..Self::clone(self)
        })
    }

    /// The members, of which those that are elsewhere weigh nothing; and whether those that are here
    /// all drain.
    fn members_here(&self) -> (Vec<Member>, bool) {
        let both = || self.backends.iter().zip(self.members.iter());
        let drains = both().all(|(at, member)| !at.vtep.is_zero() || member.weight == 0);
        let weight = |at: &BackendValue, member: &Member| match at.vtep.is_zero() {
            false => 0,
            true if drains => 1,
            true => member.weight,
        };
        let here = both().map(|(at, member)| Member {
            weight: weight(at, member),
            ..*member
        });
        (here.collect(), drains)
    }
}

fn preferred(policy: Policy, pool: Arc<Pool>) -> Arc<Pool> {
    match policy.near_first {
        true => pool.near_first(),
        false => pool,
    }
}

fn flags(policy: Policy) -> u32 {
    [
        (policy.direct_return, SERVICE_DIRECT_RETURN),
        (policy.affinity, SERVICE_AFFINITY),
    ]
    .into_iter()
    .filter(|(is_set, _)| *is_set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn config(cluster: &ClusterView, own: &PeerView, local: &LocalState) -> NodeConfig {
    NodeConfig {
        vxlan_ifindex: local.vxlan_ifindex,
        uplink_ifindex: local.uplink_ifindex,
        gateway_ifindex: local.gateway_ifindex,
        mesh_vni: Vni::MESH.get(),
        vtep: own.vtep.into(),
        gateway_addr: local.gateway_addr.into(),
        gateway_mask: Be32::from_host(u32::MAX << (u32::BITS - u32::from(GATEWAY_PREFIX_LEN))),
        ring_seed: cluster.data_path.ring_seed,
        data_port: Be16::from_host(cluster.data_path.port),
        tunnel_mtu: tunnel_mtu(local.underlay_mtu),
        reassembly_ifindex: local.reassembly_ifindex,
        ..NodeConfig::default()
    }
}

/// The other nodes, those that are down included: they may still send.
fn peers(view: &NodeView, local: &LocalState) -> BTreeMap<Ipv4Addr, PeerValue> {
    let others = view.peers.values().filter(|peer| peer.node != local.node);
    others
        .map(|peer| {
            let doubt = local.doubts.get(&peer.node);
            let value = PeerValue {
                flags: doubt.map_or(0, |doubt| doubt.flags()),
                ..PeerValue::default()
            };
            (peer.vtep, value)
        })
        .collect()
}

/// Nodes that the managers hold for down and that do not answer this one either: nothing is there any
/// more.
fn lost(view: &NodeView, local: &LocalState) -> BTreeSet<NodeId> {
    let is_down = |node| view.peers.get(node).is_some_and(|peer| !peer.up);
    let suspected = local.doubts.iter();
    suspected
        .filter(|(node, doubt)| **doubt == Doubt::Suspected && is_down(*node))
        .map(|(node, _)| *node)
        .collect()
}

/// The view with the indexes that the tables are made from.
struct Projection<'a> {
    view: &'a NodeView,
    local: &'a LocalState,
    tasks: BTreeMap<EndpointId, (TaskId, &'a LocalTask)>,
    by_service: &'a BTreeSet<(ServiceId, EndpointId)>,
    /// As [`lost`] says.
    lost: BTreeSet<NodeId>,
}

impl<'a> Projection<'a> {
    fn new(
        view: &'a NodeView,
        local: &'a LocalState,
        by_service: &'a BTreeSet<(ServiceId, EndpointId)>,
    ) -> Self {
        let tasks = local.tasks.iter();
        Self {
            view,
            local,
            tasks: tasks
                .map(|(id, task)| (task.endpoint, (*id, task)))
                .collect(),
            by_service,
            lost: lost(view, local),
        }
    }

    fn node(&self) -> Result<NodeTables, DesiredError> {
        let (view, local) = (self.view, self.local);
        let cluster = view.cluster.as_ref().ok_or(DesiredError::NoCluster)?;
        let own = view
            .peers
            .get(&local.node)
            .ok_or(DesiredError::UnknownSelf(local.node))?;
        let peers = peers(view, local);
        let doubted = peers.values().filter(|peer| peer.flags != 0).count();
        let mut tables = NodeTables {
            config: NodeConfig {
                doubted: doubted as u32,
                ..config(cluster, own, local)
            },
            peers,
            // The programs take it for one of them without a look.
            node_addrs: local.node_addrs.iter().copied().chain([own.vtep]).collect(),
            ..NodeTables::default()
        };
        self.tasks(&mut tables);
        Ok(tables)
    }

    fn service(&self, service: &ServiceView) -> Asked {
        let mut tables = Asked::default();
        self.vips(service, &mut tables);
        self.ports(service, &mut tables);
        tables
    }

    /// In order of their ids.
    fn endpoints_of(&self, service: ServiceId) -> impl Iterator<Item = &'a EndpointView> {
        let view = self.view;
        claimed_by(self.by_service, service).filter_map(|id| view.endpoints.get(&id))
    }

    fn vni(&self, network: NetworkId) -> Option<u32> {
        self.view.networks.get(&network).map(|n| n.vni.get())
    }

    /// Tunnel address of an endpoint's node, zero when it is this one; `None` when the view does
    /// not know the node, or nobody hears it.
    fn vtep(&self, endpoint: &EndpointView) -> Option<Be32> {
        if endpoint.node == self.local.node {
            return Some(Be32::ZERO);
        }
        if self.lost.contains(&endpoint.node) {
            return None;
        }
        let peer = self.view.peers.get(&endpoint.node)?;
        Some(peer.vtep.into())
    }

    /// Where the endpoint's addresses are, as far as they can be reached.
    fn addresses(&self, endpoint: &EndpointView) -> Vec<(OverlayAddr, EndpointValue)> {
        let Some(vtep) = self.vtep(endpoint) else {
            return Vec::new();
        };
        let at = |attachment: &Attachment| {
            let vni = self.vni(attachment.network)?;
            let veth = match vtep.is_zero() {
                true => Some(self.overlay_veth(endpoint.id, attachment.network)?),
                false => None,
            };
            let at = OverlayAddr {
                vni,
                addr: attachment.addr,
            };
            let value = EndpointValue {
                vtep,
                ifindex: veth.map_or(0, |veth| veth.ifindex),
                endpoint: endpoint.id.0,
                mac: veth.map_or(task_mac(attachment.addr.into()), |veth| veth.mac),
                ..EndpointValue::default()
            };
            Some((at, value))
        };
        endpoint.addresses.iter().filter_map(at).collect()
    }

    fn overlay_veth(&self, endpoint: EndpointId, network: NetworkId) -> Option<LocalVeth> {
        let (_, task) = self.tasks.get(&endpoint)?;
        let mut overlays = task.overlays.iter();
        overlays
            .find(|(of, _)| *of == network)
            .map(|(_, veth)| *veth)
    }

    /// Interfaces and namespaces of the tasks here, and the node's own namespace.
    fn tasks(&self, tables: &mut NodeTables) {
        let node = NetnsValue {
            kind: NETNS_NODE,
            ..NetnsValue::default()
        };
        for (task_id, task) in &self.local.tasks {
            let veths = self.veths(*task_id, task, &mut tables.skipped);
            let namespace = netns(*task_id, &veths, &mut tables.skipped);
            tables.veths.extend(veths);
            tables.netns.insert(task.netns_cookie, namespace);
            tables.targets.extend(self.targets(task));
            // An endpoint that left the view serves no more, though its task may still run.
            if self.view.endpoints.contains_key(&task.endpoint) {
                let gateway = &task.gateway;
                let value = LocalEndpoint {
                    ifindex: gateway.ifindex,
                    addr: gateway.addr.into(),
                    mac: gateway.mac,
                    netns: task.netns_id,
                    ..LocalEndpoint::default()
                };
                tables.locals.insert(task.endpoint.0, value);
            }
        }
        tables.netns.insert(self.local.netns_cookie, node);
    }

    fn veths(
        &self,
        id: TaskId,
        task: &LocalTask,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<(u32, VethValue)> {
        let value = |kind, vni, veth: &LocalVeth| VethValue {
            vni,
            addr: veth.addr.into(),
            endpoint: task.endpoint.0,
            mac: veth.mac,
            kind,
            ..VethValue::default()
        };
        let mut veths = vec![(task.gateway.ifindex, value(VETH_GATEWAY, 0, &task.gateway))];
        for (network, veth) in &task.overlays {
            match self.vni(*network) {
                Some(vni) => veths.push((veth.ifindex, value(VETH_OVERLAY, vni, veth))),
                None => skipped.push(Skipped::UnknownNetwork {
                    task: id,
                    network: *network,
                    ifindex: veth.ifindex,
                }),
            }
        }
        veths
    }

    /// Where the socket hook sends neighbours that ask for a published port. An endpoint keeps them
    /// while it drains: its conversations go on.
    fn targets(&self, task: &LocalTask) -> Vec<(Target, TargetValue)> {
        let endpoint = self.view.endpoints.get(&task.endpoint);
        let service = endpoint.and_then(|endpoint| self.view.services.get(&endpoint.service));
        let (Some(endpoint), Some(service)) = (endpoint, service) else {
            return Vec::new();
        };
        let ports = service.ports.iter();
        let mesh = ports.map(|port| (port.protocol.number(), port.target));
        let serves = self.tier(endpoint).is_some();
        let host = task.host_ports.iter().filter(|_| serves);
        let host = host.map(|port| (port.proto, port.target));
        let value = TargetValue {
            endpoint: task.endpoint.0,
            _pad: 0,
        };
        let target = |(proto, port)| Target {
            addr: task.gateway.addr,
            port,
            proto,
        };
        mesh.chain(host).map(|at| (target(at), value)).collect()
    }

    /// Ports that a task here publishes on this node alone. There is one such task for a port at a
    /// time: the scheduler sees to that.
    fn host_ports(&self, id: EndpointId) -> Option<Asked> {
        let (_, task) = self.tasks.get(&id)?;
        let endpoint = self.view.endpoints.get(&id)?;
        let tier = self.tier(endpoint)?;
        let service = self.view.services.get(&endpoint.service)?;
        let pool = Arc::new(Pool {
            backends: Arc::from([BackendValue {
                endpoint: id.0,
                vtep: Be32::ZERO,
                addr: task.gateway.addr.into(),
                state: tier.state(),
                mac: task.gateway.mac,
                _pad: 0,
            }]),
            members: Arc::from([Member {
                endpoint: id,
                weight: 1,
                is_cut_off: false,
            }]),
            near: None,
        });
        let mut tables = Asked::default();
        for port in &task.host_ports {
            let at = Published::everywhere(Port {
                proto: port.proto,
                number: port.published,
            });
            let spec = FrontendSpec {
                service: service.id,
                pool: Arc::clone(&pool),
                port_shift: port.target.wrapping_sub(port.published),
                flags: flags(service.policy) | SERVICE_OF_NODE,
                // There is but one backend to keep.
                affinity: Affinity::default(),
            };
            tables.claim(Frontend::Published(at), spec);
        }
        Some(tables)
    }

    fn vips(&self, service: &ServiceView, tables: &mut Asked) {
        if service.mode != EndpointMode::Vip {
            return;
        }
        for attached in &service.networks {
            let (Some(vip), Some(vni)) = (attached.vip, self.vni(attached.network)) else {
                continue;
            };
            let backend = |endpoint: &EndpointView, vtep| {
                let mut addresses = endpoint.addresses.iter();
                let here = addresses.find(|at| at.network == attached.network)?;
                let addr = Be32::from(here.addr);
                Some((addr, vtep, task_mac(addr)))
            };
            let spec = FrontendSpec {
                service: service.id,
                pool: preferred(
                    service.policy,
                    self.pool(service.id, backend, &mut tables.skipped),
                ),
                port_shift: 0,
                flags: flags(service.policy),
                affinity: Affinity::of(service),
            };
            tables.claim(Frontend::Vip(OverlayAddr { vni, addr: vip }), spec);
        }
    }

    fn ports(&self, service: &ServiceView, tables: &mut Asked) {
        if service.ports.is_empty() {
            return;
        }
        let backend = |endpoint: &EndpointView, vtep: Be32| {
            if vtep.is_zero() {
                let gateway = self.tasks.get(&endpoint.id).map(|(_, task)| task.gateway);
                let addr = gateway.map_or(Be32::ZERO, |gateway| gateway.addr.into());
                return Some((addr, vtep, gateway.map_or([0; 6], |gateway| gateway.mac)));
            }
            Some((vtep, vtep, mesh_mac::Kind::Forward.mac(endpoint.id.0)))
        };
        let pool = self.pool(service.id, backend, &mut tables.skipped);
        let own = pool.of_this_node();
        let pool = preferred(service.policy, pool);
        for port in &service.ports {
            let spec = |pool: &Arc<Pool>| FrontendSpec {
                service: service.id,
                pool: Arc::clone(pool),
                port_shift: port.target.wrapping_sub(port.published),
                flags: flags(service.policy),
                affinity: Affinity::of(service),
            };
            let everywhere = Published::everywhere(Port {
                proto: port.protocol.number(),
                number: port.published,
            });
            if port.addresses.is_empty() {
                tables.claim(Frontend::Published(everywhere), spec(&pool));
            }
            for addr in port.addresses.iter().copied() {
                let at = |own| {
                    Frontend::Published(Published {
                        addr,
                        own,
                        ..everywhere
                    })
                };
                if !addr.is_loopback() {
                    tables.claim(at(false), spec(&pool));
                }
                if addr.is_loopback() || self.local.node_addrs.contains(&addr) {
                    tables.claim(at(true), spec(&own));
                }
            }
        }
    }

    /// The service's endpoints that may have flows. `backend` gives address, tunnel address and MAC
    /// of one, or `None` when it is not reachable by the frontend.
    fn pool(
        &self,
        service: ServiceId,
        backend: impl Fn(&EndpointView, Be32) -> Option<(Be32, Be32, [u8; 6])>,
        skipped: &mut Vec<Skipped>,
    ) -> Arc<Pool> {
        let endpoints = self.endpoints_of(service);
        let mut found: Vec<(Tier, u32, BackendValue)> = endpoints
            .filter_map(|endpoint| {
                let tier = self.tier(endpoint)?;
                let (addr, vtep, mac) = backend(endpoint, self.vtep(endpoint)?)?;
                let value = BackendValue {
                    endpoint: endpoint.id.0,
                    vtep,
                    addr,
                    state: tier.state(),
                    mac,
                    _pad: 0,
                };
                Some((tier, endpoint.weight.max(1), value))
            })
            .collect();
        let most = BACKENDS_PER_SERVICE_MAX as usize - 1;
        if found.len() > most {
            skipped.push(Skipped::TooManyBackends {
                service,
                count: found.len(),
            });
            found.truncate(most);
        }
        let best = found.iter().map(|(tier, ..)| *tier).min();
        let members = found.iter().map(|(tier, weight, value)| Member {
            endpoint: EndpointId(value.endpoint),
            weight: if Some(*tier) == best { *weight } else { 0 },
            is_cut_off: *tier == Tier::NodeDown,
        });
        Arc::new(Pool {
            members: members.collect(),
            backends: found.iter().map(|(.., value)| *value).collect(),
            near: None,
        })
    }

    /// `None` for an endpoint that gets no service traffic yet.
    fn tier(&self, endpoint: &EndpointView) -> Option<Tier> {
        let up = self.view.peers.get(&endpoint.node).is_some_and(|p| p.up);
        match endpoint.state {
            BackendState::Starting => None,
            _ if !up => Some(Tier::NodeDown),
            BackendState::Active => Some(Tier::Active),
            BackendState::Draining => Some(Tier::Draining),
        }
    }
}

/// Rings name the backends of the best tier that any is in. Below the first, the programs refuse new
/// flows and serve those that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Active,
    Draining,
    /// The managers hold its node for down; it answers this one, so its flows live on.
    NodeDown,
}

impl Tier {
    /// `BACKEND_*`.
    fn state(self) -> u32 {
        match self {
            Self::Active => BACKEND_ACTIVE,
            Self::Draining | Self::NodeDown => BACKEND_DRAINING,
        }
    }
}

fn netns(id: TaskId, veths: &[(u32, VethValue)], skipped: &mut Vec<Skipped>) -> NetnsValue {
    let overlays: Vec<u32> = veths
        .iter()
        .filter(|(_, veth)| veth.kind == VETH_OVERLAY)
        .map(|(_, veth)| veth.vni)
        .collect();
    if overlays.len() > NETNS_VNIS_MAX {
        skipped.push(Skipped::TooManyNetworks {
            task: id,
            count: overlays.len(),
        });
    }
    let count = overlays.len().min(NETNS_VNIS_MAX);
    let mut vnis = [0; NETNS_VNIS_MAX];
    vnis[..count].copy_from_slice(&overlays[..count]);
    NetnsValue {
        kind: NETNS_TASK,
        vni_count: count as u32,
        vnis,
    }
}
