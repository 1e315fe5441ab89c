//! A RST in place of a TCP packet that has nowhere to go, so that its sender fails at once
//! (RFC 9293 sections 3.5.2 and 3.10.7.1). The packet counts as dropped all the same.

use aya_ebpf::{
    bindings::BPF_F_PSEUDO_HDR,
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail},
};
use dataplane_abi::{Be32, DropReason};

use crate::{
    checksum::Sum,
    packet::{ETH_LEN, IPV4_LEN, PROTO_TCP, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    skb::Skb,
};

const TCP_LEN: usize = 20;
const TCP_AT: usize = ETH_LEN + IPV4_LEN;
const CHECKSUM_AT: usize = TCP_AT + 16;

const VERSION_IHL_TOS: u16 = 0x4500;
const DONT_FRAGMENT: u16 = 0x4000;
const TTL: u8 = 64;

/// Whether `packet`, dropped for `reason`, is answered. A SYN for a backend that is gone is not: sent
/// again, it meets a ring that knows.
#[inline(always)]
pub fn is_due(packet: &Packet, reason: DropReason) -> bool {
    let due = match reason {
        DropReason::NoBackend | DropReason::UnknownFlow => true,
        DropReason::BackendGone => packet.is_established(),
        _ => false,
    };
    due && packet.proto == PROTO_TCP && packet.tcp_flags & TCP_RST == 0
}

/// Sequence number, acknowledgement and flags of the RST.
struct Answer {
    seq: u32,
    ack: u32,
    flags: u8,
}

/// Makes the packet a RST to its sender. Packets with IP options stay what they are.
#[inline(always)]
pub fn turn_round(skb: Skb, packet: &Packet) -> Result<(), DropReason> {
    if packet.l4 != TCP_AT {
        return Err(DropReason::BadIpHeader);
    }
    let answer = answer(skb, packet)?;
    let (ip, ip_src, ip_dst) = (Sum::ZERO, packet.dst, packet.src);
    let ttl_proto = u16::from_ne_bytes([TTL, PROTO_TCP]);
    let total = (IPV4_LEN + TCP_LEN) as u16;
    let checksum = ip
        .add(VERSION_IHL_TOS.to_be())
        .add(total.to_be())
        .add(DONT_FRAGMENT.to_be())
        .add(ttl_proto)
        .add_addr(ip_src)
        .add_addr(ip_dst)
        .field();
    let [s0, s1] = ip_src.halves();
    let [d0, d1] = ip_dst.halves();
    let [seq0, seq1] = Be32::from_host(answer.seq).halves();
    let [ack0, ack1] = Be32::from_host(answer.ack).halves();
    let offset_flags = ((TCP_LEN as u16 / 4) << 12 | u16::from(answer.flags)).to_be();
    let tcp = [
        packet.dst_port.raw(),
        packet.src_port.raw(),
        seq0,
        seq1,
        ack0,
        ack1,
        offset_flags,
        0,
        0,
        0,
    ];
    let header = tcp.iter().fold(Sum::ZERO, |sum, half| sum.add(*half));
    let pseudo = Sum::ZERO
        .add_addr(ip_src)
        .add_addr(ip_dst)
        .add(u16::from(PROTO_TCP).to_be())
        .add((TCP_LEN as u16).to_be());

    // SAFETY: the context is valid; the helper checks the length.
    if unsafe { bpf_skb_change_tail(skb.0, (TCP_AT + TCP_LEN) as u32, 0) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    let ip = [
        VERSION_IHL_TOS.to_be(),
        total.to_be(),
        0,
        DONT_FRAGMENT.to_be(),
        ttl_proto,
        checksum,
        s0,
        s1,
        d0,
        d1,
    ];
    skb.store_summed(ETH_LEN, &ip)?;
    skb.store_summed(TCP_AT, &tcp)?;
    fill_checksum(skb, header, pseudo)
}

/// Reads what the RST has to say from the packet, which still is there.
#[inline(always)]
fn answer(skb: Skb, packet: &Packet) -> Result<Answer, DropReason> {
    let bytes = skb.bytes();
    let [seq0, seq1, ack0, ack1, offset_flags] = bytes.read::<[u16; 5]>(TCP_AT + 4)?;
    if packet.tcp_flags & TCP_ACK != 0 {
        return Ok(Answer {
            seq: whole(ack0, ack1),
            ack: 0,
            flags: TCP_RST,
        });
    }
    let total = u16::from_be(bytes.read::<u16>(ETH_LEN + 2)?);
    let header_len = u16::from_be(offset_flags) >> 12 << 2;
    let payload = total.wrapping_sub(IPV4_LEN as u16).wrapping_sub(header_len);
    let syn = u32::from(packet.tcp_flags & TCP_SYN != 0);
    let fin = u32::from(packet.tcp_flags & TCP_FIN != 0);
    let len = u32::from(payload) + syn + fin;
    Ok(Answer {
        seq: 0,
        ack: whole(seq0, seq1).wrapping_add(len),
        flags: TCP_RST | TCP_ACK,
    })
}

/// Completes the TCP checksum, which is zero so far. Where the device is to finish it
/// (CHECKSUM_PARTIAL), the first of the calls has no effect and the field ends up with the pseudo
/// header's sum alone, as it should.
#[inline(always)]
fn fill_checksum(skb: Skb, header: Sum, pseudo: Sum) -> Result<(), DropReason> {
    let replace = |sum: Sum, flags: u64| {
        // SAFETY: the context is valid; the helper checks the offset.
        unsafe { bpf_l4_csum_replace(skb.0, CHECKSUM_AT as u32, 0, sum.folded().into(), flags) }
    };
    if replace(header, 0) != 0 || replace(pseudo, BPF_F_PSEUDO_HDR.into()) != 0 {
        return Err(DropReason::RewriteFailed);
    }
    // A sum that the device made over the whole packet (CHECKSUM_COMPLETE) does not know yet of the
    // first of the two; for others this fails, and nothing is to be done.
    // SAFETY: as above.
    unsafe { bpf_csum_update(skb.0, !header.folded()) };
    Ok(())
}

#[inline(always)]
fn whole(first: u16, second: u16) -> u32 {
    u32::from(u16::from_be(first)) << 16 | u32::from(u16::from_be(second))
}
