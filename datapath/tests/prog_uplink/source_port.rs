//! Flows that would look the same to their task have source ports of their own there.

use dataplane_abi::{
    Be16, DropReason, FLOW_CLIENT_FIN, FLOW_TASK_FIN, FlowValue,
    seat::{SEAT_LINGER_NS, SEATS, seat_port},
};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

/// To the first task, from another source port.
fn from_port(frame: &Frame, port: u16) -> Fate {
    Fate::task(&frame.clone().sport(port))
}

fn seat(own: u16, nth: u16) -> u16 {
    seat_port(Be16::from_host(own), nth).to_host()
}

/// One port of a client, by several addresses of the node, to one port of one task.
#[test]
fn flows_of_one_source_port_have_a_port_each_at_their_task() {
    for proto in [TCP, UDP] {
        let mut pair = Pair::new(node_with_local_backend(proto));
        let addrs: Vec<_> = (0..SEATS)
            .map(|nth| ip(192, 0, 2, 70 + nth as u8))
            .collect();
        let too_many = ip(192, 0, 2, 99);
        addrs.iter().for_each(|addr| pair.node.node_addr(*addr));
        pair.node.node_addr(too_many);
        let packet = |addr, flags| match proto {
            TCP => tcp(flags).dst(addr),
            _ => udp().dst(addr),
        };
        for flags in [SYN, ACK, PSH_ACK] {
            for (nth, addr) in addrs.iter().enumerate() {
                let frame = packet(*addr, flags).payload(&[7; 501]);
                let port = seat(CLIENT.1, nth as u16);
                pair.each("seated", [frame], |frame| from_port(frame, port));
            }
        }
        assert_eq!(pair.node.stats(STATS).new_flows, u64::from(SEATS));
        let drops = pair.node.drops();
        assert!(drops.is_empty(), "{drops:?}");

        // There is no further one: a datagram is dropped, and the later SYN wins.
        let collides = |_: &Frame| Fate::DroppedByTc(DropReason::SourceCollision);
        if proto == UDP {
            pair.each("one too many", [packet(too_many, 0)], collides);
            continue;
        }
        let later = [SYN, PSH_ACK].map(|flags| packet(too_many, flags));
        pair.each("later", later, Fate::task);
        pair.each("ousted", [packet(addrs[0], PSH_ACK)], collides);
    }
}

/// The client itself uses the port that another flow of its has at the task.
#[test]
fn port_of_a_moved_flow_is_not_given_to_another() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let other = ip(192, 0, 2, 77);
    pair.node.node_addr(other);
    let taken = seat(CLIENT.1, 1);
    for flags in [SYN, PSH_ACK] {
        for (addr, own, port) in [
            (NODE, CLIENT.1, CLIENT.1),
            (other, CLIENT.1, taken),
            (other, taken, seat(taken, 1)),
            (NODE, taken, seat(taken, 2)),
        ] {
            let frame = tcp(flags).sport(own).dst(addr);
            pair.each("seated", [frame], |frame| from_port(frame, port));
        }
    }
    assert_eq!(pair.node.stats(STATS).new_flows, 4);
}

#[test]
fn flow_that_ended_long_ago_leaves_its_port_to_another() {
    let other = ip(192, 0, 2, 77);
    let seat = seat(CLIENT.1, 1);
    let ended = FLOW_CLIENT_FIN | FLOW_TASK_FIN;
    for (flags, age, port) in [
        (0, 2 * SEAT_LINGER_NS, seat),
        (ended, SEAT_LINGER_NS / 2, seat),
        (ended, 2 * SEAT_LINGER_NS, CLIENT.1),
    ] {
        let mut pair = Pair::new(node_with_local_backend(TCP));
        pair.node.node_addr(other);
        let flow = FlowValue {
            last_seen: monotonic_ns().wrapping_sub(age),
            flags,
            ..flow()
        };
        pair.node.put_flow(flow_key(CLIENT, TASK, TCP), flow);
        pair.each("SYN", [syn().dst(other)], |frame| from_port(frame, port));
    }
}
