//! Labels of a service that say how its traffic goes: what the Docker API has no field for.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::spec::{Labels, Protocol};

/// Labels that begin so are ours, and each is checked.
pub const PREFIX: &str = "swarmnet.";
pub const RETURN: &str = "swarmnet.return";
pub const AFFINITY: &str = "swarmnet.affinity";
pub const AFFINITY_TIMEOUT: &str = "swarmnet.affinity.timeout";
pub const PREFER: &str = "swarmnet.prefer";
pub const WEIGHT: &str = "swarmnet.weight";
/// Followed by `PORT/PROTOCOL`.
pub const PUBLISH: &str = "swarmnet.publish.";

/// What a node's label must begin with in [`WEIGHT`], as in placement constraints.
const NODE_LABELS: &str = "node.labels.";
/// The shortest affinity, in seconds: twice as long as nodes take to name the connections that a
/// client's next task must not answer.
pub const AFFINITY_SECS_MIN: u32 = 10;
/// The longest, 18 hours.
pub const AFFINITY_SECS_MAX: u32 = 18 * 3_600;
const _: () = assert!(AFFINITY_SECS_MAX <= u16::MAX as u32);
/// The largest weight; the smallest is one.
pub const WEIGHT_MAX: u32 = 100;

/// How a service's traffic goes; the default is what Swarm does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    pub policy: Policy,
    /// The label of a node that says what its tasks weigh.
    pub weight: Option<String>,
    /// Addresses that a published port is on; without an entry it is on all.
    pub addresses: BTreeMap<(Protocol, u16), Vec<Ipv4Addr>>,
}

/// The part that every node acts upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Replies of the mesh go from the task's node to the client, and not back through the entry.
    pub direct_return: bool,
    /// A client's flows all go to one backend.
    pub affinity: bool,
    /// New flows go to tasks of the node where they come in, as long as one there is active.
    #[serde(default)]
    pub near_first: bool,
    /// For so many seconds after its last packet a client keeps its backend when the ring changes; zero
    /// leaves it to the ring.
    #[serde(default)]
    pub affinity_secs: u16,
}

/// A label that says nothing, or nothing that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrafficError {
    #[error("label {label}={value}: it is {known}")]
    Value {
        label: String,
        value: String,
        known: &'static str,
    },
    #[error(
        "label {AFFINITY_TIMEOUT}={0}: there is no affinity that could time out; add \
         {AFFINITY}=client-ip, or remove this label"
    )]
    TimeoutAlone(String),
    #[error(
        "label {0} is not one of swarmnet.return, swarmnet.affinity, swarmnet.affinity.timeout, \
         swarmnet.prefer, swarmnet.weight and swarmnet.publish.PORT/PROTOCOL; change or remove it"
    )]
    Unknown(String),
}

impl Traffic {
    /// # Errors
    /// Names the label and what it may be.
    pub fn of(labels: &Labels) -> Result<Self, TrafficError> {
        let mut traffic = Self::default();
        for (label, value) in labels.iter().filter(|(label, _)| label.starts_with(PREFIX)) {
            traffic.read(label, value)?;
        }
        match labels.get(AFFINITY_TIMEOUT) {
            Some(timeout) if !traffic.policy.affinity => {
                Err(TrafficError::TimeoutAlone(timeout.clone()))
            }
            _ => Ok(traffic),
        }
    }

    fn read(&mut self, label: &str, value: &str) -> Result<(), TrafficError> {
        let wrong = |known| TrafficError::Value {
            label: label.to_owned(),
            value: value.to_owned(),
            known,
        };
        match label {
            RETURN => {
                self.policy.direct_return = match value {
                    "dsr" => true,
                    "tunnel" => false,
                    _ => return Err(wrong("dsr or tunnel")),
                }
            }
            AFFINITY => {
                self.policy.affinity = match value {
                    "client-ip" => true,
                    "none" => false,
                    _ => return Err(wrong("client-ip or none")),
                }
            }
            AFFINITY_TIMEOUT => {
                let known = "a time from 10s to 18h, such as 90s, 30m or 1h30m";
                self.policy.affinity_secs = seconds(value).ok_or_else(|| wrong(known))?;
            }
            PREFER => {
                self.policy.near_first = match value {
                    "local" => true,
                    "spread" => false,
                    _ => return Err(wrong("spread or local")),
                }
            }
            WEIGHT => {
                let name = value.strip_prefix(NODE_LABELS);
                let name = name.filter(|name| !name.is_empty());
                let known = "node.labels.NAME, the label of a node that says what its tasks weigh";
                self.weight = Some(name.ok_or_else(|| wrong(known))?.to_owned());
            }
            _ => {
                let port = label.strip_prefix(PUBLISH).and_then(port);
                let port = port.ok_or_else(|| TrafficError::Unknown(label.to_owned()))?;
                let known = "one or more IPv4 addresses of nodes, such as 192.0.2.1,127.0.0.1";
                let addresses = addresses(value).ok_or_else(|| wrong(known))?;
                self.addresses.insert(port, addresses);
            }
        }
        Ok(())
    }

    /// The addresses that a published port is on; none means all.
    pub fn addresses_of(&self, protocol: Protocol, port: u16) -> Vec<Ipv4Addr> {
        let addresses = self.addresses.get(&(protocol, port));
        addresses.cloned().unwrap_or_default()
    }

    /// What a task weighs on a node with these labels: 1 to [`WEIGHT_MAX`], or one when the node
    /// says nothing that is a number.
    pub fn weight_on(&self, node: &Labels) -> u32 {
        let label = self.weight.as_ref().and_then(|name| node.get(name));
        let weight = label.and_then(|value| value.parse::<u32>().ok());
        weight.map_or(1, |weight| weight.clamp(1, WEIGHT_MAX))
    }
}

