//! A task's interfaces: one veth pair for each overlay network and one to the gateway bridge.

use std::net::Ipv4Addr;

use dataplane_abi::net::{task_mac, tunnel_mtu};
use ipnet::Ipv4Net;
use model::EndpointId;
use rtnetlink::packet_route::route::RouteMessage;

use super::{
    Device, LinkError, Netlink, Result, Wanted, delete, ensure_sysctl, find, neighbour,
    node::GATEWAY_BRIDGE,
    route::{self, Route},
    veth::{Pair, Sides},
};
use crate::{netns::Netns, repair::Repairs};

const TASK_NEEDS_IT: &str = "a task's network needs it";

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

/// Makes the task's interfaces, or what of them is not as it should be: all there and up when it
/// returns.
///
/// # Errors
/// Names the link and the step; what was made stays, for the next try or the removal.
pub async fn ensure_task_links(
    spec: &TaskLinksSpec,
    netns: &Netns,
    repairs: &mut Repairs,
) -> Result<HostVeths> {
    let host = Netlink::here()?;
    let inside = Netlink::inside(netns)?;
    netns
        .run(|| ensure_settings(repairs))
        .map_err(LinkError::sysctl("net"))?;
    let loopback = Device::made(&inside, "lo", TASK_NEEDS_IT).await?;
    loopback.ensure(Wanted::default(), repairs).await?;
    let routes = route::list(&inside).await?;
    let node = Sides {
        host: &host,
        inside: &inside,
        netns,
    };

    let mut overlays = Vec::with_capacity(spec.overlays.len());
    for (nth, addr) in spec.overlays.iter().enumerate() {
        let veth = Veth {
            host: overlay_name(spec.endpoint, nth),
            task: format!("eth{nth}"),
            addr: *addr,
            mtu: tunnel_mtu(spec.underlay_mtu),
            bridge: None,
        };
        overlays.push(veth.ensure(&node, &routes, repairs).await?.0);
    }
    let bridge = Device::made(&host, GATEWAY_BRIDGE, TASK_NEEDS_IT).await?;
    let veth = Veth {
        host: gateway_name(spec.endpoint),
        task: format!("eth{}", spec.overlays.len()),
        addr: spec.gateway,
        mtu: spec.underlay_mtu,
        bridge: Some(bridge.index()),
    };
    let (gateway, way_out) = veth.ensure(&node, &routes, repairs).await?;
    ensure_way_out(&inside, &routes, &way_out, spec, repairs).await?;
    Ok(HostVeths { overlays, gateway })
}

/// The default route. Its MTU, not the interface's, leaves room for the tunnel: mesh replies are
/// wrapped, and what the task advertises bounds what mesh clients send.
async fn ensure_way_out(
    inside: &Netlink,
    routes: &[RouteMessage],
    end: &TaskEnd<'_>,
    spec: &TaskLinksSpec,
    repairs: &mut Repairs,
) -> Result<()> {
    let (router, mtu) = (spec.gateway_addr, tunnel_mtu(spec.underlay_mtu));
    let device = &end.device;
    let mut consequences = Repairs::default();
    let repairs = match end.is_new {
        true => &mut consequences,
        false => repairs,
    };
    let route = Route::default(router, mtu);
    route.ensure(inside, device, routes, repairs).await?;
    let mac = task_mac(router.into());
    neighbour::ensure_not_forged(inside, device, router, mac, repairs).await
}

/// Settings of the task's namespace, which interfaces made later inherit.
fn ensure_settings(repairs: &mut Repairs) -> std::io::Result<()> {
    // Replies to mesh clients leave by the gateway side whatever the routes to the client say, and
    // the task must accept from any source there.
    for scope in ["all", "default"] {
        let name = format!("net/ipv4/conf/{scope}/rp_filter");
        ensure_sysctl(&name, "0", TASK_NEEDS_IT, repairs)?;
    }
    // The overlay carries IPv4: without this the kernel would look for IPv6 routers and
    // neighbours on it. A kernel without IPv6 has no such file.
    let ipv6 = "net/ipv6/conf/default/disable_ipv6";
    match ensure_sysctl(ipv6, "1", TASK_NEEDS_IT, repairs) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
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
    /// Whose port the host side is.
    bridge: Option<u32>,
}

/// The task's side of a veth.
struct TaskEnd<'a> {
    device: Device<'a>,
    /// What it lacks, it never had.
    is_new: bool,
}

impl Veth {
    /// Returns the host side's interface index, and the task's side.
    async fn ensure<'a>(
        &'a self,
        sides: &Sides<'a>,
        routes: &[RouteMessage],
        repairs: &mut Repairs,
    ) -> Result<(u32, TaskEnd<'a>)> {
        let pair = self.pair();
        let mut consequences = Repairs::default();
        let (outer, device, is_new, repairs) = match pair.find(sides).await? {
            Some((outer, inner)) => (outer, inner, false, repairs),
            None => {
                let (outer, inner) = pair.make(sides, repairs).await?;
                (outer, inner, true, &mut consequences)
            }
        };
        let mtu = Some(self.mtu);
        let wanted = Wanted {
            mac: Some(pair.mac),
            mtu,
            ..Wanted::default()
        };
        device.ensure(wanted, repairs).await?;
        let wanted = Wanted {
            mtu,
            controller: self.bridge,
            ..Wanted::default()
        };
        outer.ensure(wanted, repairs).await?;
        device.ensure_address(self.addr, repairs).await?;
        let connected = Route::connected(self.addr);
        connected
            .ensure(sides.inside, &device, routes, repairs)
            .await?;
        Ok((outer.index(), TaskEnd { device, is_new }))
    }

    fn pair(&self) -> Pair<'_> {
        Pair {
            outer: &self.host,
            inner: &self.task,
            mac: task_mac(self.addr.addr().into()),
            mtu: self.mtu,
            of: "of the task",
            why: TASK_NEEDS_IT,
        }
    }
}
