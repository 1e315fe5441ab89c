//! ICMP errors of real stacks, through two nodes: sockets hear of ports without a listener, and of what
//! routers outside do not carry.

mod common;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Instant,
};

use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::Be32;

/// A client behind a router, whose link to it carries less than any other.
const OUTSIDE: Be32 = ip(203, 0, 113, 9);
const NARROW: usize = 1300;

/// Sends datagrams on a connected socket until an error comes back.
#[track_caller]
fn assert_refused(namespace: &Namespace, to: SocketAddr) {
    let socket = udp(namespace);
    socket.connect(to).unwrap();
    socket.send(b"anybody there?").unwrap();
    let error = socket.recv(&mut [0; 64]).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
}

#[test]
fn client_hears_that_no_socket_has_a_published_port() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    for entry in [NODE_A, NODE_B] {
        assert_refused(&cluster.client, at(entry, 8080));
    }
    cluster.assert_no_drops();
}

#[test]
fn task_hears_that_no_socket_has_a_vips_port() {
    let mut cluster = Cluster::new();
    for (base, backend) in [(0, ON_B), (10, ON_A_2), (20, ON_A)] {
        cluster.vip(base, &[slot(backend, backend)]);
        assert_refused(&cluster.a.tasks[0].namespace, at(VIP, 53));
    }
    cluster.assert_no_drops();
}

#[test]
fn vips_backend_hears_that_its_client_is_gone() {
    let mut cluster = Cluster::new();
    for (base, backend) in [(0, ON_B), (10, ON_A_2), (20, ON_A)] {
        cluster.vip(base, &[slot(backend, backend)]);
        let to = match backend {
            ON_A => &cluster.a.tasks[0],
            ON_A_2 => &cluster.a.tasks[1],
            _ => &cluster.b.tasks[0],
        };
        let server = bind(&to.namespace, at(to.overlay, 53));
        let client = udp(&cluster.a.tasks[0].namespace);
        client.send_to(b"hello", at(VIP, 53)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        drop(client);
        server.connect(from).unwrap();
        server.send(b"too late").unwrap();
        let error = server.recv(&mut [0; 64]).expect_err("the client is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend}");
    }
    cluster.assert_no_drops();
}

/// Puts a router on the switch, with a client behind a narrow link.
fn behind_a_router(cluster: &Cluster) -> (Namespace, Namespace) {
    let router = cluster.switch.client(ip(192, 0, 2, 99));
    let outside = Namespace::new("outside");
    router.sysctl("net/ipv4/conf/all/forwarding", "1");
    router.ip(&format!(
        "link add in0 mtu {NARROW} type veth peer name up0 netns {}",
        outside.name
    ));
    router.ip("addr add 203.0.113.1/24 dev in0");
    router.ip("link set in0 up");
    outside.ip("addr add 203.0.113.9/24 dev up0");
    outside.ip("link set up0 up");
    outside.ip("route add default via 203.0.113.1");
    for host in [&cluster.a, &cluster.b] {
        let namespace = &host.namespace;
        namespace.ip("route add 203.0.113.0/24 via 192.0.2.99");
    }
    (router, outside)
}

#[test]
fn task_hears_what_a_router_outside_does_not_carry() {
    let mut cluster = Cluster::new();
    let (_router, outside) = behind_a_router(&cluster);
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    for entry in [NODE_A, NODE_B] {
        let task = &cluster.b.tasks[0];
        let server = bind(&task.namespace, at(task.gateway, 80));
        forbid_fragments(&server);
        let client = udp(&outside);
        client.send_to(b"hello", at(entry, 8080)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(from.ip(), show(OUTSIDE));
        server.connect(from).unwrap();
        server.send(&[7; 1350]).unwrap();
        let error = server.recv(&mut [0; 64]).expect_err("it does not fit");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        server.send(&[7; NARROW - 28]).unwrap();
        let (len, from) = client.recv_from(&mut [0; 2000]).unwrap();
        assert_eq!((len, from), (NARROW - 28, at(entry, 8080)));
        // The next entry's turn begins with nothing learned.
        task.namespace.ip("route flush cache");
    }
    cluster.assert_no_drops();
}

#[test]
fn stream_finds_its_segments_size_behind_a_narrow_link() {
    let mut cluster = Cluster::new();
    let (_router, outside) = behind_a_router(&cluster);
    // The client believes in its link's other end, and tells a segment size that does not fit.
    outside.ip("link set up0 mtu 1500");
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    let task = &cluster.b.tasks[0];
    let listener = task
        .namespace
        .run(|| std::net::TcpListener::bind(at(task.gateway, 80)))
        .unwrap();
    let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i >> 5) as u8).collect();
    for entry in [NODE_A, NODE_B] {
        let mut stream = connect(&outside, at(entry, 8080));
        let (mut served, _) = listener.accept().unwrap();
        served.set_write_timeout(Some(patience())).unwrap();
        let back = thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let sent = served.write_all(&data);
                drop(served);
                sent
            });
            let mut back = Vec::new();
            let read = stream.read_to_end(&mut back);
            sent.join().unwrap().unwrap();
            read.unwrap();
            back
        });
        assert!(back == data, "the bytes that came back differ");
        task.namespace.ip("route flush cache");
    }
    cluster.assert_no_drops();
}

/// A socket on an address that an earlier one had: a command that another test starts may hold that
/// for a moment longer.
#[track_caller]
fn bind(namespace: &Namespace, addr: SocketAddr) -> UdpSocket {
    let deadline = Instant::now() + patience();
    let socket = loop {
        match namespace.run(|| UdpSocket::bind(addr)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::yield_now();
            }
            bound => break bound.unwrap(),
        }
    };
    socket.set_read_timeout(Some(patience())).unwrap();
    socket
}

fn forbid_fragments(socket: &UdpSocket) {
    let discover = libc::IP_PMTUDISC_DO;
    // SAFETY: the option takes an integer, which is passed with its size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const discover).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
