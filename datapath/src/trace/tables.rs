//! One entry of one map at a time, from wherever the maps are.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use aya::Pod;
use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, ClientKey, ClientValue, DOUBT_TRIES, DropReason,
    EndpointKey, EndpointValue, FlowKey, FlowValue, LocalEndpoint, NodeConfig, PEER_RETURNING,
    PEER_SUSPECTED, PeerValue, PinKey, PinValue, PortWord, PublishedKey, RingChunk, RingSlot,
    ServiceValue, VethValue, VipFlowKey, VipFlowValue, VipKey,
    hash::{nth_hash, ring_slot},
    ports::port_index,
};

use super::{Probe, Step, Trail};
use crate::sys;

/// Reads maps by their names in the object.
pub trait Lookup {
    /// The value of a key; `None` when there is none, or it cannot be read.
    fn look<K: Pod, V: Pod>(&self, map: &'static str, key: K) -> Option<V>;
}

/// The maps pinned in a directory.
#[derive(Debug)]
pub struct PinnedMaps(PathBuf);

impl PinnedMaps {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }
}

impl Lookup for PinnedMaps {
    fn look<K: Pod, V: Pod>(&self, map: &'static str, key: K) -> Option<V> {
        let map = sys::open_pin(&self.0.join(map)).ok()?;
        look_up(&map, &key).ok()
    }
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Of a map whose keys and values have the sizes of these types.
fn look_up<K: Pod, V: Pod>(map: &OwnedFd, key: &K) -> io::Result<V> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = ElementAttr {
        map_fd: map.as_fd().as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: this build's maps have keys and values of these types, so the kernel reads a `K` and
    // writes a `V`, each of whose bit patterns is a value.
    unsafe {
        sys::bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)?;
        Ok(value.assume_init())
    }
}

/// The flow tables of a backend's node.
#[derive(Debug, Clone, Copy)]
pub(super) enum FlowTable {
    Established,
    Beginning,
    Udp,
}

