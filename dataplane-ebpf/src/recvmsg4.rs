//! `sn_recvmsg4`: recvfrom(2) and recvmsg(2) on UDP sockets say the VIP, not the backend.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, ALLOW, Call};

#[cgroup_sock_addr(recvmsg4)]
pub fn sn_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::restore(Call::new(&ctx));
    ALLOW
}
