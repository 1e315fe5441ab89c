//! Published ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use model::{
    ServiceId,
    object::Service,
    spec::{PortSpec, Protocol, PublishMode},
    traffic::Traffic,
};
use store::State;

use super::{AllocateError, ingress};

/// What is published without a port named gets one of these.
pub const DYNAMIC_PORTS: RangeInclusive<u16> = 30000..=32767;

/// The port is another service's. Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "port '{port}' is already in use by service '{name}' ({service}) as {}", mode_name(*.mode)
)]
pub struct PortConflict {
    pub port: u16,
    pub service: ServiceId,
    pub name: String,
    pub mode: PublishMode,
}

fn mode_name(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "an ingress port",
        PublishMode::Host => "a host-published port",
    }
}

/// A service's ports, each published one filled in, and the last dynamic port handed out, if any.
/// Ports given before stay. Host-mode ports are the node's own: an unnamed one stays so.
pub(super) fn allocate(
    state: &State,
    service: &Service,
) -> Result<(Vec<PortSpec>, Option<u16>), AllocateError> {
    let mut ports = service.spec.endpoint.ports.clone();
    for port in &mut ports {
        port.published = port.published.filter(|published| *published != 0);
    }
    let data_port = data_port(state);
    let is_tunnel = |port: &&PortSpec| ingress_key(port).is_some_and(|key| Some(key) == data_port);
    if let Some(port) = ports.iter().find(is_tunnel) {
        return Err(AllocateError::DataPathPort(
            port.published.unwrap_or_default(),
        ));
    }
    if ports.iter().any(|port| ingress_key(port) == Some(PROBES)) {
        return Err(AllocateError::ProbesPort);
    }
    check_conflicts(state, service, &ports)?;
    let mut used = used_by_others(state, service.id);
    used.extend(ports.iter().filter_map(ingress_key));
    keep_former(&mut ports, &service.endpoint.ports, &mut used);
    let last = fill_in(state, &mut ports, &mut used)?;
    Ok((ports, last))
}

/// Two services may publish one port on the same host only if both do so in host mode, where the
/// scheduler keeps them on different nodes.
fn check_conflicts(
    state: &State,
    service: &Service,
    ports: &[PortSpec],
) -> Result<(), PortConflict> {
    let wanted: BTreeMap<(Protocol, u16), PublishMode> = ports
        .iter()
        .filter_map(|port| Some(((port.protocol, port.published?), port.mode)))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for other in state.services().filter(|other| other.id != service.id) {
        for port in ports_of(state, other) {
            let Some(published) = port.published else {
                continue;
            };
            if apart(service, other, port.protocol, published) {
                continue;
            }
            let mode = wanted.get(&(port.protocol, published));
            if mode.is_some_and(|mode| [*mode, port.mode] != [PublishMode::Host; 2]) {
                return Err(PortConflict {
                    port: published,
                    service: other.id,
                    name: other.spec.name.clone(),
                    mode: port.mode,
                });
            }
        }
    }
    Ok(())
}

/// The service's ports, with those that nodes chose for its tasks.
fn ports_of<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = &'a PortSpec> {
    let ports = &service.endpoint.ports;
    let is_chosen = |port: &PortSpec| port.mode == PublishMode::Host && port.published.is_none();
    let tasks = ports.iter().any(is_chosen);
    let tasks = tasks.then(|| state.tasks_of_service(service.id));
    let chosen = tasks
        .into_iter()
        .flatten()
        .flat_map(|task| &task.status.ports);
    ports.iter().chain(chosen)
}

/// Whether two services publish a port on different addresses. "All" meets any.
fn apart(one: &Service, other: &Service, protocol: Protocol, port: u16) -> bool {
    let addresses = |service: &Service| {
        let traffic = Traffic::of(&service.spec.labels).unwrap_or_default();
        traffic.addresses_of(protocol, port)
    };
    let (one, other) = (addresses(one), addresses(other));
    let both = !one.is_empty() && !other.is_empty();
    both && one.iter().all(|addr| !other.contains(addr))
}

/// Host-mode ports too: a dynamic port must be free on every node.
fn used_by_others(state: &State, id: ServiceId) -> BTreeSet<(Protocol, u16)> {
    state
        .services()
        .filter(|other| other.id != id)
        .flat_map(|other| ports_of(state, other))
        .filter_map(|port| Some((port.protocol, port.published?)))
        .chain(data_port(state))
        .collect()
}

/// Where nodes ask each other whether they are there.
const PROBES: (Protocol, u16) = (Protocol::Udp, model::probe::PORT);

/// Where the nodes' tunnel is, on every node.
fn data_port(state: &State) -> Option<(Protocol, u16)> {
    let cluster = state.cluster()?;
    Some((Protocol::Udp, cluster.data_path.port))
}

fn ingress_key(port: &PortSpec) -> Option<(Protocol, u16)> {
    Some((port.protocol, port.published?))
}

/// Whether the port waits for a dynamic number.
fn is_open(port: &PortSpec) -> bool {
    port.published.is_none() && port.mode == PublishMode::Ingress
}

fn keep_former(ports: &mut [PortSpec], former: &[PortSpec], used: &mut BTreeSet<(Protocol, u16)>) {
    let mut former: Vec<&PortSpec> = former.iter().collect();
    for port in ports.iter_mut().filter(|port| is_open(port)) {
        let same = |old: &&PortSpec| {
            (old.protocol, old.target, old.mode) == (port.protocol, port.target, port.mode)
                && old.published.is_some_and(|published| {
                    DYNAMIC_PORTS.contains(&published) && !used.contains(&(old.protocol, published))
                })
        };
        if let Some(index) = former.iter().position(same) {
            port.published = former.remove(index).published;
            used.extend(ingress_key(port));
        }
    }
}

fn fill_in(
    state: &State,
    ports: &mut [PortSpec],
    used: &mut BTreeSet<(Protocol, u16)>,
) -> Result<Option<u16>, AllocateError> {
    let mut last = ingress(state).and_then(|ingress| ingress.cursor.port);
    let mut given = None;
    for port in ports.iter_mut().filter(|port| is_open(port)) {
        let protocol = port.protocol;
        let (first, end) = DYNAMIC_PORTS.into_inner();
        let begin = last.map_or(first, |last| last + 1);
        let free = (begin..=end)
            .chain(first..begin)
            .find(|number| !used.contains(&(protocol, *number)))
            .ok_or(AllocateError::PortsExhausted { protocol })?;
        used.insert((protocol, free));
        port.published = Some(free);
        (last, given) = (Some(free), Some(free));
    }
    Ok(given)
}
