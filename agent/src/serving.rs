//! What a task's sockets tell: that it has come to serve, that its connections have ended, that its last
//! bytes have left.

use std::{collections::BTreeSet, fs, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::netns::Netns;

/// How long a process may take to listen.
pub const LISTEN_MAX: Duration = Duration::from_secs(10);
/// How long a stop waits for connections that stay open.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long the kernel may take to deliver what an ended task had sent.
pub const LAST_BYTES_MAX: Duration = Duration::from_secs(2);
/// Between the first two looks, and twice as long between the next ones, ...
const LOOK: Duration = Duration::from_millis(20);
/// ... up to so many times what a look costs: the kernel walks its whole table of sockets, those of all
/// namespaces, which takes ten milliseconds and more.
const LOOK_COSTS: u32 = 20;

/// States of `/proc/net/tcp` in which a peer is owed something (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// Waits until the task listens on each of `ports`, or for [`LISTEN_MAX`]. Gives how many it does not.
pub async fn listens(netns: &Netns, ports: &BTreeSet<u16>) -> usize {
    none_left(netns, LISTEN_MAX, |table| count_missing(table, ports)).await
}

/// Waits until no connection to a port on which the task listens is open, or for [`DRAIN_MAX`].
/// By then every node knows that it drains, so no new ones come.
/// Returns how many were open at the end. Connections that the task opened itself do not count.
pub async fn connections_end(netns: &Netns) -> usize {
    none_left(netns, DRAIN_MAX, count_served).await
}

/// Waits until the peers of an ended task have acknowledged all that it sent, or for
/// [`LAST_BYTES_MAX`]. Its connections would end with a RST when its namespace goes.
pub async fn last_bytes_leave(netns: &Netns) {
    none_left(netns, LAST_BYTES_MAX, count_unacknowledged).await;
}

async fn none_left(netns: &Netns, time: Duration, count: impl Fn(&str) -> usize) -> usize {
    let deadline = Instant::now() + time;
    let mut pause = LOOK;
    loop {
        let sockets = sockets(netns);
        let left = sockets.as_ref().map_or(0, |seen| count(&seen.table));
        let now = Instant::now();
        if left == 0 || now >= deadline {
            return left;
        }
        let cost = sockets.map_or(Duration::ZERO, |seen| seen.cost);
        sleep_until(deadline.min(now + pause)).await;
        pause = (pause * 2).min(LOOK.max(cost * LOOK_COSTS));
    }
}

/// The TCP sockets of a namespace.
struct Sockets {
    /// `/proc/net/tcp` and `tcp6`.
    table: String,
    /// CPU time.
    cost: Duration,
}

/// `None` for a namespace that cannot be read: it holds up no stop.
fn sockets(netns: &Netns) -> Option<Sockets> {
    // A thread of its own, whose time is that of the look.
    let sockets = netns.run(|| {
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        Ok(Sockets {
            table: read("tcp")? + &read("tcp6").unwrap_or_default(),
            cost: thread_time(),
        })
    });
    sockets.ok()
}

/// CPU time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours.
    let got = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(got, 0, "every thread has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn count_missing(table: &str, ports: &BTreeSet<u16>) -> usize {
    let sockets = table.lines().filter_map(parse);
    let listening = sockets.filter(|(_, state)| *state == LISTEN);
    let listening: BTreeSet<_> = listening.map(|(port, _)| port).collect();
    ports.difference(&listening).count()
}

fn count_served(table: &str) -> usize {
    let sockets: Vec<_> = table.lines().filter_map(parse).collect();
    let served: BTreeSet<_> = sockets
        .iter()
        .filter(|(_, state)| *state == LISTEN)
        .map(|(port, _)| *port)
        .collect();
    let is_open = |state| {
        matches!(
            state,
            ESTABLISHED | SYN_RECV | FIN_WAIT1 | CLOSE_WAIT | LAST_ACK
        )
    };
    sockets
        .iter()
        .filter(|(port, state)| is_open(*state) && served.contains(port))
        .count()
}

fn count_unacknowledged(table: &str) -> usize {
    let is_unacknowledged =
        |(_, state): &(u16, u8)| matches!(*state, FIN_WAIT1 | CLOSING | LAST_ACK);
    let sockets = table.lines().filter_map(parse);
    sockets.filter(is_unacknowledged).count()
}

/// Local port and state of a line of `/proc/net/tcp`:
/// `sl local_address rem_address st …`, the addresses as `hex:hex`.
fn parse(line: &str) -> Option<(u16, u8)> {
    let mut fields = line.split_whitespace().skip(1);
    let (_, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    Some((
        u16::from_str_radix(port, 16).ok()?,
        u8::from_str_radix(state, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_connections_to_a_listening_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 020012AC:0050 644DA8C0:9C40 01 00000000:00000000 00:00000000 00000000     0
   2: 020012AC:0050 644DA8C0:9C42 06 00000000:00000000 00:00000000 00000000     0
   3: 020012AC:C350 0900000A:1538 01 00000000:00000000 00:00000000 00000000     0
";
        assert_eq!(count_served(table), 1);
    }

    #[test]
    fn only_connections_closed_with_bytes_on_their_way_count_in_the_end() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 020012AC:0050 644DA8C0:9C40 04 00000001:00000000 00:00000000 00000000     0
   1: 020012AC:0050 644DA8C0:9C41 05 00000000:00000000 00:00000000 00000000     0
   2: 020012AC:0050 644DA8C0:9C42 09 00000001:00000000 00:00000000 00000000     0
   3: 020012AC:0050 644DA8C0:9C43 06 00000000:00000000 00:00000000 00000000     0
";
        assert_eq!(count_unacknowledged(table), 2);
    }

    #[test]
    fn only_ports_with_a_listener_are_there() {
        let table = "\
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 020012AC:0051 644DA8C0:9C40 01 00000000:00000000 00:00000000 00000000     0
";
        assert_eq!(count_missing(table, &BTreeSet::from([80])), 0);
        assert_eq!(count_missing(table, &BTreeSet::from([80, 81, 82])), 2);
    }

    #[test]
    fn hostile_lines_count_for_nothing() {
        assert_eq!(count_served("x\n0: y z 01\n0: 0:99999 0:0 01\n\u{0}"), 0);
    }
}
