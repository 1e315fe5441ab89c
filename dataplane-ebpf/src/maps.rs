//! Every map of the object. Keys, values, writers and readers are described at their types in
//! `dataplane_abi::maps`; the loader pins each by its name here.
//!
//! Hash maps are allocated on use: most nodes hold far fewer entries than the maximum. The flow
//! tables are LRU, which the kernel always allocates whole.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use dataplane_abi::{
    ADDRESSED_MAX, BACKENDS_MAX, BackendValue, Be32, CLIENTS_MAX, ClientKey, ClientValue,
    DropCounter, ENDPOINTS_MAX, EndpointKey, EndpointValue, FLOWS_MAX, FRAGMENTS_MAX,
    FRONTENDS_MAX, FlowKey, FlowValue, FragmentKey, FragmentValue, LOCAL_MAX, LocalEndpoint,
    NETNS_MAX, NODE_ADDRS_MAX, NetnsValue, NodeConfig, PEERS_MAX, PINS_MAX, PeerValue, PinKey,
    PinValue, PublishedKey, RING_CHUNKS_MAX, RingChunk, SOCK_ORIGINS_MAX, STATS_MAX, SYN_FLOWS_MAX,
    ServiceValue, SockKey, SockOrigin, Stats, TARGETS_MAX, TargetKey, TargetValue, UDP_FLOWS_MAX,
    VETHS_MAX, VIP_FLOWS_MAX, VIPS_MAX, VethValue, VipFlowKey, VipFlowValue, VipKey,
    drops::DROPS_LEN, ports::PORTS_LEN,
};

/// This node.
#[map]
pub static CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);
/// Where the overlay's addresses are.
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointValue> =
    HashMap::with_max_entries(ENDPOINTS_MAX, BPF_F_NO_PREALLOC);
/// Whose interface the host side of a veth is, by its index.
#[map]
pub static VETHS: HashMap<u32, VethValue> = HashMap::with_max_entries(VETHS_MAX, BPF_F_NO_PREALLOC);
/// Gateway sides of the tasks on this node, by endpoint id.
#[map]
pub static LOCAL: HashMap<u32, LocalEndpoint> =
    HashMap::with_max_entries(LOCAL_MAX, BPF_F_NO_PREALLOC);
/// What tasks of this node may send to each other over the gateway bridge.
#[map]
pub static TARGETS: HashMap<TargetKey, TargetValue> =
    HashMap::with_max_entries(TARGETS_MAX, BPF_F_NO_PREALLOC);
/// Virtual addresses of services, by network.
#[map]
pub static VIPS: HashMap<VipKey, ServiceValue> =
    HashMap::with_max_entries(VIPS_MAX, BPF_F_NO_PREALLOC);
/// Published ports: for each a `PortWord`. The agent writes it through a mapping.
#[map]
pub static PORTS: Array<u32> = Array::with_max_entries(PORTS_LEN, BPF_F_MMAPABLE);
/// Ports published on single addresses: indexes into `FRONTENDS`.
#[map]
pub static ADDRESSED: HashMap<PublishedKey, u32> =
    HashMap::with_max_entries(ADDRESSED_MAX, BPF_F_NO_PREALLOC);
/// Services behind published ports; what `PORTS` and `ADDRESSED` point to.
#[map]
pub static FRONTENDS: Array<ServiceValue> = Array::with_max_entries(FRONTENDS_MAX, 0);
/// Slots of all rings, in runs of chunks.
#[map]
pub static RINGS: Array<RingChunk> = Array::with_max_entries(RING_CHUNKS_MAX, 0);
/// Backends of all services, in ranges.
#[map]
pub static BACKENDS: Array<BackendValue> = Array::with_max_entries(BACKENDS_MAX, 0);
/// Tunnel addresses of the cluster's nodes.
#[map]
pub static PEERS: HashMap<Be32, PeerValue> =
    HashMap::with_max_entries(PEERS_MAX, BPF_F_NO_PREALLOC);
/// Addresses of this node on which published ports answer; the value is not read.
#[map]
pub static NODE_ADDRS: HashMap<Be32, u32> =
    HashMap::with_max_entries(NODE_ADDRS_MAX, BPF_F_NO_PREALLOC);
/// Networks of a network namespace, by its cookie.
#[map]
pub static NETNS: HashMap<u64, NetnsValue> =
    HashMap::with_max_entries(NETNS_MAX, BPF_F_NO_PREALLOC);
/// What a socket's owner believes it talks to.
#[map]
pub static SOCK_ORIGINS: LruHashMap<SockKey, SockOrigin> =
    LruHashMap::with_max_entries(SOCK_ORIGINS_MAX, 0);
/// Mesh flows whose backend is here: TCP connections.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(FLOWS_MAX, 0);
/// TCP connections until their handshake is over.
#[map]
pub static SYN_FLOWS: LruHashMap<FlowKey, FlowValue> =
    LruHashMap::with_max_entries(SYN_FLOWS_MAX, 0);
/// Owners of flows that changes of their ring displaced.
#[map]
pub static PINS: HashMap<PinKey, PinValue> = HashMap::with_max_entries(PINS_MAX, BPF_F_NO_PREALLOC);
/// UDP.
#[map]
pub static UDP_FLOWS: LruHashMap<FlowKey, FlowValue> =
    LruHashMap::with_max_entries(UDP_FLOWS_MAX, 0);
/// Backends that clients keep for a while.
#[map]
pub static CLIENTS: LruHashMap<ClientKey, ClientValue> =
    LruHashMap::with_max_entries(CLIENTS_MAX, 0);
/// Where the first fragments of packets went.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> =
    LruHashMap::with_max_entries(FRAGMENTS_MAX, 0);
/// Flows to VIPs, translated per packet, whose client is here.
#[map]
pub static VIP_FLOWS: LruHashMap<VipFlowKey, VipFlowValue> =
    LruHashMap::with_max_entries(VIP_FLOWS_MAX, 0);
/// Packets, bytes and new flows of frontends and endpoints.
#[map]
pub static STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(STATS_MAX, 0);
/// Dropped packets and bytes by program and reason.
#[map]
pub static DROPS: PerCpuArray<DropCounter> = PerCpuArray::with_max_entries(DROPS_LEN, 0);
