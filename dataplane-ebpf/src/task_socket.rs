//! The sockets of a task, looked up from its node.

use core::mem::size_of_val;

use aya_ebpf::{
    bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleIpv4,
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use dataplane_abi::{FlowKey, LocalEndpoint};

use crate::skb::Skb;

/// States of `include/net/tcp_states.h`.
const TCP_SYN_RECV: u32 = 3;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;
const TCP_CLOSING: u32 = 11;
const TCP_NEW_SYN_RECV: u32 = 12;

/// What a task has for a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TaskSocket {
    /// A socket whose handshake is over.
    Connected,
    /// Both sides have sent their FIN, and the client's last ACK is on its way.
    Closing,
    /// What is left of a connection that ended.
    TimeWait,
    /// The handshake goes on.
    HalfOpen,
    /// Only a listener, which would take the connection.
    Listening,
    Absent,
}

/// The socket for the connection that the task's replies name `key`.
#[inline(always)]
pub fn find(skb: Skb, local: &LocalEndpoint, key: &FlowKey) -> TaskSocket {
    let mut tuple = TupleIpv4 {
        saddr: key.client.raw(),
        daddr: key.task.raw(),
        sport: key.client_port.raw(),
        dport: key.task_port.raw(),
    };
    // SAFETY: the context is valid, the tuple is passed with its size, which says IPv4. The number is
    // one of the namespace of the packet's device.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            skb.0.cast(),
            (&raw mut tuple).cast(),
            size_of_val(&tuple) as u32,
            local.netns.into(),
            0,
        )
    };
    if socket.is_null() {
        return TaskSocket::Absent;
    }
    // SAFETY: the reference is held until the release below, and used no more after it. Volatile:
    // the verifier wants one load of the whole field.
    let state = unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    };
    match state {
        TCP_LISTEN => TaskSocket::Listening,
        TCP_SYN_RECV | TCP_NEW_SYN_RECV => TaskSocket::HalfOpen,
        TCP_LAST_ACK | TCP_CLOSING => TaskSocket::Closing,
        TCP_TIME_WAIT => TaskSocket::TimeWait,
        TCP_CLOSE => TaskSocket::Absent,
        _ => TaskSocket::Connected,
    }
}
