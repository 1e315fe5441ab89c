//! The mesh at the backend's node: delivery into a task, the flow table, replies, second hops.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop};
use dataplane_abi::{
    BackendValue, Be16, Be32, DropReason, FLOW_CLIENT_FIN, FLOW_RESET, FLOW_TASK_FIN,
    FLOW_TOUCH_NS, FlowKey, FlowValue, LocalEndpoint, NodeConfig, ServiceValue,
    net::{mesh_mac::Kind, task_mac},
};

use crate::{
    count,
    maps::{FLOWS, LOCAL},
    packet::{Mac, Packet, TCP_FIN, TCP_RST},
    mss, redirect, refuse, service,
    skb::{Skb, Verdict},
    too_big,
};

/// How many backends a service may have for the search among all of them: each is a hop for a packet
/// whose flow nobody knows.
const SEARCH_MAX: u32 = 16;

/// How a mesh packet came to this node.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// The endpoint that it is for.
    pub endpoint: u32,
    /// Tunnel address of the entry node; zero when that is this node.
    pub entry: Be32,
    /// Whether it was handed on once already.
    pub second_hop: bool,
}

/// Delivers a packet for a published port to a task of this node, or hands it on to the owner
/// before the last change of the ring. The packet is as it came when this fails.
#[inline(always)]
pub fn deliver(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    published: &ServiceValue,
    arrival: Arrival,
) -> Result<Verdict, DropReason> {
    let mut endpoint = arrival.endpoint;
    let mut local = local(endpoint);
    let mut flow = local.and_then(|at| live_flow(packet, published, endpoint, at));

    if flow.is_none()
        && packet.is_established()
        && let Some(search) = Search::begin(config, packet, published, arrival)
        && let Some(owner) = search.owner(packet, published, arrival)
    {
        if !owner.vtep.is_zero() {
            return hand_on(skb, config, packet, owner, arrival);
        }
        endpoint = owner.endpoint;
        local = self::local(endpoint);
        flow = local.and_then(|at| live_flow(packet, published, endpoint, at));
    }
    let Some(local) = local else {
        return Err(DropReason::BackendGone);
    };

    let opens_flow = match flow {
        Some(flow) if !(packet.is_syn() && succeeds(flow, packet)) => {
            renew(flow, packet, arrival.entry)?;
            false
        }
        _ => {
            let key = flow_key(packet, local, published.target_port);
            open(&key, packet, arrival.entry, endpoint, local)?;
            true
        }
    };
    count::packet(local.stats, skb.volume(), opens_flow);
    into_task(skb, config, packet, local, published.target_port)
}

/// Drops a packet of the mesh for `reason`; a client that is to hear of it does, by the way that
/// replies take.
#[inline(always)]
pub fn refuse(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    arrival: Arrival,
    reason: DropReason,
) -> Result<Verdict, DropReason> {
    refuse::refuse(skb, config, packet, packet.dst, reason, || {
        if arrival.entry.is_zero() {
            return redirect::by_route(skb, config, packet, packet.dst, packet.src);
        }
        let dst = Mac::new(Kind::Return.mac(arrival.endpoint));
        skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
        redirect::into_tunnel(skb, config, config.mesh_vni, arrival.entry, packet.tos)
    })
}

#[inline(always)]
fn local(endpoint: u32) -> Option<&'static LocalEndpoint> {
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    unsafe { LOCAL.get(endpoint) }
}

/// The flow as its task's replies name it.
#[inline(always)]
fn flow_key(packet: &Packet, local: &LocalEndpoint, target_port: Be16) -> FlowKey {
    FlowKey {
        client: packet.src,
        task: local.addr,
        client_port: packet.src_port,
        task_port: target_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    }
}

/// The flow's entry, unless it belongs to an endpoint that stopped serving.
#[inline(always)]
fn live_flow(
    packet: &Packet,
    published: &ServiceValue,
    endpoint: u32,
    local: &LocalEndpoint,
) -> Option<&'static mut FlowValue> {
    let key = flow_key(packet, local, published.target_port);
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: an entry evicted meanwhile may become another flow's; what is written below are
    // single words, and the flow concerned is gone from the table anyway.
    let flow = unsafe { &mut *flow };
    (flow.endpoint == endpoint && flow.generation == local.generation).then_some(flow)
}

/// The search for the owner of an established flow that is not known where it was sent: first the
/// owner before the slot's last change. A slot may have moved several times, and names but that one;
/// so in services of at most [`SEARCH_MAX`] backends the others follow in turn. What was asked
/// already, the packet tells: the backend that it came for.
///
/// Nodes learn of a change one after the other, so that backend need not be what this node's ring
/// would say.
struct Search {
    /// Endpoint of the owner now.
    now: u32,
    before: Owner,
    /// Nobody else was asked so far, as this node sees it.
    is_first: bool,
}

