//! Which of the node's addresses is meant.

use std::{io, net::Ipv4Addr};

use api::Host;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// Bridges that lead to tasks and containers, not to other nodes.
const INWARD: [&str; 3] = ["sn_gwbridge", "docker0", "docker_gwbridge"];

/// One IPv4 address of an interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddr {
    pub interface: String,
    pub addr: Ipv4Addr,
}

/// Why no address is the one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    #[error("cannot list this node's addresses: {0}")]
    List(String),
    #[error(
        "this node has no address that others could reach it at: give an interface an IPv4 \
         address, or name one with --advertise-addr"
    )]
    None,
    #[error("this node has several addresses ({0}): choose one with --advertise-addr")]
    Several(String),
    #[error("interface `{interface}` has no IPv4 address: this node has {have}")]
    NoneOnInterface { interface: String, have: String },
    #[error("interface `{interface}` has several addresses ({have}): name the address instead")]
    SeveralOnInterface { interface: String, have: String },
    #[error(
        "{addr} is no address of this node, which has {have}: tasks' traffic needs one of these; \
         name it with --data-path-addr"
    )]
    NotLocal { addr: Ipv4Addr, have: String },
}

/// The addresses of this network namespace.
///
/// # Errors
/// The kernel does not tell.
pub fn list() -> Result<Vec<LocalAddr>, AddrError> {
    let failed = |err: io::Error| AddrError::List(err.to_string());
    let all = getifaddrs().map_err(|errno| failed(errno.into()))?;
    Ok(all
        .filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|entry| {
            let addr = entry.address?.as_sockaddr_in()?.ip();
            Some(LocalAddr {
                interface: entry.interface_name,
                addr,
            })
        })
        .collect())
}

/// The only address that leads outside.
///
/// # Errors
/// There is none, or more than one.
pub fn only(have: &[LocalAddr]) -> Result<Ipv4Addr, AddrError> {
    let outward: Vec<LocalAddr> = have
        .iter()
        .filter(|local| !local.addr.is_loopback() && !local.addr.is_link_local())
        .filter(|local| !INWARD.contains(&local.interface.as_str()))
        .cloned()
        .collect();
    match &outward[..] {
        [] => Err(AddrError::None),
        [local] => Ok(local.addr),
        several => Err(AddrError::Several(show(several))),
    }
}

/// The address that a user named.
///
/// # Errors
/// An interface without exactly one.
pub fn resolve(host: &Host, have: &[LocalAddr]) -> Result<Ipv4Addr, AddrError> {
    let interface = match host {
        Host::Addr(addr) => return Ok(*addr),
        Host::Interface(interface) => interface,
    };
    let on: Vec<LocalAddr> = have
        .iter()
        .filter(|local| local.interface == *interface)
        .cloned()
        .collect();
    match &on[..] {
        [local] => Ok(local.addr),
        [] => Err(AddrError::NoneOnInterface {
            interface: interface.clone(),
            have: show(have),
        }),
        several => Err(AddrError::SeveralOnInterface {
            interface: interface.clone(),
            have: show(several),
        }),
    }
}

/// # Errors
/// The address is of no interface here, so no tunnel can end at it.
pub fn check_local(addr: Ipv4Addr, have: &[LocalAddr]) -> Result<(), AddrError> {
    if have.iter().any(|local| local.addr == addr) {
        return Ok(());
    }
    Err(AddrError::NotLocal {
        addr,
        have: show(have),
    })
}

fn show(addrs: &[LocalAddr]) -> String {
    let texts: Vec<String> = addrs
        .iter()
        .map(|local| format!("{} on {}", local.addr, local.interface))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(interface: &str, addr: [u8; 4]) -> LocalAddr {
        LocalAddr {
            interface: interface.to_owned(),
            addr: addr.into(),
        }
    }

    fn machine() -> Vec<LocalAddr> {
        vec![
            at("lo", [127, 0, 0, 1]),
            at("eth0", [192, 0, 2, 1]),
            at("docker0", [172, 17, 0, 1]),
            at("sn_gwbridge", [172, 18, 0, 1]),
        ]
    }

    #[test]
    fn the_only_outward_address_is_taken() {
        assert_eq!(only(&machine()), Ok([192, 0, 2, 1].into()));
        assert_eq!(only(&machine()[..1]), Err(AddrError::None));
    }

    #[test]
    fn several_are_refused_with_their_list() {
        let mut machine = machine();
        machine.push(at("eth1", [198, 51, 100, 1]));
        let err = only(&machine).unwrap_err().to_string();
        assert!(
            err.contains("192.0.2.1 on eth0, 198.51.100.1 on eth1"),
            "{err}"
        );
        assert!(err.contains("--advertise-addr"), "{err}");
    }

    #[test]
    fn an_interface_stands_for_its_only_address() {
        let interface = |name: &str| Host::Interface(name.to_owned());
        let mut machine = machine();
        assert_eq!(
            resolve(&interface("eth0"), &machine),
            Ok([192, 0, 2, 1].into())
        );
        let err = resolve(&interface("eth9"), &machine)
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("`eth9`") && err.contains("192.0.2.1 on eth0"),
            "{err}"
        );
        machine.push(at("eth0", [192, 0, 2, 2]));
        assert!(matches!(
            resolve(&interface("eth0"), &machine),
            Err(AddrError::SeveralOnInterface { .. })
        ));
        let foreign = Ipv4Addr::new(203, 0, 113, 1);
        assert_eq!(resolve(&Host::Addr(foreign), &machine), Ok(foreign));
        assert!(check_local(foreign, &machine).is_err());
    }

    #[test]
    fn this_machine_has_a_loopback_address() {
        let addrs = list().unwrap();
        assert!(addrs.contains(&at("lo", [127, 0, 0, 1])), "{addrs:?}");
    }
}
