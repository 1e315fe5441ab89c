//! The end of a task's connections before its stop: by then every node knows that it drains, so no
//! new ones come.

use std::{collections::BTreeSet, fs, time::Duration};

use tokio::time::{Instant, interval};

use crate::netns::Netns;

/// How long a stop waits for connections that stay open.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// States of `/proc/net/tcp` in which a peer is owed something (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;

/// Waits until no connection to a port on which the task listens is open, or for [`DRAIN_MAX`].
/// Returns how many were open at the end. Connections that the task opened itself do not count.
pub async fn connections_end(netns: &Netns) -> usize {
    let deadline = Instant::now() + DRAIN_MAX;
    let mut look = interval(LOOK);
    loop {
        look.tick().await;
        let open = open_connections(netns);
        if open == 0 || Instant::now() >= deadline {
            return open;
        }
    }
}

fn open_connections(netns: &Netns) -> usize {
    let tables = netns.run(|| {
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        Ok(read("tcp")? + &read("tcp6").unwrap_or_default())
    });
    // A namespace that cannot be read holds up no stop.
    tables.map_or(0, |tables| count_served(&tables))
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
    fn hostile_lines_count_for_nothing() {
        assert_eq!(count_served("x\n0: y z 01\n0: 0:99999 0:0 01\n\u{0}"), 0);
    }
}
