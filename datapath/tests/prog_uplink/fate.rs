//! What a row of the tables expects.

use dataplane_abi::{Be32, DropReason, net::mesh_mac::Kind};

use crate::{common::*, setup::*};

/// What becomes of a packet; the column of each program follows from it.
#[derive(Clone)]
pub enum Fate {
    /// Both leave it untouched: the host's own stack goes on with it.
    Host,
    /// Into the tunnel to a node, as this inner packet. XDP wraps it itself, tc leaves that to the
    /// kernel's device.
    Tunnel(Be32, Vec<u8>),
    /// Tc sends these bytes. XDP cannot, and leaves the packet to it.
    ByTc(Vec<u8>),
    /// As `ByTc`, an answer to the client; the packet counts as dropped.
    Refused(DropReason, Vec<u8>),
    /// Whoever sees it first drops it.
    Dropped(DropReason),
    /// Tc drops it. XDP cannot tell, and leaves the packet to it.
    DroppedByTc(DropReason),
}

impl Fate {
    /// To the first task.
    pub fn task(frame: &Frame) -> Self {
        Self::ByTc(delivered(frame, TASK).bytes())
    }

    /// To the backend at node B.
    pub fn node_b(frame: &Frame) -> Self {
        Self::Tunnel(NODE_B, forwarded(frame).bytes())
    }

    /// On to the owner before, or the one of the pin.
    pub fn onward(frame: &Frame, endpoint: u32) -> Self {
        let frame = frame.clone().mesh(Kind::SecondHop, endpoint, NODE);
        Self::ByTc(frame.bytes())
    }

    /// Answered with a RST.
    pub fn refused(frame: &Frame, reason: DropReason) -> Self {
        Self::Refused(reason, frame.reset().macs(ROUTER, UPLINK_MAC).bytes())
    }

    /// Of the same packet, of which only the first bytes came.
    pub fn cut(self, len: usize) -> Self {
        match self {
            Self::Tunnel(to, bytes) => Self::Tunnel(to, bytes[..len].to_vec()),
            Self::ByTc(bytes) => Self::ByTc(bytes[..len].to_vec()),
            other => other,
        }
    }

    /// Verdict, and what it counts as dropped for.
    pub fn of_tc(&self) -> (u32, Option<DropReason>) {
        match self {
            Self::Host => (TC_ACT_UNSPEC, None),
            Self::Tunnel(..) | Self::ByTc(_) => (TC_ACT_REDIRECT, None),
            Self::Refused(reason, _) => (TC_ACT_REDIRECT, Some(*reason)),
            Self::Dropped(reason) | Self::DroppedByTc(reason) => (TC_ACT_SHOT, Some(*reason)),
        }
    }

    pub fn of_xdp(&self) -> (u32, Option<DropReason>) {
        match self {
            Self::Tunnel(..) => (XDP_TX, None),
            Self::Dropped(reason) => (XDP_DROP, Some(*reason)),
            _ => (XDP_PASS, None),
        }
    }

    /// What tc makes of `packet`; nobody sees a dropped one.
    pub fn bytes<'a>(&'a self, packet: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Host => Some(packet),
            Self::Tunnel(_, bytes) | Self::ByTc(bytes) | Self::Refused(_, bytes) => Some(bytes),
            Self::Dropped(_) | Self::DroppedByTc(_) => None,
        }
    }
}

/// `frame` in the tunnel to the first endpoint.
pub fn forwarded(frame: &Frame) -> Frame {
    frame.clone().mesh(Kind::Forward, EP, NODE)
}

/// A row: what it shows, the packet, what becomes of it.
pub type Case = (&'static str, Vec<u8>, Fate);
