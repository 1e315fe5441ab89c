//! Keys and values of the maps, each with who writes and who reads it. `agent` is user space.
//!
//! Across layouts contents are carried over byte by byte, so a value only grows at its end, a field
//! that is not written is zero, and a key never changes (docs/decisions/0007).

use crate::{
    hash::{FlowTuple, client_hash, flow_hash},
    net::{Be16, Be32},
    ring::RingPlace,
};

macro_rules! map_types {
    ($($(#[$doc:meta])* $name:ident : $size:literal { $($(#[$field_doc:meta])* $field:ident : $ty:ty),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),+ }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);

        // SAFETY: `repr(C)` of integers and arrays of them without implicit padding (the size
        // assertion holds the sum), so every bit pattern is a value and every byte is initialized.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )+};
}

map_types! {
    /// `CONFIG[0]`: this node. Written by the agent, read by every program.
    NodeConfig: 64 {
        vxlan_ifindex: u32,
        uplink_ifindex: u32,
        /// Interface that faces the tasks' gateway side (the bridge).
        gateway_ifindex: u32,
        /// VNI of the mesh.
        mesh_vni: u32,
        /// This node's tunnel address.
        vtep: Be32,
        /// The gateway bridge's address.
        gateway_addr: Be32,
        ring_seed: u64,
        /// UDP port of VXLAN.
        data_port: Be16,
        /// Counts the agent's writes of this entry; 0 is "never written".
        generation: u16,
        /// Which bits of `gateway_addr` are those of its network.
        gateway_mask: Be32,
        /// Longest IPv4 packet that the tunnel carries in one piece of the underlay.
        tunnel_mtu: u32,
        /// How many of `PEERS` are flagged: as a rule none, and then nobody looks.
        doubted: u32,
        /// Nanoseconds of the monotonic clock. Until then some node may hold a flow that a change of
        /// a ring displaced and that is not in `PINS` yet: packets of unknown flows are dropped
        /// without a RST.
        unsettled_until: u64,
        /// This node's side of the veth to where fragments are put in order; zero while there is none.
        reassembly_ifindex: u32,
        _pad: u32,
    }

    /// Key of `ENDPOINTS`.
    EndpointKey: 8 {
        vni: u32,
        addr: Be32,
    }

    /// `ENDPOINTS`, hash: where an overlay address is. Written by the agent; read by the task,
    /// vxlan and socket programs.
    EndpointValue: 24 {
        /// Tunnel address of its node; zero when it is here.
        vtep: Be32,
        /// Host side of its veth; zero when it is elsewhere.
        ifindex: u32,
        /// Its cluster-wide id.
        endpoint: u32,
        /// `ENDPOINT_*` flags.
        flags: u32,
        mac: [u8; 6],
        _pad: u16,
    }

    /// `VETHS`, hash by ifindex of the host side: whose interface it is. Written by the agent,
    /// read by the task and gateway programs: source checks.
    VethValue: 24 {
        /// Zero for the gateway side.
        vni: u32,
        addr: Be32,
        endpoint: u32,
        /// Index into `STATS` of the endpoint.
        stats: u32,
        mac: [u8; 6],
        /// [`VETH_OVERLAY`] or [`VETH_GATEWAY`].
        kind: u16,
    }

    /// `LOCAL`, hash by endpoint id: the gateway side of a task on this node, where mesh packets
    /// are delivered. Written by the agent; read by the uplink, vxlan and gateway programs.
    LocalEndpoint: 32 {
        /// Host side of the gateway veth.
        ifindex: u32,
        /// The task's address there.
        addr: Be32,
        /// Index into `STATS` of the endpoint.
        stats: u32,
        /// Raised when the endpoint stops serving: flows of an older one are void.
        generation: u32,
        mac: [u8; 6],
        _pad: u16,
        /// The task's network namespace, where its sockets are, by the number that the node's own
        /// one has for it (RTM_NEWNSID).
        netns: u32,
        _pad2: u32,
    }

    /// Key of `VIPS`.
    VipKey: 8 {
        vni: u32,
        addr: Be32,
    }

    /// Key of `ADDRESSED`, hash: ports that are published on one address of the cluster only, which
    /// need not be this node's, or for this node's own sockets. Its value is an index into `FRONTENDS`. Written by the agent; read
    /// by the uplink, vxlan and socket programs, for ports whose [`PortWord`](crate::PortWord) says so.
    PublishedKey: 8 {
        addr: Be32,
        port: Be16,
        /// IANA protocol number.
        proto: u8,
        /// [`SIDE_PACKETS`] or [`SIDE_SOCKETS`].
        side: u8,
    }

    /// `VIPS`, hash, and `FRONTENDS`, array: a service's frontend. An entry of the hash is replaced
    /// as a whole by the agent, an element of the array written before the first [`PortWord`]
    /// names it and not again before readers are gone: a reader sees the old ring or the new one.
    /// Read by the uplink, vxlan, task and socket programs.
    ///
    /// [`PortWord`]: crate::PortWord
    ServiceValue: 40 {
        /// The ring's place in `RINGS`. Not read when `ring_len` is 0 or 1.
        ring: RingPlace,
        /// Slots of the ring that all nodes share: 0 is no backend, 1 is one backend without a ring, else at most
        /// [`RING_LEN_MAX`](crate::RING_LEN_MAX). With [`SERVICE_NEAR`] as many follow.
        ring_len: u32,
        /// First backend in `BACKENDS`; slots of the ring count from it.
        backend_base: u32,
        /// Backends there, those that only "before" slots name included.
        backend_count: u32,
        /// With `ring_len` 1: the slot, in the wide form.
        single: u32,
        /// Index into `STATS` of the frontend.
        stats: u32,
        /// `SERVICE_*` flags.
        flags: u32,
        /// Counts the agent's writes.
        generation: u32,
        /// Added to the port that was sent to, without carry, gives the port in the task: so one
        /// entry serves a range of ports.
        port_shift: u16,
        /// For so long after its last packet a client keeps its backend, whatever becomes of the ring;
        /// zero leaves it to the ring. Comes with [`SERVICE_AFFINITY`].
        affinity_secs: u16,
        /// What the service is called in `CLIENTS`, by all of its frontends.
        affinity_key: u32,
    }

    /// Key of `CLIENTS`.
    ClientKey: 16 {
        /// Its address, as packets have it; for sockets the cookie of their network namespace with
        /// [`CLIENT_IS_NETNS`].
        client: u64,
        /// `ServiceValue::affinity_key`.
        service: u32,
        _pad: u32,
    }

    /// `CLIENTS`, LRU hash: which backend a client of a service with a timeout has. Written and read
    /// where clients come in, by the uplink, task and socket programs.
    ClientValue: 16 {
        /// Nanoseconds of the monotonic clock at the client's last packet, exact to about a second
        /// ([`FLOW_TOUCH_NS`]).
        last_seen: u64,
        endpoint: u32,
        /// Where the endpoint was last found among the service's backends.
        index: u32,
    }

    /// `BACKENDS`, array: one backend of one service. Written by the agent before the service that
    /// names it, and not again before readers are gone; read with `ServiceValue`.
    BackendValue: 24 {
        endpoint: u32,
        /// Tunnel address of its node; zero when it is here.
        vtep: Be32,
        /// Overlay address for VIPs; the gateway-side address for local backends of published
        /// ports; the node's own address for remote ones (what the socket hook connects to).
        addr: Be32,
        /// [`BACKEND_ACTIVE`] or [`BACKEND_DRAINING`].
        state: u32,
        mac: [u8; 6],
        _pad: u16,
    }

    /// Key of `TARGETS`: what the gateway bridge carries between tasks of a node.
    TargetKey: 8 {
        /// Gateway-side address of a task here.
        addr: Be32,
        /// Target port of a port that the task's service publishes.
        port: Be16,
        /// IANA protocol number.
        proto: u8,
        _pad: u8,
    }

    /// `TARGETS`, hash. Written by the agent, read by the gateway program.
    TargetValue: 8 {
        endpoint: u32,
        _pad: u32,
    }

    /// `PEERS`, hash by tunnel address: the nodes of the cluster. Written by the agent, read by
    /// the vxlan program: nobody else may send us tunnel packets. Read as well by those that choose a
    /// backend, while [`NodeConfig::doubted`] says that some are flagged.
    PeerValue: 8 {
        /// `PEER_*`.
        flags: u32,
        _pad: u32,
    }

    /// `NETNS`, hash by network namespace cookie: the networks a namespace takes part in. Written
    /// by the agent, read by the socket programs.
    NetnsValue: 72 {
        /// [`NETNS_NODE`] or [`NETNS_TASK`].
        kind: u32,
        /// How many of `vnis` count.
        vni_count: u32,
        vnis: [u32; NETNS_VNIS_MAX],
    }

    /// Key of `SOCK_ORIGINS`: a socket and the backend it talks to.
    SockKey: 16 {
        /// Socket cookie.
        cookie: u64,
        addr: Be32,
        port: Be16,
        proto: u8,
        _pad: u8,
    }

    /// `SOCK_ORIGINS`, LRU hash: what the application believes it talks to. Written and read by
    /// the socket programs.
    SockOrigin: 8 {
        addr: Be32,
        port: Be16,
        _pad: u16,
    }

    /// Key of `FLOWS`, `SYN_FLOWS` and `UDP_FLOWS`: a mesh flow at the backend's node, as the task
    /// sends its replies.
    FlowKey: 16 {
        client: Be32,
        /// The task's gateway-side address.
        task: Be32,
        client_port: Be16,
        task_port: Be16,
        proto: u8,
        _pad: u8,
        _pad2: u16,
    }

    /// The one entry of a mesh flow, both directions. Written by the programs at the backend's node,
    /// read there and by `inspect flows`. LRU hashes all three, so that a flood of one kind evicts no
    /// other:
    /// - `FLOWS`: TCP connections for which the task has a socket;
    /// - `SYN_FLOWS`: TCP, from the SYN on, until the handshake is over;
    /// - `UDP_FLOWS`: UDP, also between tasks over the gateway bridge ([`FLOW_BRIDGED`]).
    FlowValue: 48 {
        /// Nanoseconds of the monotonic clock at the last packet, exact to about a second
        /// ([`FLOW_TOUCH_NS`]).
        last_seen: u64,
        /// Where replies enter the tunnel; zero when this node was the entry.
        entry_vtep: Be32,
        /// What the client sent to.
        node_addr: Be32,
        published: Be16,
        /// `FLOW_*` flags.
        flags: u16,
        endpoint: u32,
        /// Generation of the endpoint at creation.
        generation: u32,
        /// Index into `STATS` of the endpoint.
        stats: u32,
        /// Nanoseconds of the monotonic clock when the entry was made; zero in those that a build made
        /// which did not note it. A flow whose entry was lost and came back is as old as that.
        opened: u64,
        /// The client's own port, where the task knows it by another one, which is the key's
        /// ([`crate::seat`]); else zero.
        own_port: Be16,
        _pad: u16,
        _pad2: u32,
    }

    /// Key of `PINS`: a mesh flow as the client sends.
    PinKey: 16 {
        client: Be32,
        node_addr: Be32,
        client_port: Be16,
        published: Be16,
        proto: u8,
        _pad: u8,
        _pad2: u16,
    }

    /// `PINS`, hash: owners of live flows whose slot of the ring is another's by now. Written by the agent from what the owners' agents say; read by the uplink and vxlan
    /// programs for packets whose flow is not known, never at the entry.
    PinValue: 8 {
        endpoint: u32,
        /// Tunnel address of its node; zero when it is here.
        vtep: Be32,
    }

    /// Key of `FRAGMENTS`: an IPv4 packet that comes in fragments (RFC 791 section 2.3).
    FragmentKey: 16 {
        src: Be32,
        dst: Be32,
        /// [`FRAGMENT_MESH`], [`FRAGMENT_GATEWAY`], or the VNI of an overlay network.
        scope: u32,
        id: Be16,
        proto: u8,
        _pad: u8,
    }

    /// `FRAGMENTS`, LRU hash: where the first fragment went, until all of the packet went there.
    /// Written and read by the tc programs.
    FragmentValue: 32 {
        /// Nanoseconds of the monotonic clock at the first fragment; valid for
        /// [`FRAGMENT_LIFETIME_NS`].
        since: u64,
        /// Tunnel address of the node; zero when that is this one.
        vtep: Be32,
        /// What the packet's translated address becomes; zero where an endpoint or nothing says it.
        addr: Be32,
        endpoint: u32,
        /// Of the packet's payload so far.
        bytes: u32,
        /// Of the payload in all; zero until the last fragment tells.
        total: u32,
        _pad: u32,
    }

    /// Key of `VIP_FLOWS`: a flow to a VIP that the socket hook missed, as the backend replies.
    VipFlowKey: 24 {
        vni: u32,
        client: Be32,
        backend: Be32,
        client_port: Be16,
        backend_port: Be16,
        proto: u8,
        _pad: u8,
        _pad2: u16,
        _pad3: u32,
    }

    /// `VIP_FLOWS`, LRU hash, at the client's node. Written and read by the task and vxlan
    /// programs.
    VipFlowValue: 24 {
        last_seen: u64,
        vip: Be32,
        /// `VIP_FLOW_*` flags.
        flags: u16,
        /// As of a [`FlowValue`].
        own_port: Be16,
        /// As there.
        opened: u64,
    }

    /// `STATS`, per-CPU array by the `stats` index of frontends and endpoints. A frontend counts
    /// packets towards its backends where they enter (sockets translated at connect count as new
    /// flows only); an endpoint counts its mesh packets in both directions, its mesh flows, and
    /// what it sends into overlays. Bytes are whole frames; a GSO packet counts its segments.
    Stats: 24 {
        packets: u64,
        bytes: u64,
        new_flows: u64,
    }

    /// `DROPS`, per-CPU array by [`crate::ProgramId`] and [`crate::DropReason`]
    /// ([`crate::drops::drop_index`]).
    DropCounter: 16 {
        packets: u64,
        bytes: u64,
    }
}

impl ServiceValue {
    /// What chooses a flow's slot. With affinity that is the client alone, so that all ports of the
    /// service agree.
    #[inline(always)]
    pub const fn hash(&self, tuple: FlowTuple, seed: u64) -> u32 {
        match self.flags & SERVICE_AFFINITY {
            0 => flow_hash(tuple, seed),
            _ => client_hash(tuple.src, seed),
        }
    }

    /// Whether a client that was seen last at `last_seen` keeps its backend; in nanoseconds. It may have
    /// been seen after `now`, on another CPU or by another clock.
    #[inline(always)]
    pub const fn keeps_client(&self, last_seen: u64, now: u64) -> bool {
        let age = now.wrapping_sub(last_seen) as i64;
        age < self.affinity_secs as i64 * 1_000_000_000
    }

    /// Whether a packet that comes in here goes to one of the node's own backends before all others.
    #[inline(always)]
    pub const fn is_near(&self, is_established: bool) -> bool {
        self.takes_near_flows() || self.flags & SERVICE_NEAR != 0 && is_established
    }

    /// Whether new flows do.
    #[inline(always)]
    pub const fn takes_near_flows(&self) -> bool {
        self.flags & (SERVICE_NEAR | SERVICE_NEAR_DRAINS) == SERVICE_NEAR
    }

    /// Port in the task of what was sent to `port`.
    #[inline(always)]
    pub const fn target(&self, port: Be16) -> Be16 {
        Be16::from_host(port.to_host().wrapping_add(self.port_shift))
    }
}

impl FlowValue {
    /// The client's own port; `port` is the key's.
    #[inline(always)]
    pub const fn client_port(&self, port: Be16) -> Be16 {
        match self.own_port.is_zero() {
            true => port,
            false => self.own_port,
        }
    }

    /// Whether both sides have closed the connection, or one has reset it.
    #[inline(always)]
    pub const fn has_ended(&self) -> bool {
        const BOTH: u16 = FLOW_CLIENT_FIN | FLOW_TASK_FIN;
        self.flags & FLOW_RESET != 0 || self.flags & BOTH == BOTH
    }
}

impl VipFlowValue {
    /// The client's own port; `port` is the key's.
    #[inline(always)]
    pub const fn client_port(&self, port: Be16) -> Be16 {
        match self.own_port.is_zero() {
            true => port,
            false => self.own_port,
        }
    }
}

/// Largest number of backends of one service: a slot's index has 16 bits.
pub const BACKENDS_PER_SERVICE_MAX: u32 = 65_535;

pub const NETNS_VNIS_MAX: usize = 16;

pub const BACKEND_ACTIVE: u32 = 1;
pub const BACKEND_DRAINING: u32 = 2;

/// `PeerValue::flags`: the node does not answer. Whatever has a choice goes to another one.
pub const PEER_SUSPECTED: u32 = 1;
/// `PeerValue::flags`: it answers again. It gets new flows; packets of established ones go first to
/// who got the new ones meanwhile, and hands on what is not its own.
pub const PEER_RETURNING: u32 = 2;
/// How many slots are looked at for a backend whose node is not doubted.
pub const DOUBT_TRIES: u32 = 16;

pub const VETH_OVERLAY: u16 = 1;
pub const VETH_GATEWAY: u16 = 2;

pub const NETNS_NODE: u32 = 1;
pub const NETNS_TASK: u32 = 2;

/// The endpoint has flows in `VIP_FLOWS`: packets to it need a look there. Set by the programs and
/// kept by the agent.
pub const ENDPOINT_HAS_VIP_FLOWS: u32 = 1;

/// `FlowValue::flags`: the client sent its FIN.
pub const FLOW_CLIENT_FIN: u16 = 1;
/// `FlowValue::flags`: the task sent its FIN.
pub const FLOW_TASK_FIN: u16 = 2;
/// `FlowValue::flags`: either side reset the connection.
pub const FLOW_RESET: u16 = 4;
/// `FlowValue::flags`: no mesh flow, but UDP from another task of the node, over the gateway bridge
/// and with no translation left to do.
pub const FLOW_BRIDGED: u16 = 8;
/// `FlowValue::flags`, in `SYN_FLOWS`: the client has answered the task, as far as one can tell.
pub const FLOW_ACKED: u16 = 128;
/// `FlowValue::flags`: replies go to the client by this node's own routes. Set when the flow opens,
/// so a change of the service leaves it as it is.
pub const FLOW_DIRECT: u16 = 16;

/// `PublishedKey::side`: for packets, from wherever they come.
pub const SIDE_PACKETS: u8 = 0;
/// `PublishedKey::side`: for sockets of the node and its tasks; leads to backends of this node only,
/// as no other node has the port on an address of its own.
pub const SIDE_SOCKETS: u8 = 1;

/// `ServiceValue::flags`: flows open with [`FLOW_DIRECT`].
pub const SERVICE_DIRECT_RETURN: u32 = 1;
/// `ServiceValue::flags`: slots are chosen by the client's address alone.
pub const SERVICE_AFFINITY: u32 = 2;
/// `ServiceValue::flags`: published on this node alone. The programs do not care; `inspect` and `trace`
/// say so.
pub const SERVICE_OF_NODE: u32 = 4;
/// `ServiceValue::flags`: new flows go to this node's own backends first. The ring is followed by one
/// of the same length, of those alone; flows that exist may be by either.
pub const SERVICE_NEAR: u32 = 8;
/// `ServiceValue::flags`, beside [`SERVICE_NEAR`]: those of this node drain, so new flows go by the ring
/// that all nodes share.
pub const SERVICE_NEAR_DRAINS: u32 = 16;

/// `ClientKey::client`: a network namespace.
pub const CLIENT_IS_NETNS: u64 = 1 << 63;

/// How old `last_seen` gets before a packet renews it: the entry's cache line stays clean.
pub const FLOW_TOUCH_NS: u64 = 1_000_000_000;

/// `FragmentKey::scope`: from a client to a published port.
pub const FRAGMENT_MESH: u32 = 0;
/// `FragmentKey::scope`: what a task sends by its gateway side.
pub const FRAGMENT_GATEWAY: u32 = 1;
/// Mark of a packet that comes to the uplink a second time, its fragments in order. No mark comes in by a
/// device, and none gets past the uplink's program.
pub const ORDERED_MARK: u32 = 0x736e_0f0f;
/// As long as Linux waits for the rest of a packet.
pub const FRAGMENT_LIFETIME_NS: u64 = 30_000_000_000;

/// `VipFlowValue::flags`: client and backend are one task.
pub const VIP_FLOW_HAIRPIN: u16 = 1;

/// Map sizes. Each can be set lower or higher at load.
pub const ENDPOINTS_MAX: u32 = 65_536;
pub const VETHS_MAX: u32 = 8_192;
pub const LOCAL_MAX: u32 = if crate::ANOTHER_LAYOUT { 8_192 } else { 4_096 };
pub const VIPS_MAX: u32 = 16_384;
pub const FRONTENDS_MAX: u32 = 16_384;
pub const ADDRESSED_MAX: u32 = 16_384;
/// Room for 10 000 services of ten backends as builds before layout 10 wrote them (four chunks each; what
/// changes takes two), and for a fifth of them to change at once.
pub const RING_CHUNKS_MAX: u32 = 49_152;
pub const BACKENDS_MAX: u32 = 131_072;
pub const TARGETS_MAX: u32 = 65_536;
pub const PEERS_MAX: u32 = 4_096;
pub const NODE_ADDRS_MAX: u32 = 1_024;
pub const NETNS_MAX: u32 = 4_096;
pub const SOCK_ORIGINS_MAX: u32 = if crate::ANOTHER_LAYOUT {
    131_072
} else {
    65_536
};
pub const FLOWS_MAX: u32 = if crate::ANOTHER_LAYOUT {
    131_072
} else {
    262_144
};
pub const SYN_FLOWS_MAX: u32 = 65_536;
pub const CLIENTS_MAX: u32 = 65_536;
pub const PINS_MAX: u32 = 262_144;
pub const UDP_FLOWS_MAX: u32 = 65_536;
pub const FRAGMENTS_MAX: u32 = 16_384;
pub const VIP_FLOWS_MAX: u32 = 65_536;
pub const STATS_MAX: u32 = 65_536;
