//! Nodes with a data plane of their own, tasks that come and go, and what the managers know.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_abi::{Be32, net::task_mac};
use model::{
    EndpointId, NodeId, ServiceId, TaskId,
    feed::{BackendState, EndpointView, NodeView, PeerView, Pin, ServiceView, ViewKey, ViewObject},
    traffic::Policy,
};
use swarmnet_datapath::{Datapath, LocalState, LocalTask, LocalVeth, UplinkMode};

use crate::{
    common::{Namespace, cluster::Switch, ip},
    node::{self, Pins, SERVICE},
    traffic::{Server, Traffic},
};

/// Services by number, each published on a port of its own.
pub const PORTS: [u16; 3] = [8080, 9090, 7070];
/// The one that prefers the entry's own backends.
const NEAR_FIRST: u16 = 7070;

pub struct World {
    pub machines: Vec<Machine>,
    pub client: Namespace,
    /// What the managers say.
    pub truth: NodeView,
    endpoint_last: u32,
    _switch: Switch,
}

impl World {
    pub fn new(machines: u8, slots: u8, traffic: &Traffic) -> Self {
        let switch = Switch::new();
        let client = switch.client(ip(192, 0, 2, 200));
        let mut machines: Vec<_> = (1..=machines)
            .map(|n| Machine::new(&switch, n, slots, traffic))
            .collect();
        let addrs: Vec<Ipv4Addr> = machines.iter().map(|at| at.addr.into()).collect();
        for machine in &mut machines {
            machine.local.node_addrs.clone_from(&addrs);
        }
        for n in 1..=machines.len() {
            // One source for each entry, as the client may use one port for several of them.
            client.ip(&format!("addr add 192.0.2.{}/32 dev up0", 200 + n));
            let (to, from) = (format!("192.0.2.{n}"), format!("192.0.2.{}", 200 + n));
            client.ip(&format!("route add {to}/32 dev up0 src {from}"));
        }
        let truth = truth(&machines);
        let mut world = Self {
            machines,
            client,
            truth,
            endpoint_last: 0,
            _switch: switch,
        };
        for machine in &mut world.machines {
            machine.open();
        }
        world
    }

    pub fn service_of(number: usize) -> ServiceId {
        ServiceId::from_raw(SERVICE.raw() + number as u128)
    }

    /// A new backend of a service, or `None` when the machine has no room.
    pub fn add(&mut self, service: usize, machine: usize) -> Option<u32> {
        let slot = self.machines[machine].free_slot()?;
        self.endpoint_last += 1;
        let id = self.endpoint_last;
        self.machines[machine].occupy(slot, id);
        let node = self.machines[machine].node;
        let ViewObject::Endpoint(endpoint) = node::endpoint(id, node, BackendState::Active) else {
            unreachable!("an endpoint")
        };
        self.truth.put(ViewObject::Endpoint(EndpointView {
            service: Self::service_of(service),
            addresses: Vec::new(),
            ..endpoint
        }));
        Some(id)
    }

    /// The client's packets to the address of one machine go to another, which answers there, too.
    pub fn enter_by(&self, addr_of: usize, machine: usize) {
        let addr = Ipv4Addr::from(self.machines[addr_of].addr);
        let mac = self.machines[machine].namespace.mac("up0");
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        self.client.ip(&format!(
            "neigh replace {addr} lladdr {mac} dev up0 nud permanent"
        ));
    }

    pub fn drain(&mut self, id: u32) {
        let endpoint = self.truth.endpoints.get_mut(&EndpointId(id)).unwrap();
        endpoint.state = BackendState::Draining;
    }

    /// The task ends, and with it its connections.
    pub fn remove(&mut self, id: u32) {
        self.truth.remove(ViewKey::Endpoint(EndpointId(id)));
        for machine in &mut self.machines {
            machine.vacate(id);
        }
    }

    pub fn backends(&self, service: usize, state: BackendState) -> Vec<u32> {
        let endpoints = self.truth.endpoints.values();
        endpoints
            .filter(|at| at.service == Self::service_of(service) && at.state == state)
            .map(|at| at.id.0)
            .collect()
    }
}

/// The services and all nodes, with no backend yet.
fn truth(machines: &[Machine]) -> NodeView {
    let mut view = node::view();
    let peer = view.peers.values().next().unwrap().clone();
    view.peers.clear();
    for machine in machines {
        view.put(ViewObject::Peer(PeerView {
            node: machine.node,
            vtep: machine.addr.into(),
            ..peer.clone()
        }));
    }
    let service = view.services.remove(&SERVICE).unwrap();
    for (number, published) in PORTS.into_iter().enumerate() {
        let mut ports = service.ports.clone();
        ports[0].published = published;
        view.put(ViewObject::Service(ServiceView {
            id: World::service_of(number),
            networks: Vec::new(),
            ports,
            policy: Policy {
                near_first: published == NEAR_FIRST,
                ..Policy::default()
            },
            ..service.clone()
        }));
    }
    view
}

pub struct Machine {
    pub node: NodeId,
    pub addr: Be32,
    pub namespace: Namespace,
    slots: Vec<Slot>,
    pins: Pins,
    datapath: Option<Datapath>,
    local: LocalState,
    /// What it has applied.
    pub view: NodeView,
    heard: BTreeMap<NodeId, Vec<Pin>>,
}

/// A place for a task: its namespace, interface and server stay.
struct Slot {
    namespace: Namespace,
    netns_id: u32,
    gateway: LocalVeth,
    server: Server,
    endpoint: Option<u32>,
}

