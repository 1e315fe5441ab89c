//! Who on this node listens on a port, as `/proc` tells.

use std::{collections::BTreeSet, fs, path::Path};

use api::PortUser;
use model::spec::Protocol;

/// States in `/proc/net`: a TCP socket that listens, a UDP socket that takes from anybody.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// The first of `ports` for which somebody on this node gets packets now, and who. Loopback
/// addresses count: the programs serve published ports there too. The ports that this daemon holds
/// for services do not. `/proc` is read once for all ports: the kernel walks all sockets for that.
pub fn user(ports: &BTreeSet<(Protocol, u16)>) -> Option<((Protocol, u16), PortUser)> {
    // The mesh refuses SCTP before anybody asks.
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .filter(|protocol| ports.iter().any(|(wanted, _)| wanted == protocol))
        .find_map(|protocol| user_of(protocol, |port| ports.contains(&(protocol, port))))
}

fn user_of(
    protocol: Protocol,
    is_wanted: impl Fn(u16) -> bool,
) -> Option<((Protocol, u16), PortUser)> {
    let (tables, state) = match protocol {
        Protocol::Udp => (["udp", "udp6"], UDP_UNCONNECTED),
        _ => (["tcp", "tcp6"], TCP_LISTEN),
    };
    // Of the main thread: others may be in a task's namespace for a moment.
    let read = |table| fs::read_to_string(Path::new("/proc/self/net").join(table));
    let tables: Vec<String> = tables
        .into_iter()
        .filter_map(|table| read(table).ok())
        .collect();
    let mut sockets = tables
        .iter()
        .flat_map(|table| table.lines())
        .filter_map(|line| socket(line, state))
        .filter(|(port, _)| is_wanted(*port));
    sockets.find_map(|(port, inode)| {
        let user = owner(inode);
        // TCP ports held for services do not listen; UDP ones cannot be told from others.
        let holds = protocol == Protocol::Udp
            && user
                .process
                .as_ref()
                .is_some_and(|(_, pid)| *pid == std::process::id());
        (!holds).then_some(((protocol, port), user))
    })
}

/// Port and inode, if the line of `/proc/net/{tcp,udp}{,6}` is of a socket that takes IPv4 packets.
fn socket<'line>(line: &'line str, state: &str) -> Option<(u16, &'line str)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (addr, bound) = words.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(bound, 16).ok()?;
    let ours = words.get(3) == Some(&state) && takes_ipv4(addr);
    ours.then(|| Some((port, *words.get(9)?))).flatten()
}

/// IPv4 addresses have 8 digits; of IPv6 the unspecified one and mapped ones (words in host order).
fn takes_ipv4(addr: &str) -> bool {
    addr.len() == 8
        || addr.bytes().all(|digit| digit == b'0')
        || addr.starts_with(if cfg!(target_endian = "little") {
            "0000000000000000FFFF0000"
        } else {
            "00000000000000000000FFFF"
        })
}

/// The process that has the socket open. None has a tunnel's: those are the kernel's own.
fn owner(inode: &str) -> PortUser {
    let wanted = format!("socket:[{inode}]");
    let has_it = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| link.as_os_str() == wanted.as_str())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(has_it);
    PortUser {
        process: pid.and_then(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((name.trim_end().to_owned(), pid))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn user(protocol: Protocol, port: u16) -> Option<PortUser> {
        super::user(&[(protocol, port)].into()).map(|(_, user)| user)
    }

    #[test]
    fn listener_is_found_with_its_process_wherever_it_listens() {
        for addr in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(addr).unwrap();
            let port = listener.local_addr().unwrap().port();
            let (_, pid) = user(Protocol::Tcp, port).unwrap().process.unwrap();
            assert_eq!(pid, std::process::id(), "{addr}");
            drop(listener);
            assert_eq!(user(Protocol::Tcp, port), None, "{addr}");
        }
    }

    #[test]
    fn connections_and_ipv6_listeners_do_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(
            user(Protocol::Tcp, stream.local_addr().unwrap().port()),
            None
        );
        let listener = TcpListener::bind("[::1]:0").unwrap();
        assert_eq!(
            user(Protocol::Tcp, listener.local_addr().unwrap().port()),
            None
        );
    }

    #[test]
    fn udp_ports_of_this_process_are_held_for_services() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            user(Protocol::Udp, socket.local_addr().unwrap().port()),
            None
        );
    }
}
