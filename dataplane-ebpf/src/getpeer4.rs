//! `sn_getpeer4`: getpeername(2) says the VIP, not the backend.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, ALLOW, Call};

#[cgroup_sock_addr(getpeername4)]
pub fn sn_getpeer4(ctx: SockAddrContext) -> i32 {
    socket::restore(Call::new(&ctx));
    ALLOW
}
