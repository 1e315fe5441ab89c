//! From the uplink: the mesh's entry, and the backend's side when that is here.

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, Be32, DropReason, FlowKey, FlowValue, LocalEndpoint,
    NodeConfig, SERVICE_DIRECT_RETURN, SERVICE_NEAR, SERVICE_OF_NODE, SIDE_PACKETS, ServiceValue,
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

/// Who is asked for a flow that is not known.
#[derive(Clone, Copy)]
struct Owner {
    endpoint: u32,
    vtep: Be32,
}

/// `owner::Hop`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hop {
    Forward,
    Second,
    Last,
    Near,
    Search(u8),
}

impl Hop {
    /// The next in a search; `None` after the last.
    fn search(self) -> Option<Self> {
        match self {
            Self::Search(0) => None,
            Self::Search(left) => Some(Self::Search(left - 1)),
            _ => Some(Self::Search(SEARCH_HOPS_MAX)),
        }
    }
}

/// Whom `owner::find` names.
enum Next {
    Owner(Owner, Hop),
    Nobody,
    /// Nobody, as far as this node can tell.
    Undecided,
}

/// `mesh::OWNERS_HERE_MAX`.
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
        if let Ok(config) = config
            && self.probe.fragment
            && config.reassembly_ifindex != 0
            && self.is_node_addr(addr)
        {
            let ifindex = config.reassembly_ifindex;
            self.note(Step::Ordered { ifindex });
        }
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
        let is_established = self.probe.is_established();
        let slot = match service.is_near(is_established) {
            true => self.near_slot(&service, config.ring_seed)?,
            false => self.slot(&service, config.ring_seed)?,
        };
        let choice = self.doubt_choice(&config, &service, slot);
        let client = self.probe.client();
        let index = self.client_index(&service, client, choice, is_established, now);
        let backend = self.backend(&service, index)?;
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
        let hop = match service.flags & SERVICE_NEAR {
            0 => Hop::Forward,
            _ => Hop::Near,
        };
        self.deliver(&config, &service, backend.endpoint, hop, now)
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
        mut hop: Hop,
        now: u64,
    ) -> Result<Outcome, DropReason> {
        let mut local = self.local(endpoint);
        let (mut admission, mut client_port) = self.admit(service, endpoint, local, now)?;
        let mut is_undecided = false;
        let is_settled = now >= config.unsettled_until;
        for _ in 0..OWNERS_HERE_MAX {
            if admission != Admission::Unknown || !self.probe.is_established() {
                break;
            }
            let (owner, next) = match self.owner(config, service, endpoint, hop, is_settled) {
                Next::Owner(owner, next) => (owner, next),
                none => {
                    is_undecided = matches!(none, Next::Undecided);
                    break;
                }
            };
            if !owner.vtep.is_zero() {
                return Ok(self.handed_on(config, &owner, next, hop));
            }
            endpoint = owner.endpoint;
            hop = next;
            local = self.local(endpoint);
            (admission, client_port) = self.admit(service, endpoint, local, now)?;
        }
        let waits = is_undecided || matches!(hop, Hop::Search(_)) || !is_settled;
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

    /// `mesh::hand_on`, with the hop that led here.
    fn handed_on(&self, config: &NodeConfig, owner: &Owner, next: Hop, hop: Hop) -> Outcome {
        let kind = match next {
            Hop::Second => Kind::SecondHop,
            Hop::Last => Kind::Last,
            Hop::Forward | Hop::Near => Kind::Forward,
            Hop::Search(left) => Kind::Search(left),
        };
        let mut outcome = self.tunnelled(config, kind, owner.endpoint, owner.vtep);
        if let Outcome::Tunnel { sent, .. } = &mut outcome {
            sent.routed = !matches!(hop, Hop::Forward | Hop::Near);
        }
        outcome
    }

    /// `owner::find`, at the entry.
    fn owner(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        asked: u32,
        hop: Hop,
        is_settled: bool,
    ) -> Next {
        let mut hop = hop;
        if hop == Hop::Near {
            match self.owner_near(config, service, asked, is_settled) {
                Some(next) => return next,
                None => hop = Hop::Forward,
            }
        }
        if hop == Hop::Last {
            return Next::Nobody;
        }
        let pin = self.pin();
        if let Some(pin) = pin
            && pin.endpoint != asked
        {
            let next = match hop {
                Hop::Forward => Some(Hop::Second),
                _ => hop.search(),
            };
            return self.next(pin.endpoint, pin.vtep, true, next);
        }
        let [now, before] = self.slot_owners(config, service, asked);
        let (at_now, at_before) = (now.endpoint == asked, before.endpoint == asked);
        let next = match hop {
            Hop::Forward if at_now => Some(Hop::Second),
            Hop::Second if at_before || pin.is_some() => Some(Hop::Last),
            _ => None,
        };
        match next {
            Some(_) if at_before => Next::Nobody,
            Some(_) => self.next(before.endpoint, before.vtep, false, next),
            None if at_now && at_before => Next::Undecided,
            None if at_now => self.next(before.endpoint, before.vtep, false, hop.search()),
            None => self.next(now.endpoint, now.vtep, false, hop.search()),
        }
    }

    /// `owner::find_near`; `None` from the slot's owner itself.
    fn owner_near(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        asked: u32,
        is_settled: bool,
    ) -> Option<Next> {
        let [now, before] = self.slot_owners(config, service, asked);
        let at_now = now.endpoint == asked;
        let pin = self.pin();
        if let Some(pin) = pin
            && pin.endpoint != asked
            && pin.vtep.is_zero()
            && !at_now
        {
            return Some(self.next(pin.endpoint, pin.vtep, true, Some(Hop::Near)));
        }
        let search = Hop::Near.search();
        if !at_now {
            let hop = if is_settled {
                Some(Hop::Forward)
            } else {
                search
            };
            return Some(self.next(now.endpoint, now.vtep, false, hop));
        }
        if is_settled || pin.is_some() {
            return None;
        }
        if before.endpoint == asked {
            return Some(Next::Undecided);
        }
        Some(self.next(before.endpoint, before.vtep, false, search))
    }

    /// `owner::owners`.
    fn slot_owners(
        &mut self,
        config: &NodeConfig,
        service: &ServiceValue,
        asked: u32,
    ) -> [Owner; 2] {
        let steps = self.steps.len();
        let slot = self.slot(service, config.ring_seed);
        self.steps.truncate(steps);
        let owner = |index| {
            let BackendValue { endpoint, vtep, .. } = self.backend(service, index)?;
            Ok(Owner { endpoint, vtep })
        };
        let found = slot.and_then(|slot| Ok([owner(slot.now)?, owner(slot.before)?]));
        found.unwrap_or(
            [Owner {
                endpoint: asked,
                vtep: Be32::ZERO,
            }; 2],
        )
    }

    fn next(&mut self, endpoint: u32, vtep: Be32, is_pinned: bool, hop: Option<Hop>) -> Next {
        let Some(hop) = hop else {
            return Next::Undecided;
        };
        self.note(Step::Owner {
            endpoint,
            is_pinned,
        });
        Next::Owner(Owner { endpoint, vtep }, hop)
    }
}

pub(super) fn is_of_gateway(config: &NodeConfig, addr: Be32) -> bool {
    (addr.raw() ^ config.gateway_addr.raw()) & config.gateway_mask.raw() == 0
}
