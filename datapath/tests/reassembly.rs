//! Fragments in any order reach whom their first one is for: real devices, frames as they are.

mod common;

use std::{collections::HashMap, fs, net::UdpSocket};

use common::{cluster::*, two_nodes::*, *};
use dataplane_abi::{Be32, FragmentKey, FragmentValue};

/// What a client sends from its port to port 8080 of node A, or to another.
struct Sender {
    wire: Wire,
    to: [u8; 6],
    socket: UdpSocket,
    from: (Be32, u16),
}

impl Sender {
    fn new(cluster: &Cluster, from: Be32) -> Self {
        let client = &cluster.client;
        if from != CLIENT {
            client.ip(&format!("addr add {}/24 dev up0", show(from)));
        }
        let socket = client.run(|| UdpSocket::bind(at(from, 0))).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        Self {
            wire: Wire::new(client, "up0"),
            to: cluster.a.namespace.mac("up0"),
            from: (from, socket.local_addr().unwrap().port()),
            socket,
        }
    }

    /// A datagram of three fragments with contents of its own.
    fn datagram(&self, port: u16, id: u16) -> Datagram {
        let data: Vec<u8> = (0..3600u32)
            .map(|i| (i * 7 + u32::from(id)) as u8)
            .collect();
        let frame = Frame::udp(self.from, (NODE_A, port)).payload(&data);
        let frame = frame.macs(self.to, ROUTER_MAC).bytes();
        Datagram {
            pieces: fragments(&frame, &[1480, 2960], id),
            data,
        }
    }

    fn send(&self, datagram: &Datagram, order: &[usize]) {
        for &nth in order {
            self.wire.send(&datagram.pieces[nth]);
        }
    }

    #[track_caller]
    fn assert_answered(&self, datagram: &Datagram) {
        let mut back = vec![0; 1 << 16];
        let len = self
            .socket
            .recv(&mut back)
            .unwrap_or_else(|error| panic!("no answer: {error}"));
        assert!(back[..len] == datagram.data, "the answer differs");
    }
}

struct Datagram {
    pieces: Vec<Vec<u8>>,
    data: Vec<u8>,
}

/// Publishes 8080 on a backend, and has node A put fragments in order. The server is the backend's.
fn published(backend: u16) -> (Cluster, EchoServer) {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(backend, backend)]);
    cluster.a.put_in_order();
    let task = match backend {
        ON_B => &cluster.b.tasks[0],
        _ => &cluster.a.tasks[0],
    };
    let server = EchoServer::udp(&task.namespace, at(task.gateway, 80));
    (cluster, server)
}

