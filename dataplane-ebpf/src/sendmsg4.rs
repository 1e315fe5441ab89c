//! `sn_sendmsg4`: sendto(2) and sendmsg(2) with a destination, on unconnected UDP sockets.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use dataplane_abi::{
    Be16, ProgramId,
    hash::{FlowTuple, flow_hash},
};

use crate::{
    packet::PROTO_UDP,
    socket::{self, Call},
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sn_sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Call::new(&ctx);
    // The same socket and destination keep their backend while the ring stays: datagrams of one
    // exchange belong together.
    socket::translate(ProgramId::Sendmsg4, call, || {
        let tuple = FlowTuple {
            src: call.addr(),
            src_port: Be16::ZERO,
            dst_port: call.port(),
            proto: PROTO_UDP,
        };
        flow_hash(tuple, call.cookie())
    })
}
