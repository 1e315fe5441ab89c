//! The VXLAN headers (RFC 7348) that XDP writes itself. Their bytes are those that the kernel's
//! device would send, but for "don't fragment": the route's MTU was checked.

use dataplane_abi::{
    BackendValue, DropReason, NodeConfig,
    net::{mesh_mac::Kind, task_mac},
};

use crate::{
    checksum::Sum,
    next_hop::NextHop,
    packet::{Bytes, ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN, Mac, PROTO_UDP},
};

/// Ethernet, IPv4, UDP and VXLAN headers, which go before the inner Ethernet header.
pub const OUTER_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;
const UDP_LEN: usize = 8;
const VXLAN_LEN: usize = 8;

const VERSION_IHL: u8 = 0x45;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// Flag I: the VNI is valid.
const VXLAN_FLAGS: u32 = 0x0800_0000;
/// Source ports tell flows apart for switches and receive queues (RFC 7348 section 5).
const SOURCE_PORTS: u16 = 0xc000;

/// What is written: the outer headers, and the inner MAC addresses.
const HALFWORDS: usize = (OUTER_LEN + 12) / 2;

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
    let source = SOURCE_PORTS | (hash as u16 & !SOURCE_PORTS);
    let udp_len = ip_len - IPV4_LEN as u16;
    let [src0, src1] = halves(config.vtep.raw());
    let [dst0, dst1] = halves(backend.vtep.raw());
    let [flags0, flags1] = halves(VXLAN_FLAGS.to_be());
    let [vni0, vni1] = halves((config.mesh_vni << 8).to_be());
    let [inner_dst0, inner_dst1, inner_dst2] = Mac::new(Kind::Forward.mac(backend.endpoint)).0;
    let [inner_src0, inner_src1, inner_src2] = Mac::new(task_mac(config.vtep)).0;

    let [hop_dst0, hop_dst1, hop_dst2] = hop.dst.0;
    let [hop_src0, hop_src1, hop_src2] = hop.src.0;
    #[rustfmt::skip]
    let headers: [u16; HALFWORDS] = [
        // Ethernet
        hop_dst0, hop_dst1, hop_dst2, hop_src0, hop_src1, hop_src2, ETHERTYPE_IPV4.raw(),
        // IPv4
        version_tos, ip_len.to_be(), 0, DONT_FRAGMENT.to_be(), ttl_proto, checksum,
        src0, src1, dst0, dst1,
        // UDP; no checksum: the inner packet has its own (RFC 7348 section 5).
        source.to_be(), config.data_port.raw(), udp_len.to_be(), 0,
        // VXLAN
        flags0, flags1, vni0, vni1,
        // Inner MAC addresses
        inner_dst0, inner_dst1, inner_dst2, inner_src0, inner_src1, inner_src2,
    ];
    *bytes.front::<HALFWORDS>()? = headers;
    Ok(())
}

/// As they lie in memory.
#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
