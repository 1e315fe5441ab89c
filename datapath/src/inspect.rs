//! Rows for `swarmnet inspect`: what the kernel's maps hold now, with the names that the view has for
//! it. What the view does not know is shown as the number that it is.

mod flows;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use dataplane_abi::{
    BACKEND_ACTIVE, BackendValue, Be16, DropReason, FlowValue, ProgramId, RingSlot,
    SERVICE_AFFINITY, SERVICE_OF_NODE, ServiceValue, Stats,
};
use model::{
    EndpointId,
    feed::{EndpointView, NetworkView, NodeView, ServiceView},
    inspect::{BackendRow, DropRow, EndpointRow, ProgramDrops, ServiceRow, VipRow},
    spec::Protocol,
};

use crate::{
    datapath::Datapath,
    error::DatapathError,
    ring::Ring,
    sys,
    tables::{Frontend, Published, Tables, endpoints_of, protocol_name},
};

type Result<T> = std::result::Result<T, DatapathError>;

/// A UDP flow has no end; without a packet for this long it is not counted as live.
pub const UDP_FLOW_LIVE: Duration = Duration::from_secs(60);

impl Datapath {
    pub fn inspect_vips(&self, view: &NodeView) -> Result<Vec<VipRow>> {
        let (tables, names) = (self.maps.observe()?, Names(view));
        let rows = tables.services.iter().filter_map(|(frontend, service)| {
            let Frontend::Vip(at) = frontend else {
                return None;
            };
            let backends = tables.backends(service).unwrap_or_default();
            let is_active = |backend: &&BackendValue| backend.state == BACKEND_ACTIVE;
            let active = backends.iter().filter(is_active).count();
            Some(VipRow {
                network: names.network(at.vni),
                vni: at.vni,
                vip: at.addr,
                service: names.service(*frontend, &backends),
                active,
                draining: backends.len() - active,
                choice: choice(service),
            })
        });
        Ok(rows.collect())
    }

    pub fn inspect_services(&self, view: &NodeView) -> Result<Vec<ServiceRow>> {
        let (tables, names) = (self.maps.observe()?, Names(view));
        let live = self.live_by_frontend()?;
        let rows = tables
            .entries()
            .into_iter()
            .map(|(frontend, count, service)| {
                let stats = self.maps.stats(service.stats)?;
                Ok(ServiceRow {
                    service: names.service(frontend, &tables.backends(service).unwrap_or_default()),
                    frontend: names.frontend(frontend, count, service),
                    backends: service.backend_count as usize,
                    choice: choice(service),
                    ring_len: service.ring_len,
                    ring_digest: ring_digest(&tables, service),
                    packets: stats.packets,
                    bytes: stats.bytes,
                    new_flows: stats.new_flows,
                    live_flows: live.of(frontend, count),
                })
            });
        rows.collect()
    }

    pub fn inspect_endpoints(&self, view: &NodeView) -> Result<Vec<EndpointRow>> {
        let (tables, names) = (self.maps.observe()?, Names(view));
        let rows = tables.endpoints.iter().map(|(at, value)| {
            let via = Ipv4Addr::from(value.vtep);
            EndpointRow {
                endpoint: value.endpoint,
                task: names.task(value.endpoint),
                network: names.network(at.vni),
                vni: at.vni,
                addr: at.addr,
                mac: mac_text(value.mac),
                node: names.node_of(value.endpoint),
                via: match value.vtep.is_zero() {
                    true => "local".to_owned(),
                    false => via.to_string(),
                },
            }
        });
        Ok(rows.collect())
    }

