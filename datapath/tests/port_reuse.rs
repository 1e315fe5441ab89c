//! Source ports that are used again while the connection before is in TIME_WAIT at one of its ends.

mod common;

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    ops::Range,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use common::{cluster::*, two_nodes::*, *};

const PORTS: Range<u16> = 20_000..20_500;
const TCP_TIME_WAIT: &str = "06";

#[test]
fn ports_in_time_wait_are_used_again_without_a_stall() {
    let mut cluster = Cluster::new();
    cluster.publish(0, &[slot(ON_B, ON_B)]);
    // A client that closes first is held up by its own kernel until this allows it, a second later.
    cluster.client.sysctl("net/ipv4/tcp_tw_reuse", "1");
    let task = &cluster.b.tasks[0];
    let _server = WordServer::new(&task.namespace, at(task.gateway, 80));

    let mut connections = open(&cluster.client, at(NODE_A, 8080));
    drop(connections);
    wait_for_time_wait(&cluster.client);
    connections = open(&cluster.client, at(NODE_A, 8080));

    connections.into_iter().for_each(WordServer::end);
    wait_for_time_wait(&cluster.b.tasks[0].namespace);
    connections = open(&cluster.client, at(NODE_A, 8080));

    // By another node, to the same task.
    connections.into_iter().for_each(WordServer::end);
    connections = open(&cluster.client, at(NODE_B, 8080));

    assert_all_echo(&connections);
    let opened = 4 * PORTS.len() as u64;
    assert_eq!(cluster.b.node.stats(21).new_flows, opened);
    cluster.assert_no_drops();
}

/// A connection from each port; none had to say its SYN twice.
fn open(client: &Namespace, to: SocketAddr) -> Vec<TcpStream> {
    let connections: Vec<_> = PORTS
        .map(|port| connect_when_free(client, port, to))
        .collect();
    assert_all_echo(&connections);
    let again: u32 = connections.iter().map(retransmissions).sum();
    assert_eq!(again, 0, "segments sent again");
    connections
}

#[track_caller]
fn wait_for_time_wait(namespace: &Namespace) {
    let deadline = Instant::now() + patience();
    loop {
        let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/tcp"));
        let table = table.unwrap();
        let states = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3));
        let waiting = states.filter(|state| *state == TCP_TIME_WAIT).count();
        if waiting >= PORTS.len() {
            return;
        }
        assert!(Instant::now() < deadline, "only {waiting} in TIME_WAIT");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Of a connection so far, its SYN's included.
fn retransmissions(connection: &TcpStream) -> u32 {
    // SAFETY: integers; zero is a value of each.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
    let got = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    info.tcpi_total_retrans
}
