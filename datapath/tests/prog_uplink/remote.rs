//! Backends of other nodes: XDP wraps their packets itself, and what it wraps is what tc sends.

use dataplane_abi::{FlowKey, FlowValue};

use crate::{
    common::*,
    fate::{Fate, forwarded},
    pair::Pair,
    setup::*,
};

#[test]
fn remote_backend_gets_the_packet_unchanged_in_the_tunnel() {
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    let mut marked = [syn(), ack().payload(&[5; 1300])];
    marked.iter_mut().for_each(|frame| frame.tos = 0xb9);
    let frames = [syn(), ack(), syn().ttl(1)].into_iter().chain(marked);
    pair.each("remote", frames, Fate::node_b);
    // Each packet by both programs.
    assert_eq!(pair.node.stats(FRONT).packets, 2 * 5);
    assert_eq!(pair.node.stats(FRONT).new_flows, 2 * 3);
    for table in ["FLOWS", "SYN_FLOWS"] {
        let flows = pair.node.entries::<FlowKey, FlowValue>(table);
        assert!(flows.is_empty(), "the entry keeps nothing");
    }
}

#[test]
fn remote_backend_gets_datagrams_with_the_checksum_that_they_have() {
    let mut pair = Pair::new(node_with_remote_backend(UDP));
    let frames = [
        udp(),
        udp().without_checksum(),
        udp().payload(&[]),
        udp().payload(&[0xff; 1201]),
    ];
    pair.each("UDP", frames, Fate::node_b);
    assert!(
        pair.node
            .entries::<FlowKey, FlowValue>("UDP_FLOWS")
            .is_empty()
    );
}

/// The first fragment has ports; tc remembers where it went, for those behind it.
#[test]
fn fragments_are_left_to_tc() {
    let mut pair = Pair::new(node_with_remote_backend(UDP));
    let by_tc = |frame: &Frame| Fate::ByTc(forwarded(frame).bytes());
    let (first, last) = (0x2000, 0x0002);
    let pieces = [first, last].map(|fragment| udp().fragment(fragment).payload(&[1; 8]));
    pair.each("fragment", pieces, by_tc);
}
