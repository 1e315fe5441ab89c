//! `sn_connect4`: connect(2) to a VIP or a published port goes to a backend, once a connection.

use aya_ebpf::{
    helpers::generated::bpf_get_prandom_u32, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use dataplane_abi::ProgramId;

use crate::socket::{self, Call};

#[cgroup_sock_addr(connect4)]
pub fn sn_connect4(ctx: SockAddrContext) -> i32 {
    // The socket has no port yet that could be hashed: connections are spread by chance.
    // SAFETY: takes nothing.
    socket::translate(ProgramId::Connect4, Call::new(&ctx), || unsafe {
        bpf_get_prandom_u32()
    })
}
