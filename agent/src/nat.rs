//! The way out: what tasks send to the world leaves with the node's address.

use ipnet::Ipv4Net;

use crate::{links::GATEWAY_BRIDGE, nft::Table};

/// For tasks of the gateway network `subnet`.
pub fn table(subnet: Ipv4Net) -> Table {
    let chains = format!(
        "chain postrouting {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             ip saddr {subnet} oifname != \"{GATEWAY_BRIDGE}\" masquerade\n\
         }}"
    );
    let why = "what tasks send to the world leaves with the node's address";
    Table::new(&chains, why)
}
