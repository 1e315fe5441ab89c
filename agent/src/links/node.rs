//! The node's own devices: the VXLAN device that carries every network, the gateway bridge, and
//! the uplink that is there already.

use std::{fs, net::Ipv4Addr};

use dataplane_abi::net::task_mac;
use futures::TryStreamExt;
use rtnetlink::{
    LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};
use tracing::info;

use super::{LinkError, Netlink, Result, addresses, delete, find, must_find};

pub const VXLAN_DEVICE: &str = "sn_vxlan";
pub const GATEWAY_BRIDGE: &str = "sn_gwbridge";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLinksSpec {
    /// UDP port of the tunnel.
    pub data_port: u16,
    pub vtep: Ipv4Addr,
    /// Interface name; the one that has `vtep` when absent.
    pub uplink: Option<String>,
    pub gateway_addr: Ipv4Addr,
    pub gateway_prefix_len: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLinks {
    pub vxlan_ifindex: u32,
    pub gateway_ifindex: u32,
    pub uplink_ifindex: u32,
    /// MTU of the uplink: bounds what the tunnel carries.
    pub underlay_mtu: u32,
    /// All IPv4 addresses of the node but loopback ones.
    pub addrs: Vec<Ipv4Addr>,
}

/// Makes what is missing and mends what differs.
///
/// # Errors
/// Names the link and the step.
pub async fn ensure_node_links(spec: &NodeLinksSpec) -> Result<NodeLinks> {
    let netlink = Netlink::here()?;
    set_sysctl("net/ipv4/ip_forward", "1")?;
    let vxlan_ifindex = ensure_vxlan(&netlink, spec.data_port).await?;
    let gateway_ifindex = ensure_bridge(&netlink, spec).await?;
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

async fn ensure_vxlan(netlink: &Netlink, port: u16) -> Result<u32> {
    let existing = find(&netlink.handle, VXLAN_DEVICE).await?;
    if let Some(link) = existing {
        if vxlan_port(&link) == Some(port) {
            set_up(netlink, link.header.index, VXLAN_DEVICE).await?;
            return Ok(link.header.index);
        }
        info!(
            link.name = VXLAN_DEVICE,
            vxlan.port = port,
            "tunnel device has another port; remade"
        );
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
    Ok(must_find(&netlink.handle, VXLAN_DEVICE).await?.header.index)
}

fn vxlan_port(link: &LinkMessage) -> Option<u16> {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
    let vxlan = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(vxlan)) => Some(vxlan),
        _ => None,
    })?;
    vxlan.iter().find_map(|info| match info {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

async fn ensure_bridge(netlink: &Netlink, spec: &NodeLinksSpec) -> Result<u32> {
    if find(&netlink.handle, GATEWAY_BRIDGE).await?.is_none() {
        let message = LinkBridge::new(GATEWAY_BRIDGE).build();
        netlink
            .handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|source| LinkError::Netlink {
                link: GATEWAY_BRIDGE.into(),
                action: "create the bridge",
                source,
            })?;
    }
    let bridge = must_find(&netlink.handle, GATEWAY_BRIDGE).await?;
    let index = bridge.header.index;
    ensure_mac(netlink, &bridge, spec.gateway_addr).await?;
    ensure_address(
        netlink,
        index,
        GATEWAY_BRIDGE,
        spec.gateway_addr,
        spec.gateway_prefix_len,
    )
    .await?;
    set_up(netlink, index, GATEWAY_BRIDGE).await?;
    Ok(index)
}

/// Left to itself a bridge has the lowest MAC of its ports, which changes as tasks come and go. The
/// programs tell what is for the bridge by this one.
async fn ensure_mac(netlink: &Netlink, bridge: &LinkMessage, addr: Ipv4Addr) -> Result<()> {
    let mac = task_mac(addr.into()).to_vec();
    if bridge
        .attributes
        .contains(&LinkAttribute::Address(mac.clone()))
    {
        return Ok(());
    }
    let message = LinkUnspec::new_with_index(bridge.header.index)
        .address(mac)
        .build();
    netlink
        .handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|source| LinkError::Netlink {
            link: GATEWAY_BRIDGE.into(),
            action: "set its MAC",
            source,
        })
}

pub(super) async fn ensure_address(
    netlink: &Netlink,
    index: u32,
    link: &str,
    addr: Ipv4Addr,
    prefix_len: u8,
) -> Result<()> {
    let added = netlink
        .handle
        .address()
        .add(index, addr.into(), prefix_len)
        .execute()
        .await;
    added.or_else(|err| super::tolerate(err, libc::EEXIST, link, "add its address"))
}

pub(super) async fn set_up(netlink: &Netlink, index: u32, link: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    netlink
        .handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|source| LinkError::Netlink {
            link: link.to_owned(),
            action: "set it up",
            source,
        })
}

/// Writes a sysctl of the calling thread's network namespace.
pub(super) fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| LinkError::Sysctl { path, source })
}
