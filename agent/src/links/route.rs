//! Routes of the main table that are ours: those to the subnets of our addresses, and the tasks' way
//! out. All others are left alone.

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
            RouteScope,
        },
    },
};

use super::{Device, LinkError, Netlink, Result};
use crate::repair::Repairs;

#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub to: Ipv4Net,
    pub way: Way,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// The subnet of the device's own address.
    Connected { own: Ipv4Addr },
    /// Straight out of the device, whoever it is for.
    Straight,
    /// By a router; with an MTU of its own.
    Via { router: Ipv4Addr, mtu: u32 },
}

impl Route {
    /// The one that the kernel makes with an address.
    pub fn connected(addr: Ipv4Net) -> Self {
        Self {
            to: addr.trunc(),
            way: Way::Connected { own: addr.addr() },
        }
    }

    pub fn default(router: Ipv4Addr, mtu: u32) -> Self {
        Self {
            to: Ipv4Net::default(),
            way: Way::Via { router, mtu },
        }
    }

    pub fn everything() -> Self {
        Self {
            to: Ipv4Net::default(),
            way: Way::Straight,
        }
    }

    fn message(&self, index: u32) -> RouteMessage {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .destination_prefix(self.to.addr(), self.to.prefix_len());
        match self.way {
            Way::Connected { own } => builder
                .scope(RouteScope::Link)
                .protocol(RouteProtocol::Kernel)
                .pref_source(own)
                .build(),
            Way::Straight => builder.scope(RouteScope::Link).build(),
            Way::Via { router, .. } => {
                let mut message = builder.gateway(router).build();
                message
                    .attributes
                    .push(RouteAttribute::Metrics(self.metrics()));
                message
            }
        }
    }

    fn metrics(&self) -> Vec<RouteMetric> {
        match self.way {
            Way::Connected { .. } | Way::Straight => Vec::new(),
            Way::Via { mtu, .. } => vec![RouteMetric::Mtu(mtu), RouteMetric::Advmss(mtu - 40)],
        }
    }

    /// Whether `message` is for the same destination by the same device, whatever way it takes.
    fn is_rival(&self, index: u32, message: &RouteMessage) -> bool {
        let RouteHeader {
            table,
            destination_prefix_length,
            tos,
            ..
        } = message.header;
        let to = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(*addr),
                _ => None,
            });
        table == RouteHeader::RT_TABLE_MAIN
            && tos == 0
            && destination_prefix_length == self.to.prefix_len()
            && to.unwrap_or(Ipv4Addr::UNSPECIFIED) == self.to.addr()
            && message.attributes.contains(&RouteAttribute::Oif(index))
    }

    fn is(&self, message: &RouteMessage) -> bool {
        let has = |wanted: &RouteAttribute| message.attributes.contains(wanted);
        let metrics = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Metrics(metrics) => Some(metrics),
                _ => None,
            });
        match self.way {
            Way::Connected { own } => {
                has(&RouteAttribute::PrefSource(RouteAddress::Inet(own)))
                    && message.header.scope == RouteScope::Link
            }
            Way::Straight => message.header.scope == RouteScope::Link,
            Way::Via { router, .. } => {
                has(&RouteAttribute::Gateway(RouteAddress::Inet(router)))
                    && metrics
                        .is_some_and(|had| self.metrics().iter().all(|wanted| had.contains(wanted)))
            }
        }
    }

    pub async fn ensure(
        &self,
        netlink: &Netlink,
        device: &Device<'_>,
        listed: &[RouteMessage],
        repairs: &mut Repairs,
    ) -> Result<()> {
        let index = device.index();
        let mut rivals = listed.iter().filter(|one| self.is_rival(index, one));
        if rivals.clone().any(|one| self.is(one)) {
            return Ok(());
        }
        let found = if rivals.next().is_some() {
            "altered"
        } else {
            "missing"
        };
        let added = netlink.handle.route().add(self.message(index)).replace();
        added.execute().await.map_err(|source| LinkError::Netlink {
            link: device.name().to_owned(),
            action: "add its route",
            source,
        })?;
        let to = match self.to.prefix_len() {
            0 => "default".to_owned(),
            _ => self.to.to_string(),
        };
        repairs.note(
            format!("route {to} by {}", device.name()),
            found,
            device.why(),
        );
        Ok(())
    }
}

/// All IPv4 routes of a namespace.
pub(super) async fn list(netlink: &Netlink) -> Result<Vec<RouteMessage>> {
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let listed = netlink.handle.route().get(all).execute();
    listed
        .try_collect()
        .await
        .map_err(|source| LinkError::Netlink {
            link: "*".into(),
            action: "list routes",
            source,
        })
}
