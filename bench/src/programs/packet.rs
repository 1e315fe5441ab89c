//! The packets that the driver sends, and the same ones made here to compare with.

use std::net::Ipv4Addr;

use dataplane_abi::{
    Be16,
    bench::{DRIVE_AS_IS, DRIVE_HEAD_LEN, Drive},
};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
/// The first client's address; each has 256 ports.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const CLIENT_PORT: u16 = 32_768;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMP: u8 = 1;

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With these flags.
    Tcp(u8),
    Udp,
    Icmp,
    Arp,
    TcpV6,
    /// The first fragment of one.
    TcpFragment,
    /// Behind an IPv4 header with options.
    TcpOptions,
}

/// What one run sends.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub kind: Kind,
    /// Of the frame, at least [`DRIVE_HEAD_LEN`].
    pub len: usize,
    /// A power of two.
    pub flows: u32,
    pub services: u32,
}

/// Where services answer: the first one's, and the way to the next one's.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub addr: Ipv4Addr,
    pub addr_step: u32,
    pub port: u16,
    pub port_step: u16,
}

/// The driver's orders.
pub fn drive(shape: Shape, to: Target) -> Drive {
    let mut head = [0; DRIVE_HEAD_LEN];
    let frame = frame(shape, to);
    head.copy_from_slice(&frame[..DRIVE_HEAD_LEN]);
    let mut words = [0; DRIVE_HEAD_LEN / 8];
    for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    let has_flows = matches!(shape.kind, Kind::Tcp(_) | Kind::Udp);
    Drive {
        sent: 0,
        grown: 0,
        len: shape.len as u32,
        flows: if has_flows { shape.flows } else { DRIVE_AS_IS },
        flow_bits: shape.flows.ilog2(),
        stride: 0x9e37_79b1,
        services: shape.services,
        dst_step: to.addr_step,
        dst_port_step: to.port_step.into(),
        src: CLIENT.into(),
        dst: to.addr.into(),
        src_port: Be16::from_host(CLIENT_PORT),
        dst_port: Be16::from_host(to.port),
        head: words,
    }
}

/// Packet `number` as the driver makes it. The checksums are those of packet 0: no balancer looks at
/// them.
pub fn packet(drive: &Drive, number: u64) -> Vec<u8> {
    let mut frame: Vec<u8> = drive
        .head
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    frame.resize(drive.len as usize, 0);
    if drive.flows == DRIVE_AS_IS {
        return frame;
    }
    let flow = (number as u32).wrapping_mul(drive.stride) & (drive.flows - 1);
    let service = ((u64::from(flow) * u64::from(drive.services)) >> drive.flow_bits) as u32;
    let src = drive.src.to_host() + (flow >> 8);
    let dst = drive.dst.to_host() + service * drive.dst_step;
    let src_port = drive.src_port.to_host() + (flow & 0xff) as u16;
    let dst_port = drive.dst_port.to_host() + (service * drive.dst_port_step) as u16;
    frame[26..30].copy_from_slice(&src.to_be_bytes());
    frame[30..34].copy_from_slice(&dst.to_be_bytes());
    frame[34..36].copy_from_slice(&src_port.to_be_bytes());
    frame[36..38].copy_from_slice(&dst_port.to_be_bytes());
    frame
}

fn frame(shape: Shape, to: Target) -> Vec<u8> {
    let mut frame = [&UPLINK_MAC[..], &CLIENT_MAC].concat();
    match shape.kind {
        Kind::Arp => {
            // "Who has the uplink's address?"
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(CLIENT_MAC);
            frame.extend(CLIENT.octets());
            frame.extend([0; 6]);
            frame.extend(to.addr.octets());
        }
        Kind::TcpV6 => {
            let payload = (shape.len - 14 - 40) as u16;
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(payload.to_be_bytes());
            frame.extend([TCP, 64]);
            for last in [2, 1] {
                frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            frame.extend(CLIENT_PORT.to_be_bytes());
            frame.extend(to.port.to_be_bytes());
        }
        kind => ipv4(&mut frame, kind, shape.len, to),
    }
    frame.resize(shape.len, 0);
    frame
}

fn ipv4(frame: &mut Vec<u8>, kind: Kind, len: usize, to: Target) {
    let options: &[u8] = if kind == Kind::TcpOptions {
        &[1, 1, 1, 1]
    } else {
        &[]
    };
    let fragment = if kind == Kind::TcpFragment { 0x20 } else { 0 };
    let proto = match kind {
        Kind::Udp => UDP,
        Kind::Icmp => ICMP,
        _ => TCP,
    };
    let total = ((len - 14) as u16).to_be_bytes();
    let version_ihl = 0x45 + options.len() as u8 / 4;
    let mut ip = vec![
        version_ihl,
        0,
        total[0],
        total[1],
        0,
        1,
        fragment,
        0,
        64,
        proto,
        0,
        0,
    ];
    ip.extend(CLIENT.octets());
    ip.extend(to.addr.octets());
    ip.extend(options);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend([8, 0]);
    frame.extend(ip);
    if kind == Kind::Icmp {
        frame.extend([8, 0, 0xf7, 0xff]);
        return;
    }
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(to.port.to_be_bytes());
    match kind {
        Kind::Udp => frame.extend(((len - 34) as u16).to_be_bytes()),
        kind => {
            let flags = if let Kind::Tcp(flags) = kind {
                flags
            } else {
                ACK
            };
            frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        }
    }
}

/// The internet checksum (RFC 1071); zero over a header that has the right one.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !sum as u16
}

/// The address at an offset.
pub fn addr_at(bytes: &[u8], offset: usize) -> Ipv4Addr {
    let octets: [u8; 4] = bytes[offset..offset + 4].try_into().expect("four bytes");
    octets.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TO: Target = Target {
        addr: Ipv4Addr::new(198, 18, 0, 1),
        addr_step: 0,
        port: 8000,
        port_step: 1,
    };

    #[test]
    fn every_flow_comes_once_before_one_comes_again_and_services_have_equal_shares() {
        let shape = Shape {
            kind: Kind::Tcp(ACK),
            len: 64,
            flows: 1 << 12,
            services: 16,
        };
        let drive = drive(shape, TO);
        let packets: Vec<_> = (0..1 << 12).map(|number| packet(&drive, number)).collect();
        let flows: BTreeSet<_> = packets.iter().map(|packet| &packet[26..38]).collect();
        assert_eq!(flows.len(), 1 << 12);
        let first = packets
            .iter()
            .filter(|packet| packet[36..38] == 8000u16.to_be_bytes());
        assert_eq!(first.count(), 256);
    }

    #[test]
    fn headers_are_sound() {
        for kind in [
            Kind::Tcp(SYN),
            Kind::Udp,
            Kind::Icmp,
            Kind::TcpFragment,
            Kind::TcpOptions,
        ] {
            let frame = frame(
                Shape {
                    kind,
                    len: 70,
                    flows: 1,
                    services: 1,
                },
                TO,
            );
            let header = usize::from(frame[14] & 0xf) * 4;
            assert_eq!(checksum(&frame[14..14 + header]), 0, "{kind:?}");
            assert_eq!(frame.len(), 70);
        }
    }
}
