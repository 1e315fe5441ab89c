//! Packets that are too long for the tunnel and must not be fragmented: their senders are told the
//! length that fits (RFC 1191 section 4). What may be fragmented, the kernel does on the way out, and
//! the other node's kernel undoes it.

use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail};
use dataplane_abi::{Be32, DropReason, NodeConfig};

use crate::{
    checksum::Sum,
    packet::{ETH_LEN, IPV4_LEN, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet},
    skb::Skb,
};

/// What of the packet its sender gets back: the longest IPv4 header and 8 bytes (RFC 792).
const QUOTE_LEN: usize = 60 + 8;
const ICMP_LEN: usize = 8;
const CHECKSUM_AT: usize = ETH_LEN + IPV4_LEN + 2;

const VERSION_IHL: u8 = 0x45;
/// Internetwork control, as routers send errors (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;
const TTL: u8 = 64;
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// `BPF_ADJ_ROOM_MAC`: room between the Ethernet header and the IPv4 header.
const ROOM_BEHIND_ETHERNET: u32 = 1;

/// Before a packet goes into the tunnel, and before it is translated.
#[inline(always)]
pub fn check(skb: Skb, config: &NodeConfig, packet: &Packet) -> Result<(), DropReason> {
    if packet.must_stay_whole() && skb.ip_len(packet) > config.tunnel_mtu {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

/// Makes the packet the error that its sender gets, from `router`. The Ethernet header stays.
#[inline(always)]
pub fn turn_round(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    router: Be32,
) -> Result<(), DropReason> {
    let quote = skb.bytes().read::<[u32; QUOTE_LEN / 4]>(ETH_LEN)?;
    // The quoted IPv4 header sums up to nothing: its checksum is part of it.
    let quote_sum = quote
        .iter()
        .fold(Sum::ZERO, |sum, word| sum.add_word(*word));
    let l4_checksum = match packet.proto {
        PROTO_UDP => skb.load(packet.l4 + 6),
        PROTO_TCP => skb.load(packet.l4 + 16),
        _ => Ok([0; 2]),
    };
    let l4_checksum = u16::from_ne_bytes(l4_checksum?);

    let room = (IPV4_LEN + ICMP_LEN) as i32;
    // SAFETY: the context is valid; the helpers check the lengths.
    let failed = unsafe {
        bpf_skb_change_tail(skb.0, (ETH_LEN + QUOTE_LEN) as u32, 0) != 0
            || bpf_skb_adjust_room(skb.0, room, ROOM_BEHIND_ETHERNET, 0) != 0
    };
    if failed {
        return Err(DropReason::RewriteFailed);
    }

    // A transport checksum that the device will finish makes the sum over its bytes the complement
    // of what the field holds now.
    let quote_sum = match is_left_to_device(skb)? {
        true => Sum::ZERO.add(!l4_checksum),
        false => quote_sum,
    };
    let kind = u16::from_ne_bytes([DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED]);
    let next_hop_mtu = (config.tunnel_mtu as u16).to_be();
    let icmp_checksum = quote_sum.add(kind).add(next_hop_mtu).field();

    let version_tos = u16::from_ne_bytes([VERSION_IHL, TOS]);
    let total = ((IPV4_LEN + ICMP_LEN + QUOTE_LEN) as u16).to_be();
    let ttl_proto = u16::from_ne_bytes([TTL, PROTO_ICMP]);
    let ip_checksum = Sum::ZERO
        .add(version_tos)
        .add(total)
        .add(ttl_proto)
        .add_addr(router)
        .add_addr(packet.src)
        .field();
    let [r0, r1] = router.halves();
    let [s0, s1] = packet.src.halves();
    let head = [
        version_tos,
        total,
        0,
        0,
        ttl_proto,
        ip_checksum,
        r0,
        r1,
        s0,
        s1,
        kind,
        icmp_checksum,
        0,
        next_hop_mtu,
    ];
    skb.store_summed(ETH_LEN, &head)
}

/// Whether the transport's checksum is left to the device (CHECKSUM_PARTIAL). The helper that
/// replaces checksums does nothing then; this tries it on a field of zeroes.
#[inline(always)]
fn is_left_to_device(skb: Skb) -> Result<bool, DropReason> {
    // SAFETY: the context is valid; the helper checks the offset.
    if unsafe { bpf_l4_csum_replace(skb.0, CHECKSUM_AT as u32, 0, 1, 2) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    let tried = skb.load(CHECKSUM_AT)?;
    skb.store(CHECKSUM_AT, &0u16)?;
    Ok(tried == [0; 2])
}
