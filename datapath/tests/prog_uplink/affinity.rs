//! Clients that keep their backend for a while, whatever becomes of the ring.

use dataplane_abi::{
    BACKEND_DRAINING, BackendValue, Be32, CLIENTS_MAX, ClientKey, ClientValue, PEER_SUSPECTED,
    SERVICE_AFFINITY, ServiceValue, net::mesh_mac::Kind,
};

use crate::{common::*, pair::Pair, setup::*};

const SECOND: u64 = 1_000_000_000;
const TIMEOUT: u16 = 60;
const KEY: u32 = 0x0bad_cafe;
const STRANGER: Be32 = ip(203, 0, 113, 77);

/// A service on 8080 whose ring names the backend at `owner` alone.
fn publish(pair: &mut Pair, proto: u8, backends: &[BackendValue], owner: u16) {
    let node = &mut pair.node;
    let service = node.service(0, FRONT, 80, backends, &[slot(owner, owner); 2]);
    let service = ServiceValue {
        flags: SERVICE_AFFINITY,
        affinity_secs: TIMEOUT,
        affinity_key: KEY,
        ..service
    };
    node.publish(PUBLISHED.1, proto, service);
}

fn remote(endpoints: impl IntoIterator<Item = u32>) -> Vec<BackendValue> {
    let endpoints = endpoints.into_iter();
    endpoints.map(|id| backend(id, NODE_B, NODE_B)).collect()
}

/// A node whose service has backends 1 and 2 at another node, and the ring named the first when the
/// client began.
fn moved(proto: u8) -> Pair {
    let mut pair = Pair::new(node());
    publish(&mut pair, proto, &remote([1, 2]), 0);
    assert_goes_to(&mut pair, &first(proto, CLIENT.0), 1);
    publish(&mut pair, proto, &remote([1, 2]), 1);
    pair
}

/// What begins a flow.
fn first(proto: u8, client: Be32) -> Frame {
    match proto {
        TCP => Frame::tcp((client, 1234), PUBLISHED, SYN),
        _ => Frame::udp((client, 1234), PUBLISHED),
    }
}

/// Both programs send the frame to this endpoint.
#[track_caller]
fn assert_goes_to(pair: &mut Pair, frame: &Frame, endpoint: u32) {
    let (xdp, tc) = pair.run(&frame.bytes());
    assert_eq!((xdp.verdict, tc.verdict), (XDP_TX, TC_ACT_REDIRECT));
    let mac = Kind::Forward.mac(endpoint);
    assert_eq!(tc.packet[..6], mac, "tc");
    // Behind the headers of the tunnel.
    assert_eq!(xdp.packet[50..56], mac, "XDP");
}

fn key(client: Be32) -> ClientKey {
    ClientKey {
        client: client.to_host().into(),
        service: KEY,
        _pad: 0,
    }
}

fn known(pair: &mut Pair, client: Be32) -> Option<ClientValue> {
    pair.node.get("CLIENTS", key(client))
}

/// Lets the client's last packet be so old.
fn age(pair: &mut Pair, secs: u64) -> ClientValue {
    let known = known(pair, CLIENT.0).expect("it is known");
    let last_seen = monotonic_ns().wrapping_sub(secs * SECOND);
    let aged = ClientValue { last_seen, ..known };
    pair.node.put("CLIENTS", key(CLIENT.0), aged);
    aged
}

#[test]
fn client_keeps_its_backend_when_the_ring_changes_and_a_new_one_does_not() {
    for proto in [TCP, UDP] {
        let mut pair = moved(proto);
        assert_goes_to(&mut pair, &first(proto, CLIENT.0), 1);
        assert_goes_to(&mut pair, &first(proto, STRANGER), 2);
        assert_goes_to(&mut pair, &first(proto, CLIENT.0), 1);
    }
}

/// Each packet counts, those in the middle of a connection too, to about a second.
#[test]
fn packets_renew_what_a_client_keeps() {
    for flags in [SYN, ACK] {
        let mut pair = moved(TCP);
        let aged = age(&mut pair, u64::from(TIMEOUT) - 20);
        assert_goes_to(&mut pair, &tcp(flags), 1);
        let renewed = known(&mut pair, CLIENT.0).expect("it is known");
        assert!(renewed.last_seen.wrapping_sub(aged.last_seen) >= 20 * SECOND);
        assert_goes_to(&mut pair, &tcp(flags), 1);
        assert_eq!(known(&mut pair, CLIENT.0), Some(renewed), "no second write");
    }
}

#[test]
fn client_that_was_silent_for_too_long_goes_by_the_ring() {
    for proto in [TCP, UDP] {
        let mut pair = moved(proto);
        age(&mut pair, u64::from(TIMEOUT) + 1);
        assert_goes_to(&mut pair, &first(proto, CLIENT.0), 2);
        assert_eq!(
            known(&mut pair, CLIENT.0).map(|known| known.endpoint),
            Some(2)
        );
    }
}

