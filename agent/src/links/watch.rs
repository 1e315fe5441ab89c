//! Word from the kernel of changes to links, addresses, routes, neighbours and filters, in the node's
//! namespace and in its tasks': a comparison then need not wait for its time. Word only hastens it: what
//! is not told, or is lost, the next comparison finds.

use std::future;

use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use tracing::warn;

use super::Result;

const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_TC,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_NETCONF,
];

/// Of `struct nlmsghdr`: its size, and where its length and type are.
const HEADER_LEN: usize = 16;
const LEN_AT: usize = 0;
const TYPE_AT: usize = 4;
/// Of `struct ndmsg` behind it.
const FAMILY_AT: usize = HEADER_LEN;
const STATE_AT: usize = HEADER_LEN + 8;

/// A socket that hears of changes.
pub struct Watch(TokioSocket);

impl Watch {
    /// On the calling thread's namespace, and all that have a number in it.
    ///
    /// # Errors
    /// What the kernel refuses; other namespaces need `CAP_NET_BROADCAST`.
    pub fn open() -> Result<Self> {
        let mut watch = TokioSocket::new(NETLINK_ROUTE)?;
        let socket = watch.socket_mut();
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_listen_all_namespaces(true)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self(watch))
    }

    /// Waits for a change that may be to something of ours. Cancel-safe.
    pub async fn altered(&self) {
        loop {
            match self.0.recv_from_full().await {
                Ok((datagram, _)) if tells(&datagram) => return,
                Ok(_) => {}
                // More happened than the socket holds.
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => return,
                Err(err) => {
                    warn!("the kernel tells of no more changes, so they are seen later: {err}");
                    return future::pending().await;
                }
            }
        }
    }
}

/// Whether one of the datagram's messages is worth a look.
fn tells(mut datagram: &[u8]) -> bool {
    while let Some(len) = array(datagram, LEN_AT).map(u32::from_ne_bytes) {
        let len = len as usize;
        match datagram.get(..len) {
            Some(message) if len >= HEADER_LEN => {
                if may_concern_us(message) {
                    return true;
                }
            }
            _ => return false,
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Neighbours come and go with traffic. Only entries that somebody set for ever can be wrong.
fn may_concern_us(message: &[u8]) -> bool {
    match array(message, TYPE_AT).map(u16::from_ne_bytes) {
        Some(libc::RTM_DELNEIGH) => false,
        Some(libc::RTM_NEWNEIGH) => {
            let lasts = libc::NUD_PERMANENT | libc::NUD_NOARP;
            let state = array(message, STATE_AT).map_or(0, u16::from_ne_bytes);
            let family = message.get(FAMILY_AT).copied();
            family == Some(libc::AF_INET as u8) && state & lasts != 0
        }
        _ => true,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message of `kind`, with these bytes behind its header.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = (HEADER_LEN + body.len()) as u32;
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn neighbour(kind: u16, family: i32, state: u16) -> Vec<u8> {
        let [low, high] = state.to_ne_bytes();
        message(kind, &[family as u8, 0, 0, 0, 1, 0, 0, 0, low, high, 0, 0])
    }

    #[test]
    fn neighbours_of_the_moment_are_not_worth_a_look() {
        const REACHABLE: u16 = 2;
        let (new, gone) = (libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH);
        let (ipv4, bridge) = (libc::AF_INET, libc::AF_BRIDGE);
        let lasting = neighbour(new, ipv4, libc::NUD_PERMANENT);
        assert!(tells(&lasting));
        let passing = [
            neighbour(new, ipv4, REACHABLE),
            neighbour(gone, ipv4, libc::NUD_PERMANENT),
            neighbour(new, bridge, libc::NUD_PERMANENT),
        ];
        for one in &passing {
            assert!(!tells(one), "{one:?}");
        }
        assert!(tells(&[passing.concat(), lasting].concat()));
        assert!(tells(&message(libc::RTM_DELLINK, &[0; 3])));
    }

    proptest! {
        /// Whatever lengths and kinds say.
        #[test]
        fn any_datagram_tells_something_or_nothing(
            messages in prop::collection::vec((0u32..40, 28u16..32, prop::collection::vec(any::<u8>(), 0..20)), 0..4),
        ) {
            let mut datagram = Vec::new();
            for (len, kind, body) in messages {
                datagram.extend(len.to_ne_bytes());
                datagram.extend(kind.to_ne_bytes());
                datagram.extend(body);
            }
            tells(&datagram);
        }
    }

    #[test]
    fn what_is_no_message_ends_the_search() {
        let link = message(libc::RTM_NEWLINK, &[0; 16]);
        assert!(!tells(&[]));
        assert!(!tells(&link[..20]));
        assert!(!tells(&[&[0; HEADER_LEN][..], &link].concat()));
    }
}
