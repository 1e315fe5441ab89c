//! VIPs per packet, for what the socket hook missed: both ends of the translation are at the
//! client's node.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop};
use dataplane_abi::{
    BackendValue, Be16, Be32, DropReason, ENDPOINT_HAS_VIP_FLOWS, EndpointKey, EndpointValue,
    FLOW_TOUCH_NS, NodeConfig, RingSlot, ServiceValue, VIP_FLOW_HAIRPIN, VethValue, VipFlowKey,
    VipFlowValue, VipKey,
    net::task_mac,
    seat::{SEATS, Search, Seat, VipClaim, seat_port},
};

use crate::{
    checksum::Sum,
    client, count, doubt,
    fragment::{self, Way},
    maps::{ENDPOINTS, VIP_FLOWS, VIPS},
    packet::{Mac, PROTO_ICMP, Packet},
    quote::Quote,
    redirect, refuse, service,
    skb::{Skb, Verdict},
    source_port, too_big, vip_error,
};

#[inline(always)]
pub fn service_at(vni: u32, addr: Be32) -> Option<&'static ServiceValue> {
    // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
    unsafe { VIPS.get(VipKey { vni, addr }) }
}

/// A packet that a task of this node sent to a VIP.
#[inline(always)]
pub fn outbound(
    skb: Skb,
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    vip: &ServiceValue,
) -> Result<Verdict, DropReason> {
    if packet.proto == PROTO_ICMP && !packet.is_fragment() {
        if let Some(quote) = Quote::of(skb, packet) {
            return vip_error::outbound(skb, config, veth, packet, vip, &quote);
        }
        return echo(skb, veth, packet, vip);
    }
    if packet.is_later_fragment() {
        return follow(skb, config, veth, packet);
    }
    if !packet.has_ports() {
        return Err(DropReason::UnsupportedProtocol);
    }
    let client = EndpointKey {
        vni: veth.vni,
        addr: veth.addr,
    };
    let client = ENDPOINTS
        .get_ptr_mut(client)
        .ok_or(DropReason::UnknownInterface)?;
    // SAFETY: the one field that programs write is a word of its own. A value that the agent
    // replaces meanwhile is not reused before this CPU has long read it.
    let client = unsafe { &mut *client };
    if client.flags & ENDPOINT_HAS_VIP_FLOWS != 0
        && let Some(client_port) = hairpin_reply(veth, packet)
    {
        fragment::note(packet, veth.vni, translated_to(veth.addr))?;
        skb.set_dst_port(packet, client_port)?;
        return into_self(skb, packet, packet.dst, veth.addr, veth);
    }

    let chosen = backend_of_flow(config, veth, packet, vip);
    let chosen = chosen.and_then(|chosen| {
        if !chosen.backend.vtep.is_zero() {
            too_big::check(skb, config, packet)?;
        }
        Ok(chosen)
    });
    let Chosen {
        backend,
        client_port,
        opens_flow,
    } = match chosen {
        Ok(chosen) => chosen,
        Err(reason) => return refuse::into_sender(skb, config, veth, packet, reason),
    };
    // For each packet: the agent may have replaced the entry from an older copy.
    if client.flags & ENDPOINT_HAS_VIP_FLOWS == 0 {
        client.flags |= ENDPOINT_HAS_VIP_FLOWS;
    }
    fragment::note(packet, veth.vni, translated_to(backend.addr))?;
    count::packet(vip.stats, skb.volume(), opens_flow);
    skb.set_src_port(packet, client_port)?;
    if backend.addr == veth.addr {
        // The task would refuse a packet from itself: it sees the VIP as its peer.
        return into_self(skb, packet, packet.dst, veth.addr, veth);
    }
    to_backend(skb, config, veth, packet, backend)
}

#[inline(always)]
fn translated_to(addr: Be32) -> Way {
    Way {
        vtep: Be32::ZERO,
        endpoint: 0,
        addr,
    }
}

/// Sends a later fragment to the backend that the first one went to.
#[inline(always)]
fn follow(
    skb: Skb,
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
) -> Result<Verdict, DropReason> {
    let way = fragment::way(packet, veth.vni).ok_or(DropReason::FragmentWithoutHead)?;
    if way.addr == veth.addr {
        return into_self(skb, packet, packet.dst, veth.addr, veth);
    }
    let key = EndpointKey {
        vni: veth.vni,
        addr: way.addr,
    };
    // SAFETY: as for services.
    let backend = unsafe { ENDPOINTS.get(key) }.ok_or(DropReason::BackendGone)?;
    if !backend.vtep.is_zero() {
        too_big::check(skb, config, packet)?;
    }
    skb.set_ip(packet, packet.src, way.addr, packet.ttl)?;
    skb.set_macs(Mac::new(backend.mac), Mac::new(veth.mac))?;
    if !backend.vtep.is_zero() {
        return redirect::into_tunnel(skb, config, veth.vni, backend.vtep, packet.tos);
    }
    Ok(redirect::into_task(backend.ifindex))
}

