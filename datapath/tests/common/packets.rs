//! Packet builders. Written apart from the programs' own code: checksums are computed from all
//! bytes, never updated.

use std::fmt::Write as _;

use dataplane_abi::{
    Be32,
    net::{mesh_mac::Kind, task_mac},
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const FIN: u8 = 0x01;
pub const RST: u8 = 0x04;
pub const PSH_ACK: u8 = 0x18;

pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An address and a port, and what a packet between two of them looks like.
#[derive(Clone)]
pub struct Frame {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    pub src: Be32,
    pub dst: Be32,
    pub ttl: u8,
    pub tos: u8,
    pub fragment: u16,
    pub options: Vec<u8>,
    pub transport: Transport,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

#[derive(Clone)]
pub enum Transport {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
    },
    /// A RST as the programs make it. Its payload is empty.
    Reset {
        sport: u16,
        dport: u16,
        flags: u8,
        seq: u32,
        ack: u32,
    },
    Udp {
        sport: u16,
        dport: u16,
        checksum: bool,
    },
    Icmp {
        kind: u8,
        code: u8,
    },
    Other(u8),
}

impl Frame {
    pub fn new(src: Be32, dst: Be32, transport: Transport) -> Self {
        Self {
            dst_mac: HOST_MAC,
            src_mac: ROUTER_MAC,
            src,
            dst,
            ttl: 64,
            tos: 0,
            fragment: 0,
            options: Vec::new(),
            transport,
            tcp_options: Vec::new(),
            payload: b"hello".to_vec(),
        }
    }

    pub fn tcp((src, sport): (Be32, u16), (dst, dport): (Be32, u16), flags: u8) -> Self {
        Self::new(
            src,
            dst,
            Transport::Tcp {
                sport,
                dport,
                flags,
            },
        )
    }

    pub fn udp((src, sport): (Be32, u16), (dst, dport): (Be32, u16)) -> Self {
        Self::new(
            src,
            dst,
            Transport::Udp {
                sport,
                dport,
                checksum: true,
            },
        )
    }

    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.dst_mac = dst;
        self.src_mac = src;
        self
    }

    /// MACs as between two tasks of a network.
    pub fn between_tasks(self) -> Self {
        let (dst, src) = (task_mac(self.dst), task_mac(self.src));
        self.macs(dst, src)
    }

    /// MACs of a mesh packet.
    pub fn mesh(self, kind: Kind, endpoint: u32, from: Be32) -> Self {
        self.macs(kind.mac(endpoint), task_mac(from))
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn fragment(mut self, flags_and_offset: u16) -> Self {
        self.fragment = flags_and_offset;
        self
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    /// With zeroes as payload, so that the IPv4 packet has this length.
    pub fn ip_len(self, len: usize) -> Self {
        let empty = self.clone().payload(&[]).bytes().len() - 14;
        self.payload(&vec![0; len - empty])
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn without_checksum(mut self) -> Self {
        if let Transport::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    pub fn src(mut self, src: Be32) -> Self {
        self.src = src;
        self
    }

    pub fn dst(mut self, dst: Be32) -> Self {
        self.dst = dst;
        self
    }

    /// The RST that answers this TCP packet; its MACs are still this one's.
    pub fn reset(&self) -> Self {
        let Transport::Tcp {
            sport,
            dport,
            flags,
        } = self.transport
        else {
            panic!("no TCP")
        };
        // The builder's sequence numbers are 1 and 2.
        let (seq, ack, answer) = if flags & ACK != 0 {
            (2, 0, RST)
        } else {
            let len = self.payload.len() as u32 + (flags & (SYN | FIN)).count_ones();
            (0, 1 + len, RST | ACK)
        };
        let transport = Transport::Reset {
            sport: dport,
            dport: sport,
            flags: answer,
            seq,
            ack,
        };
        Self::new(self.dst, self.src, transport)
            .macs(self.dst_mac, self.src_mac)
            .fragment(0x4000)
            .payload(&[])
    }

    pub fn sport(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Reset { sport, .. }
            | Transport::Tcp { sport, .. }
            | Transport::Udp { sport, .. } => *sport = port,
            Transport::Icmp { .. } | Transport::Other(_) => panic!("no ports"),
        }
        self
    }

    pub fn dport(mut self, port: u16) -> Self {
        match &mut self.transport {
            Transport::Reset { dport, .. }
            | Transport::Tcp { dport, .. }
            | Transport::Udp { dport, .. } => *dport = port,
            Transport::Icmp { .. } | Transport::Other(_) => panic!("no ports"),
        }
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut bytes = Vec::new();
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        bytes.extend([0x08, 0x00]);
        bytes.extend(self.ipv4_header(transport.len()));
        bytes.extend(transport);
        bytes
    }

    pub fn proto(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } | Transport::Reset { .. } => TCP,
            Transport::Udp { .. } => UDP,
            Transport::Icmp { .. } => 1,
            Transport::Other(proto) => proto,
        }
    }

    fn ipv4_header(&self, transport_len: usize) -> Vec<u8> {
        assert_eq!(self.options.len() % 4, 0);
        let header_len = 20 + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, self.tos];
        header.extend(((header_len + transport_len) as u16).to_be_bytes());
        header.extend(match self.transport {
            Transport::Reset { .. } => [0, 0],
            _ => [0x12, 0x34],
        });
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.proto(), 0, 0]);
        header.extend(self.src.to_host().to_be_bytes());
        header.extend(self.dst.to_host().to_be_bytes());
        header.extend(&self.options);
        let checksum = checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let at = match self.transport {
            Transport::Tcp {
                sport,
                dport,
                flags,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                assert_eq!(self.tcp_options.len() % 4, 0);
                let offset = 0x50 + ((self.tcp_options.len() / 4) << 4) as u8;
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, offset, flags, 0x20, 0, 0, 0, 0, 0]);
                bytes.extend(&self.tcp_options);
                Some(16)
            }
            Transport::Reset {
                sport,
                dport,
                flags,
                seq,
                ack,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
                Some(16)
            }
            Transport::Udp {
                sport,
                dport,
                checksum,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                checksum.then_some(6)
            }
            Transport::Icmp { kind, code } => {
                bytes.extend([kind, code, 0, 0, 0, 1, 0, 1]);
                None
            }
            Transport::Other(_) => None,
        };
        bytes.extend(&self.payload);
        if let Some(at) = at {
            let mut pseudo = Vec::new();
            pseudo.extend(self.src.to_host().to_be_bytes());
            pseudo.extend(self.dst.to_host().to_be_bytes());
            pseudo.extend([0, self.proto()]);
            pseudo.extend((bytes.len() as u16).to_be_bytes());
            pseudo.extend(&bytes);
            let sum = match checksum(&pseudo) {
                0 if self.proto() == UDP => 0xffff,
                sum => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if let Transport::Icmp { .. } = self.transport {
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}

/// The packet in fragments, cut at these offsets of its IPv4 payload (multiples of 8), under `id`.
pub fn fragments(packet: &[u8], cuts: &[usize], id: u16) -> Vec<Vec<u8>> {
    let header_len = usize::from(packet[14] & 0xf) * 4;
    let (headers, payload) = packet.split_at(14 + header_len);
    let starts = [&[0], cuts].concat();
    let ends = [cuts, &[payload.len()]].concat();
    let pieces = starts.iter().zip(&ends).map(|(&start, &end)| {
        assert_eq!(start % 8, 0, "fragments begin at multiples of 8");
        let more = if end == payload.len() { 0 } else { 0x2000 };
        let mut piece = headers.to_vec();
        let ip = &mut piece[14..];
        ip[2..4].copy_from_slice(&((header_len + end - start) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[6..8].copy_from_slice(&((start / 8) as u16 | more).to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        piece.extend(&payload[start..end]);
        piece
    });
    pieces.collect()
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ICMP error (RFC 792).
#[derive(Clone)]
pub struct IcmpError {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    pub src: Be32,
    pub dst: Be32,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub kind: u8,
    pub code: u8,
    /// The four bytes behind the checksum.
    pub rest: u32,
    /// The packet that it is about, from its IPv4 header on.
    pub quote: Vec<u8>,
}

impl IcmpError {
    /// As the programs make it about `packet`: its first 68 bytes.
    pub fn too_big(about: &Frame, router: Be32, mtu: u16) -> Self {
        Self {
            dst_mac: about.dst_mac,
            src_mac: about.src_mac,
            src: router,
            dst: about.src,
            ttl: 64,
            tos: 0xc0,
            id: 0,
            kind: 3,
            code: 4,
            rest: mtu.into(),
            quote: about.bytes()[14..14 + 68].to_vec(),
        }
    }

    /// From a router on the way of `about`, to its sender, quoting so many of its bytes.
    pub fn about(about: &Frame, router: Be32, (kind, code): (u8, u8), quoted: usize) -> Self {
        let packet = &about.bytes()[14..];
        Self {
            dst_mac: HOST_MAC,
            src_mac: ROUTER_MAC,
            src: router,
            dst: about.src,
            ttl: 64,
            tos: 0xc0,
            id: 0x4321,
            kind,
            code,
            rest: 1300,
            quote: packet[..quoted.min(packet.len())].to_vec(),
        }
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn src(mut self, src: Be32) -> Self {
        self.src = src;
        self
    }

    pub fn mesh(self, kind: Kind, endpoint: u32, from: Be32) -> Self {
        self.macs(kind.mac(endpoint), task_mac(from))
    }

    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.dst_mac = dst;
        self.src_mac = src;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut icmp = vec![self.kind, self.code, 0, 0];
        icmp.extend(self.rest.to_be_bytes());
        icmp.extend(&self.quote);
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());

        let mut ip = vec![0x45, self.tos];
        ip.extend(((20 + icmp.len()) as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend([0, 0, self.ttl, 1, 0, 0]);
        ip.extend(self.src.to_host().to_be_bytes());
        ip.extend(self.dst.to_host().to_be_bytes());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());

        let mut bytes = Vec::new();
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        bytes.extend([0x08, 0x00]);
        bytes.extend(ip);
        bytes.extend(icmp);
        bytes
    }
}

/// An ARP packet between Ethernet and IPv4.
pub struct Arp {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// 1 asks, 2 answers.
    pub operation: u16,
    pub sender: (Be32, [u8; 6]),
    pub target: (Be32, [u8; 6]),
}

impl Arp {
    pub fn question(sender: Be32, target: Be32) -> Self {
        Self {
            dst_mac: BROADCAST,
            src_mac: task_mac(sender),
            operation: 1,
            sender: (sender, task_mac(sender)),
            target: (target, [0; 6]),
        }
    }

    /// What the asker gets.
    pub fn answer(&self, mac: [u8; 6]) -> Self {
        Self {
            dst_mac: self.sender.1,
            src_mac: mac,
            operation: 2,
            sender: (self.target.0, mac),
            target: self.sender,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        bytes.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4]);
        bytes.extend(self.operation.to_be_bytes());
        for (addr, mac) in [self.sender, self.target] {
            bytes.extend(mac);
            bytes.extend(addr.to_host().to_be_bytes());
        }
        bytes
    }
}

/// The VXLAN packet that carries `inner`, as the XDP program writes it.
pub struct Outer {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    pub src: Be32,
    pub dst: Be32,
    pub tos: u8,
    pub sport: u16,
    pub dport: u16,
    pub vni: u32,
}

impl Outer {
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.sport.to_be_bytes());
        udp.extend(self.dport.to_be_bytes());
        udp.extend(((16 + inner.len()) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend([0x08, 0, 0, 0]);
        udp.extend((self.vni << 8).to_be_bytes());
        udp.extend(inner);
        let mut ip = vec![0x45, self.tos];
        ip.extend(((20 + udp.len()) as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        ip.extend(self.src.to_host().to_be_bytes());
        ip.extend(self.dst.to_host().to_be_bytes());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = Vec::new();
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        bytes.extend([0x08, 0x00]);
        bytes.extend(ip);
        bytes.extend(udp);
        bytes
    }
}

/// Compares byte by byte and shows both packets where they differ.
#[track_caller]
pub fn assert_packets_equal(got: &[u8], expected: &[u8]) {
    if got != expected {
        panic!(
            "packets differ\n got: {}\nwant: {}",
            describe(got),
            describe(expected)
        );
    }
}

/// A packet for a person: the decoded headers, then all bytes.
pub fn describe(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mac = |at: usize| {
        bytes[at..at + 6]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(":")
    };
    if bytes.len() >= 34 && bytes[12..14] == [0x08, 0x00] {
        let addr = |at: usize| {
            bytes[at..at + 4]
                .iter()
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join(".")
        };
        let half = |at: usize| {
            bytes
                .get(at..at + 2)
                .map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
        };
        let l4 = 14 + usize::from(bytes[14] & 0xf) * 4;
        write!(
            text,
            "{} > {}: {}:{} > {}:{} proto {} ttl {} ip-sum {:04x} ok {}",
            mac(6),
            mac(0),
            addr(26),
            half(l4),
            addr(30),
            half(l4 + 2),
            bytes[23],
            bytes[22],
            half(24),
            checksum(&bytes[14..l4.min(bytes.len())]) == 0,
        )
        .unwrap();
    } else if bytes.len() >= 14 {
        write!(
            text,
            "{} > {}: type {:02x}{:02x}",
            mac(6),
            mac(0),
            bytes[12],
            bytes[13]
        )
        .unwrap();
    }
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    write!(text, "\n      [{}] {}", bytes.len(), hex.join(" ")).unwrap();
    text
}
