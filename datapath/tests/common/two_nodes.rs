//! Two nodes with tasks and a client outside, services over all tasks: real devices and attached
//! programs.

use std::net::{SocketAddr, TcpStream};

use dataplane_abi::{Be32, NodeConfig, RingSlot, ServiceValue};

use super::{Namespace, Node, TCP, UDP, backend, cluster::*, ip};

pub const NODE_A: Be32 = ip(192, 0, 2, 1);
pub const NODE_B: Be32 = ip(192, 0, 2, 2);
pub const CLIENT: Be32 = ip(192, 0, 2, 9);
pub const VIP: Be32 = ip(10, 0, 1, 2);
/// Counters of the frontend.
pub const FRONT: u32 = 200;

/// Tasks 11 and 12 on node A, 21 on node B.
pub struct Cluster {
    pub a: Host,
    pub b: Host,
    pub client: Namespace,
    pub switch: Switch,
}

impl Cluster {
    pub fn new() -> Self {
        Self::of(Node::load)
    }

    pub fn of(load: fn() -> Node) -> Self {
        let switch = Switch::new();
        let mut a = switch.node_of(load(), NODE_A);
        let mut b = switch.node_of(load(), NODE_B);
        a.add_task(11, ip(10, 0, 1, 11));
        a.add_task(12, ip(10, 0, 1, 12));
        b.add_task(21, ip(10, 0, 1, 21));
        introduce(&mut [&mut a, &mut b]);
        Self {
            client: switch.client(CLIENT),
            a,
            b,
            switch,
        }
    }

    pub fn hosts(&mut self) -> [&mut Host; 2] {
        [&mut self.a, &mut self.b]
    }

    /// A service on VIP with one slot over tasks 11, 12 and 21, in this order, on each node.
    pub fn vip(&mut self, base: u32, slots: &[RingSlot]) {
        self.vip_at(VIP, base, slots);
    }

    /// As [`Self::vip`], on another address.
    pub fn vip_at(&mut self, vip: Be32, base: u32, slots: &[RingSlot]) {
        let places = self.places();
        for host in self.hosts() {
            let backends: Vec<_> = places
                .iter()
                .map(|&(node, endpoint, overlay, _)| {
                    backend(endpoint, vtep_seen_from(host, node), overlay)
                })
                .collect();
            let service = host.node.service(base, FRONT, 0, &backends, slots);
            host.node.vip(VNI, vip, service);
        }
    }

    /// Publishes 8080 -> 80 over the same backends, on each node.
    pub fn publish(&mut self, base: u32, slots: &[RingSlot]) {
        self.publish_port(8080, base, slots);
    }

    /// As [`Self::publish`], another port.
    pub fn publish_port(&mut self, port: u16, base: u32, slots: &[RingSlot]) {
        let places = self.places();
        for host in self.hosts() {
            let backends: Vec<_> = places
                .iter()
                .map(|&(node, endpoint, _, gateway)| {
                    let vtep = vtep_seen_from(host, node);
                    backend(endpoint, vtep, if vtep.is_zero() { gateway } else { node })
                })
                .collect();
            for &(node, endpoint, _, gateway) in &places {
                if node == host.addr {
                    host.node.target(endpoint, gateway, 80, TCP);
                    host.node.target(endpoint, gateway, 80, UDP);
                }
            }
            let service: ServiceValue = host.node.service(base, FRONT, 80, &backends, slots);
            host.node.publish(port, TCP, service);
            host.node.publish(port, UDP, service);
        }
    }

    /// Tells each node that the stream's flow is at one of the backends above.
    pub fn pin(&mut self, stream: &TcpStream, backend: u16) {
        let (node, endpoint, ..) = self.places()[usize::from(backend)];
        let [client, frontend] = [stream.local_addr(), stream.peer_addr()].map(|addr| {
            let SocketAddr::V4(addr) = addr.unwrap() else {
                unreachable!("the test speaks IPv4");
            };
            (Be32::from(*addr.ip()), addr.port())
        });
        for host in self.hosts() {
            let vtep = vtep_seen_from(host, node);
            host.node.pin(client, frontend, endpoint, vtep);
        }
    }

    pub fn set_unsettled_until(&mut self, at: u64) {
        for host in self.hosts() {
            let config: NodeConfig = host.node.array("CONFIG").get(&0, 0).unwrap();
            host.node.configure(NodeConfig {
                unsettled_until: at,
                ..config
            });
        }
    }

    pub fn dropped(&mut self, reason: &str) -> u64 {
        let hosts = self.hosts().into_iter();
        hosts
            .map(|host| host.node.drops().get(reason).copied().unwrap_or(0))
            .sum()
    }

    fn places(&self) -> Vec<(Be32, u32, Be32, Be32)> {
        [&self.a, &self.b]
            .iter()
            .flat_map(|host| {
                host.tasks
                    .iter()
                    .map(|t| (host.addr, t.endpoint, t.overlay, t.gateway))
            })
            .collect()
    }

    pub fn assert_no_drops(&mut self) {
        for host in self.hosts() {
            assert!(host.node.drops().is_empty(), "{:?}", host.node.drops());
        }
    }
}

fn vtep_seen_from(host: &Host, node: Be32) -> Be32 {
    if host.addr == node { Be32::ZERO } else { node }
}

/// Index of a backend in the services above.
pub const ON_A: u16 = 0;
pub const ON_A_2: u16 = 1;
pub const ON_B: u16 = 2;
