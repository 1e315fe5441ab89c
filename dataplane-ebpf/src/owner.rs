//! Who may have an established flow that is not known where its packet was sent.

use dataplane_abi::{
    BackendValue, Be32, NodeConfig, PinKey, PinValue, SERVICE_NEAR, ServiceValue,
    net::mesh_mac::{Kind, SEARCH_HOPS_MAX},
};

use crate::{flow, maps::PINS, mesh::Arrival, packet::Packet, service, skb::Skb};

/// Who may have a flow.
#[derive(Clone, Copy)]
pub struct Owner {
    pub endpoint: u32,
    /// Zero when it is here.
    pub vtep: Be32,
}

impl Owner {
    const NOBODY: Self = Self {
        endpoint: 0,
        vtep: Be32::ZERO,
    };

    #[inline(always)]
    fn pinned(pin: &PinValue) -> Self {
        Self {
            endpoint: pin.endpoint,
            vtep: pin.vtep,
        }
    }

    #[inline(always)]
    fn of(backend: &BackendValue) -> Self {
        Self {
            endpoint: backend.endpoint,
            vtep: backend.vtep,
        }
    }
}

/// How a packet came to a backend: a number, as enums with contents end up in the same places of the
/// stack as pointers ("invalid size of register fill", Linux 6.18).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hop(u32);

impl Hop {
    pub const FORWARD: Self = Self(0);
    const SECOND: Self = Self(1);
    /// After a pin led nowhere.
    const LAST: Self = Self(2);
    /// At the entry itself: to one of the node's own, which the service prefers, and not by the ring
    /// that all nodes share.
    pub const NEAR: Self = Self(4);
    /// Among nodes whose rings differ, as the last one.
    const SEARCH_LAST: Self = Self(8);
    /// All who could have the flow were asked.
    const NOBODY: Self = Self(32);
    /// As far as this node can tell, but its ring and the sender's differ.
    const UNDECIDED: Self = Self(33);
    /// As the ring that all nodes share would have sent it. A number and no `Option`, whose content the
    /// compiler spills when there is none ("R1 !read_ok", Linux 6.18).
    const AS_SHARED: Self = Self(34);

    /// To a backend of the entry itself.
    #[inline(always)]
    pub fn at_entry(service: &ServiceValue) -> Self {
        const {
            assert!(Self::NEAR.0 == SERVICE_NEAR >> 1 && Self::FORWARD.0 == 0);
        }
        // No branch: the verifier would follow all of delivery for either.
        Self((service.flags & SERVICE_NEAR) >> 1)
    }

    #[inline(always)]
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Forward | Kind::Return => Self::FORWARD,
            Kind::SecondHop => Self::SECOND,
            Kind::Last => Self::LAST,
            Kind::Search(left) => Self(Self::SEARCH_LAST.0 + u32::from(left)),
        }
    }

    /// The same, of which the verifier knows nothing ([`Skb::unknown_zero`]).
    #[inline(always)]
    pub fn plus(self, zero: u32) -> Self {
        Self(self.0.wrapping_add(zero))
    }

    /// Of an onward hop.
    #[inline(always)]
    pub fn mac(self, endpoint: u32) -> [u8; 6] {
        let kind = match self {
            Self::FORWARD => Kind::Forward,
            Self::SECOND => Kind::SecondHop,
            Self::LAST => Kind::Last,
            hop => Kind::Search((hop.0 - Self::SEARCH_LAST.0) as u8),
        };
        kind.mac(endpoint)
    }

    #[inline(always)]
    pub fn is_search(self) -> bool {
        self.0 >= Self::SEARCH_LAST.0
    }

    #[inline(always)]
    pub fn goes_on(self) -> bool {
        self.0 < Self::NOBODY.0
    }

    #[inline(always)]
    pub fn is_undecided(self) -> bool {
        self == Self::UNDECIDED
    }

    /// The next in a search.
    #[inline(always)]
    fn search(self) -> Self {
        match self {
            Self::SEARCH_LAST => Self::UNDECIDED,
            hop if hop.is_search() => Self(hop.0 - 1),
            _ => Self(Self::SEARCH_LAST.0 + SEARCH_HOPS_MAX as u32),
        }
    }

    /// The next, to whom a pin names.
    #[inline(always)]
    fn by_pin(self) -> Self {
        match self {
            Self::FORWARD => Self::SECOND,
            hop => hop.search(),
        }
    }
}

