//! Parsing, the same for XDP and tc: from a linear run of bytes to a value.

use core::mem::size_of;

use dataplane_abi::{
    Be16, Be32, DropReason,
    hash::{FlowTuple, flow_hash},
};

pub const ETH_LEN: usize = 14;
/// Without options.
pub const IPV4_LEN: usize = 20;
/// The longest headers that are parsed: Ethernet, IPv4 with all options, TCP without options.
pub const HEADERS_MAX: u32 = 14 + 60 + TCP_LEN;
/// Without options.
pub const TCP_LEN: u32 = 20;

pub const ETHERTYPE_IPV4: Be16 = Be16::from_host(0x0800);
pub const ETHERTYPE_ARP: Be16 = Be16::from_host(0x0806);

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

const UDP_LEN: usize = 8;

const FRAGMENT_OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;

/// The bytes that a program may look at: `ctx.data..ctx.data_end`. Void once a helper changed the
/// packet; the verifier refuses its use then.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub start: usize,
    pub end: usize,
}

impl Bytes {
    /// The `T` at `offset`. `T` is an integer or an array of them, in the packet's order.
    ///
    /// The offset may be a variable as long as the verifier can bound it.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: usize) -> Result<T, DropReason> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return Err(DropReason::Truncated);
        }
        // SAFETY: the comparison above bounds the read. Headers lie at even addresses, as the
        // integers read here want; machines that run the programs also load unaligned.
        Ok(unsafe { *(at as *const T) })
    }

    /// The first `N` halfwords, to be written: one comparison for all of them. Only XDP programs
    /// write so: tc programs may look at pages that are shared with a socket and go through helpers.
    #[inline(always)]
    pub fn front<'a, const N: usize>(self) -> Result<&'a mut [u16; N], DropReason> {
        if self.start + size_of::<[u16; N]>() > self.end {
            return Err(DropReason::Truncated);
        }
        // SAFETY: as in `read`; the packet's bytes stay while the program runs, until a helper moves
        // them, which voids `self` as well.
        Ok(unsafe { &mut *(self.start as *mut [u16; N]) })
    }

    #[inline(always)]
    pub fn ether_type(self) -> Result<Be16, DropReason> {
        self.read::<u16>(12).map(Be16::from_raw)
    }

    /// IPv4's, behind an Ethernet header that says so.
    #[inline(always)]
    pub fn proto(self) -> Result<u8, DropReason> {
        self.read::<u8>(ETH_LEN + 9)
    }

    /// Of IPv4, behind an Ethernet header that says so.
    #[inline(always)]
    pub fn is_fragment(self) -> Result<bool, DropReason> {
        let fragment = Be16::from_raw(self.read::<u16>(ETH_LEN + 6)?).to_host();
        Ok(fragment & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0)
    }

    #[inline(always)]
    pub fn mac_dst(self) -> Result<Mac, DropReason> {
        self.read::<[u16; 3]>(0).map(Mac)
    }

    #[inline(always)]
    pub fn mac_src(self) -> Result<Mac, DropReason> {
        self.read::<[u16; 3]>(6).map(Mac)
    }
}

/// A MAC address in three halfwords as they lie in memory: compared and copied without calls.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u16; 3]);

impl Mac {
    #[inline(always)]
    pub fn new(bytes: [u8; 6]) -> Self {
        let half = |i: usize| u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
        Self([half(0), half(2), half(4)])
    }

    #[inline(always)]
    pub fn bytes(self) -> [u8; 6] {
        let [[a, b], [c, d], [e, f]] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
        ];
        [a, b, c, d, e, f]
    }

    /// Broadcast or multicast.
    #[inline(always)]
    pub fn is_group(self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 != 0
    }
}

/// An IPv4 packet's headers, and the ports of TCP and UDP.
#[derive(Clone, Copy)]
pub struct Packet {
    pub src: Be32,
    pub dst: Be32,
    /// The header checksum as it lies in the packet.
    pub checksum: u16,
    /// Flags and offset, host order.
    fragment: u16,
    /// Tells the packets of one sender apart, as far as they are fragmented.
    pub id: Be16,
    /// Of the IPv4 packet, as its header says.
    pub total_len: u16,
    pub tos: u8,
    pub ttl: u8,
    pub proto: u8,
    /// Zero for other protocols.
    pub tcp_flags: u8,
    /// TCP's header with its options, or UDP's; zero for other protocols.
    pub l4_len: usize,
    /// Where the transport header starts, counted from the Ethernet header.
    pub l4: usize,
    /// Zero for protocols without ports, and in later fragments.
    pub src_port: Be16,
    pub dst_port: Be16,
}