impl<L: Lookup> Trail<'_, L> {
    pub(super) fn config(&self) -> Result<NodeConfig, DropReason> {
        let config = self.tables.look::<u32, NodeConfig>("CONFIG", 0);
        config
            .filter(|config| config.generation != 0)
            .ok_or(DropReason::NotConfigured)
    }

    pub(super) fn published(&self, addr: Be32, port: Be16, side: u8) -> Option<ServiceValue> {
        let proto = self.probe.proto;
        let index = port_index(proto, port)?;
        let mut word = PortWord::from_raw(self.tables.look("PORTS", index)?);
        if word.is_by_address() {
            let key = PublishedKey {
                addr,
                port,
                proto,
                side,
            };
            if let Some(frontend) = self.tables.look("ADDRESSED", key) {
                word = PortWord::from_raw(frontend);
            }
        }
        self.tables.look("FRONTENDS", word.frontend()?)
    }

    pub(super) fn is_node_addr(&self, addr: Be32) -> bool {
        self.tables.look::<Be32, u32>("NODE_ADDRS", addr).is_some()
    }

    /// The ring's slot of the probe's flow.
    pub(super) fn slot(
        &mut self,
        service: &ServiceValue,
        seed: u64,
    ) -> Result<RingSlot, DropReason> {
        let hash = service.hash(self.probe.tuple(), seed);
        let len = service.ring_len;
        let index = match len {
            0 => return Err(DropReason::NoBackend),
            1 => 0,
            len => ring_slot(hash, len),
        };
        let slot = self.slot_of(service, hash)?;
        let [now, before] = self.endpoints(service, slot);
        self.note(Step::Slot {
            index,
            len,
            now,
            before,
        });
        Ok(slot)
    }

    /// The flow's slot among the node's own backends, if they have some.
    pub(super) fn near_slot(
        &mut self,
        service: &ServiceValue,
        seed: u64,
    ) -> Result<RingSlot, DropReason> {
        let len = service.ring_len;
        let index = ring_slot(service.hash(self.probe.tuple(), seed), len);
        let slot = self.slot_at(service, index + len)?;
        let [now, before] = self.endpoints(service, slot);
        self.note(Step::Near { now, before });
        Ok(slot)
    }

    /// The slot of a hash in the ring that all nodes share.
    fn slot_of(&self, service: &ServiceValue, hash: u32) -> Result<RingSlot, DropReason> {
        match service.ring_len {
            0 => Err(DropReason::NoBackend),
            1 => Ok(RingSlot::from_raw(service.single)),
            len => self.slot_at(service, ring_slot(hash, len)),
        }
    }

    fn slot_at(&self, service: &ServiceValue, index: u32) -> Result<RingSlot, DropReason> {
        let place = service.ring;
        let chunk: RingChunk = self
            .tables
            .look("RINGS", place.chunk_of(index))
            .ok_or(DropReason::NoBackend)?;
        let word = chunk.words[place.word_of(index) as usize];
        Ok(place.slot(word, index))
    }

    /// Whom the slot names; zero where there is none.
    fn endpoints(&self, service: &ServiceValue, slot: RingSlot) -> [u32; 2] {
        [slot.now, slot.before].map(|index| {
            let backend = self.backend(service, index);
            backend.map_or(0, |backend| backend.endpoint)
        })
    }

    /// `doubt::choice` of the programs.
    pub(super) fn doubt_choice(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        slot: RingSlot,
    ) -> u16 {
        match service.is_near(self.probe.is_established()) {
            true => slot.now,
            false => self.shared_choice(config, service, slot),
        }
    }

    /// `doubt::shared_choice`.
    pub(super) fn shared_choice(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        slot: RingSlot,
    ) -> u16 {
        if config.doubted == 0 || service.ring_len <= 1 {
            return slot.now;
        }
        let avoided = match self.probe.is_established() {
            true => PEER_SUSPECTED | PEER_RETURNING,
            false => PEER_SUSPECTED,
        };
        let hash = service.hash(self.probe.tuple(), config.ring_seed);
        for nth in 0..DOUBT_TRIES {
            let at = self.slot_of(service, nth_hash(hash, nth));
            let Ok(RingSlot { now, .. }) = at else {
                break;
            };
            let Ok(backend) = self.backend(service, now) else {
                break;
            };
            if !self.is_avoided(backend.vtep, avoided) {
                return now;
            }
            if nth == 0 {
                self.note(Step::Doubted { vtep: backend.vtep });
            }
        }
        slot.now
    }

    pub(super) fn backend(
        &self,
        service: &ServiceValue,
        index: u16,
    ) -> Result<BackendValue, DropReason> {
        let index = u32::from(index);
        if index >= service.backend_count {
            return Err(DropReason::NoBackend);
        }
        let at = service.backend_base + index;
        self.tables
            .look("BACKENDS", at)
            .ok_or(DropReason::NoBackend)
    }

    fn is_avoided(&self, vtep: Be32, avoided: u32) -> bool {
        let peer = self.tables.look::<Be32, PeerValue>("PEERS", vtep);
        let is_any = self.config().is_ok_and(|config| config.doubted != 0);
        is_any && peer.is_some_and(|peer| peer.flags & avoided != 0)
    }

    /// `client::index`: of the backend that a client goes to, and notes when it keeps it.
    pub(super) fn client_index(
        &mut self,
        service: &ServiceValue,
        client: u64,
        by_ring: u16,
        is_established: bool,
        now: u64,
    ) -> u16 {
        if service.affinity_secs == 0 {
            return by_ring;
        }
        let key = ClientKey {
            client,
            service: service.affinity_key,
            _pad: 0,
        };
        let Some(known) = self.tables.look::<_, ClientValue>("CLIENTS", key) else {
            return by_ring;
        };
        let is_kept = service.keeps_client(known.last_seen, now);
        let indexes = 0..service.backend_count as u16;
        let mut own = indexes.filter_map(|at| Some((at, self.backend(service, at).ok()?)));
        let own = own.find(|(_, backend)| backend.endpoint == known.endpoint);
        let takes_new_flows = |backend: &BackendValue| {
            backend.state == BACKEND_ACTIVE && !self.is_avoided(backend.vtep, PEER_SUSPECTED)
        };
        match own {
            Some((index, backend)) if is_established || is_kept && takes_new_flows(&backend) => {
                self.note(Step::Client {
                    endpoint: backend.endpoint,
                });
                index
            }
            _ => by_ring,
        }
    }

    pub(super) fn local(&self, endpoint: u32) -> Option<LocalEndpoint> {
        self.tables.look("LOCAL", endpoint)
    }

    pub(super) fn endpoint(&self, vni: u32, addr: Be32) -> Option<EndpointValue> {
        self.tables.look("ENDPOINTS", EndpointKey { vni, addr })
    }

    pub(super) fn vip(&self, vni: u32, addr: Be32) -> Option<ServiceValue> {
        self.tables.look("VIPS", VipKey { vni, addr })
    }

    pub(super) fn veth(&self, ifindex: u32) -> Option<VethValue> {
        self.tables.look("VETHS", ifindex)
    }

    pub(super) fn flow(&self, table: FlowTable, key: FlowKey) -> Option<FlowValue> {
        let map = match table {
            FlowTable::Established => "FLOWS",
            FlowTable::Beginning => "SYN_FLOWS",
            FlowTable::Udp => "UDP_FLOWS",
        };
        self.tables.look(map, key)
    }

    pub(super) fn vip_flow(&self, key: VipFlowKey) -> Option<VipFlowValue> {
        self.tables.look("VIP_FLOWS", key)
    }

    /// Who keeps the probe's flow though no slot names it.
    pub(super) fn pin(&self) -> Option<PinValue> {
        let Probe { proto, .. } = self.probe;
        let key = PinKey {
            client: self.probe.src_addr(),
            node_addr: self.probe.dst_addr(),
            client_port: self.probe.src_port(),
            published: self.probe.dst_port(),
            proto,
            _pad: 0,
            _pad2: 0,
        };
        self.tables.look("PINS", key)
    }
}
