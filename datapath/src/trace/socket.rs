//! From a socket: what its `connect` or `sendto` makes of the destination. Which backend it gets is
//! left to chance (TCP) or to the socket's cookie (UDP).

use std::collections::BTreeSet;

use dataplane_abi::{
    BACKEND_ACTIVE, Be32, DropReason, NETNS_NODE, NetnsValue, RING_CHUNK_SLOTS, RingChunk,
    RingSlot, SERVICE_OF_NODE, SIDE_SOCKETS, ServiceValue, TargetKey, TargetValue,
};
use model::spec::Protocol;

use super::{Lookup, Outcome, Step, Trail, entry::is_of_gateway};

impl<L: Lookup> Trail<'_, L> {
    /// `None`: no frontend, the destination stays what it is.
    pub(super) fn socket(&mut self, cookie: u64) -> Option<Result<Outcome, DropReason>> {
        let netns: NetnsValue = self.tables.look("NETNS", cookie)?;
        let service = self.frontend(&netns)?;
        Some(self.choice(&service))
    }

    fn frontend(&mut self, netns: &NetnsValue) -> Option<ServiceValue> {
        let dst = self.probe.dst_addr();
        for vni in netns.vnis.iter().take(netns.vni_count as usize) {
            if let Some(service) = self.vip(*vni, dst) {
                self.note(Step::Vip {
                    backends: service.backend_count,
                });
                return Some(service);
            }
        }
        let is_own = netns.kind == NETNS_NODE && self.probe.dst.0.is_loopback();
        let service = self.published(dst, self.probe.dst_port(), SIDE_SOCKETS)?;
        if !is_own && !self.is_node_addr(dst) {
            return None;
        }
        self.note(Step::Published {
            backends: service.backend_count,
            of_node: service.flags & SERVICE_OF_NODE != 0,
        });
        Some(service)
    }

    fn choice(&mut self, service: &ServiceValue) -> Result<Outcome, DropReason> {
        let mut active = 0;
        for index in self.owners(service) {
            let Ok(backend) = self.backend(service, index) else {
                continue;
            };
            let is_active = backend.state == BACKEND_ACTIVE;
            active += u32::from(is_active);
            self.note(Step::Backend {
                endpoint: backend.endpoint,
                vtep: backend.vtep,
                is_active,
            });
        }
        match active {
            0 => Err(DropReason::NoBackend),
            backends => Ok(Outcome::Chosen { backends }),
        }
    }

    /// Whoever has a slot of the ring.
    fn owners(&self, service: &ServiceValue) -> BTreeSet<u16> {
        let len = service.ring_len;
        if len <= 1 {
            let single = RingSlot::from_raw(service.single).now;
            return (0..len).map(|_| single).collect();
        }
        let chunks = (0..len.div_ceil(RING_CHUNK_SLOTS)).map(|nth| service.ring_base + nth);
        let chunks = chunks.filter_map(|at| self.tables.look::<u32, RingChunk>("RINGS", at));
        let slots = chunks.flat_map(|chunk| chunk.slots).take(len as usize);
        slots.map(|raw| RingSlot::from_raw(raw).now).collect()
    }

    /// What a task sends to an address in none of its networks: `bridge::admit`.
    pub(super) fn gateway(&mut self) -> Result<Outcome, DropReason> {
        let config = self.config()?;
        let (dst, port) = (self.probe.dst_addr(), self.probe.dst_port());
        if self.probe.proto == Protocol::Udp.number() && port == config.data_port {
            return Err(DropReason::ForgedTunnel);
        }
        self.note(Step::Gateway);
        if !is_of_gateway(&config, dst) || dst == config.gateway_addr {
            return Ok(Outcome::Stack);
        }
        let target = TargetKey {
            addr: dst,
            port,
            proto: self.probe.proto,
            _pad: 0,
        };
        match self
            .tables
            .look::<TargetKey, TargetValue>("TARGETS", target)
        {
            Some(_) => Ok(Outcome::Stack),
            None => Err(DropReason::Isolated),
        }
    }

    /// Whether the network with `vni` has the destination.
    pub(super) fn is_in(&self, vni: u32) -> bool {
        let dst: Be32 = self.probe.dst_addr();
        self.endpoint(vni, dst).is_some() || self.vip(vni, dst).is_some()
    }
}
