//! Subnets and VNIs of networks.

use std::{collections::HashSet, net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;
use model::{
    NetworkId, Vni,
    object::{DataPathConfig, Meta, Network},
    spec::NetworkSpec,
};
use store::{State, Transaction};

use super::AllocateError;

/// Name of the routing mesh's network.
pub const INGRESS_NAME: &str = "ingress";

/// The subnet of every node's gateway bridge: each task has an address in it, so no network may.
pub const GATEWAY_BRIDGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16);

const PREFIX_LEN_MAX: u8 = 30;

/// The routing mesh's network, once the cluster is made.
pub fn ingress(state: &State) -> Option<&Arc<Network>> {
    state.networks().find(|network| network.spec.ingress)
}

/// Makes the `ingress` network: the first subnet of the pools and [`Vni::MESH`]. For a new cluster,
/// after its [`model::object::Cluster`] was put: the pools are read from there.
///
/// # Errors
/// When the pools are too small for one subnet.
pub fn create_ingress(tx: &mut Transaction) -> Result<NetworkId, AllocateError> {
    let spec = NetworkSpec {
        name: INGRESS_NAME.to_owned(),
        ingress: true,
        ..NetworkSpec::default()
    };
    create_network(tx, spec)
}

/// Makes a network with a subnet, a gateway and a VNI. The name is the caller's to check.
///
/// # Errors
/// When the subnet that the user wants overlaps another's, or nothing is free.
pub fn create_network(tx: &mut Transaction, spec: NetworkSpec) -> Result<NetworkId, AllocateError> {
    let state = tx.state();
    let vni = if spec.ingress {
        Vni::MESH
    } else {
        next_vni(state)?
    };
    let subnet = match spec.subnet {
        Some(subnet) => wanted_subnet(state, subnet.trunc())?,
        None => next_subnet(state, spec.ingress)?,
    };
    check_within(&spec, subnet)?;
    let first_host = Ipv4Addr::from_bits(subnet.network().to_bits() + 1);
    let mut network = Network {
        id: NetworkId::generate(),
        meta: Meta::new(tx.now()),
        vni,
        subnet,
        gateway: spec.gateway.unwrap_or(first_host),
        cursor: Default::default(),
        spec,
    };
    let id = network.id;
    if network.spec.ingress {
        network.cursor.vni = Some(vni);
        network.cursor.subnet = Some(subnet);
    } else {
        save_cursor(tx, &network);
    }
    tx.put(network).expect("a new object is not stale");
    Ok(id)
}

fn save_cursor(tx: &mut Transaction, made: &Network) {
    let Some(ingress) = ingress(tx.state()) else {
        return;
    };
    let mut ingress = Network::clone(ingress);
    ingress.cursor.vni = Some(made.vni);
    if made.spec.subnet.is_none() {
        ingress.cursor.subnet = Some(made.subnet);
    }
    tx.put(ingress).expect("read in this transaction");
}

fn next_vni(state: &State) -> Result<Vni, AllocateError> {
    let used: HashSet<u32> = state.networks().map(|network| network.vni.get()).collect();
    let first = Vni::MESH.get() + 1;
    let last = ingress(state).and_then(|ingress| ingress.cursor.vni);
    let begin = last.map_or(first, |vni| vni.get() + 1);
    (begin..1 << 24)
        .chain(first..begin)
        .find(|vni| !used.contains(vni))
        .and_then(Vni::new)
        .ok_or(AllocateError::VnisExhausted)
}

fn wanted_subnet(state: &State, wanted: Ipv4Net) -> Result<Ipv4Net, AllocateError> {
    if wanted.prefix_len() > PREFIX_LEN_MAX {
        return Err(AllocateError::SubnetTooSmall(wanted));
    }
    if overlaps(&wanted, &GATEWAY_BRIDGE) {
        return Err(AllocateError::GatewayBridge {
            wanted,
            found: GATEWAY_BRIDGE,
        });
    }
    match state.networks().find(|n| overlaps(&wanted, &n.subnet)) {
        None => Ok(wanted),
        Some(network) => Err(AllocateError::SubnetOverlaps {
            wanted,
            found: network.subnet,
            name: network.spec.name.clone(),
        }),
    }
}

/// Cuts the next free subnet from the pools.
fn next_subnet(state: &State, ingress_itself: bool) -> Result<Ipv4Net, AllocateError> {
    let config = state
        .cluster()
        .map_or_else(DataPathConfig::default, |cluster| cluster.data_path.clone());
    let taken: Vec<Ipv4Net> = state.networks().map(|network| network.subnet).collect();
    // A task reaches the nodes through its default route, which a network's own would hide. The
    // ingress network has no route in any task.
    let nodes: Vec<Ipv4Addr> = if ingress_itself {
        Vec::new()
    } else {
        state.nodes().map(|node| node.vtep).collect()
    };
    let is_free = |subnet: &Ipv4Net| {
        !overlaps(subnet, &GATEWAY_BRIDGE)
            && !taken.iter().any(|other| overlaps(subnet, other))
            && !nodes.iter().any(|node| subnet.contains(node))
    };
    let last = ingress(state).and_then(|ingress| ingress.cursor.subnet);
    let free = cuts(&config)
        .skip_while(|subnet| last.is_some_and(|last| *subnet != last))
        .skip(usize::from(last.is_some()))
        .chain(cuts(&config))
        .find(is_free);
    free.ok_or(AllocateError::PoolsExhausted {
        pools: config.default_addr_pool,
        prefix_len: config.subnet_len,
    })
}

fn cuts(config: &DataPathConfig) -> impl Iterator<Item = Ipv4Net> + '_ {
    let len = config.subnet_len.min(PREFIX_LEN_MAX);
    config
        .default_addr_pool
        .iter()
        .flat_map(move |pool| pool.subnets(len.max(pool.prefix_len())))
        .flatten()
}

fn check_within(spec: &NetworkSpec, subnet: Ipv4Net) -> Result<(), AllocateError> {
    let outside = |what, found: String| AllocateError::OutsideSubnet {
        what,
        found,
        subnet,
    };
    if let Some(gateway) = spec.gateway
        && (!subnet.contains(&gateway)
            || gateway == subnet.network()
            || gateway == subnet.broadcast())
    {
        return Err(outside("gateway", gateway.to_string()));
    }
    match spec.ip_range {
        Some(range) if !subnet.contains(&range) => Err(outside("ip-range", range.to_string())),
        Some(range) if range.hosts().all(|addr| is_reserved(subnet, addr)) => {
            Err(AllocateError::RangeEmpty { range, subnet })
        }
        _ => Ok(()),
    }
}

/// Addresses that no task or VIP of the subnet gets.
fn is_reserved(subnet: Ipv4Net, addr: Ipv4Addr) -> bool {
    addr == subnet.network() || addr == subnet.broadcast()
}

fn overlaps(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}
