//! Isolation on the gateway bridge. Tasks of all networks hang on it, so between them it carries
//! only what the socket hook makes of a published port, and the replies to that.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use dataplane_abi::{
    Be16, Be32, DropReason, FLOW_BRIDGED, FRAGMENT_GATEWAY, FlowKey, FlowValue, NodeConfig,
    TargetKey, TargetValue, net::task_mac,
};

use crate::{
    flow,
    fragment::{self, Way},
    maps::{TARGETS, UDP_FLOWS},
    packet::{Bytes, Mac, PROTO_TCP, Packet},
    skb::Verdict,
};

/// Whether the bridge may have a packet that belongs to no flow known so far.
#[inline(always)]
pub fn admit(config: &NodeConfig, bytes: Bytes, packet: &Packet) -> Result<Verdict, DropReason> {
    let differs = (packet.dst.raw() ^ config.gateway_addr.raw()) & config.gateway_mask.raw();
    if differs != 0 || packet.dst == config.gateway_addr {
        // For the node, or to be routed by it. Under any other MAC a neighbour would get it.
        if bytes.mac_dst()? != Mac::new(task_mac(config.gateway_addr)) {
            return Err(DropReason::Isolated);
        }
        if is_stray_reply(config, packet) {
            return Err(DropReason::Unsettled);
        }
        return Ok(TC_ACT_UNSPEC);
    }
    to_neighbour(packet)
}

/// Whether this is the answer of a published port in a flow that is still on its way here. As a flow
/// of the task's own it would get the node's address and another port, and break.
#[inline(always)]
fn is_stray_reply(config: &NodeConfig, packet: &Packet) -> bool {
    config.unsettled_until != 0
        && flow::now() < config.unsettled_until
        && packet.has_ports()
        && target(packet.src, packet.src_port, packet.proto).is_some()
}

/// A reply of UDP over the bridge.
#[inline(always)]
pub fn reply(packet: &Packet, flow: &mut FlowValue) -> Result<Verdict, DropReason> {
    flow::touch(flow, packet, 0);
    pass(packet)
}

#[inline(always)]
fn to_neighbour(packet: &Packet) -> Result<Verdict, DropReason> {
    if packet.is_later_fragment() {
        return Err(DropReason::FragmentWithoutHead);
    }
    if !packet.has_ports() {
        return Err(DropReason::Isolated);
    }
    if let Some(target) = target(packet.dst, packet.dst_port, packet.proto) {
        if packet.proto != PROTO_TCP {
            note(packet, target)?;
        }
        return pass(packet);
    }
    // TCP tells itself who began; a reply's SYN has an ACK. UDP's replies have their flow.
    if packet.is_established() && target(packet.src, packet.src_port, packet.proto).is_some() {
        return pass(packet);
    }
    Err(DropReason::Isolated)
}

/// On to the bridge, and the fragments behind it with it.
#[inline(always)]
fn pass(packet: &Packet) -> Result<Verdict, DropReason> {
    let way = Way {
        vtep: Be32::ZERO,
        endpoint: 0,
        addr: Be32::ZERO,
    };
    fragment::note(packet, FRAGMENT_GATEWAY, way)?;
    Ok(TC_ACT_UNSPEC)
}

#[inline(always)]
fn target(addr: Be32, port: Be16, proto: u8) -> Option<&'static TargetValue> {
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    unsafe {
        TARGETS.get(TargetKey {
            addr,
            port,
            proto,
            _pad: 0,
        })
    }
}

/// Notes a flow as the target will reply, so that the target cannot begin one itself from the
/// published port.
#[inline(always)]
fn note(packet: &Packet, target: &TargetValue) -> Result<(), DropReason> {
    let key = FlowKey {
        client: packet.src,
        task: packet.dst,
        client_port: packet.src_port,
        task_port: packet.dst_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    };
    if let Some(flow) = flow::get(&UDP_FLOWS, &key)
        && flow.endpoint == target.endpoint
    {
        flow::touch(flow, packet, 0);
        return Ok(());
    }
    let now = flow::now();
    let value = FlowValue {
        last_seen: now,
        entry_vtep: Be32::ZERO,
        node_addr: packet.dst,
        published: packet.dst_port,
        flags: FLOW_BRIDGED,
        endpoint: target.endpoint,
        generation: 0,
        stats: 0,
        opened: now,
        own_port: Be16::ZERO,
        _pad: 0,
        _pad2: 0,
    };
    flow::insert(&UDP_FLOWS, &key, &value)
}
