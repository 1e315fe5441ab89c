//! Packets of every shape: options, odd lengths, padding, tags, and headers cut short.

use crate::{
    common::*,
    fate::{Fate, forwarded},
    pair::Pair,
    setup::*,
};

/// What a protocol's header holds that a program has to see: TCP's up to its checksum, UDP's whole.
const HEADERS: [(u8, usize); 2] = [(TCP, 18), (UDP, 8)];
/// Ethernet and IPv4 without options; the kernel takes no shorter IPv4 packet for a test run of tc.
const SHORTEST: usize = 14 + 20;
/// Each length of IPv4 options, in bytes.
const OPTIONS: [usize; 11] = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40];

fn frame(proto: u8) -> Frame {
    match proto {
        TCP => syn(),
        _ => udp(),
    }
}

/// To where the packets go whole: a set-up, and what becomes of a frame.
type Way = (fn(u8) -> Node, fn(&Frame) -> Fate);
const WAYS: [Way; 2] = [
    (node_with_local_backend, Fate::task),
    (node_with_remote_backend, Fate::node_b),
];

/// Runs `test` for both protocols and for both ways.
fn each_way(test: impl Fn(&mut Pair, (u8, usize), &dyn Fn(&Frame) -> Fate)) {
    for header in HEADERS {
        for (node, fate) in WAYS {
            test(&mut Pair::new(node(header.0)), header, &fate);
        }
    }
}

#[test]
fn packets_with_ip_options_are_followed() {
    each_way(|pair, (proto, _), fate| {
        let frames = OPTIONS.map(|len| frame(proto).options(&vec![1; len]));
        pair.each("no-operations", frames, fate);
        // Ended early, a timestamp, a record of the route, a source route that leads no further.
        for options in [
            &[1, 1, 1, 0][..],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[131, 7, 8, 192, 0, 2, 9, 0],
        ] {
            pair.each("options", [frame(proto).options(options)], fate);
        }
    });
}

#[test]
fn packets_of_any_length_are_followed_byte_by_byte() {
    each_way(|pair, (proto, _), fate| {
        let payloads = (0..=9).chain([63, 64, 65, 511, 1001, 1379]);
        let frames = payloads.map(|len| frame(proto).payload(&vec![0xa5; len]));
        pair.each("payload", frames, fate);
    });
}

/// Short frames are filled up to Ethernet's 60 bytes. What is behind the IPv4 packet stays there.
#[test]
fn padding_goes_along() {
    for (proto, _) in HEADERS {
        let pad = |bytes: &[u8]| [bytes, &[0; 60][bytes.len()..]].concat();
        let frame = frame(proto).payload(&[]);
        let packet = pad(&frame.bytes());
        let to_task = Fate::ByTc(pad(&delivered(&frame, TASK).bytes()));
        let to_node = Fate::Tunnel(NODE_B, pad(&forwarded(&frame).bytes()));
        Pair::new(node_with_local_backend(proto)).check("padded", &packet, &to_task);
        Pair::new(node_with_remote_backend(proto)).check("padded", &packet, &to_node);
    }
}

/// A tag that is still in the packet hides it: whoever has a VLAN device takes it.
#[test]
fn tagged_packets_are_left_to_the_host() {
    each_way(|pair, (proto, _), _| {
        let bytes = frame(proto).bytes();
        let (macs, rest) = bytes.split_at(12);
        for tags in [
            &[0x81, 0, 0, 5][..],
            &[0x81, 0, 0, 0],
            &[0x88, 0xa8, 0, 5],
            &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
        ] {
            let tagged = [macs, tags, rest].concat();
            pair.check("tagged", &tagged, &Fate::Host);
        }
        assert!(pair.node.drops().is_empty());
    });
}

/// Cut anywhere before the fields that the programs need, a packet is the host's; behind them it is
/// followed as it is.
#[test]
fn headers_cut_short_are_left_to_the_host() {
    each_way(|pair, (proto, header), fate| {
        for options in [0, 4, 40] {
            let frame = frame(proto).options(&vec![1; options]);
            let whole = frame.bytes();
            let needed = SHORTEST + options + header;
            for len in SHORTEST..needed {
                pair.check("too short", &whole[..len], &Fate::Host);
            }
            for len in needed..whole.len() {
                pair.check("cut behind", &whole[..len], &fate(&frame).cut(len));
            }
        }
    });
}

#[test]
fn xdp_passes_what_ends_in_the_ip_header() {
    let mut pair = Pair::new(node_with_remote_backend(TCP));
    let whole = syn().bytes();
    for len in 14..SHORTEST {
        let outcome = pair.node.run_xdp(&whole[..len], pair.uplink);
        assert_eq!(outcome.verdict, XDP_PASS, "{len} bytes");
        assert_packets_equal(&outcome.packet, &whole[..len]);
    }
    assert!(pair.node.drops().is_empty());
    assert_eq!(pair.node.stats(FRONT), Default::default());
}