    /// One row for each backend of each service, with its share of the ring's new flows.
    pub fn inspect_backends(&self, view: &NodeView) -> Result<Vec<BackendRow>> {
        let (tables, names) = (self.maps.observe()?, Names(view));
        let live = self.live_flows()?;
        let mut seen = BTreeSet::new();
        let mut rows = Vec::new();
        for (frontend, _, service) in tables.entries() {
            let backends = tables.backends(service).unwrap_or_default();
            let name = names.service(frontend, &backends);
            let shares = shares(&tables, service);
            for (index, backend) in (0u16..).zip(backends.iter()) {
                if !seen.insert((name.clone(), backend.endpoint)) {
                    continue;
                }
                let local = tables.locals.get(&backend.endpoint);
                let stats = match local {
                    Some(local) => self.maps.stats(local.stats)?,
                    None => Stats::default(),
                };
                rows.push(BackendRow {
                    service: name.clone(),
                    task: names.task(backend.endpoint),
                    endpoint: backend.endpoint,
                    node: names.node_of(backend.endpoint),
                    state: match backend.state {
                        BACKEND_ACTIVE => "active".to_owned(),
                        _ => "draining".to_owned(),
                    },
                    share: shares.get(&index).copied().unwrap_or(0.0),
                    packets: stats.packets,
                    bytes: stats.bytes,
                    new_flows: stats.new_flows,
                    live_flows: live.get(&backend.endpoint).copied().unwrap_or(0),
                });
            }
        }
        rows.sort_by(|a, b| (&a.service, a.endpoint).cmp(&(&b.service, b.endpoint)));
        Ok(rows)
    }

    /// The reasons for which anything was dropped since the maps were made, and by which programs.
    pub fn inspect_drops(&self) -> Result<Vec<DropRow>> {
        let mut rows = Vec::new();
        for reason in DropReason::ALL {
            let programs = self.drops_by_program(*reason)?;
            if !programs.is_empty() {
                rows.push(DropRow {
                    reason: reason.label().to_owned(),
                    explanation: reason.explanation().to_owned(),
                    packets: programs.iter().map(|one| one.packets).sum(),
                    bytes: programs.iter().map(|one| one.bytes).sum(),
                    programs,
                });
            }
        }
        Ok(rows)
    }

    fn drops_by_program(&self, reason: DropReason) -> Result<Vec<ProgramDrops>> {
        let mut drops = Vec::new();
        for program in ProgramId::ALL {
            let counter = self.maps.drops(*program, reason)?;
            if counter.packets > 0 {
                drops.push(ProgramDrops {
                    program: program.name().to_owned(),
                    packets: counter.packets,
                    bytes: counter.bytes,
                });
            }
        }
        Ok(drops)
    }

    /// Live mesh flows of each endpoint here: what draining waits for.
    pub fn live_flows(&self) -> Result<BTreeMap<u32, u64>> {
        let now = sys::monotonic();
        let mut live = BTreeMap::new();
        for (key, flow) in self.maps.flows()? {
            if is_live(key.proto, &flow, now) {
                *live.entry(flow.endpoint).or_default() += 1;
            }
        }
        Ok(live)
    }
}

/// The view as a dictionary.
pub(crate) struct Names<'a>(pub &'a NodeView);

