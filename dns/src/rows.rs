//! `swarmnet inspect dns`.

use model::{
    feed::{NetworkView, NodeView, ServiceNetwork, ServiceView},
    inspect::DnsRow,
    spec::EndpointMode,
};

use crate::names::{Names, address_on};

/// Every name that tasks of this node can ask for, by network: what [`crate::TaskResolver`] answers
/// with, in the order of the tables and not shuffled.
pub fn rows(view: &NodeView) -> Vec<DnsRow> {
    let names = Names::new(view, &[]);
    let mut rows = Vec::new();
    for network in view.networks.values() {
        for service in view.services.values() {
            let mut attached = service.networks.iter();
            if let Some(on) = attached.find(|on| on.network == network.id) {
                service_rows(&names, service, on, network, &mut rows);
            }
        }
        let tasks = view.endpoints.values().filter_map(|endpoint| {
            let addr = address_on(endpoint, network)?;
            Some(row(network, &endpoint.task_name, "task", vec![addr]))
        });
        rows.extend(tasks);
    }
    rows
}

fn service_rows(
    names: &Names<'_>,
    service: &ServiceView,
    on: &ServiceNetwork,
    network: &NetworkView,
    rows: &mut Vec<DnsRow>,
) {
    let own = names.of_service(service, on, network);
    let kind = match service.mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    };
    rows.push(row(network, &service.name, kind, own.clone()));
    let aliases = on.aliases.iter();
    rows.extend(aliases.map(|alias| row(network, alias, "alias", own.clone())));
    let tasks = format!("tasks.{}", service.name);
    rows.push(row(
        network,
        &tasks,
        "tasks",
        names.of_tasks(service, network),
    ));
}

fn row(
    network: &NetworkView,
    name: &str,
    kind: &str,
    addresses: Vec<std::net::Ipv4Addr>,
) -> DnsRow {
    DnsRow {
        network: network.name.clone(),
        name: name.to_owned(),
        kind: kind.to_owned(),
        addresses,
    }
}
