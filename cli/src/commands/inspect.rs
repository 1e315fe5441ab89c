//! `inspect`: the tables of the node's data plane.

mod screen;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use model::inspect::{
    BackendRow, DnsRow, DropRow, EndpointRow, FlowRow, NodeRow, ProgramDrops, ServiceRow, VipRow,
};
use serde::de::DeserializeOwned;

use crate::{
    client::{Client, Route},
    output::{Format, Listing, Row, short_id},
    units::{show_bytes, show_span},
};
use screen::Screen;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Virtual addresses of services, with their live backends
    Vips,
    /// Names that tasks of this node can look up
    Dns,
    /// Published ports and VIPs, with their rings and counters
    Services,
    /// Where each task is reached on each network
    Endpoints,
    /// Backends of each service, their state and their share
    Backends,
    /// Flows of the mesh that end on this node
    Flows,
    /// Packets dropped, by reason
    Drops,
    /// Nodes, and the version that each has applied
    Nodes,
}

#[derive(Debug, Args)]
pub struct Inspect {
    #[arg(value_enum)]
    table: Table,
    /// Look again and again, every so many seconds, and show rates
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    listing: Listing,
}

/// Of `services`, `backends` and `flows`.
#[derive(Debug, Args)]
struct Filter {
    /// Only rows of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows of this client: an address, or an address and port
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Only rows of this task: its name or how that begins, or (flows) its address
    #[arg(long, value_name = "TASK")]
    backend: Option<String>,
}

/// What of a row filters and rates look at.
#[derive(Debug, Default)]
struct Facts<'a> {
    service: Option<&'a str>,
    client: Option<&'a str>,
    /// Name of the task, and its address.
    backend: Option<(&'a str, &'a str)>,
    /// What the row is known by, and its packets and bytes.
    counters: Option<(String, [u64; 2])>,
}

trait Inspected: Row + DeserializeOwned {
    fn facts(&self) -> Facts<'_> {
        Facts::default()
    }
}

impl Inspect {
    pub async fn run(self, client: &Client) -> Result<()> {
        match self.table {
            Table::Vips => self.show::<VipRow>(client, "vips").await,
            Table::Dns => self.show::<DnsRow>(client, "dns").await,
            Table::Services => self.show::<ServiceRow>(client, "services").await,
            Table::Endpoints => self.show::<EndpointRow>(client, "endpoints").await,
            Table::Backends => self.show::<BackendRow>(client, "backends").await,
            Table::Flows => self.show::<FlowRow>(client, "flows").await,
            Table::Drops => self.show::<DropRow>(client, "drops").await,
            Table::Nodes => self.show::<NodeRow>(client, "nodes").await,
        }
    }

    async fn show<R: Inspected>(&self, client: &Client, table: &str) -> Result<()> {
        let Some(seconds) = self.watch else {
            return self.listing.print(&self.rows::<R>(client, table).await?);
        };
        let mut screen = Screen::new();
        let mut pace = tokio::time::interval(Duration::from_secs(seconds));
        loop {
            pace.tick().await;
            let rows = self.rows::<R>(client, table).await?;
            match self.listing.format {
                Format::Table => screen.show(&rows)?,
                // One look after the other, for whoever reads them.
                _ => self.listing.print(&rows)?,
            }
        }
    }

    async fn rows<R: Inspected>(&self, client: &Client, table: &str) -> Result<Vec<R>> {
        let route = Route::new("swarmnet/inspect").segment(table);
        let mut rows: Vec<R> = client.get(route).await?;
        rows.retain(|row| self.filter.takes(&row.facts()));
        Ok(rows)
    }
}

impl Filter {
    fn takes(&self, facts: &Facts<'_>) -> bool {
        let begins = |wanted: &str, text: &str, end: char| {
            let rest = text.strip_prefix(wanted);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(end))
        };
        let is = |wanted: &Option<String>, holds: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(holds)
        };
        is(&self.service, &|wanted| facts.service == Some(wanted))
            && is(&self.client, &|wanted| {
                facts
                    .client
                    .is_some_and(|client| begins(wanted, client, ':'))
            })
            && is(&self.backend, &|wanted| {
                facts.backend.is_some_and(|(task, addr)| {
                    begins(wanted, task, '.') || begins(wanted, addr, ':')
                })
            })
    }
}

impl Inspected for VipRow {}

impl Inspected for DnsRow {}

impl Inspected for EndpointRow {}

impl Inspected for NodeRow {}

impl Inspected for ServiceRow {
    fn facts(&self) -> Facts<'_> {
        Facts {
            service: Some(&self.service),
            counters: Some((self.frontend.clone(), [self.packets, self.bytes])),
            ..Facts::default()
        }
    }
}