#[inline(always)]
pub fn to_backend(
    skb: Skb,
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    backend: &BackendValue,
) -> Result<Verdict, DropReason> {
    skb.set_ip(packet, packet.src, backend.addr, packet.ttl)?;
    skb.set_macs(Mac::new(backend.mac), Mac::new(veth.mac))?;
    if !backend.vtep.is_zero() {
        return redirect::into_tunnel(skb, config, veth.vni, backend.vtep, packet.tos);
    }
    let key = EndpointKey {
        vni: veth.vni,
        addr: backend.addr,
    };
    // SAFETY: as for services.
    let endpoint = unsafe { ENDPOINTS.get(key) }.ok_or(DropReason::BackendGone)?;
    Ok(redirect::into_task(endpoint.ifindex))
}

/// Where a packet to a VIP goes.
struct Chosen {
    backend: &'static BackendValue,
    /// By which the backend knows the client's port ([`dataplane_abi::seat`]).
    client_port: Be16,
    opens_flow: bool,
}

/// The backend that has the flow: the ring's, or its next choice while that one's node is doubted; for
/// a connection from before the last change the one before, or from before the doubt the ring's; where
/// the service prefers the node's own, those first, and first of all the client's.
#[inline(always)]
fn backend_of_flow(
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    vip: &ServiceValue,
) -> Result<Chosen, DropReason> {
    let hash = service::hash(vip, packet, config.ring_seed);
    let slot = service::slot(vip, hash)?;
    let near = near_or(vip, hash, slot)?;
    let choice = doubt::shared_choice(config, vip, hash, slot, packet.is_established());
    let first = if vip.takes_near_flows() {
        near.now
    } else {
        choice
    };
    let first = client::index(vip, packet.client(), first, packet.is_established());
    let backend = service::backend(vip, first)?;
    let mut key = flow_key(veth.vni, packet.src, packet.src_port, backend.addr, packet);
    let seat = find(&mut key, packet);
    if let Seated::Own(flow) = seat
        && !packet.is_syn()
    {
        touch(flow);
        return Ok(Chosen {
            backend,
            client_port: key.client_port,
            opens_flow: false,
        });
    }
    if packet.is_established() {
        for other in [choice, slot.before, near.now, near.before, slot.now] {
            if other == first {
                continue;
            }
            let other = service::backend(vip, other)?;
            let mut key = flow_key(veth.vni, packet.src, packet.src_port, other.addr, packet);
            if let Seated::Own(flow) = find(&mut key, packet) {
                touch(flow);
                return Ok(Chosen {
                    backend: other,
                    client_port: key.client_port,
                    opens_flow: false,
                });
            }
        }
    }
    // The backend could not tell the two flows apart. The later SYN wins.
    if matches!(seat, Seated::Other) && !packet.is_syn() {
        return Err(DropReason::SourceCollision);
    }
    // UDP has no SYN: there a flow is new when it is not known.
    if !packet.is_established() && !service::takes_new_flows(backend) {
        return Err(DropReason::NoBackend);
    }
    let flags = if backend.addr == veth.addr {
        VIP_FLOW_HAIRPIN
    } else {
        0
    };
    let now = now();
    let flow = VipFlowValue {
        last_seen: now,
        vip: packet.dst,
        flags,
        opened: now,
        own_port: match key.client_port == packet.src_port {
            true => Be16::ZERO,
            false => packet.src_port,
        },
    };
    VIP_FLOWS
        .insert(key, flow, 0)
        .map_err(|_| DropReason::FlowTableFull)?;
    Ok(Chosen {
        backend,
        client_port: key.client_port,
        opens_flow: true,
    })
}

/// The flow's slot among the node's own backends where the service prefers those, or else `slot`.
#[inline(always)]
fn near_or(vip: &ServiceValue, hash: u32, slot: RingSlot) -> Result<RingSlot, DropReason> {
    if vip.is_near(true) {
        return service::near_slot(vip, hash);
    }
    Ok(slot)
}

/// Who has a flow's place in the table.
enum Seated {
    Own(*mut VipFlowValue),
    Other,
    Nobody,
}

