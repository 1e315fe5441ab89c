//! Overlay forwarding by (VNI, address).

use dataplane_abi::{Be32, DropReason, EndpointKey, EndpointValue};

use crate::{
    maps::ENDPOINTS,
    packet::{Mac, Packet},
    redirect,
    skb::{Skb, Verdict},
    vip,
};

#[inline(always)]
pub fn endpoint(vni: u32, addr: Be32) -> Option<&'static EndpointValue> {
    // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
    unsafe { ENDPOINTS.get(EndpointKey { vni, addr }) }
}

/// Into a task of this node. `src` is the source MAC that it will see.
#[inline(always)]
pub fn deliver(
    skb: Skb,
    vni: u32,
    endpoint: &EndpointValue,
    packet: &Packet,
    src: Mac,
) -> Result<Verdict, DropReason> {
    if endpoint.ifindex == 0 {
        return Err(DropReason::NotLocal);
    }
    vip::inbound(skb, vni, endpoint, packet)?;
    skb.set_macs(Mac::new(endpoint.mac), src)?;
    Ok(redirect::into_task(endpoint.ifindex))
}
