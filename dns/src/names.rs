//! The names that a task can see, in a node's view.
//!
//! There is no index: a lookup walks the services or endpoints of the view, some microseconds for
//! thousands of them, which is less than keeping an index for each task at each change.

use std::net::Ipv4Addr;

use model::{
    NetworkId, TaskId,
    feed::{BackendState, EndpointView, NetworkView, NodeView, ServiceNetwork, ServiceView},
    id::ID_LEN,
    spec::EndpointMode,
};

/// Length of a container's short id, which is its hostname unless the user chose one.
const SHORT_ID_LEN: usize = 12;

/// What names mean on some networks.
pub(crate) struct Names<'a> {
    view: &'a NodeView,
    /// In the order in which they are asked.
    networks: Vec<&'a NetworkView>,
}

/// What an address is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reverse {
    Name(String),
    /// On one of our networks and nobody's.
    Nobody,
    /// Not ours to say.
    Foreign,
}

impl<'a> Names<'a> {
    /// Names on these networks, as far as the view knows them.
    pub fn new(view: &'a NodeView, networks: &[NetworkId]) -> Self {
        Self {
            view,
            networks: networks
                .iter()
                .filter_map(|id| view.networks.get(id))
                .collect(),
        }
    }

    /// The addresses of a name, without its last dot. `None` when it is not one of ours; empty when
    /// it is, but nothing answers to it now. With several networks the first that has an address.
    pub fn resolve(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let mut known = None;
        let whole = self.networks.iter().map(|network| (name, *network));
        let within = self.networks.iter().filter_map(|network| {
            let rest = strip_suffix(name, &network.name)?.strip_suffix('.')?;
            Some((rest, *network))
        });
        for (name, network) in whole.chain(within) {
            match self.on_network(name, network) {
                Some(addresses) if addresses.is_empty() => known = Some(addresses),
                Some(addresses) => return Some(addresses),
                None => {}
            }
        }
        known
    }

    /// The name of an address.
    pub fn reverse(&self, addr: Ipv4Addr) -> Reverse {
        let Some(network) = self
            .networks
            .iter()
            .find(|network| network.subnet.contains(&addr))
        else {
            return Reverse::Foreign;
        };
        let mut endpoints = self.view.endpoints.values();
        let task = endpoints.find(|endpoint| address_on(endpoint, network) == Some(addr));
        let has_vip = |on: &ServiceNetwork| on.network == network.id && on.vip == Some(addr);
        let mut services = self.view.services.values();
        let service = services.find(|service| service.networks.iter().any(has_vip));
        let name = task
            .map(|task| &task.task_name)
            .or(service.map(|service| &service.name));
        name.map_or(Reverse::Nobody, |name| {
            Reverse::Name(format!("{name}.{}", network.name))
        })
    }

    fn on_network(&self, name: &str, network: &NetworkView) -> Option<Vec<Ipv4Addr>> {
        self.of_services(name, network, |service, on| {
            self.of_service(service, on, network)
        })
        .or_else(|| {
            let service = strip_prefix(name, "tasks.")?;
            self.of_services(service, network, |service, _| {
                self.of_tasks(service, network)
            })
        })
        .or_else(|| self.of_task(name, network).map(|addr| vec![addr]))
    }

    /// The addresses of all services that go by a name: several can share an alias.
    fn of_services(
        &self,
        name: &str,
        network: &NetworkView,
        addresses: impl Fn(&ServiceView, &ServiceNetwork) -> Vec<Ipv4Addr>,
    ) -> Option<Vec<Ipv4Addr>> {
        let mut found: Option<Vec<Ipv4Addr>> = None;
        for service in self.view.services.values() {
            let on = service.networks.iter().find(|on| on.network == network.id);
            let Some(on) = on.filter(|on| goes_by(service, on, name)) else {
                continue;
            };
            found.get_or_insert_default().extend(addresses(service, on));
        }
        found
    }

    /// What the service's own name stands for.
    pub fn of_service(
        &self,
        service: &ServiceView,
        on: &ServiceNetwork,
        network: &NetworkView,
    ) -> Vec<Ipv4Addr> {
        match (service.mode, on.vip) {
            (EndpointMode::Vip, Some(vip)) => vec![vip],
            _ => self.of_tasks(service, network),
        }
    }

    /// What `tasks.service` stands for.
    pub fn of_tasks(&self, service: &ServiceView, network: &NetworkView) -> Vec<Ipv4Addr> {
        let endpoints = self.view.endpoints.values();
        let active = endpoints.filter(|endpoint| {
            endpoint.service == service.id && endpoint.state == BackendState::Active
        });
        active
            .filter_map(|endpoint| address_on(endpoint, network))
            .collect()
    }

