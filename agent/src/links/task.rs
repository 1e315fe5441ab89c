//! A task's interfaces: one veth pair for each overlay network and one to the gateway bridge.

use std::net::Ipv4Addr;

use dataplane_abi::net::{task_mac, tunnel_mtu};
use ipnet::Ipv4Net;
use model::EndpointId;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
        route::{RouteAttribute, RouteMetric},
    },
};

use super::{
    LinkError, Netlink, Result, delete, find, must_find,
    node::{GATEWAY_BRIDGE, ensure_address, set_sysctl, set_up},
    tolerate,
};
use crate::netns::Netns;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLinksSpec {
    pub endpoint: EndpointId,
    /// Address and subnet of each overlay interface, eth0 first.
    pub overlays: Vec<Ipv4Net>,
    /// Address and subnet on the gateway bridge.
    pub gateway: Ipv4Net,
    /// The bridge's address: the default route.
    pub gateway_addr: Ipv4Addr,
    /// MTU of the node's uplink: the gateway interface has it too, overlays leave room for the
    /// tunnel.
    pub underlay_mtu: u32,
}

/// Interface indexes of the host sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostVeths {
    pub overlays: Vec<u32>,
    pub gateway: u32,
}

/// Makes the task's interfaces: all there and up when it returns.
///
/// # Errors
/// Names the link and the step; what was made stays, for the next try or the removal.
pub async fn ensure_task_links(spec: &TaskLinksSpec, netns: &Netns) -> Result<HostVeths> {
    let host = Netlink::here()?;
    let inside = Netlink::inside(netns)?;
    netns
        .run(|| set_defaults().map_err(std::io::Error::other))
        .map_err(LinkError::Socket)?;
    set_up(
        &inside,
        must_find(&inside.handle, "lo").await?.header.index,
        "lo",
    )
    .await?;

    let mut overlays = Vec::with_capacity(spec.overlays.len());
    for (nth, addr) in spec.overlays.iter().enumerate() {
        let veth = Veth {
            host: overlay_name(spec.endpoint, nth),
            task: format!("eth{nth}"),
            addr: *addr,
            mtu: tunnel_mtu(spec.underlay_mtu),
        };
        overlays.push(veth.ensure(&host, &inside, netns).await?);
    }
    let veth = Veth {
        host: gateway_name(spec.endpoint),
        task: format!("eth{}", spec.overlays.len()),
        addr: spec.gateway,
        mtu: spec.underlay_mtu,
    };
    let gateway = veth.ensure(&host, &inside, netns).await?;
    let bridge = must_find(&host.handle, GATEWAY_BRIDGE).await?.header.index;
    let enslave = LinkUnspec::new_with_index(gateway)
        .controller(bridge)
        .build();
    host.handle
        .link()
        .set(enslave)
        .execute()
        .await
        .map_err(|source| LinkError::Netlink {
            link: veth.host.clone(),
            action: "put it on the gateway bridge",
            source,
        })?;
    ensure_default_route(&inside, &veth.task, spec).await?;
    Ok(HostVeths { overlays, gateway })
}

/// Settings that interfaces made later inherit.
fn set_defaults() -> Result<()> {
    // Replies to mesh clients leave by the gateway side whatever the routes to the client say, and
    // the task must accept from any source there.
    for scope in ["all", "default"] {
        set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    // The overlay carries IPv4: without this the kernel would look for IPv6 routers and
    // neighbours on it. A kernel without IPv6 has no such file.
    let ipv6 = "net/ipv6/conf/default/disable_ipv6";
    if std::path::Path::new("/proc/sys").join(ipv6).exists() {
        set_sysctl(ipv6, "1")?;
    }
    Ok(())
}

/// The interfaces of a task that runs already, or `None` when one is missing.
///
/// # Errors
/// When netlink fails.
pub async fn find_host_veths(endpoint: EndpointId, overlays: usize) -> Result<Option<HostVeths>> {
    let host = Netlink::here()?;
    let mut found = Vec::with_capacity(overlays);
    for nth in 0..overlays {
        match find(&host.handle, &overlay_name(endpoint, nth)).await? {
            Some(link) => found.push(link.header.index),
            None => return Ok(None),
        }
    }
    let gateway = find(&host.handle, &gateway_name(endpoint)).await?;
    Ok(gateway.map(|link| HostVeths {
        overlays: found,
        gateway: link.header.index,
    }))
}

/// Removes the task's interfaces; both ends go.
///
/// # Errors
/// The first failure, after trying all.
pub async fn remove_task_links(endpoint: EndpointId, overlays: usize) -> Result<()> {
    let host = Netlink::here()?;
    let mut outcome = delete(&host.handle, &gateway_name(endpoint)).await;
    for nth in 0..overlays {
        outcome = outcome.and(delete(&host.handle, &overlay_name(endpoint, nth)).await);
    }
    outcome
}

/// At most 15 characters (IFNAMSIZ less the end mark): `sn`, 8 hex digits, a letter, a number.
fn overlay_name(endpoint: EndpointId, nth: usize) -> String {
    format!("sn{:08x}n{nth}", endpoint.0)
}

fn gateway_name(endpoint: EndpointId) -> String {
    format!("sn{:08x}g", endpoint.0)
}

struct Veth {
    host: String,
    task: String,
    addr: Ipv4Net,
    mtu: u32,
}

impl Veth {
    /// Returns the host side's interface index.
    async fn ensure(&self, host: &Netlink, inside: &Netlink, netns: &Netns) -> Result<u32> {
        if find(&inside.handle, &self.task).await?.is_none() {
            // A host side whose task side is elsewhere is a left-over of a task that is gone.
            delete(&host.handle, &self.host).await?;
            let created = host.handle.link().add(self.message(netns)).execute().await;
            created
                .or_else(|err| tolerate(err, libc::EEXIST, &self.host, "create the veth pair"))?;
        }
        let index = must_find(&inside.handle, &self.task).await?.header.index;
        ensure_address(
            inside,
            index,
            &self.task,
            self.addr.addr(),
            self.addr.prefix_len(),
        )
        .await?;
        set_up(inside, index, &self.task).await?;
        let host_index = must_find(&host.handle, &self.host).await?.header.index;
        set_up(host, host_index, &self.host).await?;
        Ok(host_index)
    }

    /// Both ends in one message: the task's end appears inside its namespace, with its MAC.
    fn message(&self, netns: &Netns) -> LinkMessage {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(self.task.clone())
            .setns_by_fd(netns.fd())
            .address(task_mac(self.addr.addr().into()).to_vec())
            .append_extra_attribute(LinkAttribute::Mtu(self.mtu))
            .build();
        LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(self.host.clone())
            .append_extra_attribute(LinkAttribute::Mtu(self.mtu))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build()
    }
}

/// The route's MTU, not the interface's, leaves room for the tunnel: mesh replies are wrapped, and
/// what the task advertises bounds what mesh clients send.
async fn ensure_default_route(inside: &Netlink, link: &str, spec: &TaskLinksSpec) -> Result<()> {
    let mtu = tunnel_mtu(spec.underlay_mtu);
    let index = must_find(&inside.handle, link).await?.header.index;
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .gateway(spec.gateway_addr)
        .build();
    route.attributes.push(RouteAttribute::Metrics(vec![
        RouteMetric::Mtu(mtu),
        RouteMetric::Advmss(mtu.saturating_sub(40)),
    ]));
    let added = inside.handle.route().add(route).replace().execute().await;
    added.map_err(|source| LinkError::Netlink {
        link: link.to_owned(),
        action: "add the default route",
        source,
    })
}
