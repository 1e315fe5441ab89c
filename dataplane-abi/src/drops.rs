//! Why a packet was dropped, and by whom. Append-only lists: a retired number stays taken.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal => $label:literal),+ $(,)?) => {
        /// With a [`ProgramId`], an index into the per-CPU drop counters ([`drop_index`]).
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name = $number),+
        }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As `swarmnet inspect drops` shows it.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// One line for a person.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

drop_reasons! {
    /// The packet ends before its headers do.
    Truncated = 1 => "truncated",
    /// No endpoint has this address in the network.
    UnknownDestination = 2 => "unknown-destination",
    /// Broadcast or multicast; overlays carry unicast only.
    NotUnicast = 3 => "not-unicast",
    /// Neither IPv4 nor ARP on an overlay network.
    UnsupportedProtocol = 4 => "unsupported-protocol",
    /// The task sends from an address or MAC that is not its own.
    SpoofedSource = 5 => "spoofed-source",
    /// A tunnel packet from an address that is not a node of the cluster.
    UnknownTunnelSource = 6 => "unknown-tunnel-source",
    /// A tunnel packet whose network has no such endpoint on this node.
    NotLocal = 7 => "not-local",
    /// The service has no backend that takes new flows.
    NoBackend = 8 => "no-backend",
    /// The backend named by the packet is not on this node any more.
    BackendGone = 9 => "backend-gone",
    /// The packet could not be changed or wrapped; see the kernel's memory.
    RewriteFailed = 10 => "rewrite-failed",
    /// A mesh return for a client that this node has no route to.
    NoRouteToClient = 11 => "no-route-to-client",
    /// A later fragment of a flow that is translated, whose first one did not come before it.
    FragmentWithoutHead = 12 => "fragment-without-head",
    /// The device sends from an interface that the agent has not registered.
    UnknownInterface = 13 => "unknown-interface",
    /// The mesh packet's destination MAC is none of the mesh's kinds.
    BadMeshMac = 14 => "bad-mesh-mac",
    /// The flow table or a per-flow table refused an insert.
    FlowTableFull = 15 => "flow-table-full",
    /// An IPv4 header that is malformed or carries options the programs do not follow.
    BadIpHeader = 16 => "bad-ip-header",
    /// The inner IPv4 time to live ran out between entry and backend.
    TtlExpired = 17 => "ttl-expired",
    /// The node's configuration map is empty: the agent has not finished its first start.
    NotConfigured = 18 => "not-configured",
    /// Not counted any more: fragments of translated flows are followed.
    Fragmented = 19 => "fragmented",
    /// A tunnel packet for a port that this node does not know as published.
    NotPublished = 20 => "not-published",
    /// More flows of one source port of a client meet at one port of a task than can be told apart.
    SourceCollision = 21 => "source-collision",
    /// The packet is larger than the MTU of the way out.
    TooBig = 22 => "too-big",
    /// A task sends to another one of its node by the gateway bridge, past published ports.
    Isolated = 23 => "isolated",
    /// An ICMP error about a flow of a published port or a VIP that nobody knows.
    IcmpUnknownFlow = 24 => "icmp-unknown-flow",
    /// ICMP in the mesh that is no error about TCP or UDP, or quotes too little of its cause.
    BadIcmp = 25 => "bad-icmp",
    /// Not counted any more: fragments are put in order first.
    FragmentBeforeHead = 26 => "fragment-before-head",
    /// A packet in the middle of a TCP connection for which no backend has a flow or a socket.
    UnknownFlow = 35 => "unknown-flow",
    /// A packet of a TCP connection that is not known here, moments after a change of backends: sent again,
    /// it finds its backend, or is refused.
    Unsettled = 36 => "unsettled",
    /// A task sends to the tunnel's UDP port: to other nodes that would be a packet of this node.
    ForgedTunnel = 40 => "forged-tunnel",
    /// A task's packet carries a source route.
    SourceRouted = 41 => "source-routed",
    /// A packet from outside has an address of this node's gateway network, where tasks are.
    ForgedTaskAddress = 42 => "forged-task-address",
    /// A frame with a VLAN tag, from a task or inside of the tunnel.
    VlanTagged = 43 => "vlan-tagged",
}

/// Room for reasons and programs to come without a new layout.
pub const DROP_REASONS_MAX: u32 = 64;
pub const PROGRAMS_MAX: u32 = 16;
/// Length of the drop counter array.
pub const DROPS_LEN: u32 = PROGRAMS_MAX * DROP_REASONS_MAX;

/// The programs, as drops are counted. Number 0 is none's: under it builds counted that did not tell
/// programs apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ProgramId {
    XdpUplink = 1,
    TcUplink = 2,
    TcVxlan = 3,
    TcTask = 4,
    TcGateway = 5,
    Connect4 = 6,
    Sendmsg4 = 7,
    Recvmsg4 = 8,
    Getpeer4 = 9,
    TcOrdered = 10,
}

impl ProgramId {
    pub const ALL: &'static [Self] = &[
        Self::XdpUplink,
        Self::TcUplink,
        Self::TcVxlan,
        Self::TcTask,
        Self::TcGateway,
        Self::Connect4,
        Self::Sendmsg4,
        Self::Recvmsg4,
        Self::Getpeer4,
        Self::TcOrdered,
    ];

    /// In the object, and as `swarmnet inspect drops` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpUplink => "sn_xdp_uplink",
            Self::TcUplink => "sn_tc_uplink",
            Self::TcVxlan => "sn_tc_vxlan",
            Self::TcTask => "sn_tc_task",
            Self::TcGateway => "sn_tc_gateway",
            Self::Connect4 => "sn_connect4",
            Self::Sendmsg4 => "sn_sendmsg4",
            Self::Recvmsg4 => "sn_recvmsg4",
            Self::Getpeer4 => "sn_getpeer4",
            Self::TcOrdered => "sn_tc_ordered",
        }
    }
}

/// Where `program` counts what it drops for `reason`.
#[inline(always)]
pub const fn drop_index(program: ProgramId, reason: DropReason) -> u32 {
    program as u32 * DROP_REASONS_MAX + reason as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::{DROP_REASONS_MAX, DROPS_LEN, DropReason, ProgramId, drop_index};

    #[test]
    fn reasons_fit_the_counters_and_have_labels_of_their_own() {
        let all = DropReason::ALL;
        assert!(
            all.iter()
                .all(|reason| (1..DROP_REASONS_MAX).contains(&(*reason as u32)))
        );
        let labels: BTreeSet<_> = all.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), all.len());
        assert!(all.iter().all(|reason| reason.explanation().ends_with('.')));
    }

    #[test]
    fn every_program_counts_every_reason_by_itself() {
        let indexes = ProgramId::ALL.iter().flat_map(|program| {
            let reasons = DropReason::ALL.iter();
            reasons.map(|reason| drop_index(*program, *reason))
        });
        let indexes: BTreeSet<_> = indexes.collect();
        assert_eq!(indexes.len(), ProgramId::ALL.len() * DropReason::ALL.len());
        assert!(indexes.iter().all(|index| (1..DROPS_LEN).contains(index)));
    }
}
