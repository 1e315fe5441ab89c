//! The VXLAN headers (RFC 7348) that XDP writes itself. Their bytes are those that the kernel's
//! device would send, but for "don't fragment": the route's MTU was checked.

use dataplane_abi::{
    BackendValue, DropReason, NodeConfig,
    net::{mesh_mac::Kind, task_mac},
};

use crate::{
    checksum::Sum,
    next_hop::NextHop,
    packet::{Bytes, ETH_LEN, ETHERTYPE_IPV4, Mac, PROTO_UDP},
};

/// Ethernet, IPv4, UDP and VXLAN headers, which go before the inner Ethernet header.
pub const OUTER_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const VXLAN_LEN: usize = 8;

const VERSION_IHL: u8 = 0x45;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// Flag I: the VNI is valid.
const VXLAN_FLAGS: u32 = 0x0800_0000;
/// Source ports tell flows apart for switches and receive queues (RFC 7348 section 5).
const SOURCE_PORTS: u16 = 0xc000;

/// Fills the room before the inner packet and rewrites the inner Ethernet header. `ip_len` is the
/// outer IPv4 packet's length.
#[inline(always)]
pub fn write(
    bytes: Bytes,
    config: &NodeConfig,
    backend: &BackendValue,
    tos: u8,
    hash: u32,
    ip_len: u16,
    hop: &NextHop,
) -> Result<(), DropReason> {
    let ip = ETH_LEN;
    let udp = ip + IPV4_LEN;
    let vxlan = udp + UDP_LEN;
    let inner = vxlan + VXLAN_LEN;

    bytes.write(inner, Mac::new(Kind::Forward.mac(backend.endpoint)).0)?;
    bytes.write(inner + 6, Mac::new(task_mac(config.vtep)).0)?;

    bytes.write(0, hop.dst.0)?;
    bytes.write(6, hop.src.0)?;
    bytes.write(12, ETHERTYPE_IPV4.raw())?;

    let version_tos = u16::from_ne_bytes([VERSION_IHL, tos]);
    let ttl_proto = u16::from_ne_bytes([TTL, PROTO_UDP]);
    let checksum = Sum::ZERO
        .add(version_tos)
        .add(ip_len.to_be())
        .add(DONT_FRAGMENT.to_be())
        .add(ttl_proto)
        .add_addr(config.vtep)
        .add_addr(backend.vtep)
        .field();
    bytes.write(
        ip,
        [
            version_tos,
            ip_len.to_be(),
            0,
            DONT_FRAGMENT.to_be(),
            ttl_proto,
            checksum,
        ],
    )?;
    bytes.write(ip + 12, config.vtep.raw())?;
    bytes.write(ip + 16, backend.vtep.raw())?;

    let source = SOURCE_PORTS | (hash as u16 & !SOURCE_PORTS);
    let udp_len = ip_len - IPV4_LEN as u16;
    // No checksum: the inner packet has its own (RFC 7348 section 5).
    bytes.write(
        udp,
        [source.to_be(), config.data_port.raw(), udp_len.to_be(), 0],
    )?;
    bytes.write(vxlan, VXLAN_FLAGS.to_be())?;
    bytes.write(vxlan + 4, (config.mesh_vni << 8).to_be())?;
    Ok(())
}