/// `1h30m`, within the bounds.
fn seconds(text: &str) -> Option<u16> {
    let mut total = 0u32;
    let mut rest = text;
    while let Some(end) = rest.find(['h', 'm', 's']) {
        let scale = match rest.as_bytes()[end] {
            b'h' => 3_600,
            b'm' => 60,
            _ => 1,
        };
        let part = rest[..end].parse::<u32>().ok()?.checked_mul(scale)?;
        total = total.checked_add(part)?;
        rest = &rest[end + 1..];
    }
    let is_allowed = (AFFINITY_SECS_MIN..=AFFINITY_SECS_MAX).contains(&total);
    (rest.is_empty() && is_allowed).then_some(total as u16)
}

/// The label for a port's addresses.
pub fn publish_label(protocol: Protocol, port: u16) -> String {
    format!("{PUBLISH}{port}/{protocol}")
}

/// `8080/tcp`.
fn port(text: &str) -> Option<(Protocol, u16)> {
    let (port, protocol) = text.split_once('/')?;
    let mut protocols = [Protocol::Tcp, Protocol::Udp].into_iter();
    let protocol = protocols.find(|known| known.as_str() == protocol)?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some((protocol, port))
}

fn addresses(text: &str) -> Option<Vec<Ipv4Addr>> {
    let mut addresses = text
        .split(',')
        .map(|addr| addr.trim().parse().ok().filter(is_of_a_node))
        .collect::<Option<Vec<Ipv4Addr>>>()?;
    addresses.sort_unstable();
    addresses.dedup();
    Some(addresses)
}

/// Of loopback, sockets know 127.0.0.1 alone as "this node".
fn is_of_a_node(addr: &Ipv4Addr) -> bool {
    let is_other_loopback = addr.is_loopback() && *addr != Ipv4Addr::LOCALHOST;
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() || is_other_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)]) -> Result<Traffic, TrafficError> {
        let labels = labels.iter();
        Traffic::of(
            &labels
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn labels_are_read() {
        let traffic = of(&[
            ("swarmnet.return", "dsr"),
            ("swarmnet.affinity", "client-ip"),
            ("swarmnet.affinity.timeout", "1h30m5s"),
            ("swarmnet.prefer", "local"),
            ("swarmnet.weight", "node.labels.cores"),
            (
                "swarmnet.publish.8080/tcp",
                "192.0.2.1, 127.0.0.1,192.0.2.1",
            ),
            ("com.example", "anything"),
        ])
        .unwrap();
        assert!(traffic.policy.direct_return && traffic.policy.affinity);
        assert!(traffic.policy.near_first);
        assert_eq!(traffic.policy.affinity_secs, 5_405);
        assert_eq!(traffic.weight.as_deref(), Some("cores"));
        assert_eq!(
            traffic.addresses[&(Protocol::Tcp, 8080)],
            [Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 1)]
        );
        let default = of(&[
            ("swarmnet.return", "tunnel"),
            ("swarmnet.affinity", "none"),
            ("swarmnet.prefer", "spread"),
        ]);
        assert_eq!(default, Ok(Traffic::default()));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        for (label, value, said) in [
            ("swarmnet.return", "direct", "dsr or tunnel"),
            ("swarmnet.return", "", "dsr or tunnel"),
            ("swarmnet.affinity", "cookie", "client-ip or none"),
            (
                "swarmnet.affinity.timeout",
                "30m",
                "no affinity that could time out",
            ),
            ("swarmnet.affinity.timeout", "0s", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "9s", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "18h1s", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "90", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "30m5", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "-30m", "from 10s to 18h"),
            ("swarmnet.affinity.timeout", "", "from 10s to 18h"),
            (
                "swarmnet.affinity.timeout",
                "4294967295h",
                "from 10s to 18h",
            ),
            ("swarmnet.prefer", "near", "spread or local"),
            ("swarmnet.weight", "cores", "node.labels.NAME"),
            ("swarmnet.weight", "node.labels.", "node.labels.NAME"),
            ("swarmnet.retrun", "dsr", "change or remove it"),
            ("swarmnet.publish.8080", "192.0.2.1", "change or remove it"),
            ("swarmnet.publish.0/tcp", "192.0.2.1", "change or remove it"),
            (
                "swarmnet.publish.80/sctp",
                "192.0.2.1",
                "change or remove it",
            ),
            ("swarmnet.publish.80/tcp", "", "IPv4 addresses of nodes"),
            (
                "swarmnet.publish.80/tcp",
                "0.0.0.0",
                "IPv4 addresses of nodes",
            ),
            (
                "swarmnet.publish.80/tcp",
                "127.0.0.2",
                "IPv4 addresses of nodes",
            ),
            (
                "swarmnet.publish.80/tcp",
                "192.0.2.1,::1",
                "IPv4 addresses of nodes",
            ),
        ] {
            let error = of(&[(label, value)]).unwrap_err().to_string();
            assert!(error.contains(label) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn weight_is_bounded_and_one_by_default() {
        let traffic = of(&[("swarmnet.weight", "node.labels.w")]).unwrap();
        let on = |value: &str| traffic.weight_on(&[("w".to_owned(), value.to_owned())].into());
        assert_eq!(["3", "0", "1000", "-1", "many"].map(on), [3, 1, 100, 1, 1]);
        assert_eq!(traffic.weight_on(&Labels::new()), 1);
        assert_eq!(
            Traffic::default().weight_on(&[("w".to_owned(), "9".to_owned())].into()),
            1
        );
    }
}