impl Search {
    /// `None` when the slot has never moved.
    #[inline(always)]
    fn begin(
        config: &NodeConfig,
        packet: &Packet,
        published: &ServiceValue,
        arrival: Arrival,
    ) -> Option<Self> {
        let slot = service::slot(published, packet.hash(config.ring_seed)).ok()?;
        let now = service::backend(published, slot.now).ok()?;
        let before = service::backend(published, slot.before).ok()?;
        let is_now = now.endpoint == arrival.endpoint;
        if is_now && slot.now == slot.before {
            return None;
        }
        // The sender has heard of a change of which this node has not: who owns the slot here owned
        // it before that change.
        let is_behind = !arrival.second_hop && !is_now && before.endpoint != arrival.endpoint;
        Some(Self {
            now: now.endpoint,
            before: Owner::of(if is_behind { now } else { before }),
            is_first: is_now || !arrival.second_hop,
        })
    }

    /// The next at another node, or one here that has the flow. If there is none, and the owner
    /// before was not asked, that one.
    #[inline(always)]
    fn owner(&self, packet: &Packet, published: &ServiceValue, arrival: Arrival) -> Option<Owner> {
        let before = self.before;
        let asks_before = self.is_first && before.endpoint != arrival.endpoint;
        if asks_before && (!before.vtep.is_zero() || before.has_flow(packet, published)) {
            return Some(before);
        }
        let mut round = Round {
            packet,
            published,
            came_for: arrival.endpoint,
            now: if arrival.second_hop { self.now } else { 0 },
            before: before.endpoint,
            asked: self.is_first || before.endpoint == arrival.endpoint,
            next: None,
        };
        if published.backend_count <= SEARCH_MAX {
            // SAFETY: the callback takes a `Round`, which outlives the call.
            unsafe {
                bpf_loop(
                    published.backend_count,
                    Round::ask as *mut c_void,
                    (&raw mut round).cast(),
                    0,
                )
            };
        }
        let last = asks_before || !round.asked;
        round.next.or(last.then_some(before))
    }
}

/// The backends of a service, one after the other.
struct Round<'a> {
    packet: &'a Packet,
    published: &'a ServiceValue,
    /// Who was asked last: the packet came for it.
    came_for: u32,
    /// The owner now, if it was asked; else no endpoint.
    now: u32,
    before: u32,
    /// Whoever was asked last is behind us.
    asked: bool,
    next: Option<Owner>,
}

impl Round<'_> {
    /// Looks at one backend; 1 ends the round.
    unsafe extern "C" fn ask(index: u32, round: *mut c_void) -> i64 {
        // SAFETY: `Search::owner` passes its own.
        let round = unsafe { &mut *round.cast::<Self>() };
        let Ok(owner) = service::backend(round.published, index as u16) else {
            return 1;
        };
        let owner = Owner::of(owner);
        if owner.endpoint == round.came_for {
            round.asked = true;
            return 0;
        }
        if !round.asked || owner.endpoint == round.now || owner.endpoint == round.before {
            return 0;
        }
        if !owner.vtep.is_zero() || owner.has_flow(round.packet, round.published) {
            round.next = Some(owner);
            return 1;
        }
        0
    }
}

/// Who may have a flow.
#[derive(Clone, Copy)]
struct Owner {
    endpoint: u32,
    /// Zero when it is here.
    vtep: Be32,
}

impl Owner {
    #[inline(always)]
    fn of(backend: &BackendValue) -> Self {
        Self {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
        }
    }

    /// Of one that is here.
    #[inline(always)]
    fn has_flow(self, packet: &Packet, published: &ServiceValue) -> bool {
        let flow =
            local(self.endpoint).and_then(|at| live_flow(packet, published, self.endpoint, at));
        flow.is_some()
    }
}

#[inline(always)]
fn open(
    key: &FlowKey,
    packet: &Packet,
    entry: Be32,
    endpoint: u32,
    local: &LocalEndpoint,
) -> Result<(), DropReason> {
    let flow = FlowValue {
        last_seen: now(),
        entry_vtep: entry,
        node_addr: packet.dst,
        published: packet.dst_port,
        flags: 0,
        endpoint,
        generation: local.generation,
        stats: local.stats,
        _reserved: [0; 2],
    };
    FLOWS
        .insert(key, &flow, 0)
        .map_err(|_| DropReason::FlowTableFull)
}

/// Whether a SYN starts a new connection where an earlier one of the same ports was, and is not
/// just sent again.
#[inline(always)]
fn succeeds(flow: &FlowValue, packet: &Packet) -> bool {
    flow.flags != 0 || !is_same_frontend(flow, packet)
}

#[inline(always)]
fn is_same_frontend(flow: &FlowValue, packet: &Packet) -> bool {
    flow.node_addr == packet.dst && flow.published == packet.dst_port
}

#[inline(always)]
fn renew(flow: &mut FlowValue, packet: &Packet, entry: Be32) -> Result<(), DropReason> {
    if !is_same_frontend(flow, packet) {
        return Err(DropReason::SourceCollision);
    }
    if flow.entry_vtep != entry {
        // The client's packets now come through another node: replies follow.
        flow.entry_vtep = entry;
    }
    touch(flow, packet, FLOW_CLIENT_FIN);
    Ok(())
}