impl Names<'_> {
    fn endpoint(&self, id: u32) -> Option<&EndpointView> {
        self.0.endpoints.get(&EndpointId(id))
    }

    pub fn task(&self, endpoint: u32) -> String {
        let known = self.endpoint(endpoint);
        known.map_or_else(|| endpoint.to_string(), |known| known.task_name.clone())
    }

    /// Of an endpoint.
    fn service_of(&self, endpoint: u32) -> String {
        let known = self.endpoint(endpoint);
        let service = known.and_then(|known| self.0.services.get(&known.service));
        service.map_or_else(|| "?".to_owned(), |service| service.name.clone())
    }

    fn node_of(&self, endpoint: u32) -> String {
        let known = self.endpoint(endpoint);
        let peer = known.and_then(|known| self.0.peers.get(&known.node));
        peer.map_or_else(|| "?".to_owned(), |peer| peer.hostname.clone())
    }

    pub fn node_at(&self, vtep: Ipv4Addr) -> String {
        let peer = self.0.peers.values().find(|peer| peer.vtep == vtep);
        peer.map_or_else(|| vtep.to_string(), |peer| peer.hostname.clone())
    }

    fn network_of(&self, vni: u32) -> Option<&NetworkView> {
        self.0.networks.values().find(|n| n.vni.get() == vni)
    }

    fn network(&self, vni: u32) -> String {
        let known = self.network_of(vni);
        known.map_or_else(|| vni.to_string(), |known| known.name.clone())
    }

    /// Of a port that is published on this node alone, the backend tells.
    fn service(&self, frontend: Frontend, backends: &[BackendValue]) -> String {
        let owns = |service: &&ServiceView| match frontend {
            Frontend::Vip(at) => self.network_of(at.vni).is_some_and(|network| {
                let mut attached = service.networks.iter();
                attached.any(|on| on.network == network.id && on.vip == Some(at.addr))
            }),
            Frontend::Published(at) => self.port(service, at).is_some(),
        };
        match (self.0.services.values().find(owns), backends.first()) {
            (Some(known), _) => known.name.clone(),
            (None, Some(backend)) => self.service_of(backend.endpoint),
            (None, None) => "?".to_owned(),
        }
    }

    fn port(&self, service: &ServiceView, at: Published) -> Option<Protocol> {
        let mut ports = service.ports.iter();
        ports
            .find(|port| {
                let on_it = match at.addr.is_unspecified() {
                    true => port.addresses.is_empty(),
                    false => port.addresses.contains(&at.addr),
                };
                let port = (port.protocol.number(), port.published);
                on_it && port == (at.port.proto, at.port.number)
            })
            .map(|port| port.protocol)
    }

    /// `count` neighbouring ports, or a VIP.
    fn frontend(&self, frontend: Frontend, count: u16, service: &ServiceValue) -> String {
        let at = match frontend {
            Frontend::Vip(at) => return format!("{} ({})", at.addr, self.network(at.vni)),
            Frontend::Published(at) => at,
        };
        let range = |first: u16| match count {
            1 => first.to_string(),
            _ => format!("{first}-{}", first.saturating_add(count - 1)),
        };
        let addr = match at.addr.is_unspecified() {
            true => "*".to_owned(),
            false => at.addr.to_string(),
        };
        let (published, protocol) = (at.port.number, protocol_name(at.port.proto));
        let target = service.target(Be16::from_host(published)).to_host();
        let on_it = match service.flags & SERVICE_OF_NODE {
            0 => "",
            _ => " (this node)",
        };
        format!(
            "{addr}:{}/{protocol} -> {}{on_it}",
            range(published),
            range(target)
        )
    }
}

fn ring_digest(tables: &Tables, service: &ServiceValue) -> String {
    let slots = tables.slots(service).unwrap_or_default();
    let backends = endpoints_of(&tables.backends(service).unwrap_or_default());
    let ring = Ring {
        slots: &slots,
        backends: &backends,
    };
    format!("{:016x}", ring.digest())
}

/// Whom new flows go to.
fn choice(service: &ServiceValue) -> String {
    let whom = match service.takes_near_flows() {
        true => "local",
        false => "spread",
    };
    match (service.flags & SERVICE_AFFINITY, service.affinity_secs) {
        (0, _) => whom.to_owned(),
        (_, 0) => format!("{whom}, client-ip"),
        (_, secs) => format!("{whom}, client-ip {secs}s"),
    }
}

/// Share of the slots that new flows go by, in per cent, by index of the backend.
fn shares(tables: &Tables, service: &ServiceValue) -> BTreeMap<u16, f64> {
    let slots = match service.takes_near_flows() {
        true => tables.near_slots(service),
        false => tables.slots(service),
    };
    let slots = slots.unwrap_or_default();
    let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
    for raw in slots.iter() {
        *counts.entry(RingSlot::from_raw(*raw).now).or_default() += 1;
    }
    let share = |count| 100.0 * f64::from(count) / slots.len() as f64;
    counts
        .into_iter()
        .map(|(index, count)| (index, share(count)))
        .collect()
}

pub(crate) fn is_live(proto: u8, flow: &FlowValue, now: Duration) -> bool {
    if proto == Protocol::Udp.number() {
        return since(flow.last_seen, now) < UDP_FLOW_LIVE;
    }
    !flow.has_ended()
}

/// From `then`, in nanoseconds of the monotonic clock, until `now`.
fn since(then: u64, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_nanos(then))
}

fn socket(addr: Ipv4Addr, port: u16) -> String {
    format!("{addr}:{port}")
}

fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
