//! The contents of the kernel's maps, as plain values.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    ops::Range,
    sync::Arc,
};

use dataplane_abi::{
    BackendValue, EndpointKey, EndpointValue, LocalEndpoint, NetnsValue, NodeConfig, PeerValue,
    PortWord, PublishedKey, RingPlace, SERVICE_NEAR, SIDE_PACKETS, SIDE_SOCKETS, ServiceValue,
    TargetKey, TargetValue, VethValue, VipKey,
};
use imbl::OrdMap;
use model::EndpointId;

/// An address in the network with a VNI: what overlays are keyed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverlayAddr {
    pub vni: u32,
    pub addr: Ipv4Addr,
}

impl From<OverlayAddr> for EndpointKey {
    fn from(at: OverlayAddr) -> Self {
        Self {
            vni: at.vni,
            addr: at.addr.into(),
        }
    }
}

impl From<EndpointKey> for OverlayAddr {
    fn from(key: EndpointKey) -> Self {
        Self {
            vni: key.vni,
            addr: key.addr.into(),
        }
    }
}

impl From<OverlayAddr> for VipKey {
    fn from(at: OverlayAddr) -> Self {
        Self {
            vni: at.vni,
            addr: at.addr.into(),
        }
    }
}

impl From<VipKey> for OverlayAddr {
    fn from(key: VipKey) -> Self {
        Self {
            vni: key.vni,
            addr: key.addr.into(),
        }
    }
}

/// A port of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// IANA protocol number.
    pub proto: u8,
    pub number: u16,
}

/// A published port; `addr` 0.0.0.0 is every address of the node that has none of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Published {
    pub addr: Ipv4Addr,
    /// On an address: for this node's own sockets, not for packets.
    pub own: bool,
    pub port: Port,
}

impl Published {
    pub const fn everywhere(port: Port) -> Self {
        Self {
            addr: Ipv4Addr::UNSPECIFIED,
            own: false,
            port,
        }
    }

    /// The next port on the same addresses.
    pub fn next(self) -> Option<Self> {
        let number = self.port.number.checked_add(1)?;
        let port = Port {
            number,
            ..self.port
        };
        Some(Self { port, ..self })
    }
}

impl From<Published> for PublishedKey {
    fn from(at: Published) -> Self {
        Self {
            addr: at.addr.into(),
            port: dataplane_abi::Be16::from_host(at.port.number),
            proto: at.port.proto,
            side: if at.own { SIDE_SOCKETS } else { SIDE_PACKETS },
        }
    }
}

impl From<PublishedKey> for Published {
    fn from(key: PublishedKey) -> Self {
        Self {
            addr: key.addr.into(),
            own: key.side == SIDE_SOCKETS,
            port: Port {
                proto: key.proto,
                number: key.port.to_host(),
            },
        }
    }
}

/// A port of a task of this node, on its gateway side, that a published one leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub addr: Ipv4Addr,
    pub port: u16,
    /// IANA protocol number.
    pub proto: u8,
}

impl From<Target> for TargetKey {
    fn from(at: Target) -> Self {
        Self {
            addr: at.addr.into(),
            port: dataplane_abi::Be16::from_host(at.port),
            proto: at.proto,
            _pad: 0,
        }
    }
}

impl From<TargetKey> for Target {
    fn from(key: TargetKey) -> Self {
        Self {
            addr: key.addr.into(),
            port: key.port.to_host(),
            proto: key.proto,
        }
    }
}

/// What a client sends to: the key of a [`ServiceValue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    Vip(OverlayAddr),
    Published(Published),
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(at) => write!(f, "{} in VNI {}", at.addr, at.vni),
            Self::Published(at) => {
                if at.addr.is_unspecified() {
                    f.write_str("*")?;
                } else {
                    write!(f, "{}", at.addr)?;
                }
                let own = if at.own { " for this node" } else { "" };
                write!(f, ":{}{own}", at.port)
            }
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, protocol_name(self.proto))
    }
}

/// `tcp`, `udp`, `sctp`, or `?`.
pub fn protocol_name(number: u8) -> &'static str {
    use model::spec::Protocol;
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == number)
        .map_or("?", Protocol::as_str)
}

