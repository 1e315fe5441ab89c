//! Floods of made-up packets at a published port, and thousands of connections that live through them.

mod common;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::{Be32, FlowKey, FlowValue};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const CONNECTIONS: usize = 10_000;
const FIRST_PORT: u16 = 10_000;
/// Through each of two entries: a million together.
const SYNS: u64 = 500_000;
const ACKS: u64 = 100_000;
/// 198.18.0.0/16 (RFC 2544): nobody is there.
const MADE_UP: u32 = 0xc612_0000;

/// The owner of all flows is node B: packets come to it from A, and by its own uplink.
#[test]
fn connections_live_through_floods_at_the_entry_and_at_the_owner() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut cluster = Cluster::of(Node::load_whole);
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    for host in cluster.hosts() {
        let answers = format!("route add 198.18.0.0/16 via {}", show(CLIENT));
        host.namespace.ip(&answers);
    }
    let task = &cluster.b.tasks[0];
    let _server = WordServer::new(&task.namespace, at(task.gateway, 80));
    // Each from a port of its own: left to the kernel, thousands would share theirs with one through the
    // other entry, and some would find none by which the task could tell them apart.
    let connections = (0..).take(CONNECTIONS).map(|nth| {
        let (port, entry) = (FIRST_PORT + nth, [NODE_A, NODE_B][usize::from(nth % 2)]);
        connect_from(&cluster.client, port, at(entry, 8080)).expect("it is let in")
    });
    let connections: Vec<_> = connections.collect();
    assert_all_echo(&connections);

    for (flags, port, count) in [(SYN, 1024, SYNS), (ACK, 2048, ACKS)] {
        for (node, port) in [(NODE_A, port), (NODE_B, port + 512)] {
            flood(&mut cluster, node, (flags, port), count);
        }
    }

    // They would go on without entries, too, by their sockets: but none was evicted.
    let flows = cluster.b.node.entries::<FlowKey, FlowValue>("FLOWS");
    let ports = flows.iter().filter(|(key, _)| key.client == CLIENT);
    let ports: BTreeSet<u16> = ports.map(|(key, _)| key.client_port.to_host()).collect();
    let lost = connections.iter().filter(|connection| {
        let port = connection.local_addr().unwrap().port();
        !ports.contains(&port)
    });
    assert_eq!(lost.count(), 0, "connections without an entry");
    assert_all_echo(&connections);
    for table in ["FLOWS", "SYN_FLOWS", "UDP_FLOWS"] {
        let kept = cluster.a.node.entries::<FlowKey, FlowValue>(table);
        assert!(kept.is_empty(), "the entry keeps {} in {table}", kept.len());
    }
    for (host, refused) in [(&mut cluster.a, 0), (&mut cluster.b, 2 * ACKS)] {
        let drops = host.node.drops();
        let unknown = drops.get("unknown-flow").copied().unwrap_or(0);
        let others = drops.len() - usize::from(unknown > 0);
        assert!(unknown >= refused && others == 0, "{drops:?}");
    }
}

/// Sends TCP packets, each of a flow of its own, to the published port until `node` has seen `count`.
fn flood(cluster: &mut Cluster, node: Be32, (flags, first_port): (u8, u16), count: u64) {
    let host = if node == NODE_A {
        &mut cluster.a
    } else {
        &mut cluster.b
    };
    let mac = host.namespace.mac("up0");
    let mut flood = Flood::new(&cluster.client, mac, node, flags, first_port);
    let enough = host.node.stats(FRONT).packets + count;
    while host.node.stats(FRONT).packets < enough {
        flood.send();
    }
}

/// Frames that go out as they are, many a call.
struct Flood {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
    first_port: u16,
    sent: u32,
}

impl Flood {
    const BATCH: u32 = 256;
    const SRC_AT: usize = 14 + 12;
    const PORT_AT: usize = 14 + 20;
    const IP_SUM_AT: usize = 14 + 10;
    const TCP_SUM_AT: usize = 14 + 20 + 16;

    fn new(from: &Namespace, to: [u8; 6], node: Be32, flags: u8, first_port: u16) -> Self {
        let socket = from.run(|| packet_socket("up0")).unwrap();
        let source = (Be32::from_host(MADE_UP), first_port);
        let frame = Frame::tcp(source, (node, 8080), flags).macs(to, from.mac("up0"));
        let frame = Frame {
            payload: Vec::new(),
            ..frame
        }
        .bytes();
        Self {
            socket,
            frames: vec![frame; Self::BATCH as usize],
            first_port,
            sent: 0,
        }
    }

    /// Sends a batch from sources that were not used yet.
    fn send(&mut self) {
        for frame in &mut self.frames {
            let (host, port) = (self.sent as u16, self.first_port + (self.sent >> 16) as u16);
            replace(
                frame,
                Self::SRC_AT + 2,
                host,
                &[Self::IP_SUM_AT, Self::TCP_SUM_AT],
            );
            replace(frame, Self::PORT_AT, port, &[Self::TCP_SUM_AT]);
            self.sent += 1;
        }
        let mut parts: Vec<_> = self
            .frames
            .iter_mut()
            .map(|frame| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<_> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: integers and pointers that may be null.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: the messages, their parts and the frames live until the call returns.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                Self::BATCH,
                0,
            )
        };
        assert!(sent > 0, "{}", io::Error::last_os_error());
    }
}

/// Replaces two bytes and updates the checksums that cover them (RFC 1624).
fn replace(frame: &mut [u8], at: usize, new: u16, checksums: &[usize]) {
    let half = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let old = half(frame, at);
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    for &at in checksums {
        let sum = u32::from(!half(frame, at)) + u32::from(!old) + u32::from(new);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

/// A socket for whole frames to and from a device of the caller's namespace.
fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: integers; zero is a value of each.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_ifindex = nix::net::if_::if_nametoindex(device)? as i32;
    let len = size_of_val(&addr) as libc::socklen_t;
    // SAFETY: the address lives until the call returns and is passed with its size.
    match unsafe { libc::bind(fd, (&raw const addr).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
