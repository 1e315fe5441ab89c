//! A device that is there, and the differences to what it should be.

use ipnet::Ipv4Net;
use rtnetlink::{
    LinkUnspec,
    packet_route::{
        address::AddressAttribute,
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};

use futures::TryStreamExt;

use super::{LinkError, Netlink, Result, find, tolerate};
use crate::repair::Repairs;

/// What a device of ours has to be; `None` is whatever it is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Wanted {
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
    /// Whether it asks for neighbours.
    pub arp: Option<bool>,
}

pub(super) struct Device<'a> {
    netlink: &'a Netlink,
    name: &'a str,
    /// Who needs it.
    why: &'static str,
    link: LinkMessage,
}

impl<'a> Device<'a> {
    pub async fn find(
        netlink: &'a Netlink,
        name: &'a str,
        why: &'static str,
    ) -> Result<Option<Self>> {
        let link = find(&netlink.handle, name).await?;
        Ok(link.map(|link| Self {
            netlink,
            name,
            why,
            link,
        }))
    }

    /// A device that was made just now.
    pub async fn made(netlink: &'a Netlink, name: &'a str, why: &'static str) -> Result<Self> {
        let found = Self::find(netlink, name, why).await?;
        found.ok_or_else(|| LinkError::Vanished { link: name.into() })
    }

    pub fn index(&self) -> u32 {
        self.link.header.index
    }

    pub fn name(&self) -> &str {
        self.name
    }

    pub fn why(&self) -> &'static str {
        self.why
    }

    pub fn link(&self) -> &LinkMessage {
        &self.link
    }

    /// Index of the other end of a veth, in that one's namespace.
    pub fn peer_index(&self) -> Option<u32> {
        self.link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Link(index) => Some(*index),
                _ => None,
            })
    }

    /// Up, and as wanted: one message with all that differs, none when nothing does.
    pub async fn ensure(&self, wanted: Wanted, repairs: &mut Repairs) -> Result<()> {
        let mut message = LinkUnspec::new_with_index(self.index());
        let mut found = Vec::new();
        if !self.link.header.flags.contains(LinkFlags::Up) {
            message = message.up();
            found.push("down".to_owned());
        }
        let attributes = &self.link.attributes;
        if let Some(mac) = wanted.mac
            && !attributes.contains(&LinkAttribute::Address(mac.to_vec()))
        {
            message = message.address(mac.to_vec());
            found.push("under another MAC".to_owned());
        }
        if let Some(mtu) = wanted.mtu
            && !attributes.contains(&LinkAttribute::Mtu(mtu))
        {
            message = message.mtu(mtu);
            found.push(format!("of an MTU other than {mtu}"));
        }
        if let Some(bridge) = wanted.controller
            && !attributes.contains(&LinkAttribute::Controller(bridge))
        {
            message = message.controller(bridge);
            found.push("off its bridge".to_owned());
        }
        if let Some(arp) = wanted.arp
            && self.link.header.flags.contains(LinkFlags::Noarp) == arp
        {
            message = message.arp(arp);
            found.push(format!("with ARP {}", if arp { "off" } else { "on" }));
        }
        if found.is_empty() {
            return Ok(());
        }
        let set = self.netlink.handle.link().set(message.build());
        set.execute().await.map_err(|source| LinkError::Netlink {
            link: self.name.to_owned(),
            action: "set it up",
            source,
        })?;
        repairs.note(format!("link {}", self.name), found.join(", "), self.why);
        Ok(())
    }

    /// Other addresses of the device are left alone.
    pub async fn ensure_address(&self, addr: Ipv4Net, repairs: &mut Repairs) -> Result<()> {
        let handle = &self.netlink.handle;
        let fail = |action| {
            move |source| LinkError::Netlink {
                link: self.name.to_owned(),
                action,
                source,
            }
        };
        let listed = handle.address().get().set_link_index_filter(self.index());
        let mut listed = std::pin::pin!(listed.execute());
        while let Some(message) = listed
            .try_next()
            .await
            .map_err(fail("list its addresses"))?
        {
            let local = AddressAttribute::Local(addr.addr().into());
            let same_len = message.header.prefix_len == addr.prefix_len();
            if same_len && message.attributes.contains(&local) {
                return Ok(());
            }
        }
        let added = handle
            .address()
            .add(self.index(), addr.addr().into(), addr.prefix_len())
            .execute()
            .await;
        added.or_else(|err| tolerate(err, libc::EEXIST, self.name, "add its address"))?;
        repairs.note(
            format!("address {addr} on {}", self.name),
            "missing",
            self.why,
        );
        Ok(())
    }
}