impl Machine {
    fn new(switch: &Switch, number: u8, slots: u8, traffic: &Traffic) -> Self {
        let addr = ip(192, 0, 2, number);
        let namespace = switch.machine(addr);
        let slots = (1..=slots).map(|n| Slot::new(&namespace, n, traffic));
        let slots: Vec<_> = slots.collect();
        Self {
            node: NodeId::from_raw(number.into()),
            addr,
            slots,
            local: LocalState {
                node: NodeId::from_raw(number.into()),
                vxlan_ifindex: namespace.ifindex("vx0"),
                uplink_ifindex: namespace.ifindex("up0"),
                gateway_ifindex: namespace.ifindex("sn_gwbridge"),
                node_addrs: vec![addr.into()],
                netns_cookie: namespace.cookie(),
                ..node::local(&[])
            },
            pins: Pins::another(),
            datapath: None,
            view: NodeView::default(),
            heard: BTreeMap::new(),
            namespace,
        }
    }

    /// As an agent starts, also one that finds what the last one left.
    pub fn open(&mut self) {
        self.datapath = None;
        let config = self.pins.config(UplinkMode::Tc);
        let (slots, local) = (&self.slots, &self.local);
        let datapath = self.namespace.run(|| {
            let mut datapath = Datapath::open(&config).unwrap();
            datapath.attach_vxlan(local.vxlan_ifindex).unwrap();
            datapath.attach_uplink(local.uplink_ifindex).unwrap();
            for slot in slots {
                datapath.attach_gateway(slot.gateway.ifindex).unwrap();
            }
            datapath
        });
        self.heard = datapath.pins(&self.view, self.node).unwrap();
        self.datapath = Some(datapath);
    }

    /// Takes over what the managers say.
    pub fn apply(&mut self, view: &NodeView) {
        self.view = view.clone();
        let datapath = self.datapath.as_mut().unwrap();
        let (view, local) = (&self.view, &self.local);
        self.namespace
            .run(|| datapath.sync(view, local))
            .unwrap_or_else(|error| panic!("node {}: {error}", self.node));
        // Only now the addresses of tasks that ended are free.
        let serves = |id: &u32| view.endpoints.contains_key(&EndpointId(*id));
        for slot in &mut self.slots {
            slot.endpoint = slot.endpoint.filter(serves);
        }
    }

    /// What its agent tells the managers.
    pub fn displaced(&mut self, is_settled: bool) -> Vec<Pin> {
        let datapath = self.datapath.as_mut().unwrap();
        let told = self.heard.get_mut(&self.node).filter(|_| !is_settled);
        let told = told.map_or_else(Vec::new, |told| {
            told.sort_unstable();
            told.clone()
        });
        datapath.flow_search(told).make().unwrap()
    }

    pub fn hear(&mut self, node: NodeId, pins: Vec<Pin>) {
        self.heard.insert(node, pins);
        let datapath = self.datapath.as_mut().unwrap();
        datapath.pin(&self.heard, &self.view, self.node).unwrap();
    }

    pub fn settle(&mut self) {
        let datapath = self.datapath.as_mut().unwrap();
        datapath
            .settle_in(std::time::Duration::from_millis(300))
            .unwrap();
    }

    /// What it knows of a client's flows.
    pub fn knows(&self, client: &str) -> Vec<String> {
        let datapath = self.datapath.as_ref().unwrap();
        let flows = datapath.inspect_flows(&self.view).unwrap();
        let flows = flows.iter().filter(|row| row.client == client);
        let pins = datapath.pins(&self.view, self.node).unwrap();
        let pins = pins.values().flatten();
        let pins = pins.filter(|pin| pin.client.to_string() == client);
        let flows = flows.map(|row| format!("{row:?}"));
        flows.chain(pins.map(|pin| format!("{pin:?}"))).collect()
    }

    pub fn drops(&self) -> Vec<(String, u64)> {
        let rows = self.datapath.as_ref().unwrap().inspect_drops().unwrap();
        rows.into_iter()
            .map(|row| (row.reason, row.packets))
            .collect()
    }

    fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.endpoint.is_none())
    }

    fn occupy(&mut self, slot: usize, id: u32) {
        let slot = &mut self.slots[slot];
        slot.endpoint = Some(id);
        slot.server.serve(id);
        let task = LocalTask {
            endpoint: EndpointId(id),
            netns_cookie: slot.namespace.cookie(),
            netns_id: slot.netns_id,
            gateway: slot.gateway,
            overlays: Vec::new(),
            host_ports: Vec::new(),
        };
        self.local.tasks.insert(TaskId::from_raw(id.into()), task);
    }

    fn vacate(&mut self, id: u32) {
        for slot in self.slots.iter().filter(|at| at.endpoint == Some(id)) {
            slot.server.end();
        }
        self.local.tasks.remove(&TaskId::from_raw(id.into()));
    }
}

impl Slot {
    fn new(machine: &Namespace, number: u8, traffic: &Traffic) -> Self {
        let namespace = Namespace::new("task");
        let addr = ip(172, 18, 0, number + 1);
        let mac = task_mac(addr);
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let (name, shown) = (&namespace.name, Ipv4Addr::from(addr));
        machine.ip(&format!("netns set {name} {number}"));
        machine.ip(&format!(
            "link add gw{number} type veth peer name eth0 address {text} netns {name}"
        ));
        machine.ip(&format!("link set gw{number} master sn_gwbridge up"));
        namespace.ip(&format!("addr add {shown}/16 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace.ip("route add default via 172.18.0.1 mtu 1450 advmss 1410");
        Self {
            netns_id: number.into(),
            gateway: LocalVeth {
                ifindex: machine.ifindex(&format!("gw{number}")),
                addr: shown,
                mac,
            },
            server: traffic.server(&namespace, (shown, 80)),
            namespace,
            endpoint: None,
        }
    }
}
