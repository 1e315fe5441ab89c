//! `sn_tc_ordered`: ingress of the node's side of the veth behind which the kernel puts fragments in
//! order. They go back to the uplink, as if they came in there just now: for the programs and the host's
//! own rules they never were elsewhere.

use aya_ebpf::{macros::classifier, programs::TcContext};
use dataplane_abi::{DropReason, ORDERED_MARK, ProgramId};

use crate::{
    redirect, service,
    skb::{Skb, Verdict},
};

#[classifier]
#[inline(always)]
pub fn sn_tc_ordered(ctx: TcContext) -> Verdict {
    let skb = Skb::new(&ctx);
    skb.verdict(ProgramId::TcOrdered, ordered(skb))
}

#[inline(always)]
fn ordered(skb: Skb) -> Result<Verdict, DropReason> {
    let config = service::config()?;
    skb.set_mark(ORDERED_MARK);
    Ok(redirect::in_by(config.uplink_ifindex))
}
