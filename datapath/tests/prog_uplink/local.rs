//! Backends of this node: XDP leaves them to tc, which translates and remembers.

use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_CLIENT_FIN, FLOW_RESET, FlowValue, LocalEndpoint, NodeConfig,
};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

#[test]
fn tcp_to_a_local_backend_is_translated_and_remembered() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    pair.each("SYN", [syn()], Fate::task);

    // Not among the connections that exist, so that a flood of SYNs evicts none of them.
    let node = &mut pair.node;
    assert!(
        node.get::<_, FlowValue>("FLOWS", flow_key(CLIENT, TASK, TCP))
            .is_none()
    );
    let flow: FlowValue = node
        .get("SYN_FLOWS", flow_key(CLIENT, TASK, TCP))
        .expect("the flow is noted");
    let expected = FlowValue {
        last_seen: flow.last_seen,
        entry_vtep: Be32::ZERO,
        node_addr: NODE,
        published: Be16::from_host(8080),
        flags: 0,
        endpoint: EP,
        generation: 1,
        stats: STATS,
        opened: flow.opened,
        ..FlowValue::default()
    };
    assert_eq!(flow, expected);
    assert_eq!(flow.opened, flow.last_seen);

    let frame = ack().payload(&[7; 1000]);
    pair.each("data", [frame.clone()], Fate::task);
    let node = &mut pair.node;
    let bytes = (syn().bytes().len() + frame.bytes().len()) as u64;
    let expected = dataplane_abi::Stats {
        packets: 2,
        bytes,
        new_flows: 1,
    };
    assert_eq!(node.stats(FRONT), expected);
    assert_eq!(node.stats(STATS), expected);
    assert!(node.drops().is_empty());
    // The handshake is over, and the flow as old as before.
    let now: FlowValue = node.get("FLOWS", flow_key(CLIENT, TASK, TCP)).unwrap();
    assert_eq!(now.opened, flow.opened);
    let opening: Option<FlowValue> = node.get("SYN_FLOWS", flow_key(CLIENT, TASK, TCP));
    assert!(opening.is_none());
}

#[test]
fn udp_to_a_local_backend_is_translated_also_without_a_checksum() {
    let mut pair = Pair::new(node_with_local_backend(UDP));
    let frames = [
        udp(),
        udp().without_checksum(),
        udp().payload(&[]),
        udp().payload(&[0xff; 1201]),
        udp().options(&[1; 8]),
    ];
    pair.each("UDP", frames, Fate::task);
    // Flows of UDP have no SYN: the first packet opens, at the backend's node.
    assert_eq!(pair.node.stats(STATS).new_flows, 1);
    assert_eq!(pair.node.stats(FRONT).packets, 5);
}

#[test]
fn udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut pair = Pair::new(node_with_local_backend(UDP));
    // Choose the payload so that the translated packet sums up to zero.
    let frame = (0..=u16::MAX)
        .map(|word| udp().payload(&word.to_be_bytes()))
        .find(|frame| delivered(frame, TASK).bytes()[40..42] == [0xff, 0xff])
        .expect("one of all words does it");
    pair.each("sum of zero", [frame], Fate::task);
}

#[test]
fn end_of_a_connection_is_noted_in_its_flow() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    // A SYN that is sent again opens nothing.
    pair.each("SYN", [syn(), syn()], Fate::task);
    assert_eq!(pair.node.stats(STATS).new_flows, 1);
    for (flags, expected) in [
        (FIN | ACK, FLOW_CLIENT_FIN),
        (RST, FLOW_CLIENT_FIN | FLOW_RESET),
    ] {
        pair.each("end", [tcp(flags)], Fate::task);
        let flow = pair.node.flow(flow_key(CLIENT, TASK, TCP)).unwrap();
        assert_eq!(flow.flags, expected);
    }
    // The same ports again: a new connection.
    pair.each("SYN", [syn()], Fate::task);
    let flow = pair.node.flow(flow_key(CLIENT, TASK, TCP)).unwrap();
    assert_eq!(flow.flags, 0);
    assert_eq!(pair.node.stats(STATS).new_flows, 2);
}

#[test]
fn time_to_live_ends_where_the_packet_is_routed() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let expired = |_: &Frame| Fate::DroppedByTc(DropReason::TtlExpired);
    pair.each("last hop", [syn().ttl(1), syn().ttl(0)], expired);
    pair.each("one hop left", [syn().ttl(2)], Fate::task);
}

/// Moments after a change the flow may be another node's, which has not said so yet.
#[test]
fn unknown_connection_is_dropped_in_silence_while_the_nodes_settle() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let mut config: NodeConfig = pair.node.array("CONFIG").get(&0, 0).unwrap();
    config.unsettled_until = u64::MAX;
    pair.node.configure(config);
    let unsettled = |_: &Frame| Fate::DroppedByTc(DropReason::Unsettled);
    pair.each("unsettled", [ack()], unsettled);
}

#[test]
fn backend_that_is_not_here_any_more_ends_its_connections_and_waits_for_new_ones() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let mut endpoints = pair.node.hash::<u32, LocalEndpoint>("LOCAL");
    endpoints.remove(&EP).unwrap();
    let gone = DropReason::BackendGone;
    // The ring is about to change: the SYN comes again.
    pair.each("SYN", [syn()], |_| Fate::DroppedByTc(gone));
    pair.each("data", [ack()], |frame| Fate::refused(frame, gone));
}
