//! The node's own devices: the VXLAN device that carries every network, the gateway bridge, and
//! the uplink that is there already.

use std::net::Ipv4Addr;

use dataplane_abi::net::task_mac;
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::{
    LinkBridge, LinkMessageBuilder, LinkVxlan,
    packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{
    Device, LinkError, Netlink, Result, Wanted, addresses, delete, ensure_sysctl, find,
    route::{self, Route},
};
use crate::repair::Repairs;

pub const VXLAN_DEVICE: &str = "sn_vxlan";
pub const GATEWAY_BRIDGE: &str = "sn_gwbridge";

const CARRIES_OVERLAYS: &str = "it carries this node's overlay networks";
const CONNECTS_TASKS: &str = "it connects this node's tasks";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLinksSpec {
    /// UDP port of the tunnel.
    pub data_port: u16,
    pub vtep: Ipv4Addr,
    /// Interface name; the one that has `vtep` when absent.
    pub uplink: Option<String>,
    /// The gateway bridge's address and subnet.
    pub gateway: Ipv4Net,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLinks {
    pub vxlan_ifindex: u32,
    pub gateway_ifindex: u32,
    pub uplink_ifindex: u32,
    /// None where it is not Ethernet.
    pub uplink_mac: Option<[u8; 6]>,
    /// MTU of the uplink: bounds what the tunnel carries.
    pub underlay_mtu: u32,
    /// All IPv4 addresses of the node but loopback ones.
    pub addrs: Vec<Ipv4Addr>,
}

/// Makes what is missing and mends what differs.
///
/// # Errors
/// Names the link and the step.
pub async fn ensure_node_links(spec: &NodeLinksSpec, repairs: &mut Repairs) -> Result<NodeLinks> {
    let netlink = Netlink::here()?;
    let forwarding = "net/ipv4/ip_forward";
    let why = "the node routes what its tasks and the mesh's clients send";
    ensure_sysctl(forwarding, "1", why, repairs).map_err(LinkError::sysctl(forwarding))?;
    let vxlan_ifindex = ensure_vxlan(&netlink, spec.data_port, repairs).await?;
    let gateway_ifindex = ensure_bridge(&netlink, spec.gateway, repairs).await?;
    let addrs = addresses().await?;
    let uplink = uplink(&netlink, spec, &addrs).await?;
    let mut addrs: Vec<_> = addrs
        .into_iter()
        .map(|(_, addr)| addr)
        .filter(|addr| !addr.is_loopback())
        .collect();
    addrs.sort_unstable();
    addrs.dedup();
    Ok(NodeLinks {
        vxlan_ifindex,
        gateway_ifindex,
        uplink_ifindex: uplink.header.index,
        uplink_mac: mac(&uplink),
        underlay_mtu: mtu(&uplink),
        addrs,
    })
}

async fn uplink(
    netlink: &Netlink,
    spec: &NodeLinksSpec,
    addrs: &[(u32, Ipv4Addr)],
) -> Result<LinkMessage> {
    if let Some(name) = &spec.uplink {
        let found = find(&netlink.handle, name).await?;
        return found.ok_or_else(|| LinkError::UnknownUplink(name.clone()));
    }
    let owner = addrs.iter().find(|(_, addr)| *addr == spec.vtep);
    let (index, _) = owner.ok_or(LinkError::NoUplink(spec.vtep))?;
    let mut link = netlink.handle.link().get().match_index(*index).execute();
    let found = link.try_next().await;
    found
        .map_err(|source| LinkError::Netlink {
            link: format!("index {index}"),
            action: "look it up",
            source,
        })?
        .ok_or(LinkError::NoUplink(spec.vtep))
}

fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    // A veth has no more; the loopback device has.
    mtu.expect("the kernel tells every link's MTU")
        .min(u16::MAX.into())
}

/// The loopback device has one of zeroes.
fn mac(link: &LinkMessage) -> Option<[u8; 6]> {
    let mac = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
    mac.filter(|mac| *mac != [0; 6])
}

/// Removes the node's devices, for a node that leaves.
///
/// # Errors
/// The first failure, after trying both.
pub async fn remove_node_links() -> Result<()> {
    let netlink = Netlink::here()?;
    let vxlan = delete(&netlink.handle, VXLAN_DEVICE).await;
    let bridge = delete(&netlink.handle, GATEWAY_BRIDGE).await;
    vxlan.and(bridge)
}

async fn ensure_vxlan(netlink: &Netlink, port: u16, repairs: &mut Repairs) -> Result<u32> {
    let device = Device::find(netlink, VXLAN_DEVICE, CARRIES_OVERLAYS).await?;
    let mut found = "missing";
    if let Some(device) = device {
        if is_our_tunnel(device.link(), port) {
            device.ensure(Wanted::default(), repairs).await?;
            return Ok(device.index());
        }
        found = "of another kind or port";
        delete(&netlink.handle, VXLAN_DEVICE).await?;
    }
    // Flow-based ("external"): the programs name VNI and peer for each packet, so the device has
    // neither, and nothing is ever learned.
    let message = LinkMessageBuilder::<LinkVxlan>::new(VXLAN_DEVICE)
        .append_info_data(InfoVxlan::CollectMetadata(true))
        .append_info_data(InfoVxlan::Learning(false))
        .append_info_data(InfoVxlan::Port(port))
        .up()
        .build();
    netlink.handle.link().add(message).execute().await.map_err(|source| LinkError::Netlink {
        link: VXLAN_DEVICE.into(),
        action: "create the VXLAN device (is its UDP port taken, or VXLAN missing in the kernel?)",
        source,
    })?;
    repairs.note(format!("link {VXLAN_DEVICE}"), found, CARRIES_OVERLAYS);
    let made = Device::made(netlink, VXLAN_DEVICE, CARRIES_OVERLAYS).await?;
    Ok(made.index())
}

fn is_our_tunnel(link: &LinkMessage, port: u16) -> bool {
    let mut infos = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    infos.any(|infos| {
        infos.iter().any(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(vxlan)) => {
                vxlan.contains(&InfoVxlan::Port(port))
                    && vxlan.contains(&InfoVxlan::CollectMetadata(true))
            }
            _ => false,
        })
    })
}