impl Inspected for BackendRow {
    fn facts(&self) -> Facts<'_> {
        let id = format!("{} {}", self.service, self.endpoint);
        Facts {
            service: Some(&self.service),
            backend: Some((&self.task, "")),
            counters: Some((id, [self.packets, self.bytes])),
            ..Facts::default()
        }
    }
}

impl Inspected for FlowRow {
    fn facts(&self) -> Facts<'_> {
        Facts {
            service: Some(&self.service),
            client: Some(&self.client),
            backend: Some((&self.task, &self.backend)),
            ..Facts::default()
        }
    }
}

impl Inspected for DropRow {
    fn facts(&self) -> Facts<'_> {
        Facts {
            counters: Some((self.reason.clone(), [self.packets, self.bytes])),
            ..Facts::default()
        }
    }
}

impl Row for VipRow {
    const HEADERS: &'static [&'static str] = &[
        "NETWORK", "VNI", "VIP", "SERVICE", "ACTIVE", "DRAINING", "CHOICE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.vni.to_string(),
            self.vip.to_string(),
            self.service.clone(),
            self.active.to_string(),
            self.draining.to_string(),
            self.choice.clone(),
        ]
    }

    fn id(&self) -> &str {
        &self.service
    }
}

impl Row for DnsRow {
    const HEADERS: &'static [&'static str] = &["NETWORK", "NAME", "KIND", "ADDRESSES"];

    fn cells(&self) -> Vec<String> {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        vec![
            self.network.clone(),
            self.name.clone(),
            self.kind.clone(),
            addresses.join(", "),
        ]
    }

    fn id(&self) -> &str {
        &self.name
    }
}

impl Row for ServiceRow {
    const HEADERS: &'static [&'static str] = &[
        "SERVICE",
        "FRONTEND",
        "BACKENDS",
        "CHOICE",
        "RING",
        "RING DIGEST",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
        "LIVE FLOWS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.frontend.clone(),
            self.backends.to_string(),
            self.choice.clone(),
            self.ring_len.to_string(),
            self.ring_digest.clone(),
            self.packets.to_string(),
            bytes(self.bytes),
            self.new_flows.to_string(),
            self.live_flows.to_string(),
        ]
    }

    fn id(&self) -> &str {
        &self.service
    }
}

impl Row for EndpointRow {
    const HEADERS: &'static [&'static str] = &[
        "ENDPOINT", "TASK", "NETWORK", "VNI", "ADDRESS", "MAC", "NODE", "VIA",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.endpoint.to_string(),
            task_name(&self.task),
            self.network.clone(),
            self.vni.to_string(),
            self.addr.to_string(),
            self.mac.clone(),
            self.node.clone(),
            self.via.clone(),
        ]
    }

    fn id(&self) -> &str {
        &self.task
    }
}

impl Row for BackendRow {
    const HEADERS: &'static [&'static str] = &[
        "SERVICE",
        "TASK",
        "ENDPOINT",
        "NODE",
        "STATE",
        "SHARE",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
        "LIVE FLOWS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            task_name(&self.task),
            self.endpoint.to_string(),
            self.node.clone(),
            self.state.clone(),
            format!("{:.1}%", self.share),
            self.packets.to_string(),
            bytes(self.bytes),
            self.new_flows.to_string(),
            self.live_flows.to_string(),
        ]
    }

    fn id(&self) -> &str {
        &self.task
    }
}

impl Row for FlowRow {
    const HEADERS: &'static [&'static str] = &[
        "SERVICE", "PROTOCOL", "STATE", "CLIENT", "FRONTEND", "TASK", "BACKEND", "ENTRY", "AGE",
        "IDLE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.protocol.clone(),
            self.state.clone(),
            self.client.clone(),
            self.frontend.clone(),
            task_name(&self.task),
            self.backend.clone(),
            self.entry.clone(),
            self.age_ms.map_or_else(|| "-".to_owned(), show_span),
            show_span(self.idle_ms),
        ]
    }

    fn id(&self) -> &str {
        &self.client
    }
}

impl Row for DropRow {
    const HEADERS: &'static [&'static str] =
        &["REASON", "PACKETS", "BYTES", "PROGRAM", "EXPLANATION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.reason.clone(),
            self.packets.to_string(),
            bytes(self.bytes),
            programs(&self.programs),
            self.explanation.clone(),
        ]
    }

    fn id(&self) -> &str {
        &self.reason
    }
}