/// Everything of ours that the agent writes, as read from the kernel. Of the arrays, only the
/// ranges that some frontend names. What there may be much of, a clone shares.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    pub config: NodeConfig,
    pub endpoints: OrdMap<OverlayAddr, EndpointValue>,
    /// By ifindex of the host side.
    pub veths: BTreeMap<u32, VethValue>,
    /// By endpoint id.
    pub locals: BTreeMap<u32, LocalEndpoint>,
    pub netns: BTreeMap<u64, NetnsValue>,
    pub targets: BTreeMap<Target, TargetValue>,
    pub peers: BTreeMap<Ipv4Addr, PeerValue>,
    pub node_addrs: BTreeSet<Ipv4Addr>,
    pub ports: OrdMap<Port, PortWord>,
    /// Indexes into `FRONTENDS` of what single addresses have.
    pub addressed: OrdMap<Published, u32>,
    /// What VIPs and published ports lead to, as far as it exists.
    pub services: OrdMap<Frontend, ServiceValue>,
    /// By place and number of slots ([`ring_slots`]), above one. Slots are here in the wide form, whatever
    /// theirs is there.
    pub rings: OrdMap<(RingPlace, u32), Arc<[u32]>>,
    /// By `(backend_base, backend_count)`.
    pub backends: OrdMap<(u32, u32), Arc<[BackendValue]>>,
}

impl Tables {
    /// What is published, and where in `FRONTENDS` it leads to.
    pub fn published(&self) -> impl Iterator<Item = (Published, u32)> + '_ {
        let everywhere = self
            .ports
            .iter()
            .filter_map(|(port, word)| Some((Published::everywhere(*port), word.frontend()?)));
        everywhere.chain(self.addressed.iter().map(|(at, index)| (*at, *index)))
    }

    /// Where in `FRONTENDS` a published port leads to.
    pub fn place(&self, at: Published) -> Option<u32> {
        if at.addr.is_unspecified() {
            return self.ports.get(&at.port)?.frontend();
        }
        self.addressed.get(&at).copied()
    }

    /// Each VIP, and each run of neighbouring ports that lead to one place: its first port, how many
    /// they are, and the entry.
    pub fn entries(&self) -> Vec<(Frontend, u16, &ServiceValue)> {
        let mut entries: Vec<(Frontend, u16, &ServiceValue)> = Vec::new();
        let mut last = None;
        for (frontend, service) in &self.services {
            let at = match frontend {
                Frontend::Vip(_) => None,
                Frontend::Published(at) => Some((*at, self.place(*at))),
            };
            let goes_on = at.is_some() && at == last;
            match entries.last_mut().filter(|_| goes_on) {
                Some((_, count, _)) => *count += 1,
                None => entries.push((*frontend, 1, service)),
            }
            last = at.and_then(|(at, place)| Some((at.next()?, place)));
        }
        entries
    }

    /// The slots that a service names, its single one included; `None` when it names slots that do
    /// not exist.
    pub fn slots(&self, service: &ServiceValue) -> Option<Arc<[u32]>> {
        match service.ring_len {
            0 => Some(Arc::from([])),
            1 => Some(Arc::from([service.single])),
            len => {
                let slots = self.rings.get(&(service.ring, ring_slots(service)))?;
                match slots.get(..len as usize) {
                    Some(ring) if ring.len() < slots.len() => Some(Arc::from(ring)),
                    _ => Some(Arc::clone(slots)),
                }
            }
        }
    }

    /// Those, and the node's own.
    pub fn all_slots(&self, service: &ServiceValue) -> Option<Arc<[u32]>> {
        let slots = ring_slots(service);
        match slots {
            0 | 1 => self.slots(service),
            slots => self.rings.get(&(service.ring, slots)).cloned(),
        }
    }

    /// The slots of the node's own backends, when it has some that the service prefers.
    pub fn near_slots(&self, service: &ServiceValue) -> Option<Arc<[u32]>> {
        let (slots, len) = (ring_slots(service), service.ring_len);
        if slots == len {
            return None;
        }
        let slots = self.rings.get(&(service.ring, slots))?;
        slots.get(len as usize..).map(Arc::from)
    }

    pub fn backends(&self, service: &ServiceValue) -> Option<Arc<[BackendValue]>> {
        if service.backend_count == 0 {
            return Some(Arc::from([]));
        }
        let range = (service.backend_base, service.backend_count);
        self.backends.get(&range).cloned()
    }
}

/// Slots of the ring, and of the node's own backends where those have some.
pub fn ring_slots(service: &ServiceValue) -> u32 {
    match (service.ring_len, service.flags & SERVICE_NEAR) {
        (len @ (0 | 1), _) | (len, 0) => len,
        (len, _) => len.saturating_mul(2),
    }
}

/// Chunks of `RINGS` that a service names.
pub fn ring_chunks(service: &ServiceValue) -> Range<u32> {
    match ring_slots(service) {
        0 | 1 => service.ring.chunks(0),
        slots => service.ring.chunks(slots),
    }
}

/// Entries of `BACKENDS` that a service names.
pub fn backend_range(service: &ServiceValue) -> Range<u32> {
    service.backend_base..service.backend_base.saturating_add(service.backend_count)
}

pub(crate) fn endpoints_of(backends: &[BackendValue]) -> Vec<EndpointId> {
    backends.iter().map(|b| EndpointId(b.endpoint)).collect()
}
