//! ICMP errors about packets of mesh flows, on the way that the flow's own packets take: from outside
//! about replies, by entry and owner to the task; from the task about the client's packets, back
//! through the entry.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_BRIDGED, LocalEndpoint, NodeConfig, SIDE_PACKETS, ServiceValue,
    net::{mesh_mac::Kind, task_mac},
};

use crate::{
    entry::{self, Entry},
    flow::{self, Visit},
    mesh::{self, Arrival},
    owner,
    packet::{Bytes, ETHERTYPE_IPV4, Mac, PROTO_ICMP, Packet},
    quote::{End, Quote},
    redirect,
    skb::{Skb, Verdict},
};

/// At the uplink: an error about a reply that left the cluster from a published port. `None` when it
/// is about something else, which the host's own stack knows.
#[inline(always)]
pub fn find(skb: Skb, bytes: Bytes) -> Option<Found> {
    if bytes.ether_type().ok()? != ETHERTYPE_IPV4 || bytes.proto().ok()? != PROTO_ICMP {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    let asked = Quote::of(skb, &packet)?.backward();
    let service = entry::published(asked.dst, asked.dst_port, asked.proto, SIDE_PACKETS)?;
    entry::is_node_addr(asked.dst).then_some(Found {
        packet,
        entry: Entry {
            packet: asked,
            service,
        },
    })
}

/// An error, and the entry of a packet of the flow that it is about, as the client sends them.
pub struct Found {
    packet: Packet,
    entry: Entry,
}

impl Found {
    /// From the entry to the flow's backend.
    #[inline(always)]
    pub fn enter(&self, skb: Skb, config: &NodeConfig) -> Result<Verdict, DropReason> {
        let backend = self.entry.backend(config)?;
        if !backend.vtep.is_zero() {
            return mesh::forward(skb, config, &self.packet, backend);
        }
        let arrival = Arrival {
            endpoint: backend.endpoint,
            entry: Be32::ZERO,
            hop: self.entry.hop(),
        };
        deliver::<true>(skb, config, &self.packet, arrival)
    }
}

/// At a node that may have the flow: to the task, or on to whom else may have it.
#[inline(always)]
pub fn deliver<const AT_ENTRY: bool>(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    arrival: Arrival,
) -> Result<Verdict, DropReason> {
    let quote = Quote::of(skb, packet).ok_or(DropReason::BadIcmp)?;
    let asked = quote.backward();
    let published = entry::published(asked.dst, asked.dst_port, asked.proto, SIDE_PACKETS)
        .ok_or(DropReason::NotPublished)?;
    let mut task = task(skb, &asked, published, arrival, arrival.endpoint);
    if task.is_none() && asked.is_established() {
        let (owner, hop) = owner::find::<AT_ENTRY>(skb, config, &asked, published, arrival);
        if hop.goes_on() {
            if !owner.vtep.is_zero() {
                return mesh::hand_on(skb, config, packet, owner, hop, arrival);
            }
            task = self::task(skb, &asked, published, arrival, owner.endpoint);
        }
    }
    let (local, client_port) = task.ok_or(DropReason::IcmpUnknownFlow)?;
    let ttl = mesh::routed_ttl(packet)?;
    let end = (local.addr, published.target(asked.dst_port));
    quote.rewrite(skb, packet, End::Src, end)?;
    if client_port != asked.src_port {
        quote.rewrite(skb, packet, End::Dst, (asked.src, client_port))?;
    }
    skb.set_ip(packet, packet.src, local.addr, ttl)?;
    skb.set_macs(Mac::new(local.mac), Mac::new(task_mac(config.gateway_addr)))?;
    Ok(redirect::into_task(local.ifindex))
}

/// The task of an endpoint, if it is here and has the flow of `asked`, and by which port that knows the
/// client.
#[inline(always)]
fn task(
    skb: Skb,
    asked: &Packet,
    published: &ServiceValue,
    arrival: Arrival,
    endpoint: u32,
) -> Option<(&'static LocalEndpoint, Be16)> {
    let local = mesh::local(endpoint)?;
    let mut visit = Visit::new(asked, published, endpoint, local, arrival.entry);
    visit.is_known(skb).then_some((local, visit.client_port))
}

/// On the gateway side of a task: an error about a packet that a client sent to it. `None` when it is
/// about something else.
#[inline(always)]
pub fn reply(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
) -> Option<Result<Verdict, DropReason>> {
    if packet.proto != PROTO_ICMP {
        return None;
    }
    let quote = Quote::of(skb, packet)?;
    if quote.dst.0 != packet.src {
        return None;
    }
    let flow = flow::of_reply(&quote.backward())?;
    if flow.flags & FLOW_BRIDGED != 0 {
        // A neighbour's question by the bridge, which it may answer: nothing to translate.
        return Some(Ok(TC_ACT_UNSPEC));
    }
    let frontend = (flow.node_addr, flow.published);
    let own_port = flow.own_port;
    let (entry, endpoint) = (mesh::return_entry(flow), flow.endpoint);
    Some(mesh::routed_ttl(packet).and_then(|ttl| {
        quote.rewrite(skb, packet, End::Dst, frontend)?;
        if !own_port.is_zero() {
            quote.rewrite(skb, packet, End::Src, (quote.src.0, own_port))?;
        }
        skb.set_ip(packet, frontend.0, packet.dst, ttl)?;
        if entry.is_zero() {
            return redirect::by_route(skb, config, packet, frontend.0, packet.dst);
        }
        let dst = Mac::new(Kind::Return.mac(endpoint));
        skb.set_macs(dst, Mac::new(task_mac(config.vtep)))?;
        redirect::into_tunnel(skb, config, config.mesh_vni, entry, packet.tos)
    }))
}
