//! Links, addresses and routes of the node and its tasks, over rtnetlink. Verbs are idempotent: they
//! look, compare, and change only what differs.

mod device;
mod namespace;
mod neighbour;
mod node;
mod reassembly;
mod route;
mod task;
#[cfg(test)]
mod tests;
mod veth;
mod watch;

pub use namespace::namespace_id;
pub use node::{GATEWAY_BRIDGE, NodeLinks, NodeLinksSpec, ensure_node_links, remove_node_links};
pub use reassembly::{REASSEMBLY_NEEDS_IT, ensure_reassembly_links, remove_reassembly_links};
pub use task::{HostVeths, TaskLinksSpec, ensure_task_links, find_host_veths, remove_task_links};
pub use watch::Watch;

use std::{fs, io, net::Ipv4Addr};

use device::{Device, Wanted};
use futures::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::{address::AddressAttribute, link::LinkMessage},
};

use crate::repair::Repairs;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("link `{link}`: cannot {action}: {source}")]
    Netlink {
        link: String,
        action: &'static str,
        source: rtnetlink::Error,
    },
    #[error("link `{link}` was made and is not there; another program removes it")]
    Vanished { link: String },
    #[error(
        "network namespace `{netns}`: the kernel gives it no number, so sockets in it cannot be \
         looked up: {source}"
    )]
    NamespaceId {
        netns: String,
        source: rtnetlink::Error,
    },
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    #[error(
        "no interface of this node has the address {0}; give --uplink or another --data-path-addr"
    )]
    NoUplink(Ipv4Addr),
    #[error("interface `{0}` does not exist; `ip link` lists what does")]
    UnknownUplink(String),
    #[error("cannot write {path}: {source}")]
    Sysctl { path: String, source: io::Error },
}

impl LinkError {
    /// Of one's own file of settings, such as `net/ipv4/ip_forward`.
    fn sysctl(name: &str) -> impl Fn(io::Error) -> Self {
        let path = format!("/proc/sys/{name}");
        move |source| Self::Sysctl {
            path: path.clone(),
            source,
        }
    }
}

type Result<T> = std::result::Result<T, LinkError>;

/// A netlink connection in the namespace of the thread that opened it; its driver ends with it.
pub(crate) struct Netlink {
    pub handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// In the calling thread's namespace.
    pub fn here() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }

    /// In another namespace.
    pub fn inside(netns: &crate::netns::Netns) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle) = netns.run(move || {
            let _context = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            Ok((connection, handle))
        })?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The link called `name`, if there is one.
async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
    {
        Ok(found) => Ok(found),
        Err(err) if is_errno(&err, libc::ENODEV) => Ok(None),
        Err(source) => Err(LinkError::Netlink {
            link: name.to_owned(),
            action: "look it up",
            source,
        }),
    }
}

async fn delete(handle: &Handle, name: &str) -> Result<()> {
    let Some(link) = find(handle, name).await? else {
        return Ok(());
    };
    handle
        .link()
        .del(link.header.index)
        .execute()
        .await
        .or_else(|err| tolerate(err, libc::ENODEV, name, "delete it"))
}

fn tolerate(err: rtnetlink::Error, errno: i32, link: &str, action: &'static str) -> Result<()> {
    if is_errno(&err, errno) {
        return Ok(());
    }
    Err(LinkError::Netlink {
        link: link.to_owned(),
        action,
        source: err,
    })
}

fn is_errno(err: &rtnetlink::Error, errno: i32) -> bool {
    matches!(err, rtnetlink::Error::NetlinkError(message)
        if message.code.is_some_and(|code| code.get() == -errno))
}

/// Writes a sysctl of the calling thread's network namespace, when it is another one.
fn ensure_sysctl(
    name: &str,
    value: &str,
    why: &'static str,
    repairs: &mut Repairs,
) -> io::Result<()> {
    let path = format!("/proc/sys/{name}");
    let now = fs::read_to_string(&path)?;
    if now.trim() != value {
        fs::write(&path, value)?;
        repairs.note(format!("sysctl {name}"), now.trim(), why);
    }
    Ok(())
}

/// Every IPv4 address of this namespace with its interface index and name.
pub async fn addresses() -> Result<Vec<(u32, Ipv4Addr)>> {
    let netlink = Netlink::here()?;
    let fail = |source| LinkError::Netlink {
        link: "*".into(),
        action: "list addresses",
        source,
    };
    let mut found = Vec::new();
    let mut stream = netlink.handle.address().get().execute();
    while let Some(message) = stream.try_next().await.map_err(fail)? {
        // IFA_LOCAL is the interface's own address; IFA_ADDRESS is the peer's on point-to-point
        // links.
        for attribute in &message.attributes {
            if let AddressAttribute::Local(std::net::IpAddr::V4(addr)) = attribute {
                found.push((message.header.index, *addr));
            }
        }
    }
    Ok(found)
}