/// Who has the place of `packet`'s flow at a backend. `key`, which has the client's own port, becomes
/// the flow's, or the one for it if it may begin.
#[inline(always)]
fn find(key: &mut VipFlowKey, packet: &Packet) -> Seated {
    let is_elsewhere = match seat(key, packet.dst, packet.src_port) {
        Seated::Own(flow) => return Seated::Own(flow),
        Seated::Other => true,
        Seated::Nobody => packet.is_established(),
    };
    if is_elsewhere {
        find_seat(key, packet.dst, u32::from(!packet.is_established()));
    }
    seat(key, packet.dst, packet.src_port)
}

/// Makes `key` that of the flow by `vip`. Not inlined, as its like for the mesh.
#[inline(never)]
fn find_seat(key: &mut VipFlowKey, vip: Be32, may_begin: u32) -> u32 {
    let own = key.client_port;
    let none = source_port::none(&key.client);
    let mut look = Look {
        key,
        vip,
        own,
        search: Search::new(none),
    };
    // SAFETY: the callback takes a `Look`, which outlives the call.
    unsafe {
        bpf_loop(
            SEATS.into(),
            look_at as *mut c_void,
            (&raw mut look).cast(),
            0,
        )
    };
    let port = look.search.outcome(own, may_begin != 0);
    look.key.client_port = port;
    port.raw().into()
}

struct Look<'a> {
    key: &'a mut VipFlowKey,
    vip: Be32,
    own: Be16,
    search: Search,
}

/// Looks at one port; 1 ends the search.
unsafe extern "C" fn look_at(nth: u32, look: *mut c_void) -> i64 {
    // SAFETY: `find_seat` passes its own.
    let look = unsafe { &mut *look.cast::<Look>() };
    let port = seat_port(look.own, nth as u16);
    look.key.client_port = port;
    let seat = match seat(look.key, look.vip, look.own) {
        Seated::Own(_) => Seat::Own,
        Seated::Other => Seat::Other,
        Seated::Nobody => Seat::Nobody,
    };
    look.search.note(port, seat).into()
}

#[inline(always)]
fn seat(key: &VipFlowKey, vip: Be32, client_port: Be16) -> Seated {
    let Some(flow) = VIP_FLOWS.get_ptr_mut(*key) else {
        return Seated::Nobody;
    };
    let claim = VipClaim { vip, client_port };
    // SAFETY: an entry evicted meanwhile reads as another flow, which does not match.
    match claim.seat(key, unsafe { &*flow }, now) {
        Seat::Own => Seated::Own(flow),
        Seat::Other => Seated::Other,
        Seat::Nobody => Seated::Nobody,
    }
}

/// A backend that is known to have a flow, and the port by which it knows the client. (An option of
/// both left LLVM 22 a register without a value, which the verifier does not take.)
pub struct Known {
    pub backend: Option<&'static BackendValue>,
    /// Zero without a backend.
    pub client_port: Be16,
}

impl Known {
    const NOBODY: Self = Self {
        backend: None,
        client_port: Be16::ZERO,
    };
}

/// Who has the flow of `packet`, which goes towards the VIP.
#[inline(always)]
pub fn known_backend(
    config: &NodeConfig,
    veth: &VethValue,
    packet: &Packet,
    vip: &ServiceValue,
) -> Known {
    let hash = service::hash(vip, packet, config.ring_seed);
    let Ok(slot) = service::slot(vip, hash) else {
        return Known::NOBODY;
    };
    let Ok(near) = near_or(vip, hash, slot) else {
        return Known::NOBODY;
    };
    let choice = doubt::shared_choice(config, vip, hash, slot, true);
    let kept = client::index(vip, packet.client(), choice, true);
    for index in [kept, choice, slot.before, near.now, near.before, slot.now] {
        let Ok(backend) = service::backend(vip, index) else {
            return Known::NOBODY;
        };
        let client_port = known_port(veth, packet, backend);
        if !client_port.is_zero() {
            return Known {
                backend: Some(backend),
                client_port,
            };
        }
    }
    Known::NOBODY
}

/// The port by which a backend knows the client of `packet`; zero when it does not.
#[inline(always)]
fn known_port(veth: &VethValue, packet: &Packet, backend: &BackendValue) -> Be16 {
    let mut key = flow_key(veth.vni, packet.src, packet.src_port, backend.addr, packet);
    find_seat(&mut key, packet.dst, 0);
    match seat(&key, packet.dst, packet.src_port) {
        Seated::Own(_) => key.client_port,
        Seated::Other | Seated::Nobody => Be16::ZERO,
    }
}

