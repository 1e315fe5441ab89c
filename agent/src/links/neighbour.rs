//! The one neighbour that a task depends on, its gateway: asked for by ARP, and never set by hand.

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use rtnetlink::packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{Device, LinkError, Netlink, Result};
use crate::repair::Repairs;

/// Removes a lasting entry for `addr` that names another MAC; the kernel asks for the right one.
pub(super) async fn ensure_not_forged(
    netlink: &Netlink,
    device: &Device<'_>,
    addr: Ipv4Addr,
    mac: [u8; 6],
    repairs: &mut Repairs,
) -> Result<()> {
    let fail = |action| {
        move |source| LinkError::Netlink {
            link: device.name().to_owned(),
            action,
            source,
        }
    };
    let neighbours = || netlink.handle.neighbours();
    let listed = neighbours()
        .get()
        .set_address_family(AddressFamily::Inet)
        .execute();
    let listed: Vec<NeighbourMessage> = listed
        .try_collect()
        .await
        .map_err(fail("list its neighbours"))?;
    let of = NeighbourAttribute::Destination(NeighbourAddress::Inet(addr));
    let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
    let forged = listed.into_iter().find(|one| {
        let lasts = matches!(
            one.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        );
        one.header.ifindex == device.index()
            && lasts
            && one.attributes.contains(&of)
            && !one.attributes.contains(&mac)
    });
    let Some(forged) = forged else { return Ok(()) };
    let deleted = neighbours().del(forged).execute().await;
    deleted.map_err(fail("remove a wrong neighbour"))?;
    repairs.note(
        format!("neighbour {addr} on {}", device.name()),
        "set to another MAC",
        device.why(),
    );
    Ok(())
}
