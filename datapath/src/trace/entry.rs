//! From the uplink: the mesh's entry, and the backend's side when that is here.

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, DropReason, FlowKey, FlowValue, LocalEndpoint,
    NodeConfig, PinValue, SERVICE_DIRECT_RETURN, SERVICE_OF_NODE, SIDE_PACKETS, ServiceValue,
    net::{
        mesh_mac::{Kind, SEARCH_HOPS_MAX},
        task_mac,
    },
    seat::{Claim, Seat, choose_port},
};

use super::{Lookup, Outcome, Return, Sent, Step, Trail, tables::FlowTable};

/// What an endpoint says of a packet, as `flow::Admission` has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    Known,
    Opened,
    Unknown,
}

/// Who is asked for a flow that is not known, and as what; `owner::find` of the programs.
enum Next {
    Ask {
        endpoint: u32,
        vtep: Be32,
        hop: Kind,
    },
    Nobody,
    /// As far as this node can tell, but another one sent the packet by another ring.
    Undecided,
}

impl Next {
    fn ask(backend: &BackendValue, hop: Kind) -> Self {
        Self::Ask {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
            hop,
        }
    }

    /// The next of a search.
    fn search(backend: &BackendValue, hop: Kind) -> Self {
        match hop {
            Kind::Search(0) => Self::Undecided,
            Kind::Search(left) => Self::ask(backend, Kind::Search(left - 1)),
            _ => Self::ask(backend, Kind::Search(SEARCH_HOPS_MAX)),
        }
    }
}

/// How many further owners on this node are asked for an established flow.
const OWNERS_HERE_MAX: u32 = 3;