async fn ensure_bridge(netlink: &Netlink, addr: Ipv4Net, repairs: &mut Repairs) -> Result<u32> {
    // What a bridge lacks that was made just now, it never had.
    let mut consequences = Repairs::default();
    let (device, repairs) = match Device::find(netlink, GATEWAY_BRIDGE, CONNECTS_TASKS).await? {
        Some(device) => (device, repairs),
        None => (make_bridge(netlink, repairs).await?, &mut consequences),
    };
    // Left to itself a bridge has the lowest MAC of its ports, which changes as tasks come and go.
    // The programs tell what is for the bridge by this one.
    let wanted = Wanted {
        mac: Some(task_mac(addr.addr().into())),
        ..Wanted::default()
    };
    device.ensure(wanted, repairs).await?;
    device.ensure_address(addr, repairs).await?;
    let routes = route::list(netlink).await?;
    let connected = Route::connected(addr);
    connected.ensure(netlink, &device, &routes, repairs).await?;
    Ok(device.index())
}

async fn make_bridge<'a>(netlink: &'a Netlink, repairs: &mut Repairs) -> Result<Device<'a>> {
    let message = LinkBridge::new(GATEWAY_BRIDGE).build();
    let added = netlink.handle.link().add(message).execute().await;
    added.map_err(|source| LinkError::Netlink {
        link: GATEWAY_BRIDGE.into(),
        action: "create the bridge",
        source,
    })?;
    repairs.note(format!("link {GATEWAY_BRIDGE}"), "missing", CONNECTS_TASKS);
    Device::made(netlink, GATEWAY_BRIDGE, CONNECTS_TASKS).await
}
