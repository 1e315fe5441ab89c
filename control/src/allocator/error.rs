//! Why a number cannot be handed out.

use ipnet::Ipv4Net;
use model::{NetworkId, spec::Protocol};

use super::PortConflict;

/// Nothing was handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    #[error(
        "network {name} ({subnet}) has no free address for {wanted}; remove tasks or services \
         from it, or use a network with a larger --subnet"
    )]
    NetworkFull {
        name: String,
        subnet: Ipv4Net,
        /// `a task of service web`, `the VIP of service web`.
        wanted: String,
    },
    #[error("network {0} not found")]
    UnknownNetwork(NetworkId),
    #[error(transparent)]
    PortTaken(#[from] PortConflict),
    #[error(
        "port {0}/udp carries the tunnel between the nodes (the cluster's data-path port): publish \
         another one"
    )]
    DataPathPort(u16),
    #[error(
        "port {}/udp carries the probes between the nodes: publish another one",
        model::probe::PORT
    )]
    ProbesPort,
    #[error(
        "all {protocol} ports from 30000 to 32767 are published; remove a service or name the \
         published port yourself"
    )]
    PortsExhausted { protocol: Protocol },
    #[error(
        "no /{prefix_len} is left in the address pools {}; remove a network or give one with \
         --subnet", list(.pools)
    )]
    PoolsExhausted { pools: Vec<Ipv4Net>, prefix_len: u8 },
    #[error("subnet {wanted} overlaps with {found} of network {name}; choose another --subnet")]
    SubnetOverlaps {
        wanted: Ipv4Net,
        found: Ipv4Net,
        name: String,
    },
    #[error(
        "subnet {wanted} overlaps with {found} of the nodes' gateway bridges; choose another \
         --subnet"
    )]
    GatewayBridge { wanted: Ipv4Net, found: Ipv4Net },
    #[error("subnet {0} is too small for a network: give one of /30 or larger")]
    SubnetTooSmall(Ipv4Net),
    #[error("ip-range {range} has no host address of subnet {subnet}; give a larger --ip-range")]
    RangeEmpty { range: Ipv4Net, subnet: Ipv4Net },
    #[error("{what} {found} is not within the subnet {subnet}")]
    OutsideSubnet {
        /// `gateway`, `ip-range`.
        what: &'static str,
        found: String,
        subnet: Ipv4Net,
    },
    #[error("every VXLAN network identifier is in use; remove a network")]
    VnisExhausted,
}

fn list(pools: &[Ipv4Net]) -> String {
    let pools: Vec<_> = pools.iter().map(Ipv4Net::to_string).collect();
    pools.join(", ")
}
