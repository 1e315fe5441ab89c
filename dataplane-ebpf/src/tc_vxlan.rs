//! `sn_tc_vxlan`: ingress of the node's VXLAN device. What other nodes send.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::bpf_tunnel_key as TunnelKey, helpers::generated::bpf_skb_get_tunnel_key,
    macros::classifier, programs::TcContext,
};
use dataplane_abi::{
    Be32, DropReason, FRAGMENT_MESH, NodeConfig, ProgramId, SIDE_PACKETS,
    net::{mac_suffix, mesh_mac::Kind},
};

use crate::{
    entry, fragment, guard,
    maps::PEERS,
    mesh::{self, Arrival},
    mesh_error, overlay,
    owner::Hop,
    packet::{Bytes, ETHERTYPE_IPV4, PROTO_ICMP, Packet},
    service,
    skb::{Skb, Verdict},
    zeroed::zeroed,
};

#[classifier]
#[inline(always)]
pub fn sn_tc_vxlan(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(ProgramId::TcVxlan, vxlan(skb))
}

#[inline(always)]
fn vxlan(skb: Skb) -> Result<Verdict, DropReason> {
    let (source, vni) = tunnel(skb)?;
    if PEERS.get_ptr(source).is_none() {
        return Err(DropReason::UnknownTunnelSource);
    }
    guard::untagged(skb)?;
    let config = service::config()?;
    let bytes = skb.bytes();
    if bytes.ether_type()? != ETHERTYPE_IPV4 {
        return Err(DropReason::UnsupportedProtocol);
    }
    let packet = Packet::parse(bytes)?;
    if vni == config.mesh_vni {
        return mesh(skb, config, bytes, &packet, source);
    }
    let endpoint = overlay::endpoint(vni, packet.dst).ok_or(DropReason::NotLocal)?;
    overlay::deliver(skb, vni, endpoint, &packet, bytes.mac_src()?)
}

/// Tunnel address of the sender, and the VNI.
#[inline(always)]
fn tunnel(skb: Skb) -> Result<(Be32, u32), DropReason> {
    let mut key = MaybeUninit::<TunnelKey>::uninit();
    // SAFETY: integers and unions of them; zero is a value of each.
    let key = unsafe { zeroed(&mut key) };
    // SAFETY: the key lives on the stack and is passed with its size.
    let got = unsafe { bpf_skb_get_tunnel_key(skb.0, key, size_of::<TunnelKey>() as u32, 0) };
    if got != 0 {
        return Err(DropReason::UnknownTunnelSource);
    }
    // SAFETY: without BPF_F_TUNINFO_IPV6 the helper filled the IPv4 address, in host order.
    Ok((
        Be32::from_host(unsafe { key.__bindgen_anon_1.remote_ipv4 }),
        key.tunnel_id,
    ))
}

#[inline(always)]
fn mesh(
    skb: Skb,
    config: &NodeConfig,
    bytes: Bytes,
    packet: &Packet,
    source: Be32,
) -> Result<Verdict, DropReason> {
    let dst = bytes.mac_dst()?.bytes();
    let kind = Kind::of(dst).ok_or(DropReason::BadMeshMac)?;
    if kind == Kind::Return {
        return mesh::return_to_client(skb, config, packet);
    }
    if packet.is_later_fragment() {
        let way = fragment::way(packet, FRAGMENT_MESH).ok_or(DropReason::FragmentWithoutHead)?;
        return mesh::follow(skb, config, packet, way, true);
    }
    let entry = if kind == Kind::Forward {
        source
    } else {
        // Handed on: its source is the owner after the change, not the entry.
        match Be32::from_host(mac_suffix(bytes.mac_src()?.bytes())) {
            own if own == config.vtep => Be32::ZERO,
            entry => entry,
        }
    };
    // However it came, the verifier walks what follows once.
    let zero = skb.unknown_zero();
    let arrival = Arrival {
        endpoint: mac_suffix(dst),
        entry: Be32::from_raw(entry.raw().wrapping_add(zero)),
        hop: Hop::of(kind).plus(zero),
    };
    if packet.proto == PROTO_ICMP {
        return mesh_error::deliver::<false>(skb, config, packet, arrival);
    }
    let published = entry::published(packet.dst, packet.dst_port, packet.proto, SIDE_PACKETS)
        .ok_or(DropReason::NotPublished)?;
    mesh::deliver::<false>(skb, config, packet, published, arrival)
        .or_else(|reason| mesh::refuse(ProgramId::TcVxlan, skb, config, packet, arrival, reason))
}
