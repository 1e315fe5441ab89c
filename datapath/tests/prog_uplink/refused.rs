//! What is for a published port and goes nowhere, with its reason.

use dataplane_abi::{BACKEND_DRAINING, DropReason, FlowKey, FlowValue, NodeConfig};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

const NO_BACKEND: DropReason = DropReason::NoBackend;

fn no_backend(frame: &Frame) -> Fate {
    Fate::refused(frame, NO_BACKEND)
}

#[test]
fn packets_of_connections_that_nobody_has_are_refused_and_leave_nothing() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let frames = (40_000..40_100).map(|port| ack().sport(port));
    pair.each("unknown", frames, |frame| {
        Fate::refused(frame, DropReason::UnknownFlow)
    });
    for table in ["FLOWS", "SYN_FLOWS"] {
        let flows = pair.node.entries::<FlowKey, FlowValue>(table);
        assert!(flows.is_empty());
    }
}

#[test]
fn service_without_backend_refuses_with_reason() {
    let mut pair = Pair::new(node_without_backend());
    for flags in [SYN, ACK, PSH_ACK, FIN | ACK, FIN, SYN | ACK] {
        let frames = [0, 1, 6, 1001].map(|payload| tcp(flags).payload(&vec![0xa5; payload]));
        pair.each("answered by a RST", frames, no_backend);
    }
    pair.table([
        ("RST", tcp(RST).bytes(), Fate::Dropped(NO_BACKEND)),
        ("UDP", udp().bytes(), Fate::Dropped(NO_BACKEND)),
        (
            "options, which no answer is made of",
            syn().options(&[1, 1, 1, 0]).bytes(),
            Fate::DroppedByTc(NO_BACKEND),
        ),
    ]);
    assert_eq!(pair.node.stats(FRONT), Default::default());
}

#[test]
fn service_without_backend_drops_with_its_reason_where_no_route_leads_back() {
    let mut pair = Pair::without_ways(node_without_backend(), PrivateNetns::with_uplink());
    pair.each("SYN", [syn()], |_| Fate::DroppedByTc(NO_BACKEND));
}

#[test]
fn last_backend_that_drains_keeps_its_connections_and_gets_no_new_ones() {
    let mut node = node();
    let mut draining = backend(EP, NODE_B, NODE_B);
    draining.state = BACKEND_DRAINING;
    let service = node.service(0, FRONT, 80, &[draining], &[slot(0, 0)]);
    node.publish(8080, TCP, service);
    let mut pair = Pair::new(node);
    pair.each("SYN", [syn()], no_backend);
    pair.each("data", [ack()], Fate::node_b);
}

#[test]
fn slot_that_names_no_backend_refuses_with_reason() {
    let mut node = node();
    let service = node.service(0, FRONT, 80, &[backend(EP, NODE_B, NODE_B)], &[slot(1, 1)]);
    node.publish(8080, TCP, service);
    Pair::new(node).each("SYN", [syn()], no_backend);
}

#[test]
fn node_that_is_not_configured_drops_only_what_is_published() {
    let mut node = node_with_local_backend(TCP);
    node.configure(NodeConfig::default());
    let dropped = Fate::Dropped(DropReason::NotConfigured);
    Pair::new(node).table([
        ("published", syn().bytes(), dropped),
        ("other port", syn().dport(22).bytes(), Fate::Host),
    ]);
}

/// The network of the gateway sides is the node's own: nothing comes from there by the uplink.
#[test]
fn packet_from_the_gateway_network_is_a_forgery() {
    let forged = DropReason::ForgedTaskAddress;
    for node in [node_with_local_backend, node_with_remote_backend] {
        let frame = syn().src(TASK_2);
        Pair::new(node(TCP)).table([
            ("published", frame.bytes(), Fate::Dropped(forged)),
            // XDP looks at the source of what is published, tc at that of all.
            (
                "other port",
                frame.dport(8081).bytes(),
                Fate::DroppedByTc(forged),
            ),
        ]);
    }
}
