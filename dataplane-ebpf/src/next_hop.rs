//! Next hops towards other nodes for XDP, remembered for a moment: a lookup in the kernel's routing
//! table costs more than all else that the program does.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibLookup, xdp_md,
    },
    helpers::generated::{bpf_fib_lookup, bpf_jiffies64},
    macros::map,
    maps::PerCpuArray,
};
use dataplane_abi::{Be32, NodeConfig};

use crate::{
    packet::{Mac, PROTO_UDP},
    redirect::AF_INET,
    zeroed::zeroed,
};

/// A change of routes or neighbours is seen this late, in ticks of the kernel: 5 to 50 ms. Ticks,
/// since the kernel compiles reading them in, where a clock is a call for each packet.
const LIFETIME: u64 = 5;
/// Power of two. Nodes that share a place cost each other lookups, no more.
const PLACES: u32 = 256;

/// The way to a node.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NextHop {
    expires: u64,
    vtep: Be32,
    pub ifindex: u32,
    /// Longest IPv4 packet on the way, as far as this machine knows.
    mtu: u32,
    pub dst: Mac,
    pub src: Mac,
}

/// By a hash of the tunnel address. The XDP program's own: nobody else reads or writes it, and it
/// need not be pinned.
#[map]
static NEXT_HOPS: PerCpuArray<NextHop> = PerCpuArray::with_max_entries(PLACES, 0);

impl NextHop {
    /// The way to the node at `vtep` for a packet of `len` bytes. `None` when the kernel's own
    /// stack has to do something first: resolve a neighbour, fragment, take another way.
    #[inline(always)]
    pub fn towards(
        ctx: *mut xdp_md,
        config: &NodeConfig,
        vtep: Be32,
        len: u32,
    ) -> Option<&'static Self> {
        let place = vtep.raw().wrapping_mul(0x9e37_79b1) >> (32 - PLACES.ilog2());
        let known = NEXT_HOPS.get_ptr_mut(place)?;
        // SAFETY: this CPU's slot of a map value that lives as long as the program; XDP programs
        // do not interrupt each other.
        let known = unsafe { &mut *known };
        // SAFETY: reads a counter.
        let now = unsafe { bpf_jiffies64() };
        if known.vtep != vtep || known.expires <= now {
            *known = Self::look_up(ctx, config, vtep, now)?;
        }
        (len <= known.mtu).then_some(known)
    }

    #[inline(always)]
    fn look_up(ctx: *mut xdp_md, config: &NodeConfig, vtep: Be32, now: u64) -> Option<Self> {
        let mut fib = MaybeUninit::<FibLookup>::uninit();
        // SAFETY: integers and unions of them; zero is a value of each.
        let fib = unsafe { zeroed(&mut fib) };
        fib.family = AF_INET;
        fib.l4_protocol = PROTO_UDP;
        fib.dport = config.data_port.raw();
        // Any length makes the kernel tell the route's MTU, in the same field.
        fib.__bindgen_anon_1.tot_len = 1;
        // SAFETY: the context is valid while the program runs.
        fib.ifindex = unsafe { (*ctx).ingress_ifindex };
        fib.__bindgen_anon_3.ipv4_src = config.vtep.raw();
        fib.__bindgen_anon_4.ipv4_dst = vtep.raw();
        // SAFETY: the structure lives on the stack and is passed with its size.
        let found = unsafe {
            bpf_fib_lookup(
                ctx.cast(),
                fib,
                size_of::<FibLookup>() as i32,
                BPF_FIB_LOOKUP_OUTPUT,
            )
        };
        if found as u32 != BPF_FIB_LKUP_RET_SUCCESS {
            return None;
        }
        Some(Self {
            expires: now + LIFETIME,
            vtep,
            ifindex: fib.ifindex,
            // SAFETY: set by the lookup, which was given a length.
            mtu: unsafe { fib.__bindgen_anon_1.mtu_result }.into(),
            dst: Mac::new(fib.dmac),
            src: Mac::new(fib.smac),
        })
    }
}