/// An old connection's packet finds its backend as before, but does not bring the client's time back.
#[test]
fn connection_outlives_what_its_client_keeps() {
    let mut pair = moved(TCP);
    let aged = age(&mut pair, u64::from(TIMEOUT) + 1);
    assert_goes_to(&mut pair, &tcp(ACK), 1);
    assert_eq!(known(&mut pair, CLIENT.0), Some(aged));
    assert_goes_to(&mut pair, &tcp(SYN), 2);
}

#[test]
fn client_of_a_draining_backend_begins_anew_elsewhere() {
    let mut pair = moved(TCP);
    let mut backends = remote([1, 2]);
    backends[0].state = BACKEND_DRAINING;
    publish(&mut pair, TCP, &backends, 1);
    assert_goes_to(&mut pair, &tcp(ACK), 1);
    assert_goes_to(&mut pair, &tcp(SYN), 2);
    // Back to life, but the client is the other's now.
    publish(&mut pair, TCP, &remote([1, 2]), 0);
    assert_goes_to(&mut pair, &tcp(SYN), 2);
}

#[test]
fn client_of_a_backend_that_is_gone_goes_by_the_ring() {
    let mut pair = moved(TCP);
    publish(&mut pair, TCP, &remote([2]), 0);
    assert_goes_to(&mut pair, &tcp(ACK), 2);
    assert_goes_to(&mut pair, &tcp(SYN), 2);
    assert_eq!(
        known(&mut pair, CLIENT.0).map(|known| known.endpoint),
        Some(2)
    );
}

/// A node that does not answer loses its clients' new flows at once, and does not get them back.
#[test]
fn client_leaves_a_node_that_does_not_answer() {
    let mut pair = Pair::new(node());
    let backends = [backend(1, NODE_B, NODE_B), backend(2, NODE_C, NODE_C)];
    publish(&mut pair, TCP, &backends, 0);
    assert_goes_to(&mut pair, &tcp(SYN), 1);
    publish(&mut pair, TCP, &backends, 1);
    pair.node.doubt(NODE_B, PEER_SUSPECTED);
    assert_goes_to(&mut pair, &tcp(ACK), 1);
    assert_goes_to(&mut pair, &tcp(SYN), 2);
    pair.node.doubt(NODE_B, 0);
    assert_goes_to(&mut pair, &tcp(SYN), 2);
}

/// Backends come and go before and behind the client's: it is found at any place.
#[test]
fn backend_is_found_wherever_it_is_now() {
    for count in [1, 2, 3, 255, 256, 1000u32] {
        let mut pair = Pair::new(node());
        let endpoints: Vec<u32> = (1..=count).map(|nth| 3 * nth).collect();
        for kept in [0, count / 2, count - 1] {
            let other = u16::from(kept == 0 && count > 1);
            publish(&mut pair, TCP, &remote(endpoints.iter().copied()), other);
            let value = ClientValue {
                last_seen: monotonic_ns(),
                endpoint: endpoints[kept as usize],
                // Where it was, among others.
                index: count / 3,
            };
            pair.node.put("CLIENTS", key(CLIENT.0), value);
            assert_goes_to(&mut pair, &tcp(SYN), value.endpoint);
            let found = known(&mut pair, CLIENT.0).map(|known| known.index);
            assert_eq!(found, Some(kept));
        }
        // Between two of them there is nobody.
        let nobody = ClientValue {
            last_seen: monotonic_ns(),
            endpoint: 4,
            index: 0,
        };
        pair.node.put("CLIENTS", key(CLIENT.0), nobody);
        let owner = u32::from(count > 1);
        publish(
            &mut pair,
            TCP,
            &remote(endpoints.iter().copied()),
            owner as u16,
        );
        assert_goes_to(&mut pair, &tcp(SYN), endpoints[owner as usize]);
    }
}

/// Packets in the middle of connections that nobody knows leave nothing behind, and a service without
/// a timeout keeps nothing at all.
#[test]
fn only_what_may_begin_a_flow_is_noted() {
    let mut pair = Pair::new(node());
    publish(&mut pair, TCP, &remote([1, 2]), 0);
    assert_goes_to(&mut pair, &tcp(ACK), 1);
    assert_eq!(known(&mut pair, CLIENT.0), None);
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    pair.run(&tcp(SYN).bytes());
    let left = pair.node.entries::<ClientKey, ClientValue>("CLIENTS");
    assert_eq!(left.len(), 0);
}

/// The map's size is what docs/publishing.md says of memory.
#[test]
fn clients_are_bounded() {
    let node = Node::load_whole();
    let map = node.ebpf.map("CLIENTS").expect("a map");
    let aya::maps::Map::LruHashMap(map) = map else {
        panic!("the longest unseen must make room");
    };
    let info = map.info().unwrap();
    assert_eq!(info.max_entries(), CLIENTS_MAX);
    assert_eq!(CLIENTS_MAX, 65_536);
}
