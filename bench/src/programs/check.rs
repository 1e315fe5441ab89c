//! Whether a packet came out as it must: a benchmark of a program that does something else is worth
//! nothing.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use dataplane_abi::net::{mac_suffix, mesh_mac::Kind, task_mac};
use model::{Vni, feed::NodeView};

use super::{
    packet::{UDP, addr_at, checksum},
    world::{endpoint, node_mac, vtep},
};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// UDP and VXLAN.
const TUNNEL: usize = 8 + 8;
const DATA_PORT: u16 = 4_789;
const IPIP: u8 = 4;

/// Wrapped by our program for a backend of the service that the packet was for, on that backend's
/// node, and unchanged inside.
///
/// # Errors
/// What is wrong with it.
pub fn wrapped_by_us(view: &NodeView, sent: &[u8], out: &[u8]) -> Result<()> {
    let inner = ETHERNET + IPV4 + TUNNEL;
    ensure!(
        out.len() == sent.len() + inner,
        "{} bytes in, {} out",
        sent.len(),
        out.len()
    );
    let (ip, udp) = (ETHERNET, ETHERNET + IPV4);
    outer_ipv4(out, UDP)?;
    ensure!(
        addr_at(out, ip + 12) == vtep(1),
        "its source is not this node"
    );
    let node = addr_at(out, ip + 16);
    ensure!(
        half(out, udp + 2) == DATA_PORT,
        "it is not for the tunnel's port"
    );
    ensure!(
        usize::from(half(out, udp + 4)) == out.len() - udp,
        "the outer UDP length is wrong"
    );
    ensure!(half(out, udp + 6) == 0, "it has an outer UDP checksum");
    let vni = u32::from_be_bytes([0, out[udp + 12], out[udp + 13], out[udp + 14]]);
    ensure!(
        vni == Vni::MESH.get() && out[udp + 8] == 8,
        "its VNI is {vni}"
    );

    let mac = |at: usize| -> [u8; 6] { out[at..at + 6].try_into().expect("six bytes") };
    ensure!(
        Kind::of(mac(inner)) == Some(Kind::Forward),
        "its inner MAC does not say FORWARD"
    );
    let id = mac_suffix(mac(inner));
    let number = id % 1_000;
    ensure!(node == vtep(number), "endpoint {id} is not at {node}");
    ensure!(
        mac(0) == node_mac(number),
        "its next hop is not that of {node}"
    );
    ensure!(
        mac(inner + 6) == task_mac(vtep(1).into()),
        "its inner source is not this node"
    );
    let port = half(sent, ETHERNET + usize::from(sent[14] & 0xf) * 4 + 2);
    let known = view
        .endpoints
        .get(&model::EndpointId(id))
        .context("no such endpoint")?;
    let service = view
        .services
        .get(&known.service)
        .context("no such service")?;
    ensure!(
        service
            .ports
            .iter()
            .any(|published| published.published == port),
        "endpoint {id} does not serve port {port}"
    );
    debug_assert_eq!(id, endpoint((known.service.raw() - 1) as u32, number));
    ensure!(
        out[inner + 12..] == sent[12..],
        "the packet inside is not what was sent"
    );
    Ok(())
}

/// Wrapped by another balancer, in IPIP (RFC 2003) or a UDP tunnel, for one of its backends.
///
/// # Errors
/// What is wrong with it.
pub fn wrapped_by_peer(backends: impl Fn(Ipv4Addr) -> bool, sent: &[u8], out: &[u8]) -> Result<()> {
    let proto = *out.get(ETHERNET + 9).context("it is cut off")?;
    ensure!(
        proto == IPIP || proto == UDP,
        "it is wrapped in protocol {proto}"
    );
    outer_ipv4(out, proto)?;
    let to = addr_at(out, ETHERNET + 16);
    ensure!(backends(to), "{to} is none of its backends");
    let inner = ETHERNET + IPV4 + if proto == UDP { 8 } else { 0 };
    ensure!(
        out[inner..] == sent[ETHERNET..],
        "the packet inside is not what was sent"
    );
    Ok(())
}

fn outer_ipv4(out: &[u8], proto: u8) -> Result<()> {
    let ip = &out[ETHERNET..ETHERNET + IPV4];
    ensure!(
        half(out, 12) == 0x0800 && ip[0] == 0x45,
        "its outer header is not IPv4"
    );
    ensure!(checksum(ip) == 0, "its outer IPv4 checksum is wrong");
    ensure!(ip[9] == proto, "its outer protocol is {}", ip[9]);
    let len = usize::from(half(ip, 2));
    ensure!(len == out.len() - ETHERNET, "its outer length is {len}");
    Ok(())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