/// Keeps the entry's line clean while there is nothing new to say.
#[inline(always)]
pub fn touch(flow: &mut FlowValue, packet: &Packet, fin: u16) {
    let now = now();
    if now.wrapping_sub(flow.last_seen) > FLOW_TOUCH_NS {
        flow.last_seen = now;
    }
    if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        let reset = if packet.tcp_flags & TCP_RST != 0 {
            FLOW_RESET
        } else {
            0
        };
        let fin = if packet.tcp_flags & TCP_FIN != 0 {
            fin
        } else {
            0
        };
        flow.flags |= fin | reset;
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Translates the destination and delivers.
#[inline(always)]
fn into_task(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    local: &LocalEndpoint,
    target_port: Be16,
) -> Result<Verdict, DropReason> {
    let ttl = routed_ttl(packet)?;
    mss::clamp(skb, config, packet)?;
    skb.set_dst_port(packet, target_port)?;
    skb.set_ip(packet, packet.src, local.addr, ttl)?;
    skb.set_macs(Mac::new(local.mac), Mac::new(task_mac(config.gateway_addr)))?;
    Ok(redirect::into_task(local.ifindex))
}

/// The time to live behind this node, as a router sets it.
#[inline(always)]
fn routed_ttl(packet: &Packet) -> Result<u8, DropReason> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    Ok(packet.ttl - 1)
}

/// Sends the packet as it is to the node of a backend.
#[inline(always)]
pub fn forward(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    backend: &BackendValue,
) -> Result<Verdict, DropReason> {
    too_big::check(skb, config, packet)?;
    let dst = Mac::new(Kind::Forward.mac(backend.endpoint));
    skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
    redirect::into_tunnel(skb, config, config.mesh_vni, backend.vtep, packet.tos)
}

#[inline(always)]
fn hand_on(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    owner: Owner,
    arrival: Arrival,
) -> Result<Verdict, DropReason> {
    too_big::check(skb, config, packet)?;
    if arrival.second_hop {
        // Nodes whose rings differ for a moment must not pass it round for ever.
        let ttl = routed_ttl(packet)?;
        skb.set_ip(packet, packet.src, packet.dst, ttl)?;
    }
    let entry = match arrival.entry {
        Be32::ZERO => config.vtep,
        entry => entry,
    };
    let dst = Mac::new(Kind::SecondHop.mac(owner.endpoint));
    skb.set_macs(dst, Mac::new(task_mac(entry)))?;
    redirect::into_tunnel(skb, config, config.mesh_vni, owner.vtep, packet.tos)
}

/// The mesh flow that a packet from a task belongs to.
#[inline(always)]
pub fn flow_of_reply(packet: &Packet) -> Option<&'static mut FlowValue> {
    let key = FlowKey {
        client: packet.dst,
        task: packet.src,
        client_port: packet.dst_port,
        task_port: packet.src_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    };
    // SAFETY: as in `live_flow`.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Sends a task's reply to where the client's packets enter the cluster.
#[inline(always)]
pub fn reply(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    flow: &mut FlowValue,
) -> Result<Verdict, DropReason> {
    if packet.is_fragment() {
        return Err(DropReason::Fragmented);
    }
    let (entry, src, port) = (flow.entry_vtep, flow.node_addr, flow.published);
    if !entry.is_zero()
        && let Err(reason) = too_big::check(skb, config, packet)
    {
        return refuse::refuse(skb, config, packet, config.gateway_addr, reason, || {
            let (task, bridge) = (task_mac(packet.src), task_mac(config.gateway_addr));
            skb.set_macs(Mac::new(task), Mac::new(bridge))?;
            Ok(redirect::into_task(skb.ifindex()))
        });
    }
    mss::clamp(skb, config, packet)?;
    touch(flow, packet, FLOW_TASK_FIN);
    count::packet(flow.stats, skb.volume(), false);
    let ttl = routed_ttl(packet)?;
    let dst_mac = Mac::new(Kind::Return.mac(flow.endpoint));
    skb.set_src_port(packet, port)?;
    skb.set_ip(packet, src, packet.dst, ttl)?;
    if entry.is_zero() {
        return redirect::by_route(skb, config, packet, src, packet.dst);
    }
    skb.set_macs(dst_mac, Mac::new(task_mac(config.vtep)))?;
    redirect::into_tunnel(skb, config, config.mesh_vni, entry, packet.tos)
}

/// Sends a reply that came back through the tunnel on to the client.
#[inline(always)]
pub fn return_to_client(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
) -> Result<Verdict, DropReason> {
    let ttl = routed_ttl(packet)?;
    skb.set_ip(packet, packet.src, packet.dst, ttl)?;
    redirect::by_route(skb, config, packet, packet.src, packet.dst)
}
