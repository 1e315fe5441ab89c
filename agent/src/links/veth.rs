//! A veth pair between the node's namespace and another.

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
};

use super::{Device, Netlink, Result, delete, tolerate};
use crate::{netns::Netns, repair::Repairs};

/// Both namespaces that a veth is in.
pub(super) struct Sides<'a> {
    pub host: &'a Netlink,
    pub inside: &'a Netlink,
    pub netns: &'a Netns,
}

pub(super) struct Pair<'a> {
    /// Name on the node.
    pub outer: &'a str,
    /// Name in the other namespace.
    pub inner: &'a str,
    /// Of the inner side.
    pub mac: [u8; 6],
    pub mtu: u32,
    /// Whose it is, behind its names.
    pub of: &'static str,
    /// Who needs it.
    pub why: &'static str,
}

impl<'a> Pair<'a> {
    /// Both ends, when they are there and each other's.
    pub async fn find(&self, sides: &Sides<'a>) -> Result<Option<(Device<'a>, Device<'a>)>> {
        let outer = Device::find(sides.host, self.outer, self.why).await?;
        let inner = Device::find(sides.inside, self.inner, self.why).await?;
        Ok(outer
            .zip(inner)
            .filter(|(outer, inner)| outer.peer_index() == Some(inner.index())))
    }

    pub async fn make(
        &self,
        sides: &Sides<'a>,
        repairs: &mut Repairs,
    ) -> Result<(Device<'a>, Device<'a>)> {
        // What has one of the names is a left-over, or another's making in our place.
        delete(&sides.host.handle, self.outer).await?;
        delete(&sides.inside.handle, self.inner).await?;
        let created = sides.host.handle.link().add(self.message(sides.netns));
        let created = created.execute().await;
        created.or_else(|err| tolerate(err, libc::EEXIST, self.outer, "create the veth pair"))?;
        let what = format!("veth pair {} and {} {}", self.outer, self.inner, self.of);
        repairs.note(what, "missing", self.why);
        Ok((
            Device::made(sides.host, self.outer, self.why).await?,
            Device::made(sides.inside, self.inner, self.why).await?,
        ))
    }

    /// Both ends in one message: the inner one appears inside its namespace, with its MAC.
    fn message(&self, netns: &Netns) -> LinkMessage {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(self.inner.to_owned())
            .setns_by_fd(netns.fd())
            .address(self.mac.to_vec())
            .append_extra_attribute(LinkAttribute::Mtu(self.mtu))
            .build();
        LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(self.outer.to_owned())
            .append_extra_attribute(LinkAttribute::Mtu(self.mtu))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build()
    }
}
