//! From a socket: what its `connect` or `sendto` makes of the destination. Which backend it gets is
//! left to chance (TCP) or to the socket's cookie (UDP).

use std::{collections::BTreeSet, ops::Range};

use dataplane_abi::{
    BACKEND_ACTIVE, Be32, CLIENT_IS_NETNS, DropReason, NETNS_NODE, NetnsValue, RingChunk, RingSlot,
    SERVICE_OF_NODE, SIDE_SOCKETS, ServiceValue, TargetKey, TargetValue,
};
use model::spec::Protocol;

use super::{Lookup, Outcome, Step, Trail, entry::is_of_gateway};

impl<L: Lookup> Trail<'_, L> {
    /// `None`: no frontend, the destination stays what it is.
    pub(super) fn socket(&mut self, cookie: u64, now: u64) -> Option<Result<Outcome, DropReason>> {
        let netns: NetnsValue = self.tables.look("NETNS", cookie)?;
        let service = self.frontend(&netns)?;
        Some(self.choice(&service, cookie, now))
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

    /// The one that the sender's namespace keeps; else one of the node's own, where the service prefers
    /// those; else one of all.
    fn choice(
        &mut self,
        service: &ServiceValue,
        cookie: u64,
        now: u64,
    ) -> Result<Outcome, DropReason> {
        const NOBODY: u16 = u16::MAX;
        let client = cookie | CLIENT_IS_NETNS;
        let kept = self.client_index(service, client, NOBODY, false, now);
        let len = service.ring_len;
        let owners = match len {
            1.. if kept != NOBODY => BTreeSet::from([kept]),
            0 | 1 => (0..len)
                .map(|_| RingSlot::from_raw(service.single).now)
                .collect(),
            _ if service.takes_near_flows() => self.owners(service, len..2 * len),
            _ => self.owners(service, 0..len),
        };
        match self.active(service, owners) {
            0 => Err(DropReason::NoBackend),
            backends => Ok(Outcome::Chosen { backends }),
        }
    }

    /// How many of them take new flows.
    fn active(&mut self, service: &ServiceValue, indexes: BTreeSet<u16>) -> u32 {
        let mut active = 0;
        for index in indexes {
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
        active
    }

    /// Whoever has one of these slots of the ring.
    fn owners(&self, service: &ServiceValue, slots: Range<u32>) -> BTreeSet<u16> {
        let place = service.ring;
        let per_chunk = place.form().slots_per_chunk();
        let runs = slots.start / per_chunk..slots.end.div_ceil(per_chunk);
        let first = runs.start * per_chunk;
        let chunks = runs.map(|nth| place.chunk_of(nth * per_chunk));
        let chunks = chunks.filter_map(|at| self.tables.look::<u32, RingChunk>("RINGS", at));
        let found = chunks.flat_map(|chunk| place.slots(&chunk).collect::<Vec<_>>());
        let found = found.skip((slots.start - first) as usize).take(slots.len());
        found.map(|slot| slot.now).collect()
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
