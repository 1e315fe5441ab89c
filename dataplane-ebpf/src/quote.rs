//! ICMP errors (RFC 792): the packet that they quote, which tells whose they are, and which is
//! translated with them.

use dataplane_abi::{Be16, Be32, DropReason};

use crate::{
    checksum::Sum,
    packet::{PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet},
    skb::Skb,
};

const DESTINATION_UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Behind which the quote begins.
const ICMP_LEN: usize = 8;
const ICMP_CHECKSUM: usize = 2;
const IPV4_CHECKSUM: usize = 10;
const IPV4_SRC: usize = 12;
const IPV4_DST: usize = 16;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// The quoted packet, TCP or UDP.
#[derive(Clone, Copy)]
pub struct Quote {
    pub proto: u8,
    pub src: (Be32, Be16),
    pub dst: (Be32, Be16),
    /// Where its headers start, counted from the Ethernet header.
    ip: usize,
    l4: usize,
}

/// An end of the quoted packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Src,
    Dst,
}

/// Whether the packet is an ICMP error, as far as its first byte tells.
#[inline(always)]
pub fn is_error(skb: Skb, packet: &Packet) -> bool {
    if packet.proto != PROTO_ICMP || packet.is_later_fragment() {
        return false;
    }
    let kind = skb.load(packet.l4).map_or(0, |[kind]| kind);
    matches!(
        kind,
        DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM
    )
}

impl Quote {
    /// `None` for what is no ICMP error in one piece, or does not quote the ports of TCP or UDP. An
    /// error goes to whom sent its cause: one that does not has none.
    #[inline(always)]
    pub fn of(skb: Skb, packet: &Packet) -> Option<Self> {
        if packet.is_fragment() || !is_error(skb, packet) {
            return None;
        }
        let ip = packet.l4 + ICMP_LEN;
        let [version_ihl] = skb.load(ip).ok()?;
        let header_len = usize::from(version_ihl & 0xf) * 4;
        if version_ihl >> 4 != 4 || header_len < 20 {
            return None;
        }
        // Only the first fragment has ports.
        let [high, low, _, proto] = skb.load(ip + 6).ok()?;
        if u16::from_be_bytes([high, low]) & 0x1fff != 0 || !matches!(proto, PROTO_TCP | PROTO_UDP)
        {
            return None;
        }
        let src = u32::from_ne_bytes(skb.load(ip + IPV4_SRC).ok()?);
        let dst = u32::from_ne_bytes(skb.load(ip + IPV4_DST).ok()?);
        if src != packet.dst.raw() {
            return None;
        }
        let l4 = ip + header_len;
        let [a, b, c, d, ..]: [u8; 8] = skb.load(l4).ok()?;
        let port = |first, second| Be16::from_raw(u16::from_ne_bytes([first, second]));
        Some(Self {
            proto,
            src: (Be32::from_raw(src), port(a, b)),
            dst: (Be32::from_raw(dst), port(c, d)),
            ip,
            l4,
        })
    }

    /// A packet of the quoted one's flow in the other direction.
    #[inline(always)]
    pub fn backward(&self) -> Packet {
        Packet::of_flow(self.proto, self.dst, self.src)
    }

    /// Replaces one end, the checksums that cover it, and the error's own. The sum over all that
    /// changes stays, so one that a device computed over the packet stays true.
    #[inline(always)]
    pub fn rewrite(
        &self,
        skb: Skb,
        packet: &Packet,
        end: End,
        new: (Be32, Be16),
    ) -> Result<(), DropReason> {
        let (old, addr_at, port_at) = match end {
            End::Src => (self.src, self.ip + IPV4_SRC, self.l4),
            End::Dst => (self.dst, self.ip + IPV4_DST, self.l4 + 2),
        };
        let checksum_at = self.ip + IPV4_CHECKSUM;
        let checksum = Sum::of_field(half(skb, checksum_at)?).replace_addr(old.0, new.0);
        skb.store(checksum_at, &checksum.field())?;
        skb.store(addr_at, &new.0.raw())?;
        skb.store(port_at, &new.1.raw())?;

        let error_at = packet.l4 + ICMP_CHECKSUM;
        let mut error = Sum::of_field(half(skb, error_at)?).replace(old.1.raw(), new.1.raw());
        let (l4_at, is_udp) = match self.proto {
            PROTO_UDP => (self.l4 + UDP_CHECKSUM, true),
            _ => (self.l4 + TCP_CHECKSUM, false),
        };
        // Of TCP it is rarely quoted; a UDP packet may have none.
        if let Ok(old_sum) = half(skb, l4_at)
            && !(is_udp && old_sum == 0)
        {
            let sum = Sum::of_field(old_sum)
                .replace_addr(old.0, new.0)
                .replace(old.1.raw(), new.1.raw());
            let new_sum = match sum.field() {
                0 if is_udp => u16::MAX,
                sum => sum,
            };
            skb.store(l4_at, &new_sum)?;
            error = error.replace(old_sum, new_sum);
        }
        skb.store(error_at, &error.field())
    }
}

#[inline(always)]
fn half(skb: Skb, at: usize) -> Result<u16, DropReason> {
    skb.load(at).map(u16::from_ne_bytes)
}
