//! The mesh at the backend's node: delivery into a task, replies, second hops.

use dataplane_abi::{
    BackendValue, Be16, Be32, DropReason, FLOW_DIRECT, FLOW_TASK_FIN, FRAGMENT_GATEWAY,
    FRAGMENT_MESH, FlowValue, LocalEndpoint, NodeConfig, ProgramId, ServiceValue,
    net::{mesh_mac::Kind, task_mac},
};

use crate::{
    count,
    flow::{self, Admission, Visit},
    fragment::{self, Way},
    maps::LOCAL,
    mss,
    owner::{self, Hop, Owner},
    packet::{Mac, Packet},
    redirect, refuse,
    skb::{Skb, Verdict},
    too_big,
};

/// How many further owners on this node are asked for an established flow.
const OWNERS_HERE_MAX: u32 = 3;

/// How a mesh packet came to this node.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// The endpoint that it is for.
    pub endpoint: u32,
    /// Tunnel address of the entry node; zero when that is this node.
    pub entry: Be32,
    /// How it was sent here; from the uplink, as from another entry.
    pub hop: Hop,
}

/// Delivers a packet for a published port to a task of this node, or hands it on to who may have its
/// flow. The packet is as it came when this fails.
#[inline(always)]
pub fn deliver<const AT_ENTRY: bool>(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    published: &ServiceValue,
    arrival: Arrival,
) -> Result<Verdict, DropReason> {
    let mut arrival = arrival;
    let mut local = local(arrival.endpoint);
    let (mut admission, mut client_port) = admit::<false>(skb, packet, published, local, arrival)?;

    let mut is_undecided = false;
    for _ in 0..OWNERS_HERE_MAX {
        if admission != Admission::Unknown || !packet.is_established() {
            break;
        }
        let (owner, hop) = owner::find::<AT_ENTRY>(skb, config, packet, published, arrival);
        if !hop.goes_on() {
            is_undecided = hop.is_undecided();
            break;
        }
        // Whichever it is, the verifier walks what follows once.
        let hop = hop.plus(skb.unknown_zero());
        if !owner.vtep.is_zero() {
            let way = Way {
                vtep: owner.vtep,
                endpoint: owner.endpoint,
                addr: Be32::ZERO,
            };
            fragment::note(packet, FRAGMENT_MESH, way)?;
            return hand_on(skb, config, packet, owner, hop, arrival);
        }
        // As if it had come from another node.
        arrival.endpoint = owner.endpoint;
        arrival.hop = hop;
        local = self::local(arrival.endpoint);
        (admission, client_port) = admit::<true>(skb, packet, published, local, arrival)?;
    }
    let (Some(local), Admission::Known | Admission::Opened) = (local, admission) else {
        let is_search = is_undecided || arrival.hop.is_search();
        let waits = || is_search || flow::now() < config.unsettled_until;
        return Err(match local {
            _ if packet.is_established() && waits() => DropReason::Unsettled,
            Some(_) => DropReason::UnknownFlow,
            None => DropReason::BackendGone,
        });
    };
    let way = Way {
        vtep: Be32::ZERO,
        endpoint: arrival.endpoint,
        addr: Be32::ZERO,
    };
    fragment::note(packet, FRAGMENT_MESH, way)?;
    let opens_flow = admission == Admission::Opened;
    count::packet(local.stats, skb.volume(), opens_flow);
    let target = published.target(packet.dst_port);
    into_task(skb, config, packet, local, (client_port, target))
}

/// Also the port by which the task knows the client. `ESTABLISHED`: the packet is in the middle of a
/// TCP connection.
#[inline(always)]
fn admit<const ESTABLISHED: bool>(
    skb: Skb,
    packet: &Packet,
    published: &ServiceValue,
    local: Option<&'static LocalEndpoint>,
    arrival: Arrival,
) -> Result<(Admission, Be16), DropReason> {
    let Some(at) = local else {
        return Ok((Admission::Unknown, packet.src_port));
    };
    let mut visit = Visit::new(packet, published, arrival.endpoint, at, arrival.entry);
    let admission = match ESTABLISHED {
        true => visit.admit_established(skb)?,
        false => visit.admit(skb)?,
    };
    Ok((admission, visit.client_port))
}

/// Sends a later fragment where its first one went: to a task of this node, or on through the tunnel.
#[inline(always)]
pub fn follow(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    way: Way,
    from_tunnel: bool,
) -> Result<Verdict, DropReason> {
    if !way.vtep.is_zero() {
        too_big::check(skb, config, packet)?;
        if from_tunnel {
            // Nodes that remember different first ones must not pass it round for ever.
            let ttl = routed_ttl(packet)?;
            skb.set_ip(packet, packet.src, packet.dst, ttl)?;
        }
        let dst = Mac::new(Kind::Forward.mac(way.endpoint));
        skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
        return redirect::into_tunnel(skb, config, config.mesh_vni, way.vtep, packet.tos);
    }
    let local = local(way.endpoint).ok_or(DropReason::BackendGone)?;
    let ttl = routed_ttl(packet)?;
    count::packet(local.stats, skb.volume(), false);
    skb.set_ip(packet, packet.src, local.addr, ttl)?;
    skb.set_macs(Mac::new(local.mac), Mac::new(task_mac(config.gateway_addr)))?;
    Ok(redirect::into_task(local.ifindex))
}

