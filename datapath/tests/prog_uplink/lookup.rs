//! Which service and which backend: ports, addresses, the ring.

use std::collections::BTreeSet;

use dataplane_abi::{
    Be16, Be32, RingForm, SERVICE_AFFINITY, ServiceValue,
    hash::{FlowTuple, flow_hash, ring_slot},
    net::mesh_mac::Kind,
};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

/// In either form of slots, and with indexes that only the wide one has.
#[test]
fn flows_spread_over_the_ring_as_the_shared_hash_says() {
    for (form, first) in [
        (RingForm::Narrow, 0),
        (RingForm::Narrow, 251),
        (RingForm::Wide, 0),
        (RingForm::Wide, 254),
    ] {
        spread(form, first);
    }
}

/// Over five backends, from index `first` on.
fn spread(form: RingForm, first: u16) {
    let mut node = node();
    let at = |index: u16| [NODE_B, NODE_C][usize::from(index) % 2];
    let backends = (0..first + 5).map(|i| backend(100 + u32::from(i), at(i), at(i)));
    let backends: Vec<_> = backends.collect();
    // Longer than one chunk, so that the slot's chunk and place both matter.
    let slots: Vec<_> = (0..1021u16).map(|i| slot(first + i * 7 % 5, 0)).collect();
    let service = node.service_in(form, 3, FRONT, 80, &backends, &slots);
    node.publish(8080, TCP, service);
    let mut pair = Pair::new(node);
    let mut seen = [0; 5];
    for port in 1000..1300u16 {
        let tuple = FlowTuple {
            src: CLIENT.0,
            src_port: Be16::from_host(port),
            dst_port: Be16::from_host(8080),
            proto: TCP,
        };
        let owner = slots[ring_slot(flow_hash(tuple, RING_SEED), 1021) as usize].now;
        seen[usize::from(owner - first)] += 1;
        let what = format!("spread, {form:?} from {first}");
        pair.each(&what, [syn().sport(port)], |frame| {
            let endpoint = 100 + u32::from(owner);
            let inner = frame.clone().mesh(Kind::Forward, endpoint, NODE);
            Fate::Tunnel(at(owner), inner.bytes())
        });
    }
    assert!(seen.iter().all(|&count| count > 20), "{seen:?}");
}

#[test]
fn every_address_of_the_node_answers_and_no_other() {
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    let (other, foreign) = (ip(192, 0, 2, 77), ip(192, 0, 2, 78));
    pair.node.node_addr(other);
    // The tunnel address needs no entry of its own.
    pair.node
        .hash::<Be32, u32>("NODE_ADDRS")
        .remove(&NODE)
        .unwrap();
    let own = [NODE, other].map(|dst| syn().dst(dst));
    pair.each("own address", own, Fate::node_b);
    pair.each("foreign address", [syn().dst(foreign)], |_| Fate::Host);
}

/// One frontend serves a range: each port leads to the task's port at the same distance.
#[test]
fn range_of_ports_is_one_frontend() {
    let mut node = node();
    node.local(EP, 50, TASK, STATS);
    let backends = [backend(EP, Be32::ZERO, TASK)];
    let service = node.service(0, FRONT, 80, &backends, &[slot(0, 0)]);
    node.publish_range(8000, 8999, TCP, service);
    let mut pair = Pair::new(node);
    for (published, target) in [(8000, 80), (8001, 81), (8999, 1079)] {
        pair.each("of the range", [syn().dport(published)], |frame| {
            Fate::ByTc(delivered(frame, TASK).dport(target).bytes())
        });
    }
    let beside = [7999, 9000].map(|port| syn().dport(port));
    pair.each("beside", beside, |_| Fate::Host);
    assert_eq!(pair.node.stats(FRONT).new_flows, 3);
}

/// Two services share a port by address; a third has it on all other addresses.
#[test]
fn address_of_its_own_comes_before_all_the_others() {
    const ELSEWHERE: Be32 = ip(192, 168, 0, 77);
    for elsewhere in [false, true] {
        let mut node = node();
        node.node_addr(ELSEWHERE);
        let mut remote = |base: u32, endpoint: u32| {
            let backends = [backend(endpoint, NODE_B, NODE_B)];
            node.service(base, base, 80, &backends, &[slot(0, 0)])
        };
        let (own, all) = (remote(1, EP), remote(2, EP_2));
        let all = if elsewhere {
            node.frontend(8080, all)
        } else {
            0
        };
        node.publish_at(NODE, 8080, TCP, own, all);
        let mut pair = Pair::new(node);
        pair.each("its own", [syn()], Fate::node_b);
        pair.each("elsewhere", [syn().dst(ELSEWHERE)], |frame| {
            let inner = frame.clone().mesh(Kind::Forward, EP_2, NODE);
            match elsewhere {
                true => Fate::Tunnel(NODE_B, inner.bytes()),
                false => Fate::Host,
            }
        });
        // Each packet by both programs.
        let counted = [1, 2].map(|index| pair.node.stats(index).packets);
        assert_eq!(counted, [2, if elsewhere { 2 } else { 0 }]);
    }
}

/// With affinity the source port makes no difference, the client's address does; without, both do.
#[test]
fn affinity_leaves_the_source_port_out() {
    for (flags, ports_seen) in [(0, 2), (SERVICE_AFFINITY, 1)] {
        let mut node = node();
        let backends = [0, 1].map(|id| backend(EP + id, NODE_B, NODE_B));
        let slots: Vec<_> = (0..1024).map(|at| slot(at % 2, at % 2)).collect();
        let service = node.service(0, FRONT, 80, &backends, &slots);
        node.publish(8080, TCP, ServiceValue { flags, ..service });
        let mut pair = Pair::new(node);
        let mut seen = |client: (Be32, u16)| {
            let frame = Frame::tcp(client, PUBLISHED, SYN);
            let (xdp, tc) = pair.run(&frame.bytes());
            assert_eq!((xdp.verdict, tc.verdict), (XDP_TX, TC_ACT_REDIRECT));
            tc.packet[..6].to_vec()
        };
        let ports: BTreeSet<_> = (0..64).map(|n| seen((CLIENT.0, 40_000 + n))).collect();
        assert_eq!(ports.len(), ports_seen);
        let clients: BTreeSet<_> = (0..64)
            .map(|n| seen((ip(203, 0, 113, n), CLIENT.1)))
            .collect();
        assert_eq!(clients.len(), 2);
    }
}
