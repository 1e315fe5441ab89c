//! Flows whose slot has moved: on to the owner before, or to whom a pin names.

use dataplane_abi::{Be32, FlowKey, FlowValue, LocalEndpoint};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

fn to_second_task(frame: &Frame) -> Fate {
    Fate::ByTc(delivered(frame, TASK_2).bytes())
}

fn to_owner_before(frame: &Frame) -> Fate {
    Fate::onward(frame, EP_2)
}

/// The flow at the second task, which is here.
fn put_flow(node: &mut Node) {
    let flow = FlowValue {
        endpoint: EP_2,
        stats: STATS_2,
        ..flow()
    };
    node.local(EP_2, 51, TASK_2, STATS_2);
    node.put_flow(flow_key(CLIENT, TASK_2, TCP), flow);
}

fn remove_first_task(node: &mut Node) {
    let mut endpoints = node.hash::<u32, LocalEndpoint>("LOCAL");
    endpoints.remove(&EP).unwrap();
}

#[test]
fn connection_of_the_owner_before_goes_there_though_the_owner_now_is_gone() {
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    remove_first_task(&mut node);
    Pair::new(node).each("data", [ack()], to_owner_before);
    let mut node = node_with_moved_slot(backend(EP_2, Be32::ZERO, TASK_2));
    remove_first_task(&mut node);
    put_flow(&mut node);
    let mut pair = Pair::new(node);
    pair.each("data", [ack()], to_second_task);
    assert_eq!(pair.node.stats(STATS_2).packets, 1);
}

#[test]
fn flow_that_its_ring_has_forgotten_goes_where_its_pin_says() {
    let third = 0x77;
    // Pinned elsewhere: whoever is before is not asked.
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    node.pin(CLIENT, PUBLISHED, third, NODE_C);
    let mut pair = Pair::new(node);
    pair.each("data", [ack()], |frame| Fate::onward(frame, third));
    // A SYN is a new connection.
    pair.each("SYN", [syn()], Fate::task);
    // Pinned here, to another task.
    let mut node = node_with_moved_slot(backend(third, NODE_B, NODE_B));
    node.pin(CLIENT, PUBLISHED, EP_2, Be32::ZERO);
    put_flow(&mut node);
    Pair::new(node).each("data", [ack()], to_second_task);
    // A pin to where the flow is not is of a former connection.
    let mut node = node_with_moved_slot(backend(EP_2, NODE_B, NODE_B));
    node.pin(CLIENT, PUBLISHED, EP, Be32::ZERO);
    Pair::new(node).each("data", [ack()], to_owner_before);
}

#[test]
fn established_flow_of_another_owner_is_handed_on_to_it() {
    let mut pair = Pair::new(node_with_moved_slot(backend(EP_2, NODE_C, NODE_C)));
    pair.each("data", [ack()], to_owner_before);
    let flows = pair.node.entries::<FlowKey, FlowValue>("FLOWS");
    assert!(flows.is_empty());
    // New flows and those that this backend knows stay.
    pair.each("new", [syn(), ack()], Fate::task);
}

#[test]
fn established_flow_of_another_owner_on_this_node_is_delivered_to_it() {
    let mut node = node_with_moved_slot(backend(EP_2, Be32::ZERO, TASK_2));
    put_flow(&mut node);
    let mut pair = Pair::new(node);
    pair.each("data", [ack()], to_second_task);
    assert_eq!(pair.node.stats(STATS_2).packets, 1);
    assert_eq!(pair.node.stats(STATS).packets, 0);
}

#[test]
fn flow_of_an_endpoint_that_stopped_is_void() {
    let mut pair = Pair::new(node_with_moved_slot(backend(EP_2, NODE_C, NODE_C)));
    pair.each("SYN", [syn()], Fate::task);
    let mut local: LocalEndpoint = pair.node.get("LOCAL", EP).unwrap();
    local.generation = 2;
    pair.node.put("LOCAL", EP, local);
    pair.each("data", [ack()], to_owner_before);
}
