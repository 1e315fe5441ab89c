//! Ways out for tc programs: into a task, into the tunnel, by the routing table.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, bpf_redir_neigh as RedirNeigh,
        bpf_tunnel_key as TunnelKey,
    },
    helpers::generated::{
        bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_set_tunnel_key,
    },
};
use dataplane_abi::{Be32, DropReason, NodeConfig};

use crate::{
    packet::{Mac, Packet},
    skb::{Skb, Verdict},
    zeroed::zeroed,
};

pub const AF_INET: u8 = 2;
const TUNNEL_TTL: u8 = 64;

/// Into the namespace at the other end of a veth, without a pass through the host's stack.
#[inline(always)]
pub fn into_task(ifindex: u32) -> Verdict {
    // SAFETY: any index is allowed; an unknown one drops the packet.
    unsafe { bpf_redirect_peer(ifindex, 0) as Verdict }
}

/// Out of an interface as the packet is.
#[inline(always)]
pub fn out_of(ifindex: u32) -> Verdict {
    // SAFETY: as above.
    unsafe { bpf_redirect(ifindex, 0) as Verdict }
}

/// As if it had come in by an interface just now.
#[inline(always)]
pub fn in_by(ifindex: u32) -> Verdict {
    // SAFETY: as above.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as Verdict }
}

/// Into the tunnel to the node at `vtep`, under `vni`.
#[inline(always)]
pub fn into_tunnel(
    skb: Skb,
    config: &NodeConfig,
    vni: u32,
    vtep: Be32,
    tos: u8,
) -> Result<Verdict, DropReason> {
    let mut key = MaybeUninit::<TunnelKey>::uninit();
    // SAFETY: integers and unions of them; zero is a value of each.
    let key = unsafe { zeroed(&mut key) };
    key.tunnel_id = vni;
    key.__bindgen_anon_1.remote_ipv4 = vtep.to_host();
    // Peers know this node by this address; the route alone might choose another one.
    key.__bindgen_anon_3.local_ipv4 = config.vtep.to_host();
    // The kernel copies the ECN bits itself (RFC 6040).
    key.tunnel_tos = tos & 0xfc;
    key.tunnel_ttl = TUNNEL_TTL;
    // SAFETY: the key lives on the stack and is passed with its size.
    let set = unsafe {
        bpf_skb_set_tunnel_key(
            skb.0,
            key,
            size_of::<TunnelKey>() as u32,
            u64::from(BPF_F_ZERO_CSUM_TX),
        )
    };
    if set != 0 {
        return Err(DropReason::RewriteFailed);
    }
    Ok(out_of(config.vxlan_ifindex))
}

/// As a router: by the routing table towards `dst`. The packet's addresses are final and its time
/// to live is decremented.
#[inline(always)]
pub fn by_route(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    src: Be32,
    dst: Be32,
) -> Result<Verdict, DropReason> {
    let mut fib = MaybeUninit::<FibLookup>::uninit();
    // SAFETY: integers and unions of them; zero is a value of each.
    let fib = unsafe { zeroed(&mut fib) };
    fib.family = AF_INET;
    fib.l4_protocol = packet.proto;
    fib.ifindex = config.gateway_ifindex;
    fib.__bindgen_anon_2.tos = packet.tos;
    fib.__bindgen_anon_3.ipv4_src = src.raw();
    fib.__bindgen_anon_4.ipv4_dst = dst.raw();
    // SAFETY: the structure lives on the stack and is passed with its size.
    let found = unsafe { bpf_fib_lookup(skb.0.cast(), fib, size_of::<FibLookup>() as i32, 0) };
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            skb.set_macs(Mac::new(fib.dmac), Mac::new(fib.smac))?;
            Ok(out_of(fib.ifindex))
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            let mut next_hop = MaybeUninit::<RedirNeigh>::uninit();
            // SAFETY: zero is a value; the lookup left the next hop in place of the destination.
            let next_hop = unsafe { zeroed(&mut next_hop) };
            next_hop.nh_family = AF_INET.into();
            next_hop.__bindgen_anon_1.ipv4_nh = unsafe { fib.__bindgen_anon_4.ipv4_dst };
            // SAFETY: as for the lookup. The kernel resolves the neighbour and queues meanwhile.
            Ok(unsafe {
                bpf_redirect_neigh(fib.ifindex, next_hop, size_of::<RedirNeigh>() as i32, 0)
                    as Verdict
            })
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(DropReason::TooBig),
        _ => Err(DropReason::NoRouteToClient),
    }
}
