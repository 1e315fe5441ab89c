//! The veth pair to where the kernel puts fragments in order, and what that namespace needs to send
//! everything back.

use std::io;

use super::{
    LinkError, Netlink, Result, Wanted, delete, ensure_sysctl,
    route::{self, Route},
    veth::{Pair, Sides},
};
use crate::{netns::Netns, repair::Repairs};

const NODE_SIDE: &str = "sn_reassembly";
const INNER_SIDE: &str = "eth0";
/// No packet is too long, whatever it is put together from.
const MTU: u32 = 65_535;

pub const REASSEMBLY_NEEDS_IT: &str = "fragments of what comes to this node are put in order by it";

/// Settings of the namespace. Packets may come from anywhere and go back there; paths that reorder
/// differ by milliseconds, so what is incomplete need not hold memory for 30 seconds.
const SETTINGS: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/ipfrag_time", "2"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

/// Makes what is missing and mends what differs. `mac` is the uplink's: with it packets are for the
/// namespace as they came, and as they leave it are for the uplink again. Returns the node's side.
///
/// # Errors
/// Names the link and the step.
pub async fn ensure_reassembly_links(
    netns: &Netns,
    mac: [u8; 6],
    repairs: &mut Repairs,
) -> Result<u32> {
    let host = Netlink::here()?;
    let inside = Netlink::inside(netns)?;
    netns
        .run(|| ensure_settings(repairs))
        .map_err(LinkError::sysctl("net"))?;
    let sides = Sides {
        host: &host,
        inside: &inside,
        netns,
    };
    let pair = Pair {
        outer: NODE_SIDE,
        inner: INNER_SIDE,
        mac,
        mtu: MTU,
        of: "for fragments",
        why: REASSEMBLY_NEEDS_IT,
    };
    let mut consequences = Repairs::default();
    let (outer, inner, repairs) = match pair.find(&sides).await? {
        Some((outer, inner)) => (outer, inner, repairs),
        None => {
            let (outer, inner) = pair.make(&sides, repairs).await?;
            (outer, inner, &mut consequences)
        }
    };
    let wanted = Wanted {
        mtu: Some(MTU),
        ..Wanted::default()
    };
    outer.ensure(wanted, repairs).await?;
    // Without ARP, whoever a packet is for has the interface's own MAC.
    let wanted = Wanted {
        mac: Some(mac),
        arp: Some(false),
        ..wanted
    };
    inner.ensure(wanted, repairs).await?;
    let routes = route::list(&inside).await?;
    let back = Route::everything();
    back.ensure(&inside, &inner, &routes, repairs).await?;
    Ok(outer.index())
}

fn ensure_settings(repairs: &mut Repairs) -> io::Result<()> {
    for (name, value) in SETTINGS {
        match ensure_sysctl(name, value, REASSEMBLY_NEEDS_IT, repairs) {
            // A kernel without IPv6.
            Err(err) if err.kind() == io::ErrorKind::NotFound && name.starts_with("net/ipv6") => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Removes both sides.
///
/// # Errors
/// When netlink fails.
pub async fn remove_reassembly_links() -> Result<()> {
    let host = Netlink::here()?;
    delete(&host.handle, NODE_SIDE).await
}
