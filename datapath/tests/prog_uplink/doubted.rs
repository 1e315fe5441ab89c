//! Nodes that do not answer, or have not for long: new flows go elsewhere, and no other is lost.

use dataplane_abi::{
    Be32, PEER_RETURNING, PEER_SUSPECTED, RingSlot, ServiceValue,
    hash::{FlowTuple, nth_hash, ring_slot},
    net::mesh_mac::{Kind, SEARCH_HOPS_MAX},
};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

/// As long as a chunk, with two backends in turn.
const SLOTS: u32 = 256;

/// A service on 8080 whose slots belong in turn to node B and to `other`.
fn node_with_two(other: Be32, addr: Be32) -> (Node, ServiceValue) {
    let mut node = node();
    node.local(EP_2, 51, TASK_2, STATS_2);
    let backends = [backend(EP, NODE_B, NODE_B), backend(EP_2, other, addr)];
    let slots: Vec<RingSlot> = (0..SLOTS as u16).map(|n| slot(n % 2, n % 2)).collect();
    let service = node.service(0, FRONT, 80, &backends, &slots);
    node.publish(PUBLISHED.1, TCP, service);
    node.publish(PUBLISHED.1, UDP, service);
    (node, service)
}

/// Index of the backend that is the client's `nth` choice.
fn choice(service: &ServiceValue, frame: &Frame, nth: u32) -> u32 {
    let (src_port, proto) = match frame.transport {
        Transport::Tcp { sport, .. } => (sport, TCP),
        Transport::Udp { sport, .. } => (sport, UDP),
        _ => panic!("no ports"),
    };
    let tuple = FlowTuple {
        src: frame.src,
        src_port: dataplane_abi::Be16::from_host(src_port),
        dst_port: dataplane_abi::Be16::from_host(PUBLISHED.1),
        proto,
    };
    ring_slot(nth_hash(service.hash(tuple, RING_SEED), nth), SLOTS) % 2
}

/// Packets of flows whose slot is node B's.
fn of_node_b(service: &ServiceValue, frame: &Frame) -> Vec<Frame> {
    let ports = (0..64).map(|nth| frame.clone().sport(CLIENT.1 + nth));
    let frames: Vec<_> = ports.filter(|one| choice(service, one, 0) == 0).collect();
    assert!(frames.len() > 16, "slots are spread");
    frames
}

fn at(endpoint: u32, vtep: Be32) -> impl Fn(&Frame) -> Fate {
    move |frame| {
        let inner = frame.clone().mesh(Kind::Forward, endpoint, NODE);
        Fate::Tunnel(vtep, inner.bytes())
    }
}

/// The other backend is wherever the flow's second choice, third choice, … is one of its slots.
#[test]
fn flows_to_a_node_that_does_not_answer_go_to_the_other() {
    let (node, service) = node_with_two(NODE_C, NODE_C);
    let mut pair = Pair::new(node);
    let [new, data, datagrams] = [syn(), ack(), udp()].map(|one| of_node_b(&service, &one));
    let all = || [&new[..], &data, &datagrams].concat();
    pair.each("no doubt", all(), at(EP, NODE_B));
    pair.node.doubt(NODE_B, PEER_SUSPECTED);
    pair.each("suspected", all(), at(EP_2, NODE_C));
    // Those of other nodes stay where they are.
    let others = (0..64).map(|nth| syn().sport(CLIENT.1 + nth));
    let others = others.filter(|one| choice(&service, one, 0) == 1);
    pair.each("the other's", others, at(EP_2, NODE_C));
    pair.node.doubt(NODE_B, PEER_RETURNING);
    let begin = [&new[..], &datagrams].concat();
    pair.each("returning, new", begin, at(EP, NODE_B));
    pair.each("returning, data", data.clone(), at(EP_2, NODE_C));
    pair.node.doubt(NODE_B, 0);
    pair.each("no doubt any more", all(), at(EP, NODE_B));
}

#[test]
fn flows_stay_where_nobody_answers() {
    let (node, service) = node_with_two(NODE_C, NODE_C);
    let mut pair = Pair::new(node);
    pair.node.doubt(NODE_B, PEER_SUSPECTED);
    pair.node.doubt(NODE_C, PEER_SUSPECTED);
    pair.each("two", of_node_b(&service, &syn()), at(EP, NODE_B));
    // And where there is nobody else.
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    pair.node.doubt(NODE_B, PEER_SUSPECTED);
    pair.each("one", [syn(), ack()], Fate::node_b);
}

/// A connection from before the doubt is not lost when the node is there after all: whoever gets its
/// packets and does not know them hands them on.
#[test]
fn connection_from_before_the_doubt_goes_on() {
    let (node, service) = node_with_two(Be32::ZERO, TASK_2);
    let mut pair = Pair::new(node);
    pair.node.doubt(NODE_B, PEER_SUSPECTED);
    let search = Kind::Search(SEARCH_HOPS_MAX);
    let data = of_node_b(&service, &ack());
    pair.each("data", data.clone(), |frame| {
        Fate::ByTc(frame.clone().mesh(search, EP, NODE).bytes())
    });
    let here = |frame: &Frame| Fate::ByTc(delivered(frame, TASK_2).bytes());
    pair.each("new", of_node_b(&service, &syn()), here);
    // Those just opened are here, for as long as the node is not trusted.
    pair.each("its data", data.clone(), here);
    pair.node.doubt(NODE_B, PEER_RETURNING);
    pair.each("its data later", data, here);
}