impl Row for NodeRow {
    const HEADERS: &'static [&'static str] = &[
        "ID",
        "HOSTNAME",
        "STATE",
        "TUNNEL ADDRESS",
        "APPLIED",
        "CURRENT",
        "DOUBT",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            short_id(&self.id).to_owned(),
            self.hostname.clone(),
            self.state.clone(),
            self.vtep.to_string(),
            self.applied.to_string(),
            self.current.to_string(),
            self.doubt.clone().unwrap_or_default(),
        ]
    }

    fn id(&self) -> &str {
        &self.id
    }
}

fn bytes(bytes: u64) -> String {
    show_bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// `web.1.1y5k9h2m8a0p` for a task name that ends in its whole id.
/// Who dropped how many packets; of one alone, the row's own count says it.
fn programs(drops: &[ProgramDrops]) -> String {
    if let [one] = drops {
        return one.program.clone();
    }
    let words = drops
        .iter()
        .map(|one| format!("{} {}", one.program, one.packets));
    words.collect::<Vec<_>>().join(", ")
}

fn task_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((before, id)) if id.len() == model::id::ID_LEN => format!("{before}.{}", short_id(id)),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, render};

    #[test]
    fn rows_of_the_daemon_become_a_table() {
        let json = r#"[{"service":"web","task":"web.1.0123456789abcdefghijklmno","endpoint":7,
            "node":"n1","state":"active","share":33.333,"packets":5,"bytes":2048,
            "new_flows":2,"live_flows":1}]"#;
        let rows: Vec<BackendRow> = serde_json::from_str(json).unwrap();
        let table = render(&Format::Table, &rows).unwrap();
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "web",
                "web.1.0123456789ab",
                "7",
                "n1",
                "active",
                "33.3%",
                "5",
                "2KiB",
                "2",
                "1"
            ]
        );
        assert_eq!(BackendRow::HEADERS.len(), cells.len());
    }

    fn flow(service: &str, client: &str, task: &str) -> FlowRow {
        FlowRow {
            service: service.into(),
            protocol: "tcp".into(),
            state: "established".into(),
            client: client.into(),
            frontend: "192.0.2.1:8080".into(),
            task: task.into(),
            backend: "172.18.0.5:80".into(),
            entry: "local".into(),
            age_ms: Some(0),
            idle_ms: 0,
        }
    }

    #[test]
    fn filters_take_whole_names_and_addresses() {
        let row = flow("web", "192.0.2.9:40000", "web.1.abc");
        let takes = |service: &str, client: &str, backend: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let filter = Filter {
                service: some(service),
                client: some(client),
                backend: some(backend),
            };
            filter.takes(&row.facts())
        };
        assert!(takes("", "", ""));
        assert!(takes("web", "192.0.2.9", "web.1"));
        assert!(takes("", "192.0.2.9:40000", "172.18.0.5"));
        for (service, client, backend) in [
            ("we", "", ""),
            ("", "192.0.2.90", ""),
            ("", "192.0.2", ""),
            ("", "", "web.10"),
            ("", "", "172.18.0.50"),
        ] {
            assert!(
                !takes(service, client, backend),
                "{service} {client} {backend}"
            );
        }
        let filter = Filter {
            service: Some("web".into()),
            client: None,
            backend: None,
        };
        let drops: DropRow = serde_json::from_str(
            r#"{"reason":"x","explanation":"x.","packets":1,"bytes":60,"programs":[]}"#,
        )
        .unwrap();
        assert!(!filter.takes(&drops.facts()), "drops are of no service");
    }

    #[test]
    fn json_keeps_the_daemons_names() {
        let json = r#"{"reason":"NO_BACKEND","explanation":"x","packets":1,"bytes":60,"programs":[{"program":"sn_connect4","packets":1,"bytes":60}]}"#;
        let rows: Vec<DropRow> = vec![serde_json::from_str(json).unwrap()];
        assert_eq!(render(&Format::Json, &rows).unwrap(), format!("{json}\n"));
    }

    #[test]
    fn drops_name_their_programs_and_how_many_each_when_they_are_several() {
        let drops = |counts: &[(&str, u64)]| {
            let one = |(program, packets): &(&str, u64)| ProgramDrops {
                program: (*program).to_owned(),
                packets: *packets,
                bytes: 60,
            };
            programs(&counts.iter().map(one).collect::<Vec<_>>())
        };
        assert_eq!(drops(&[("sn_tc_task", 3)]), "sn_tc_task");
        assert_eq!(
            drops(&[("sn_tc_vxlan", 2), ("sn_tc_task", 3)]),
            "sn_tc_vxlan 2, sn_tc_task 3"
        );
    }
}
