//! What the API needs of the node it runs on. The daemon implements it.

use std::{collections::BTreeMap, fmt, fs::File, net::Ipv4Addr, net::SocketAddrV4, str::FromStr};

use async_trait::async_trait;
use model::{
    NodeId,
    inspect::{Table, TraceAnswer, TraceQuery},
    object::{DataPathConfig, NodeDescription},
    spec::{Availability, ClusterSpec, Protocol},
};

use vault::UnlockKey;

use crate::error::ApiError;

/// The node behind the socket: its membership in a cluster, and its data plane.
#[async_trait]
pub trait LocalNode: Send + Sync + 'static {
    /// Makes a new cluster with this node as its first manager. Called only when the node is in
    /// none.
    async fn init(&self, request: InitRequest) -> Result<NodeId, ApiError>;

    /// Makes the manager of this node the only one of its cluster, with the state that it has, after
    /// the others were lost. It is known by `advertise` from then on, if that is named.
    ///
    /// # Errors
    /// When no manager has run here.
    async fn force_new_cluster(&self, advertise: Option<HostPort>) -> Result<NodeId, ApiError>;

    /// Joins a cluster, and returns once the managers know this node. Called only when the node
    /// is in none.
    async fn join(&self, params: JoinParams) -> Result<(), ApiError>;

    /// Goes on as a manager that was locked. Called only when it is.
    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError>;

    /// Leaves the cluster and forgets it; whether a manager may is settled before. Says what the
    /// other managers could not be told.
    async fn leave(&self) -> Result<Option<String>, ApiError>;

    /// A tar archive of what this node's manager is made of, at its beginning, for a directory from
    /// which `force_new_cluster` goes on. Called only on a manager.
    async fn backup(&self) -> Result<File, ApiError>;

    /// This node's membership at the moment.
    fn status(&self) -> LocalStatus;

    /// The manager that runs on this node.
    fn manager(&self) -> Option<control::Manager>;

    /// What this node says of itself.
    fn description(&self) -> NodeDescription;

    /// The first of `ports` on which somebody of this node listens, who would lose its packets to a
    /// service that publishes it, and who that is. A service that publishes it already is nobody.
    fn port_user(&self, ports: &PublishedPorts) -> Option<((Protocol, u16), PortUser)>;

    /// A table of this node's data plane as a JSON array of the rows in [`model::inspect`].
    /// Of [`Table::Nodes`] only what the agent doubts ([`model::inspect::DoubtRow`]): the rest is the
    /// managers'.
    async fn inspect(&self, table: Table) -> Result<serde_json::Value, ApiError>;

    /// Where a packet would go from this node, and why.
    async fn trace(&self, query: TraceQuery) -> Result<TraceAnswer, ApiError>;
}

/// Ports of the mesh with the addresses that they are on: none means all of every node.
pub type PublishedPorts = BTreeMap<(Protocol, u16), Vec<Ipv4Addr>>;

/// A socket that has a port of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUser {
    /// Name and pid of its process; the kernel has sockets of its own, and a process that ended
    /// just now has none.
    pub process: Option<(String, u32)>,
}

impl fmt::Display for PortUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((name, pid)) => write!(f, "process {name} (pid {pid})"),
            None => write!(f, "the kernel"),
        }
    }
}

/// A node's membership.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalStatus {
    /// What the node is.
    pub state: MemberState,
    /// Its id, when it is or becomes a member.
    pub node: Option<NodeId>,
    /// The address it is known by.
    pub addr: Option<Ipv4Addr>,
    /// Managers that it knows of, itself included.
    pub remote_managers: Vec<RemoteManager>,
    /// What is wrong, for a person: no manager reachable, and the like.
    pub error: Option<String>,
}

/// Whether a node is in a cluster, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemberState {
    /// In none.
    #[default]
    Inactive,
    /// A manager that wants the unlock key.
    Locked,
    /// A manager with the log of a backup, which waits to be made the only one.
    Restored,
    /// A member that has not reached a manager yet.
    Pending,
    /// Runs tasks.
    Worker,
    /// Runs tasks and the control plane.
    Manager,
}

/// Where a manager listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteManager {
    /// Not known between a join and the first feed.
    pub node: Option<NodeId>,
    /// Its gRPC address.
    pub addr: SocketAddrV4,
}