/// Whom to ask next for a flow that `arrival.endpoint` does not have, and how: whom the flow's pin
/// names; else from the slot's owner of now the one before. From one of the entry's own, which the
/// service prefers, another that is here and pinned; else the slot's owner, as if that had been first.
///
/// Nodes learn of a change one after the other, and may skip some. A packet that did not come where
/// this node's ring would have sent it was sent by another ring: then its owners are asked too, and
/// whoever is last refuses nothing.
///
/// A pin may be older than the connection, and nodes need not agree on it. So each hop is of a later kind
/// than the one before, forward, second, last or search, or leaves fewer: no packet goes round.
///
/// `AT_ENTRY` is for the verifier: only there are hops near.
#[inline(always)]
pub fn find<const AT_ENTRY: bool>(
    skb: Skb,
    config: &NodeConfig,
    packet: &Packet,
    published: &ServiceValue,
    arrival: Arrival,
) -> (Owner, Hop) {
    if arrival.hop == Hop::LAST {
        return (Owner::NOBODY, Hop::NOBODY);
    }
    let pin = pin(packet);
    let [now, before] = owners(config, packet, published, arrival.endpoint);
    let mut arrival = arrival;
    if AT_ENTRY && arrival.hop == Hop::NEAR {
        let (owner, hop) = find_near(config, pin, [now, before], arrival);
        if hop != Hop::AS_SHARED {
            return (owner, hop);
        }
        arrival.hop = Hop::FORWARD.plus(skb.unknown_zero());
    }
    if let Some(pin) = pin
        && pin.endpoint != arrival.endpoint
    {
        return (Owner::pinned(pin), arrival.hop.by_pin());
    }
    let at_now = now.endpoint == arrival.endpoint;
    let at_before = before.endpoint == arrival.endpoint;
    let next = match arrival.hop {
        Hop::FORWARD if at_now => Some(Hop::SECOND),
        // The pin that led here in vain is of an earlier connection from the same port.
        Hop::SECOND if at_before || pin.is_some() => Some(Hop::LAST),
        _ => None,
    };
    if let Some(next) = next {
        return (before, if at_before { Hop::NOBODY } else { next });
    }
    if at_now && at_before {
        return (now, Hop::UNDECIDED);
    }
    (if at_now { before } else { now }, arrival.hop.search())
}

/// From one of the entry's own: another that is here and pinned, or the slot's owner, as if that had
/// been first; [`Hop::AS_SHARED`] from the slot's owner itself. While this node's own pins are not
/// written, it begins a search, as no other node must refuse what a task here may have.
#[inline(always)]
fn find_near(
    config: &NodeConfig,
    pin: Option<&'static PinValue>,
    [now, before]: [Owner; 2],
    arrival: Arrival,
) -> (Owner, Hop) {
    let at_now = now.endpoint == arrival.endpoint;
    if let Some(pin) = pin {
        if at_now {
            return (now, Hop::AS_SHARED);
        }
        if pin.endpoint != arrival.endpoint && pin.vtep.is_zero() {
            return (Owner::pinned(pin), Hop::NEAR);
        }
    }
    let is_settled = flow::now() >= config.unsettled_until;
    let search = Hop::NEAR.search();
    if !at_now {
        return (now, if is_settled { Hop::FORWARD } else { search });
    }
    if is_settled {
        return (now, Hop::AS_SHARED);
    }
    if before.endpoint == arrival.endpoint {
        return (now, Hop::UNDECIDED);
    }
    (before, search)
}

/// The slot's owners, of now and before. Where the service has no backend any more, whom was asked.
#[inline(always)]
fn owners(
    config: &NodeConfig,
    packet: &Packet,
    published: &ServiceValue,
    asked: u32,
) -> [Owner; 2] {
    let mut owners = [Owner {
        endpoint: asked,
        vtep: Be32::ZERO,
    }; 2];
    let hash = service::hash(published, packet, config.ring_seed);
    find_owners(published, hash, &mut owners);
    owners
}

/// Not inlined, as `flow::find_seat`.
#[inline(never)]
fn find_owners(published: &ServiceValue, hash: u32, owners: &mut [Owner; 2]) {
    let Ok(slot) = service::slot(published, hash) else {
        return;
    };
    let now = service::backend(published, slot.now);
    let before = service::backend(published, slot.before);
    if let (Ok(now), Ok(before)) = (now, before) {
        *owners = [Owner::of(now), Owner::of(before)];
    }
}

#[inline(always)]
pub fn is_pinned_elsewhere(packet: &Packet, endpoint: u32) -> bool {
    pin(packet).is_some_and(|pin| pin.endpoint != endpoint)
}

#[inline(always)]
fn pin(packet: &Packet) -> Option<&'static PinValue> {
    let key = PinKey {
        client: packet.src,
        node_addr: packet.dst,
        client_port: packet.src_port,
        published: packet.dst_port,
        proto: packet.proto,
        _pad: 0,
        _pad2: 0,
    };
    // SAFETY: a value removed meanwhile is not reused before this CPU has long read it.
    unsafe { PINS.get(key) }
}
