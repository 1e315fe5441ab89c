//! Connections that no table knows: the task's socket tells.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
};

use dataplane_abi::{Be32, DropReason, FlowKey, FlowValue, LocalEndpoint};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::{common::*, fate::Fate, pair::Pair, setup::*};

/// Number of the first task's namespace.
const EP_NETNS: u32 = 61;

/// Real sockets in a namespace that this one has a number for: each state of a connection's socket.
#[test]
fn connection_without_entry_is_told_by_the_tasks_socket() {
    let mut pair = Pair::new(node_with_local_backend(TCP));
    let task = Namespace::new("task");
    pair.netns
        .ip(&format!("netns set {} {EP_NETNS}", task.name));
    let mut local: LocalEndpoint = pair.node.get("LOCAL", EP).unwrap();
    local.netns = EP_NETNS;
    pair.node.put("LOCAL", EP, local);
    // Client and server at one loopback device, under the addresses that the task sees.
    for addr in [TASK, CLIENT.0] {
        task.ip(&format!("addr add {}/32 dev lo", Ipv4Addr::from(addr)));
    }
    let (server, client) = task.run(|| {
        let server = TcpListener::bind((Ipv4Addr::from(TASK), 80)).unwrap();
        let client = bound_socket((CLIENT.0, CLIENT.1));
        (server, client)
    });
    pair.each("no socket", [ack()], |frame| {
        Fate::refused(frame, DropReason::UnknownFlow)
    });

    connect_bound(&client, (TASK, 80));
    let (accepted, _) = server.accept().unwrap();
    pair.each("connected", [tcp(PSH_ACK)], Fate::task);
    let node = &mut pair.node;
    let flow: FlowValue = node
        .get("FLOWS", flow_key(CLIENT, TASK, TCP))
        .expect("the entry is back");
    assert_eq!((flow.node_addr, flow.published.to_host()), PUBLISHED);
    assert_eq!(node.stats(STATS).new_flows, 0);

    node.hash::<FlowKey, FlowValue>("FLOWS")
        .remove(&flow_key(CLIENT, TASK, TCP))
        .unwrap();
    drop(accepted);
    drop(client);
    // What is left of it at the task waits in TIME_WAIT.
    pair.each("TIME_WAIT", [tcp(FIN | ACK)], Fate::task);
}

/// A TCP socket with an address and port of its own.
fn bound_socket(addr: (Be32, u16)) -> OwnedFd {
    let client = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&client, sockopt::ReuseAddr, &true).unwrap();
    let addr = SockaddrIn::from(SocketAddrV4::new(addr.0.into(), addr.1));
    bind(client.as_raw_fd(), &addr).unwrap();
    client
}

fn connect_bound(client: &OwnedFd, to: (Be32, u16)) {
    let to = SockaddrIn::from(SocketAddrV4::new(to.0.into(), to.1));
    connect(client.as_raw_fd(), &to).unwrap();
}