/// As [`follow`], for what a task replies.
#[inline(always)]
pub fn follow_reply(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    way: Way,
) -> Result<Verdict, DropReason> {
    if !way.vtep.is_zero() {
        too_big::check(skb, config, packet)?;
    }
    let ttl = routed_ttl(packet)?;
    skb.set_ip(packet, way.addr, packet.dst, ttl)?;
    if way.vtep.is_zero() {
        return redirect::by_route(skb, config, packet, way.addr, packet.dst);
    }
    let dst = Mac::new(Kind::Return.mac(way.endpoint));
    skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
    redirect::into_tunnel(skb, config, config.mesh_vni, way.vtep, packet.tos)
}

/// Drops a packet of the mesh for `reason`; a client that is to hear of it does, by the way that
/// replies take.
#[inline(always)]
pub fn refuse(
    program: ProgramId,
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    arrival: Arrival,
    reason: DropReason,
) -> Result<Verdict, DropReason> {
    refuse::refuse(program, skb, config, packet, packet.dst, reason, || {
        if arrival.entry.is_zero() {
            return redirect::by_route(skb, config, packet, packet.dst, packet.src);
        }
        let dst = Mac::new(Kind::Return.mac(arrival.endpoint));
        skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
        redirect::into_tunnel(skb, config, config.mesh_vni, arrival.entry, packet.tos)
    })
}

#[inline(always)]
pub fn local(endpoint: u32) -> Option<&'static LocalEndpoint> {
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    unsafe { LOCAL.get(endpoint) }
}

/// Translates the destination and delivers, with these ports of client and task.
#[inline(always)]
fn into_task(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    local: &LocalEndpoint,
    (client_port, target_port): (Be16, Be16),
) -> Result<Verdict, DropReason> {
    let ttl = routed_ttl(packet)?;
    mss::clamp(skb, config, packet)?;
    skb.set_src_port(packet, client_port)?;
    skb.set_dst_port(packet, target_port)?;
    skb.set_ip(packet, packet.src, local.addr, ttl)?;
    skb.set_macs(Mac::new(local.mac), Mac::new(task_mac(config.gateway_addr)))?;
    Ok(redirect::into_task(local.ifindex))
}

/// The time to live behind this node, as a router sets it.
#[inline(always)]
pub fn routed_ttl(packet: &Packet) -> Result<u8, DropReason> {
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
pub fn hand_on(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    owner: Owner,
    hop: Hop,
    arrival: Arrival,
) -> Result<Verdict, DropReason> {
    too_big::check(skb, config, packet)?;
    if !matches!(arrival.hop, Hop::FORWARD | Hop::NEAR) {
        // Nodes whose rings differ for a moment must not pass it round for ever.
        let ttl = routed_ttl(packet)?;
        skb.set_ip(packet, packet.src, packet.dst, ttl)?;
    }
    let entry = match arrival.entry {
        Be32::ZERO => config.vtep,
        entry => entry,
    };
    let dst = Mac::new(hop.mac(owner.endpoint));
    skb.set_macs(dst, Mac::new(task_mac(entry)))?;
    redirect::into_tunnel(skb, config, config.mesh_vni, owner.vtep, packet.tos)
}

/// Where what a task sends to its client enters the tunnel; zero when it leaves by this node's routes.
#[inline(always)]
pub fn return_entry(flow: &FlowValue) -> Be32 {
    match flow.flags & FLOW_DIRECT {
        0 => flow.entry_vtep,
        // As if this node had been the entry.
        _ => Be32::ZERO,
    }
}

/// Sends a task's reply to where the client's packets enter the cluster.
#[inline(always)]
pub fn reply(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    flow: &mut FlowValue,
) -> Result<Verdict, DropReason> {
    let (src, port) = (flow.node_addr, flow.published);
    let client_port = flow.client_port(packet.dst_port);
    let entry = return_entry(flow);
    if !entry.is_zero()
        && let Err(reason) = too_big::check(skb, config, packet)
    {
        let (program, router) = (ProgramId::TcGateway, config.gateway_addr);
        return refuse::refuse(program, skb, config, packet, router, reason, || {
            let (task, bridge) = (task_mac(packet.src), task_mac(config.gateway_addr));
            skb.set_macs(Mac::new(task), Mac::new(bridge))?;
            Ok(redirect::into_task(skb.ifindex()))
        });
    }
    let way = Way {
        vtep: entry,
        endpoint: flow.endpoint,
        addr: src,
    };
    fragment::note(packet, FRAGMENT_GATEWAY, way)?;
    mss::clamp(skb, config, packet)?;
    flow::touch(flow, packet, FLOW_TASK_FIN);
    count::packet(flow.stats, skb.volume(), false);
    let ttl = routed_ttl(packet)?;
    let dst_mac = Mac::new(Kind::Return.mac(flow.endpoint));
    skb.set_src_port(packet, port)?;
    skb.set_dst_port(packet, client_port)?;
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