/// A new cluster, as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitRequest {
    /// Where the manager listens; `0.0.0.0:2377` when the user did not say.
    pub listen: HostPort,
    /// The address that others know this node by; the daemon finds it when `None`.
    pub advertise: Option<HostPort>,
    /// Tunnel address; the advertised one when `None`.
    pub data_path_addr: Option<Host>,
    /// Pools, subnet length and VXLAN port; `ring_seed` is left 0, for the manager to choose.
    pub data_path: DataPathConfig,
    /// Settings that may be changed later.
    pub spec: ClusterSpec,
    /// Of this node.
    pub availability: Availability,
}

/// A join, as the user asked for it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinParams {
    /// Where a manager of this node would listen.
    pub listen: HostPort,
    /// The address that others know this node by; the one it connects from when `None`.
    pub advertise: Option<HostPort>,
    /// Tunnel address; the advertised one when `None`.
    pub data_path_addr: Option<Host>,
    /// Managers to ask, at least one; names are for the daemon to resolve.
    pub remotes: Vec<Remote>,
    /// `SWMTKN-1-…`.
    pub token: String,
    /// Of this node.
    pub availability: Availability,
}

impl fmt::Debug for JoinParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the token: it is a secret.
        f.debug_struct("JoinParams")
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("data_path_addr", &self.data_path_addr)
            .field("remotes", &self.remotes)
            .field("availability", &self.availability)
            .finish_non_exhaustive()
    }
}

/// A manager to ask for admission: an address or a host name, and a port (2377 unless written).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Address or DNS name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// An address of this node, or the interface that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// IPv4 address.
    Addr(Ipv4Addr),
    /// `eth0`: the daemon takes its only address.
    Interface(String),
}

/// `192.0.2.1:2377`, `eth0:2377`, or either without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Address or interface.
    pub host: Host,
    /// TCP port, when written.
    pub port: Option<u16>,
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid address `{0}`: want an IPv4 address or an interface name, and optionally :port")]
pub struct ParseHostError(String);

impl FromStr for Host {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        if let Ok(addr) = text.parse() {
            return Ok(Self::Addr(addr));
        }
        // Interface names: at most 15 bytes, no blank, slash or colon (`dev_valid_name`). One of
        // digits and dots alone is a mistyped address.
        let valid = (1..=15).contains(&text.len())
            && !text.contains(['/', ':'])
            && !text.contains(char::is_whitespace)
            && text.contains(|c: char| c != '.' && !c.is_ascii_digit());
        if valid {
            Ok(Self::Interface(text.to_owned()))
        } else {
            Err(ParseHostError(text.to_owned()))
        }
    }
}

impl FromStr for HostPort {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        let whole = |_| ParseHostError(text.to_owned());
        let Some((host, port)) = text.rsplit_once(':') else {
            let host = text.parse()?;
            return Ok(Self { host, port: None });
        };
        let port: u16 = port.parse().map_err(|_| ParseHostError(text.to_owned()))?;
        let host = if host.is_empty() {
            Host::Addr(Ipv4Addr::UNSPECIFIED)
        } else {
            host.parse().map_err(whole)?
        };
        Ok(Self {
            host,
            port: Some(port),
        })
    }
}

impl FromStr for Remote {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        let wrong = || ParseHostError(text.to_owned());
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (text, model::rpc::MANAGER_PORT),
        };
        if host.is_empty() || host.contains([':', '/']) || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_interfaces_with_and_without_port() {
        let addr = Host::Addr(Ipv4Addr::new(192, 0, 2, 1));
        let read = |text: &str| text.parse::<HostPort>();
        assert_eq!(
            read("192.0.2.1:2377"),
            Ok(HostPort {
                host: addr.clone(),
                port: Some(2377)
            })
        );
        assert_eq!(
            read("192.0.2.1"),
            Ok(HostPort {
                host: addr,
                port: None
            })
        );
        assert_eq!(
            read("eth0:99"),
            Ok(HostPort {
                host: Host::Interface("eth0".into()),
                port: Some(99)
            })
        );
        for wrong in ["", "192.0.2", "192.0.2.1:x", "a b", "eth0:99999", "[::1]:1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn remote_has_the_managers_port_unless_written() {
        let read = |text: &str| text.parse::<Remote>().map(|remote| remote.port);
        assert_eq!(read("manager.example"), Ok(2377));
        assert_eq!(read("192.0.2.1:1"), Ok(1));
        assert!(read(":2377").is_err());
        assert!(read("").is_err());
    }
}