impl Packet {
    /// Reads the headers behind an Ethernet header that says IPv4.
    #[inline(always)]
    pub fn parse(bytes: Bytes) -> Result<Self, DropReason> {
        let ip = bytes.read::<[u32; 5]>(ETH_LEN)?;
        let [version_ihl, tos, len0, len1] = ip[0].to_ne_bytes();
        let header_len = usize::from(version_ihl & 0xf) * 4;
        if version_ihl >> 4 != 4 || header_len < 20 {
            return Err(DropReason::BadIpHeader);
        }
        let [ttl, proto, sum0, sum1] = ip[2].to_ne_bytes();
        let [id0, id1, fragment0, fragment1] = ip[1].to_ne_bytes();
        let mut packet = Self {
            src: Be32::from_raw(ip[3]),
            dst: Be32::from_raw(ip[4]),
            checksum: u16::from_ne_bytes([sum0, sum1]),
            fragment: u16::from_be_bytes([fragment0, fragment1]),
            id: Be16::from_raw(u16::from_ne_bytes([id0, id1])),
            total_len: u16::from_be_bytes([len0, len1]),
            tos,
            ttl,
            proto,
            tcp_flags: 0,
            l4_len: 0,
            l4: ETH_LEN + header_len,
            src_port: Be16::ZERO,
            dst_port: Be16::ZERO,
        };
        if packet.has_ports() {
            let ports = bytes.read::<[u16; 2]>(packet.l4)?;
            packet.src_port = Be16::from_raw(ports[0]);
            packet.dst_port = Be16::from_raw(ports[1]);
            if proto == PROTO_TCP {
                // With the checksum, so that whoever translates the packet finds it there.
                let [offset, flags] = bytes.read::<[u16; 3]>(packet.l4 + 12)?[0].to_ne_bytes();
                packet.tcp_flags = flags;
                packet.l4_len = usize::from(offset >> 4) * 4;
            } else {
                bytes.read::<u16>(packet.l4 + 6)?;
                packet.l4_len = UDP_LEN;
            }
        }
        Ok(packet)
    }

    /// Some packet of an established flow, to look the flow up with.
    #[inline(always)]
    pub fn of_flow(proto: u8, from: (Be32, Be16), to: (Be32, Be16)) -> Self {
        Self {
            src: from.0,
            dst: to.0,
            checksum: 0,
            total_len: 0,
            id: Be16::ZERO,
            fragment: 0,
            tos: 0,
            ttl: 0,
            proto,
            tcp_flags: TCP_ACK,
            l4_len: 0,
            l4: 0,
            src_port: from.1,
            dst_port: to.1,
        }
    }

    /// TCP or UDP, and not a later fragment.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        matches!(self.proto, PROTO_TCP | PROTO_UDP) && !self.is_later_fragment()
    }

    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET != 0
    }

    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0
    }

    /// Of those of a packet that comes in several.
    #[inline(always)]
    pub fn is_last_fragment(&self) -> bool {
        self.fragment & MORE_FRAGMENTS == 0
    }

    /// Where the payload belongs, in bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u32 {
        u32::from(self.fragment & FRAGMENT_OFFSET) * 8
    }

    /// Of the IPv4 packet.
    #[inline(always)]
    pub fn payload_len(&self) -> u32 {
        u32::from(self.total_len).saturating_sub((self.l4 - ETH_LEN) as u32)
    }

    /// Its sender wants to hear of a way that it does not fit (RFC 1191).
    #[inline(always)]
    pub fn must_stay_whole(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }

    /// The first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// A packet of a TCP connection that exists, as far as one can tell.
    #[inline(always)]
    pub fn is_established(&self) -> bool {
        self.proto == PROTO_TCP && !self.is_syn()
    }

    /// The sender, as affinity knows it (`ClientKey::client`).
    #[inline(always)]
    pub fn client(&self) -> u64 {
        self.src.to_host().into()
    }

    #[inline(always)]
    pub fn hash(&self, seed: u64) -> u32 {
        flow_hash(self.tuple(), seed)
    }

    #[inline(always)]
    pub fn tuple(&self) -> FlowTuple {
        FlowTuple {
            src: self.src,
            src_port: self.src_port,
            dst_port: self.dst_port,
            proto: self.proto,
        }
    }
}