#[track_caller]
fn assert_nothing_left(cluster: &mut Cluster) {
    cluster.assert_no_drops();
    for host in cluster.hosts() {
        let left = host.node.entries::<FragmentKey, FragmentValue>("FRAGMENTS");
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A counter of IPv4 in the namespace where fragments are put in order.
fn counted(host: &Host, name: &str) -> u64 {
    let inside = host.reassembly.as_ref().unwrap();
    let table = inside.run(|| fs::read_to_string("/proc/thread-self/net/snmp"));
    let table = table.unwrap();
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let mut words = || lines.next().unwrap().split_whitespace();
    let counters: HashMap<_, _> = words().zip(words()).collect();
    counters[name].parse().unwrap()
}

#[test]
fn fragments_reach_their_task_in_any_order() {
    for backend in [ON_A, ON_B] {
        let (mut cluster, server) = published(backend);
        let sender = Sender::new(&cluster, CLIENT);
        let orders: [&[usize]; 8] = [
            &[0, 1, 2],
            &[0, 2, 1],
            &[1, 0, 2],
            &[1, 2, 0],
            &[2, 0, 1],
            &[2, 1, 0],
            &[2, 2, 1, 0],
            &[1, 2, 1, 2, 0],
        ];
        for (id, order) in (1..).zip(orders) {
            let datagram = sender.datagram(8080, id);
            sender.send(&datagram, order);
            sender.assert_answered(&datagram);
            assert_eq!(server.peer(), at(sender.from.0, sender.from.1));
        }
        assert_nothing_left(&mut cluster);
        assert!(server.is_idle(), "each came once");
    }
}

#[test]
fn packets_of_two_senders_under_one_number_are_kept_apart() {
    let (mut cluster, _server) = published(ON_B);
    let senders = [CLIENT, ip(192, 0, 2, 10)].map(|from| Sender::new(&cluster, from));
    let datagrams = [0, 1].map(|nth: usize| senders[nth].datagram(8080, 7));
    let other = senders[0].datagram(8080, 8);
    for nth in [2, 1, 0] {
        for (sender, datagram) in senders.iter().zip(&datagrams) {
            sender.send(datagram, &[nth]);
        }
        senders[0].send(&other, &[nth]);
    }
    senders[1].assert_answered(&datagrams[1]);
    senders[0].assert_answered(&datagrams[0]);
    senders[0].assert_answered(&other);
    assert_nothing_left(&mut cluster);
}

#[test]
fn packet_that_is_not_whole_reaches_nobody_and_is_counted() {
    let (mut cluster, server) = published(ON_A);
    let sender = Sender::new(&cluster, CLIENT);
    for lost in [0, 1, 2] {
        let order: Vec<usize> = (0..3).rev().filter(|nth| *nth != lost).collect();
        sender.send(&sender.datagram(8080, 20 + lost as u16), &order);
    }
    let whole = sender.datagram(8080, 30);
    sender.send(&whole, &[2, 1, 0]);
    sender.assert_answered(&whole);
    server.peer();
    assert!(server.is_idle(), "parts of packets reached the task");
    wait_until("three packets given up", || {
        counted(&cluster.a, "ReasmTimeout") == 3
    });
    assert!(server.is_idle());
    assert_nothing_left(&mut cluster);
}

#[test]
fn packet_whose_fragments_overlap_reaches_nobody() {
    let (mut cluster, server) = published(ON_A);
    let sender = Sender::new(&cluster, CLIENT);
    let datagram = sender.datagram(8080, 5);
    let frame = Frame::udp(sender.from, (NODE_A, 8080)).payload(&datagram.data);
    let frame = frame.macs(sender.to, ROUTER_MAC).bytes();
    // The second one begins where the first one has not ended.
    let overlapping = fragments(&frame, &[1400, 2800], 5);
    sender.wire.send(&overlapping[2]);
    sender.wire.send(&overlapping[1]);
    sender.send(&datagram, &[0]);
    let whole = sender.datagram(8080, 6);
    sender.send(&whole, &[2, 1, 0]);
    sender.assert_answered(&whole);
    server.peer();
    assert!(server.is_idle());
    assert!(counted(&cluster.a, "ReasmFails") > 0);
    assert_nothing_left(&mut cluster);
}

/// For the host's own rules and sockets they came in by the uplink, and carry nothing of ours.
#[test]
fn fragments_for_the_host_itself_come_by_the_uplink() {
    let (mut cluster, _server) = published(ON_A);
    let host = &cluster.a.namespace;
    host.sysctl("net/ipv4/conf/all/rp_filter", "1");
    host.nft(
        "table ip guard {\n\
             chain input {\n\
                 type filter hook input priority filter; policy accept;\n\
                 iifname != \"up0\" drop\n\
                 meta mark != 0 drop\n\
                 udp dport 9001 drop\n\
             }\n\
         }\n",
    );
    let server = EchoServer::udp(host, at(NODE_A, 9000));
    let closed = EchoServer::udp(host, at(NODE_A, 9001));
    let sender = Sender::new(&cluster, CLIENT);
    for (id, order) in (1..).zip([[0, 1, 2], [2, 1, 0]]) {
        sender.send(&sender.datagram(9001, 100 + id), &order);
        let datagram = sender.datagram(9000, id);
        sender.send(&datagram, &order);
        sender.assert_answered(&datagram);
        server.peer();
    }
    assert!(closed.is_idle(), "a rule of the host's was passed by");
    assert_nothing_left(&mut cluster);
}

/// What waits for its first fragment takes bounded memory, and goes.
#[test]
fn flood_of_later_fragments_is_bounded_and_over_with_its_end() {
    let (cluster, server) = published(ON_B);
    let sender = Sender::new(&cluster, CLIENT);
    let template = sender.datagram(8080, 0).pieces.remove(1);
    for id in 0..=u16::MAX {
        let mut piece = template.clone();
        piece[18..20].copy_from_slice(&id.to_be_bytes());
        piece[24..26].fill(0);
        let sum = checksum(&piece[14..34]);
        piece[24..26].copy_from_slice(&sum.to_be_bytes());
        sender.wire.send(&piece);
    }
    let inside = cluster.a.reassembly.as_ref().unwrap();
    let read = |path: &str| inside.run(|| fs::read_to_string(path)).unwrap();
    let limit: u64 = read("/proc/sys/net/ipv4/ipfrag_high_thresh")
        .trim()
        .parse()
        .unwrap();
    let held = || -> u64 {
        let table = read("/proc/thread-self/net/sockstat");
        let line = table.lines().find_map(|line| line.strip_prefix("FRAG: "));
        line.unwrap()
            .split_whitespace()
            .nth(3)
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(held() <= limit + (1 << 16), "{} of {limit}", held());
    assert!(counted(&cluster.a, "ReasmFails") > 0);
    assert!(server.is_idle());
    wait_until("the flood's remains gone", || held() == 0);
    let datagram = sender.datagram(8080, 1);
    sender.send(&datagram, &[2, 1, 0]);
    sender.assert_answered(&datagram);
}
