//! Published ports are held on the node, so that no process takes one that the programs serve: those
//! of the mesh on the addresses that they are on, those of host mode for the task that has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    ops::RangeInclusive,
    os::fd::OwnedFd,
};

use model::{
    TaskId,
    feed::{NodeView, PublishedPort},
    spec::{PortSpec, Protocol},
};
use tracing::warn;

use crate::netns::reserve_port;

/// What a socket holds; on the unspecified address, the port of all of them.
type Place = (Protocol, u16, Ipv4Addr);

/// The ports held, and for whom.
#[derive(Debug, Default)]
pub struct PortHolder {
    held: BTreeMap<Place, OwnedFd>,
    mesh: BTreeSet<Place>,
    tasks: BTreeMap<TaskId, Vec<PortSpec>>,
    /// The number chosen last: one given back is the last to come again.
    last: Option<u16>,
}

/// A task cannot have its host port.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    #[error(
        "host-mode port {port}/{protocol} is taken by a process of this node; stop that, or publish \
         another port"
    )]
    Taken { protocol: Protocol, port: u16 },
    #[error(
        "no {protocol} port is free on this node for a host-mode port without a number; name one"
    )]
    Exhausted { protocol: Protocol },
    #[error("cannot hold host-mode port {port}/{protocol}")]
    Socket {
        protocol: Protocol,
        port: u16,
        source: io::Error,
    },
}

impl PortHolder {
    /// Holds the mesh's ports. One that a process had first is tried again at each update.
    pub fn update(&mut self, view: &NodeView, node_addrs: &[Ipv4Addr]) {
        let services = view.services.values();
        let ports = services.flat_map(|service| &service.ports);
        self.mesh = ports.flat_map(|port| places(port, node_addrs)).collect();
        self.let_go();
        for (protocol, port, addr) in self.mesh.clone() {
            if let Err(err) = self.hold((protocol, port, addr)) {
                warn!(port.number = port, port.protocol = %protocol, port.addr = %addr,
                    "published port is taken by a process of this node, which gets no packets \
                     from outside while the service publishes it: {err}");
            }
        }
    }

    /// Holds a task's ports of host mode, and gives those numbers that have none. The managers give a
    /// port to one task at a time, so one that is held for another is that of a task which has ended.
    ///
    /// # Errors
    /// Names the port that the node cannot give; nothing is held then.
    pub fn take(
        &mut self,
        task: TaskId,
        ports: &[PortSpec],
    ) -> Result<Vec<PortSpec>, HostPortError> {
        let taken: Result<Vec<_>, _> = ports.iter().map(|port| self.take_one(port)).collect();
        match taken {
            Ok(ports) => {
                self.tasks.insert(task, ports.clone());
                Ok(ports)
            }
            Err(err) => {
                self.let_go();
                Err(err)
            }
        }
    }

    /// What the task had may be another's.
    pub fn give_back(&mut self, task: TaskId) {
        self.tasks.remove(&task);
        self.let_go();
    }

    fn take_one(&mut self, port: &PortSpec) -> Result<PortSpec, HostPortError> {
        let protocol = port.protocol;
        let Some(number) = port.published else {
            let published = Some(self.choose(protocol)?);
            return Ok(PortSpec {
                published,
                ..port.clone()
            });
        };
        match self.hold((protocol, number, Ipv4Addr::UNSPECIFIED)) {
            Ok(()) => Ok(port.clone()),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(HostPortError::Taken {
                protocol,
                port: number,
            }),
            Err(source) => Err(HostPortError::Socket {
                protocol,
                port: number,
                source,
            }),
        }
    }

    /// A port that nobody has.
    fn choose(&mut self, protocol: Protocol) -> Result<u16, HostPortError> {
        let (first, end) = chosen_ports().into_inner();
        let begin = self.last.map_or(first, |last| last.saturating_add(1));
        let begin = begin.clamp(first, end);
        for port in (begin..=end).chain(first..begin) {
            let place = (protocol, port, Ipv4Addr::UNSPECIFIED);
            if !self.held.contains_key(&place) && self.hold(place).is_ok() {
                self.last = Some(port);
                return Ok(port);
            }
        }
        Err(HostPortError::Exhausted { protocol })
    }

    fn hold(&mut self, place: Place) -> io::Result<()> {
        if self.held.contains_key(&place) {
            return Ok(());
        }
        let (protocol, port, addr) = place;
        if let Some(socket) = reserve_port(protocol, addr, port)? {
            self.held.insert(place, socket);
        }
        Ok(())
    }

    /// Closes what nobody wants (any more).
    fn let_go(&mut self) {
        let tasks = self.tasks.values().flatten();
        let of_tasks: BTreeSet<Place> = tasks
            .filter_map(|port| Some((port.protocol, port.published?, Ipv4Addr::UNSPECIFIED)))
            .collect();
        self.held
            .retain(|place, _| self.mesh.contains(place) || of_tasks.contains(place));
    }
}

