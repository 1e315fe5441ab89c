//! The mesh's entry, the same for XDP and tc: is the packet for a published port, and for which
//! backend? Nothing is kept per flow.

use dataplane_abi::{
    BackendValue, Be16, Be32, DropReason, NodeConfig, PortWord, PublishedKey, SIDE_PACKETS,
    ServiceValue, ports::port_index,
};

use crate::{
    client, doubt,
    maps::{ADDRESSED, FRONTENDS, NODE_ADDRS, PORTS},
    owner::Hop,
    packet::{Bytes, ETHERTYPE_IPV4, Packet},
    service,
};

/// A packet for a published port of this node.
pub struct Entry {
    pub packet: Packet,
    pub service: &'static ServiceValue,
}

impl Entry {
    /// `None`: not ours, the host's own stack goes on with it. Packets that do not parse are not
    /// ours either.
    #[inline(always)]
    pub fn find(bytes: Bytes) -> Option<Self> {
        if bytes.ether_type().ok()? != ETHERTYPE_IPV4 {
            return None;
        }
        let packet = Packet::parse(bytes).ok()?;
        if !packet.has_ports() {
            return None;
        }
        // The port first: it sorts out nearly all that is not ours with one look.
        let service = published(packet.dst, packet.dst_port, packet.proto, SIDE_PACKETS)?;
        is_node_addr(packet.dst).then_some(Self { packet, service })
    }

    /// How a packet comes to a backend of this node.
    #[inline(always)]
    pub fn hop(&self) -> Hop {
        Hop::at_entry(self.service)
    }

    /// Where the packet goes.
    #[inline(always)]
    pub fn backend(&self, config: &NodeConfig) -> Result<&'static BackendValue, DropReason> {
        let hash = service::hash(self.service, &self.packet, config.ring_seed);
        let is_established = self.packet.is_established();
        let slot = service::entry_slot(self.service, hash, is_established)?;
        let choice = doubt::choice(config, self.service, hash, slot, is_established);
        let client = self.packet.client();
        let index = client::index(self.service, client, choice, is_established);
        let backend = service::backend(self.service, index)?;
        if self.packet.is_syn() && !service::takes_new_flows(backend) {
            return Err(DropReason::NoBackend);
        }
        Ok(backend)
    }
}

/// The service behind a published port. What is not published costs one look into an array.
#[inline(always)]
pub fn published(addr: Be32, port: Be16, proto: u8, side: u8) -> Option<&'static ServiceValue> {
    let index = port_index(proto, port)?;
    let mut word = port_word(index)?;
    if word.is_by_address() {
        word = match addressed(addr, port, proto, side) {
            Some(frontend) => PortWord::from_raw(frontend),
            // The address may just have lost a frontend of its own to that of all the others: the
            // agent writes the word before it removes the address, so the word now is right.
            None => port_word(index)?,
        };
    }
    let service = FRONTENDS.get_ptr(word.frontend()?)?;
    // SAFETY: elements of an array map live as long as the program, and this one is not written
    // while a program may still know its index.
    Some(unsafe { &*service })
}

#[inline(always)]
fn port_word(index: u32) -> Option<PortWord> {
    let word = PORTS.get_ptr(index)?;
    // SAFETY: an aligned element of an array map. Volatile: one load each time, since the agent
    // stores to it meanwhile.
    Some(PortWord::from_raw(unsafe { word.read_volatile() }))
}

/// Not inlined: the verifier (6.18) then forgets how it got here, and walks what follows once. In
/// line, `sn_tc_vxlan` took 142 000 instructions of it, so 55 000.
#[inline(never)]
fn addressed(addr: Be32, port: Be16, proto: u8, side: u8) -> Option<u32> {
    let key = PublishedKey {
        addr,
        port,
        proto,
        side,
    };
    // SAFETY: a value replaced meanwhile is not reused before this CPU has long read it.
    unsafe { ADDRESSED.get(key) }.copied()
}

/// The tunnel address is one of the node's, and the one that most packets are for: comparing it saves
/// them the look-up, which costs as much as all that follows.
#[inline(always)]
pub fn is_node_addr(addr: Be32) -> bool {
    service::config().is_ok_and(|config| config.vtep == addr) || NODE_ADDRS.get_ptr(addr).is_some()
}