/// A flow to a VIP as the backend replies. `packet` goes towards the VIP.
#[inline(always)]
fn flow_key(
    vni: u32,
    client: Be32,
    client_port: Be16,
    backend: Be32,
    packet: &Packet,
) -> VipFlowKey {
    VipFlowKey {
        vni,
        client,
        backend,
        client_port,
        backend_port: packet.dst_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    }
}

/// The flow to a VIP that this packet, on its way to a client, is a reply of.
#[inline(always)]
pub fn flow_of_reply(vni: u32, client: Be32, packet: &Packet) -> Option<*mut VipFlowValue> {
    VIP_FLOWS.get_ptr_mut(VipFlowKey {
        vni,
        client,
        backend: packet.src,
        client_port: packet.dst_port,
        backend_port: packet.src_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
        _pad3: 0,
    })
}

/// The client's own port, if the task answers itself: its reply goes to the VIP, as which it saw its
/// peer.
#[inline(always)]
pub fn hairpin_reply(veth: &VethValue, packet: &Packet) -> Option<Be16> {
    let flow = flow_of_reply(veth.vni, veth.addr, packet)?;
    // SAFETY: an entry evicted meanwhile reads as another flow, which does not match.
    let known = unsafe { &*flow };
    if known.vip != packet.dst || known.flags & VIP_FLOW_HAIRPIN == 0 {
        return None;
    }
    let client_port = known.client_port(packet.dst_port);
    touch(flow);
    Some(client_port)
}

/// A packet to a task of this node: the reply of a backend gets the VIP as its source.
#[inline(always)]
pub fn inbound(
    skb: Skb,
    vni: u32,
    client: &EndpointValue,
    packet: &Packet,
) -> Result<(), DropReason> {
    if client.flags & ENDPOINT_HAS_VIP_FLOWS == 0 {
        return Ok(());
    }
    if packet.proto == PROTO_ICMP {
        return vip_error::inbound(skb, vni, packet);
    }
    if packet.is_later_fragment() {
        return match fragment::way(packet, vni) {
            Some(way) => skb.set_ip(packet, way.addr, packet.dst, packet.ttl),
            None => Ok(()),
        };
    }
    if !packet.has_ports() {
        return Ok(());
    }
    let Some(flow) = flow_of_reply(vni, packet.dst, packet) else {
        return Ok(());
    };
    touch(flow);
    // SAFETY: as in `hairpin_reply`: at worst an evicted entry's successor is read.
    let (vip, client_port) = unsafe { ((*flow).vip, (*flow).client_port(packet.dst_port)) };
    fragment::note(packet, vni, translated_to(vip))?;
    skb.set_dst_port(packet, client_port)?;
    skb.set_ip(packet, vip, packet.dst, packet.ttl)
}

/// Back into the task that sent the packet.
#[inline(always)]
pub fn into_self(
    skb: Skb,
    packet: &Packet,
    src: Be32,
    dst: Be32,
    veth: &VethValue,
) -> Result<Verdict, DropReason> {
    skb.set_ip(packet, src, dst, packet.ttl)?;
    skb.set_macs(Mac::new(veth.mac), Mac::new(task_mac(src)))?;
    Ok(redirect::into_task(skb.ifindex()))
}

/// Answers `ping` to a VIP, as long as there is a backend.
#[inline(always)]
fn echo(
    skb: Skb,
    veth: &VethValue,
    packet: &Packet,
    vip: &ServiceValue,
) -> Result<Verdict, DropReason> {
    const ECHO_REQUEST: u16 = u16::from_ne_bytes([8, 0]);
    const ECHO_REPLY: u16 = 0;
    if vip.ring_len == 0 {
        return Err(DropReason::NoBackend);
    }
    let bytes = skb.bytes();
    let [kind, checksum] = bytes.read::<[u16; 2]>(packet.l4)?;
    if kind != ECHO_REQUEST {
        return Err(DropReason::UnsupportedProtocol);
    }
    let checksum = Sum::of_field(checksum).replace(kind, ECHO_REPLY).field();
    skb.store(packet.l4, &[ECHO_REPLY, checksum])?;
    into_self(skb, packet, packet.dst, packet.src, veth)
}

#[inline(always)]
fn touch(flow: *mut VipFlowValue) {
    let now = now();
    // SAFETY: a word of a live map value; see `hairpin_reply` for evicted ones.
    unsafe {
        if now.wrapping_sub((*flow).last_seen) > FLOW_TOUCH_NS {
            (*flow).last_seen = now;
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