/// Where on this node the port is.
fn places(port: &PublishedPort, node_addrs: &[Ipv4Addr]) -> impl Iterator<Item = Place> {
    let is_here = |addr: &&Ipv4Addr| addr.is_loopback() || node_addrs.contains(addr);
    let mut addrs: Vec<Ipv4Addr> = port.addresses.iter().filter(is_here).copied().collect();
    if port.addresses.is_empty() {
        addrs.push(Ipv4Addr::UNSPECIFIED);
    }
    let (protocol, number) = (port.protocol, port.published);
    addrs.into_iter().map(move |addr| (protocol, number, addr))
}

/// Ports above those that the kernel gives to connections: what a task sends out under the node's
/// address has one of those, and its answers must not meet a published port.
fn chosen_ports() -> RangeInclusive<u16> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const DEFAULT_END: u16 = 60_999;
    let range = fs::read_to_string(RANGE).unwrap_or_default();
    let end = range
        .split_whitespace()
        .nth(1)
        .and_then(|end| end.parse().ok());
    match end.unwrap_or(DEFAULT_END) {
        // Nothing is above it.
        u16::MAX => DEFAULT_END + 1..=u16::MAX,
        end => end + 1..=u16::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use lab::free_port;
    use model::{
        ServiceId,
        feed::ServiceView,
        spec::{EndpointMode, PublishMode},
    };

    use super::*;

    fn host(published: Option<u16>, protocol: Protocol) -> PortSpec {
        PortSpec {
            name: None,
            protocol,
            target: 80,
            published,
            mode: PublishMode::Host,
        }
    }

    fn is_free(addr: &str, port: u16) -> bool {
        TcpListener::bind((addr, port)).is_ok()
    }

    fn view(port: u16, addresses: &[Ipv4Addr]) -> NodeView {
        let service = ServiceView {
            id: ServiceId::from_raw(1),
            name: "web".to_owned(),
            mode: EndpointMode::Vip,
            networks: Vec::new(),
            ports: vec![PublishedPort {
                protocol: Protocol::Tcp,
                published: port,
                target: 80,
                addresses: addresses.to_vec(),
            }],
            policy: Default::default(),
        };
        NodeView {
            services: [(service.id, service)].into_iter().collect(),
            ..NodeView::default()
        }
    }

    #[test]
    fn ports_of_chosen_addresses_are_held_there_alone() {
        let (port, mut holder) = (free_port(), PortHolder::default());
        let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
        holder.update(&view(port, &[Ipv4Addr::LOCALHOST, elsewhere]), &[]);
        assert!(!is_free("127.0.0.1", port));
        assert!(is_free("127.0.0.2", port), "nobody published it there");
        holder.update(&view(port, &[]), &[]);
        assert!(!is_free("127.0.0.2", port));
        holder.update(&NodeView::default(), &[]);
        assert!(is_free("0.0.0.0", port));
    }

    #[test]
    fn host_ports_are_held_while_a_task_has_them() {
        let (port, mut holder) = (free_port(), PortHolder::default());
        let wanted = [host(Some(port), Protocol::Tcp)];
        let (old, new) = (TaskId::from_raw(1), TaskId::from_raw(2));
        assert_eq!(holder.take(old, &wanted).unwrap(), wanted);
        assert!(!is_free("0.0.0.0", port));
        // Its successor comes before the last of the former one is gone.
        holder.take(new, &wanted).unwrap();
        holder.give_back(old);
        assert!(!is_free("0.0.0.0", port));
        holder.give_back(new);
        assert!(is_free("0.0.0.0", port));
    }

    #[test]
    fn port_of_a_process_is_refused_by_name_and_nothing_else_is_kept() {
        let (free, mut holder) = (free_port(), PortHolder::default());
        let process = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = process.local_addr().unwrap().port();
        let wanted = [free, port].map(|port| host(Some(port), Protocol::Tcp));
        let error = holder.take(TaskId::from_raw(1), &wanted).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("port {port}/tcp is taken")),
            "{text}"
        );
        assert!(is_free("0.0.0.0", free));
    }

    #[test]
    fn a_port_without_a_number_gets_one_that_no_connection_has() {
        let mut holder = PortHolder::default();
        let wanted = [Protocol::Tcp, Protocol::Udp, Protocol::Udp].map(|of| host(None, of));
        let ports = holder.take(TaskId::from_raw(1), &wanted).unwrap();
        let numbers: BTreeSet<u16> = ports.iter().filter_map(|port| port.published).collect();
        assert_eq!(numbers.len(), 3, "{ports:?}");
        assert!(numbers.iter().all(|port| chosen_ports().contains(port)));
        let udp = ports[1].published.unwrap();
        assert!(UdpSocket::bind(("0.0.0.0", udp)).is_err());
        assert_eq!(ports[1].target, 80);
    }
}
