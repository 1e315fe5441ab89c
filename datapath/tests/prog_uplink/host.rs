//! What is not for a published port: the host's own stack goes on with it.

use dataplane_abi::{FlowKey, FlowValue};

use crate::{
    common::*,
    fate::{Case, Fate},
    pair::Pair,
    setup::*,
};

fn with_version_ihl(byte: u8) -> Vec<u8> {
    let mut bytes = syn().bytes();
    bytes[14] = byte;
    bytes
}

fn cases() -> Vec<Case> {
    let icmp = Frame::new(CLIENT.0, NODE, Transport::Icmp { kind: 8, code: 0 });
    [
        ("unknown port", syn().dport(8081).bytes()),
        ("other protocol", udp().bytes()),
        ("address of another machine", syn().dst(NODE_B).bytes()),
        ("ping", icmp.bytes()),
        (
            "other transport",
            Frame::new(CLIENT.0, NODE, Transport::Other(132)).bytes(),
        ),
        ("later fragment", syn().fragment(0x0010).bytes()),
        ("ARP", Arp::question(CLIENT.0, NODE).bytes()),
        ("IPv4 version 5", with_version_ihl(0x55)),
        ("IPv6's version", with_version_ihl(0x65)),
        ("header length below 20", with_version_ihl(0x44)),
        ("no header length", with_version_ihl(0x40)),
        (
            "truncated TCP header",
            syn().bytes()[..14 + 20 + 13].to_vec(),
        ),
        ("IPv4 options beyond the end", with_version_ihl(0x4f)),
    ]
    .map(|(name, packet)| (name, packet, Fate::Host))
    .into()
}

#[test]
fn what_is_not_for_a_published_port_passes_untouched() {
    for node in [node_with_local_backend, node_with_remote_backend] {
        let mut pair = Pair::new(node(TCP));
        pair.table(cases());
        assert!(pair.node.drops().is_empty());
        assert_eq!(pair.node.stats(FRONT), Default::default());
        assert!(pair.node.entries::<FlowKey, FlowValue>("FLOWS").is_empty());
    }
}