impl<L: Lookup> Trail<'_, L> {
    pub(super) fn uplink(&mut self, now: u64) -> Result<Outcome, DropReason> {
        let config = self.config();
        if let Ok(config) = config
            && [self.probe.src_addr(), self.probe.dst_addr()]
                .iter()
                .any(|addr| is_of_gateway(&config, *addr))
        {
            return Err(DropReason::ForgedTaskAddress);
        }
        let (addr, port) = (self.probe.dst_addr(), self.probe.dst_port());
        let Some(service) = self.published(addr, port, SIDE_PACKETS) else {
            self.note(Step::NotPublished);
            return Ok(Outcome::Stack);
        };
        if !self.is_node_addr(addr) {
            self.note(Step::NotOfNode);
            return Ok(Outcome::Stack);
        }
        let config = config?;
        self.note(Step::Published {
            backends: service.backend_count,
            of_node: service.flags & SERVICE_OF_NODE != 0,
        });
        let slot = self.slot(&service, config.ring_seed)?;
        let choice = self.doubt_choice(&config, &service, slot);
        let backend = self.backend(&service, choice)?;
        let is_active = backend.state == BACKEND_ACTIVE;
        self.note(Step::Backend {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
            is_active,
        });
        if self.probe.is_syn() && !is_active {
            return Err(DropReason::NoBackend);
        }
        if !backend.vtep.is_zero() {
            let direct = service.flags & SERVICE_DIRECT_RETURN != 0;
            self.note(Step::Reply(if direct {
                Return::Direct
            } else {
                Return::Tunnel
            }));
            return Ok(self.tunnelled(&config, Kind::Forward, backend.endpoint, backend.vtep));
        }
        self.deliver(&config, &service, backend.endpoint, now)
    }

    /// To another node, as it is.
    fn tunnelled(&self, config: &NodeConfig, kind: Kind, endpoint: u32, vtep: Be32) -> Outcome {
        Outcome::Tunnel {
            vtep: vtep.into(),
            vni: config.mesh_vni,
            sent: Sent {
                src: self.probe.src,
                dst: self.probe.dst,
                dst_mac: kind.mac(endpoint),
                src_mac: task_mac(config.vtep),
                routed: false,
            },
        }
    }

    /// At the backend's node, when that is the entry too.
    fn deliver(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        mut endpoint: u32,
        now: u64,
    ) -> Result<Outcome, DropReason> {
        let mut hop = Kind::Forward;
        let mut local = self.local(endpoint);
        let (mut admission, mut client_port) = self.admit(service, endpoint, local, now)?;
        let mut is_undecided = false;
        for _ in 0..OWNERS_HERE_MAX {
            if admission != Admission::Unknown || !self.probe.is_established() {
                break;
            }
            match self.next_owner(config, service, endpoint, hop) {
                Next::Ask {
                    endpoint,
                    vtep,
                    hop,
                } if !vtep.is_zero() => return Ok(self.tunnelled(config, hop, endpoint, vtep)),
                Next::Ask {
                    endpoint: asked,
                    hop: by,
                    ..
                } => (endpoint, hop) = (asked, by),
                Next::Nobody => break,
                Next::Undecided => {
                    is_undecided = true;
                    break;
                }
            }
            local = self.local(endpoint);
            (admission, client_port) = self.admit(service, endpoint, local, now)?;
        }
        let waits = is_undecided || matches!(hop, Kind::Search(_)) || now < config.unsettled_until;
        match local {
            Some(local) if admission != Admission::Unknown => {
                Ok(self.delivered(config, service, &local, client_port))
            }
            _ if self.probe.is_established() && waits => Err(DropReason::Unsettled),
            Some(_) => Err(DropReason::UnknownFlow),
            None => Err(DropReason::BackendGone),
        }
    }

    fn delivered(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        local: &LocalEndpoint,
        client_port: Be16,
    ) -> Outcome {
        self.note_client_port(client_port);
        let port = service.target(self.probe.dst_port());
        self.note(Step::Translated {
            addr: local.addr,
            port,
        });
        self.note(Step::Reply(Return::Here));
        Outcome::Task {
            ifindex: local.ifindex,
            sent: Sent {
                src: (self.probe.src.0, client_port.to_host()),
                dst: (local.addr.into(), port.to_host()),
                dst_mac: local.mac,
                src_mac: task_mac(config.gateway_addr),
                routed: true,
            },
        }
    }

    /// What the flow tables say of the packet; `flow::Visit::admit`, but for sockets.
    fn admit(
        &mut self,
        service: &ServiceValue,
        endpoint: u32,
        local: Option<LocalEndpoint>,
        now: u64,
    ) -> Result<(Admission, Be16), DropReason> {
        let (admission, client_port) = match local {
            Some(local) => self.ask_tables(service, endpoint, &local, now)?,
            None => (Admission::Unknown, self.probe.src_port()),
        };
        self.note(match admission {
            Admission::Known => Step::Flow {
                endpoint,
                entry: Be32::ZERO,
            },
            Admission::Opened => Step::Opens { endpoint },
            Admission::Unknown => Step::UnknownTo { endpoint },
        });
        Ok((admission, client_port))
    }

    /// Also the port by which the task knows the client.
    fn ask_tables(
        &self,
        service: &ServiceValue,
        endpoint: u32,
        local: &LocalEndpoint,
        now: u64,
    ) -> Result<(Admission, Be16), DropReason> {
        let claim = Claim {
            node_addr: self.probe.dst_addr(),
            published: self.probe.dst_port(),
            client_port: self.probe.src_port(),
            endpoint,
            generation: local.generation,
        };
        let mut key = FlowKey {
            client: self.probe.src_addr(),
            task: local.addr,
            client_port: self.probe.src_port(),
            task_port: service.target(self.probe.dst_port()),
            proto: self.probe.proto,
            ..FlowKey::default()
        };
        if self.is_elsewhere(&key) {
            key.client_port = self.find_seat(&claim, key, now);
        }
        let admission = self.ask_seat(&claim, &key, now)?;
        Ok((admission, key.client_port))
    }

    /// What the entry at `key` says of the packet.
    fn ask_seat(&self, claim: &Claim, key: &FlowKey, now: u64) -> Result<Admission, DropReason> {
        if !self.probe.is_tcp() {
            return self.enter(FlowTable::Udp, claim, key, now);
        }
        let live = |table| {
            let flow = self.flow(table, *key);
            flow.filter(|flow| {
                flow.endpoint == claim.endpoint && flow.generation == claim.generation
            })
        };
        let known = |flow: &FlowValue| match self.is_own(key, flow) {
            true => Ok(Admission::Known),
            false => Err(DropReason::SourceCollision),
        };
        if let Some(flow) = live(FlowTable::Established)
            && !(self.probe.is_syn() && self.succeeds(key, &flow))
        {
            return known(&flow);
        }
        if !self.probe.is_syn() {
            return match live(FlowTable::Beginning) {
                Some(flow) => known(&flow),
                None => Ok(Admission::Unknown),
            };
        }
        if self.flow(FlowTable::Established, *key).is_some() {
            return Ok(Admission::Opened);
        }
        self.enter(FlowTable::Beginning, claim, key, now)
    }

    fn enter(
        &self,
        table: FlowTable,
        claim: &Claim,
        key: &FlowKey,
        now: u64,
    ) -> Result<Admission, DropReason> {
        let is_syn = self.probe.is_syn();
        let flow = self.flow(table, *key);
        match flow.map(|flow| (claim.seat(key, &flow, || now), flow)) {
            Some((Seat::Own, flow)) if !(is_syn && self.succeeds(key, &flow)) => {
                Ok(Admission::Known)
            }
            Some((Seat::Other, _)) if !is_syn => Err(DropReason::SourceCollision),
            _ => Ok(Admission::Opened),
        }
    }

    /// Whether the flow may have another port at the task than the client's own.
    fn is_elsewhere(&self, key: &FlowKey) -> bool {
        let is_own = |flow: FlowValue| self.is_own(key, &flow);
        if !self.probe.is_tcp() {
            return self
                .flow(FlowTable::Udp, *key)
                .is_some_and(|flow| !is_own(flow));
        }
        let flow = self.flow(FlowTable::Established, *key);
        match flow.or_else(|| self.flow(FlowTable::Beginning, *key)) {
            Some(flow) => !is_own(flow),
            None => self.probe.is_established(),
        }
    }

    fn find_seat(&self, claim: &Claim, key: FlowKey, now: u64) -> Be16 {
        let tables = match self.probe.is_tcp() {
            true => &[FlowTable::Established, FlowTable::Beginning][..],
            false => &[FlowTable::Udp],
        };
        choose_port(claim.client_port, !self.probe.is_established(), |port| {
            let key = FlowKey {
                client_port: port,
                ..key
            };
            let flows = tables.iter().filter_map(|table| self.flow(*table, key));
            let mut seats = flows.map(|flow| claim.seat(&key, &flow, || now));
            seats
                .find(|seat| *seat != Seat::Nobody)
                .unwrap_or(Seat::Nobody)
        })
    }

    /// Whether a SYN starts a new connection where an earlier one was.
    fn succeeds(&self, key: &FlowKey, flow: &FlowValue) -> bool {
        flow.flags != 0 || !self.is_own(key, flow)
    }

    fn is_own(&self, key: &FlowKey, flow: &FlowValue) -> bool {
        flow.node_addr == self.probe.dst_addr()
            && flow.published == self.probe.dst_port()
            && flow.client_port(key.client_port) == self.probe.src_port()
    }

    fn next_owner(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        asked: u32,
        hop: Kind,
    ) -> Next {
        if hop == Kind::Last {
            return Next::Nobody;
        }
        let pin = self.pin();
        if let Some(PinValue { endpoint, vtep }) = pin
            && endpoint != asked
        {
            self.note(Step::Owner {
                endpoint,
                is_pinned: true,
            });
            let named = BackendValue {
                endpoint,
                vtep,
                ..BackendValue::default()
            };
            return match hop {
                Kind::Forward => Next::ask(&named, Kind::SecondHop),
                hop => Next::search(&named, hop),
            };
        }
        let Some([now, before]) = self.slot_owners(config, service) else {
            return Next::Nobody;
        };
        let (at_now, at_before) = (now.endpoint == asked, before.endpoint == asked);
        let next = match hop {
            Kind::Forward if at_now => Some(Kind::SecondHop),
            Kind::SecondHop if at_before || pin.is_some() => Some(Kind::Last),
            _ => None,
        };
        let (owner, next) = match next {
            Some(_) if at_before => return Next::Nobody,
            Some(next) => (before, Next::ask(&before, next)),
            None if at_now && at_before => return Next::Undecided,
            None => {
                let owner = if at_now { before } else { now };
                (owner, Next::search(&owner, hop))
            }
        };
        self.note(Step::Owner {
            endpoint: owner.endpoint,
            is_pinned: false,
        });
        next
    }

    /// The slot's owners, of now and before.
    fn slot_owners(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
    ) -> Option<[BackendValue; 2]> {
        let slot = self.slot(service, config.ring_seed).ok()?;
        // It was told of already.
        self.steps.pop();
        let now = self.backend(service, slot.now).ok()?;
        let before = self.backend(service, slot.before).ok()?;
        Some([now, before])
    }
}

pub(super) fn is_of_gateway(config: &NodeConfig, addr: Be32) -> bool {
    (addr.raw() ^ config.gateway_addr.raw()) & config.gateway_mask.raw() == 0
}
