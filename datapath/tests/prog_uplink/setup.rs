//! Who takes part, and the nodes that the tables start from.

use dataplane_abi::{BackendValue, Be16, Be32, FlowValue};

use crate::common::*;

pub const NODE: Be32 = ip(192, 0, 2, 1);
pub const NODE_B: Be32 = ip(192, 0, 2, 2);
pub const NODE_C: Be32 = ip(192, 0, 2, 3);
pub const CLIENT: (Be32, u16) = (ip(203, 0, 113, 9), 40_000);
pub const PUBLISHED: (Be32, u16) = (NODE, 8080);
pub const TASK: Be32 = ip(172, 18, 0, 5);
pub const TASK_2: Be32 = ip(172, 18, 0, 6);
/// Endpoint ids.
pub const EP: u32 = 0x0102_0304;
pub const EP_2: u32 = 0x0a0b_0c0d;
/// Counters of the frontend and of the endpoints.
pub const FRONT: u32 = 10;
pub const STATS: u32 = 11;
pub const STATS_2: u32 = 12;

pub fn node() -> Node {
    let mut node = Node::configured(NODE);
    node.node_addr(NODE);
    node
}

/// A service on 8080 whose one backend is here.
pub fn node_with_local_backend(proto: u8) -> Node {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    publish(&mut node, proto, backend(EP, Be32::ZERO, TASK));
    node
}

/// A service on 8080 whose one backend is at node B.
pub fn node_with_remote_backend(proto: u8) -> Node {
    let mut node = node();
    publish(&mut node, proto, backend(EP, NODE_B, NODE_B));
    node
}

/// A service on 8080 of TCP and UDP without a backend.
pub fn node_without_backend() -> Node {
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[], &[]);
    node.publish(PUBLISHED.1, TCP, service);
    node.publish(PUBLISHED.1, UDP, service);
    node
}

/// A service on 8080 whose slot moved from `before` to a backend here.
pub fn node_with_moved_slot(before: BackendValue) -> Node {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    let backends = [backend(EP, Be32::ZERO, TASK), before];
    let service = node.service(0, FRONT, 80, &backends, &[slot(0, 1), slot(0, 1)]);
    node.publish(PUBLISHED.1, TCP, service);
    node
}

fn publish(node: &mut Node, proto: u8, backend: BackendValue) {
    let service = node.service(0, FRONT, 80, &[backend], &[slot(0, 0)]);
    node.publish(PUBLISHED.1, proto, service);
}

pub fn tcp(flags: u8) -> Frame {
    Frame::tcp(CLIENT, PUBLISHED, flags)
}

pub fn syn() -> Frame {
    tcp(SYN)
}

pub fn ack() -> Frame {
    tcp(PSH_ACK)
}

pub fn udp() -> Frame {
    Frame::udp(CLIENT, PUBLISHED)
}

/// The client's flow at the first task.
pub fn flow() -> FlowValue {
    FlowValue {
        node_addr: NODE,
        published: Be16::from_host(PUBLISHED.1),
        endpoint: EP,
        generation: 1,
        ..FlowValue::default()
    }
}
