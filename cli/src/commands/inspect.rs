//! `inspect`: the tables of the node's data plane.

use anyhow::Result;
use clap::{Args, ValueEnum};
use model::inspect::{
    BackendRow, DnsRow, DropRow, EndpointRow, FlowRow, NodeRow, ServiceRow, VipRow,
};
use serde::de::DeserializeOwned;

use crate::{
    client::{Client, Route},
    output::{Listing, Row, short_id},
    units::show_bytes,
};

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
    #[command(flatten)]
    listing: Listing,
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

    async fn show<R: Row + DeserializeOwned>(&self, client: &Client, table: &str) -> Result<()> {
        let route = Route::new("swarmnet/inspect").segment(table);
        let rows: Vec<R> = client.get(route).await?;
        self.listing.print(&rows)
    }
}

impl Row for VipRow {
    const HEADERS: &'static [&'static str] =
        &["NETWORK", "VNI", "VIP", "SERVICE", "ACTIVE", "DRAINING"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.vni.to_string(),
            self.vip.to_string(),
            self.service.clone(),
            self.active.to_string(),
            self.draining.to_string(),
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
        "RING",
        "RING DIGEST",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.frontend.clone(),
            self.backends.to_string(),
            self.ring_len.to_string(),
            self.ring_digest.clone(),
            self.packets.to_string(),
            bytes(self.bytes),
            self.new_flows.to_string(),
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
        "PROTOCOL", "CLIENT", "FRONTEND", "TASK", "BACKEND", "ENTRY", "IDLE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.client.clone(),
            self.frontend.clone(),
            task_name(&self.task),
            self.backend.clone(),
            self.entry.clone(),
            format!("{:.1}s", self.idle_ms as f64 / 1000.0),
        ]
    }

    fn id(&self) -> &str {
        &self.client
    }
}

impl Row for DropRow {
    const HEADERS: &'static [&'static str] = &["REASON", "PACKETS", "BYTES", "EXPLANATION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.reason.clone(),
            self.packets.to_string(),
            bytes(self.bytes),
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
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            short_id(&self.id).to_owned(),
            self.hostname.clone(),
            self.state.clone(),
            self.vtep.to_string(),
            self.applied.to_string(),
            self.current.to_string(),
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

    #[test]
    fn json_keeps_the_daemons_names() {
        let json = r#"{"reason":"NO_BACKEND","explanation":"x","packets":1,"bytes":60}"#;
        let rows: Vec<DropRow> = vec![serde_json::from_str(json).unwrap()];
        assert_eq!(render(&Format::Json, &rows).unwrap(), format!("{json}\n"));
    }
}