    /// A single task, in whatever state: it can be reached.
    fn of_task(&self, name: &str, network: &NetworkView) -> Option<Ipv4Addr> {
        let short = short_id(name);
        let mut endpoints = self.view.endpoints.values();
        let task = endpoints.find(|endpoint| {
            endpoint.task_name.eq_ignore_ascii_case(name)
                || short.is_some_and(|(first, last)| (first..=last).contains(&endpoint.task))
        })?;
        address_on(task, network)
    }
}

/// The task's address on a network.
pub(crate) fn address_on(endpoint: &EndpointView, network: &NetworkView) -> Option<Ipv4Addr> {
    let mut addresses = endpoint.addresses.iter();
    Some(addresses.find(|at| at.network == network.id)?.addr)
}

fn goes_by(service: &ServiceView, on: &ServiceNetwork, name: &str) -> bool {
    let mut aliases = on.aliases.iter();
    service.name.eq_ignore_ascii_case(name) || aliases.any(|alias| alias.eq_ignore_ascii_case(name))
}

/// The first and the last id that begins with these characters.
fn short_id(name: &str) -> Option<(TaskId, TaskId)> {
    if name.len() != SHORT_ID_LEN {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let first: TaskId = format!("{name:0<ID_LEN$}").parse().ok()?;
    // One step of the last character of the short id.
    let step = 36u128.pow((ID_LEN - SHORT_ID_LEN) as u32);
    Some((
        first,
        TaskId::from_raw(first.raw().saturating_add(step - 1)),
    ))
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn strip_suffix<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let (rest, tail) = text.split_at_checked(text.len().checked_sub(suffix.len())?)?;
    tail.eq_ignore_ascii_case(suffix).then_some(rest)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod tests {
    use model::{EndpointId, NodeId, ServiceId, Vni, feed::ViewObject, object::Attachment};

    use super::*;

    pub const NET_A: NetworkId = NetworkId::from_raw(1);
    pub const NET_B: NetworkId = NetworkId::from_raw(2);

    fn network(id: NetworkId, name: &str, third: u8) -> ViewObject {
        ViewObject::Network(NetworkView {
            id,
            name: name.to_owned(),
            vni: Vni::new(4096 + u32::from(third)).unwrap(),
            subnet: format!("10.0.{third}.0/24").parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, third, 1),
            internal: false,
        })
    }

    fn service(
        id: u128,
        name: &str,
        mode: EndpointMode,
        on: &[(NetworkId, Option<[u8; 4]>, &str)],
    ) -> ViewObject {
        let on = on.iter().map(|(network, vip, alias)| ServiceNetwork {
            network: *network,
            vip: vip.map(Ipv4Addr::from),
            aliases: vec![(*alias).to_owned()],
        });
        ViewObject::Service(ServiceView {
            id: ServiceId::from_raw(id),
            name: name.to_owned(),
            mode,
            networks: on.collect(),
            ports: Vec::new(),
            policy: Default::default(),
        })
    }

    fn task(
        id: u32,
        service: u128,
        name: &str,
        state: BackendState,
        on: &[(NetworkId, [u8; 4])],
    ) -> ViewObject {
        let on = on.iter().map(|(network, addr)| Attachment {
            network: *network,
            addr: Ipv4Addr::from(*addr),
            prefix_len: 24,
        });
        ViewObject::Endpoint(EndpointView {
            id: EndpointId(id),
            task: TaskId::from_raw(u128::from(id) << 100),
            task_name: name.to_owned(),
            service: ServiceId::from_raw(service),
            slot: Some(1),
            node: NodeId::from_raw(1),
            addresses: on.collect(),
            state,
            weight: 1,
        })
    }

    /// `web` (VIP) on both networks, `db` (round robin) on the first, `far` on the second only.
    pub fn view() -> NodeView {
        use BackendState::{Active, Draining, Starting};
        let mut view = NodeView::default();
        for object in [
            network(NET_A, "net-a", 1),
            network(NET_B, "net.b", 2),
            service(
                1,
                "web",
                EndpointMode::Vip,
                &[
                    (NET_A, Some([10, 0, 1, 2]), "www"),
                    (NET_B, Some([10, 0, 2, 2]), "shared"),
                ],
            ),
            service(2, "db", EndpointMode::Dnsrr, &[(NET_A, None, "shared")]),
            service(
                3,
                "far",
                EndpointMode::Vip,
                &[(NET_B, Some([10, 0, 2, 9]), "shared")],
            ),
            service(4, "idle", EndpointMode::Dnsrr, &[(NET_A, None, "i")]),
            task(
                1,
                1,
                "web.1.abc",
                Active,
                &[(NET_A, [10, 0, 1, 3]), (NET_B, [10, 0, 2, 3])],
            ),
            task(
                2,
                1,
                "web.2.def",
                Starting,
                &[(NET_A, [10, 0, 1, 4]), (NET_B, [10, 0, 2, 4])],
            ),
            task(3, 2, "db.1.ghi", Active, &[(NET_A, [10, 0, 1, 5])]),
            task(4, 2, "db.2.jkl", Active, &[(NET_A, [10, 0, 1, 6])]),
            task(5, 2, "db.3.mno", Draining, &[(NET_A, [10, 0, 1, 7])]),
        ] {
            view.put(object);
        }
        view
    }

    fn resolve(networks: &[NetworkId], name: &str) -> Option<String> {
        let view = view();
        let addresses = Names::new(&view, networks).resolve(name)?;
        let last_two = |addr: Ipv4Addr| format!("{}.{}", addr.octets()[2], addr.octets()[3]);
        Some(
            addresses
                .into_iter()
                .map(last_two)
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    #[test]
    fn each_kind_of_name_has_its_addresses() {
        for (name, want) in [
            ("web", "1.2"),
            ("WEB", "1.2"),
            ("www", "1.2"),
            ("tasks.web", "1.3"),
            ("tasks.www", "1.3"),
            ("Tasks.Web", "1.3"),
            ("db", "1.5 1.6"),
            ("tasks.db", "1.5 1.6"),
            ("shared", "1.5 1.6"),
            ("web.2.def", "1.4"),
            ("db.3.mno", "1.7"),
            ("web.net-a", "1.2"),
            ("tasks.db.NET-A", "1.5 1.6"),
            ("web.1.abc.net-a", "1.3"),
            ("idle", ""),
            ("tasks.idle", ""),
        ] {
            assert_eq!(resolve(&[NET_A], name).as_deref(), Some(want), "{name}");
        }
    }

    #[test]
    fn names_of_other_networks_do_not_resolve() {
        for name in [
            "far",
            "tasks.far",
            "web.net.b",
            "web.1.abc.net.b",
            "net-a",
            "",
            "tasks.",
            "web.",
            ".net-a",
        ] {
            assert_eq!(resolve(&[NET_A], name), None, "{name:?}");
        }
        assert_eq!(resolve(&[], "web"), None);
        assert_eq!(resolve(&[NET_B], "db"), None);
    }

    #[test]
    fn on_several_networks_the_first_that_answers_counts() {
        assert_eq!(resolve(&[NET_B, NET_A], "web").as_deref(), Some("2.2"));
        assert_eq!(
            resolve(&[NET_B, NET_A], "web.net-a").as_deref(),
            Some("1.2")
        );
        assert_eq!(resolve(&[NET_B, NET_A], "db").as_deref(), Some("1.5 1.6"));
        // Two services share the alias there.
        assert_eq!(
            resolve(&[NET_B, NET_A], "shared").as_deref(),
            Some("2.2 2.9")
        );
    }

    #[test]
    fn the_short_id_of_a_task_is_its_hostname() {
        let id = TaskId::from_raw(3 << 100).to_string();
        assert_eq!(resolve(&[NET_A], &id[..12]).as_deref(), Some("1.5"));
        assert_eq!(
            resolve(&[NET_A], &id[..12].to_uppercase()).as_deref(),
            Some("1.5")
        );
        assert_eq!(resolve(&[NET_B], &id[..12]), None);
        assert_eq!(resolve(&[NET_A], "zzzzzzzzzzzz"), None);
    }

    #[test]
    fn addresses_are_called_as_on_their_network() {
        let view = view();
        let names = Names::new(&view, &[NET_A]);
        let name = |name: &str| Reverse::Name(name.to_owned());
        assert_eq!(names.reverse(Ipv4Addr::new(10, 0, 1, 2)), name("web.net-a"));
        assert_eq!(
            names.reverse(Ipv4Addr::new(10, 0, 1, 4)),
            name("web.2.def.net-a")
        );
        assert_eq!(names.reverse(Ipv4Addr::new(10, 0, 1, 99)), Reverse::Nobody);
        assert_eq!(names.reverse(Ipv4Addr::new(10, 0, 2, 3)), Reverse::Foreign);
        for addr in [[10, 0, 1, 2], [10, 0, 1, 4]] {
            let Reverse::Name(name) = names.reverse(addr.into()) else {
                panic!()
            };
            assert_eq!(names.resolve(&name), Some(vec![addr.into()]), "and back");
        }
    }

    #[test]
    fn rows_are_what_the_resolver_answers() {
        let view = view();
        let rows = crate::rows(&view);
        assert_eq!(rows.len(), 5 * 3 + 5 + 2);
        for row in &rows {
            // An alias that two services share is two rows and one answer.
            let resolved = resolve_all(&view, &format!("{}.{}", row.name, row.network));
            assert!(
                row.addresses.iter().all(|addr| resolved.contains(addr)),
                "{row:?}"
            );
            assert!(row.name == "shared" || row.addresses == resolved, "{row:?}");
        }
    }

    fn resolve_all(view: &NodeView, name: &str) -> Vec<Ipv4Addr> {
        Names::new(view, &[NET_A, NET_B]).resolve(name).unwrap()
    }
}
