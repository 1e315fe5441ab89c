//! What only this node knows: its interfaces, addresses and network namespaces.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_abi::{PEER_RETURNING, PEER_SUSPECTED};
use model::{EndpointId, NetworkId, NodeId, TaskId};

/// Prefix length of the network that the tasks' gateway sides share.
pub const GATEWAY_PREFIX_LEN: u8 = 16;

/// This node, as the agent has wired it. Interface indexes are of the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalState {
    pub node: NodeId,
    pub vxlan_ifindex: u32,
    pub uplink_ifindex: u32,
    /// MTU of the uplink.
    pub underlay_mtu: u32,
    /// The bridge that the tasks' gateway sides hang on.
    pub gateway_ifindex: u32,
    /// The bridge's address; its network has [`GATEWAY_PREFIX_LEN`].
    pub gateway_addr: Ipv4Addr,
    /// Node's side of the veth behind which fragments are put in order; zero without one.
    pub reassembly_ifindex: u32,
    /// Where published ports answer.
    pub node_addrs: Vec<Ipv4Addr>,
    /// Cookie of the node's network namespace.
    pub netns_cookie: u64,
    /// Tasks whose interfaces are in place.
    pub tasks: BTreeMap<TaskId, LocalTask>,
    /// Other nodes of whom this one is not sure that they are there.
    pub doubts: BTreeMap<NodeId, Doubt>,
}

/// What is wrong with another node, as far as this one can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It does not answer: new flows go elsewhere; and if the managers hold it for down, too, nothing
    /// is there any more.
    Suspected,
    /// It answers again: it gets new flows, while those that went elsewhere go on there.
    Returning,
}

impl Doubt {
    /// As `PeerValue::flags`.
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Suspected => PEER_SUSPECTED,
            Self::Returning => PEER_RETURNING,
        }
    }

    /// What an entry of PEERS with these flags says.
    pub(crate) fn of(flags: u32) -> Option<Self> {
        let all = [Self::Suspected, Self::Returning];
        all.into_iter().find(|doubt| flags & doubt.flags() != 0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalTask {
    pub endpoint: EndpointId,
    /// Cookie of the task's network namespace.
    pub netns_cookie: u64,
    /// What the node's network namespace calls the task's (RTM_NEWNSID).
    pub netns_id: u32,
    pub gateway: LocalVeth,
    pub overlays: Vec<(NetworkId, LocalVeth)>,
    /// Published on this node alone.
    pub host_ports: Vec<HostPort>,
}

/// A port that leads to one task of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// IANA protocol number.
    pub proto: u8,
    /// On the node.
    pub published: u16,
    /// In the task.
    pub target: u16,
}

impl LocalTask {
    /// Of all its interfaces' host sides.
    pub fn ifindexes(&self) -> impl Iterator<Item = u32> {
        let overlays = self.overlays.iter().map(|(_, veth)| veth);
        overlays.chain([&self.gateway]).map(|veth| veth.ifindex)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalVeth {
    /// Of the host side.
    pub ifindex: u32,
    /// Of the task's side, as is `mac`.
    pub addr: Ipv4Addr,
    pub mac: [u8; 6],
}
