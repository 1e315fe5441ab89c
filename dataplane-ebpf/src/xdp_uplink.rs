//! `sn_xdp_uplink`: the mesh's entry on NICs with native XDP. Sends packets for remote backends
//! into the tunnel itself; leaves the rest, and whatever is not plain, to `sn_tc_uplink`.

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        xdp_md,
    },
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::xdp,
    programs::XdpContext,
};
use dataplane_abi::{DropReason, ProgramId};

use crate::{
    count::{self, Volume},
    encap::{self, OUTER_LEN},
    entry::Entry,
    guard,
    next_hop::NextHop,
    packet::{Bytes, ETH_LEN},
    reset, service,
};

#[xdp(frags)]
pub fn sn_xdp_uplink(ctx: XdpContext) -> u32 {
    match uplink(&ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::dropped(ProgramId::XdpUplink, reason, volume(&ctx));
            XDP_DROP
        }
    }
}

#[inline(always)]
fn uplink(ctx: &XdpContext) -> Result<u32, DropReason> {
    let Some(entry) = Entry::find(bytes(ctx)) else {
        return Ok(XDP_PASS);
    };
    // The tc program remembers where it went, for those behind it.
    if entry.packet.is_fragment() {
        return Ok(XDP_PASS);
    }
    let config = service::config()?;
    guard::not_from_gateway_network(config, entry.packet.src)?;
    let backend = match entry.backend(config) {
        Ok(backend) => backend,
        // The tc program drops it, and answers.
        Err(reason) if reset::is_due(&entry.packet, reason) => return Ok(XDP_PASS),
        Err(reason) => return Err(reason),
    };
    if backend.vtep.is_zero() {
        return Ok(XDP_PASS);
    }
    // A packet that lies in one piece tells its length without a call.
    let linear = ctx.data_end() - ctx.data();
    let volume = if linear >= ETH_LEN + usize::from(entry.packet.total_len) {
        Volume {
            packets: 1,
            bytes: linear as u64,
        }
    } else {
        volume(ctx)
    };
    let outer_len = volume.bytes as usize - ETH_LEN + OUTER_LEN;
    let Some(hop) = NextHop::towards(ctx.ctx, config, backend.vtep, outer_len as u32) else {
        return Ok(XDP_PASS);
    };
    // SAFETY: the context is valid while the program runs.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(OUTER_LEN as i32)) } != 0 {
        return Ok(XDP_PASS);
    }
    count::packet(entry.service.stats, volume, entry.packet.is_syn());
    let hash = entry.packet.hash(config.ring_seed);
    encap::write(
        bytes(ctx),
        config,
        backend,
        entry.packet.tos,
        hash,
        outer_len as u16,
        hop,
    )?;
    if hop.ifindex == ingress_ifindex(ctx.ctx) {
        return Ok(XDP_TX);
    }
    // SAFETY: any index is allowed; an unknown one drops the packet.
    Ok(unsafe { bpf_redirect(hop.ifindex, 0) } as u32)
}

#[inline(always)]
fn bytes(ctx: &XdpContext) -> Bytes {
    Bytes {
        start: ctx.data(),
        end: ctx.data_end(),
    }
}

#[inline(always)]
fn volume(ctx: &XdpContext) -> Volume {
    // SAFETY: the context is valid while the program runs.
    Volume {
        packets: 1,
        bytes: unsafe { bpf_xdp_get_buff_len(ctx.ctx) },
    }
}

#[inline(always)]
fn ingress_ifindex(ctx: *mut xdp_md) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx).ingress_ifindex }
}
