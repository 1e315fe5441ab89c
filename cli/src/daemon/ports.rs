//! Who on this node listens on a port, as `/proc` tells.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
};

use api::{PortUser, PublishedPorts};
use model::spec::Protocol;

/// States in `/proc/net`: a TCP socket that listens, a UDP socket that takes from anybody.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// The first of `ports` for which somebody on this node gets packets now, and who. Loopback
/// addresses count: the programs serve published ports there too. The ports that this daemon holds
/// for services do not. `/proc` is read once for all ports: the kernel walks all sockets for that.
pub fn user(ports: &PublishedPorts) -> Option<((Protocol, u16), PortUser)> {
    let here = |addr: &Ipv4Addr| UdpSocket::bind((*addr, 0)).is_ok();
    let ports: PublishedPorts = ports
        .iter()
        .filter(|(_, addrs)| addrs.is_empty() || addrs.iter().any(here))
        .map(|(port, addrs)| (*port, addrs.clone()))
        .collect();
    // The mesh refuses SCTP before anybody asks.
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .filter(|protocol| ports.keys().any(|(wanted, _)| wanted == protocol))
        .find_map(|protocol| {
            user_of(protocol, |port, bound| {
                let addrs = ports.get(&(protocol, port));
                addrs.is_some_and(|addrs| {
                    addrs.is_empty() || bound.is_unspecified() || addrs.contains(&bound)
                })
            })
        })
}

fn user_of(
    protocol: Protocol,
    is_wanted: impl Fn(u16, Ipv4Addr) -> bool,
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
        .filter(|(port, addr, _)| is_wanted(*port, *addr));
    sockets.find_map(|(port, _, inode)| {
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

/// Port, address and inode, if the line of `/proc/net/{tcp,udp}{,6}` is of a socket that takes IPv4 packets.
fn socket<'line>(line: &'line str, state: &str) -> Option<(u16, Ipv4Addr, &'line str)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (addr, bound) = words.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(bound, 16).ok()?;
    let inode = *words.get(9)?;
    (words.get(3) == Some(&state)).then_some(())?;
    Some((port, ipv4(addr)?, inode))
}

/// IPv4 addresses have 8 digits, in host order; of IPv6 the unspecified one takes IPv4 packets, and mapped ones.
fn ipv4(addr: &str) -> Option<Ipv4Addr> {
    const MAPPED: &str = if cfg!(target_endian = "little") {
        "0000000000000000FFFF0000"
    } else {
        "00000000000000000000FFFF"
    };
    let unspecified = addr.bytes().all(|digit| digit == b'0');
    let digits = match addr.len() {
        8 => addr,
        _ if unspecified => &addr[..8],
        _ => addr.strip_prefix(MAPPED)?,
    };
    let word = u32::from_str_radix(digits, 16).ok()?;
    Some(Ipv4Addr::from(word.to_ne_bytes()))
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
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn user(protocol: Protocol, port: u16) -> Option<PortUser> {
        on_addrs(protocol, port, &[])
    }

    fn on_addrs(protocol: Protocol, port: u16, addrs: &[Ipv4Addr]) -> Option<PortUser> {
        super::user(&[((protocol, port), addrs.to_vec())].into()).map(|(_, user)| user)
    }

    #[test]
    fn listener_on_another_address_than_the_ports_is_in_nobodys_way() {
        const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
        const NOT_HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
        let listener = TcpListener::bind((OTHER, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(on_addrs(Protocol::Tcp, port, &[Ipv4Addr::LOCALHOST]), None);
        assert!(on_addrs(Protocol::Tcp, port, &[Ipv4Addr::LOCALHOST, OTHER]).is_some());

        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(on_addrs(Protocol::Tcp, port, &[OTHER]).is_some());
        assert_eq!(on_addrs(Protocol::Tcp, port, &[NOT_HERE]), None);
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
