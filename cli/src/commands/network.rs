//! `network`: overlay networks.

use anyhow::{Result, bail};
use bollard_stubs::models::{self, Ipam, IpamConfig, NetworkCreateRequest, NetworkCreateResponse};
use clap::{ArgAction, Args, Subcommand};
use serde::Serialize;

use super::Outcomes;
use crate::{
    client::{Client, Filters, Route},
    output::{Inspected, Listing, Row, print_objects, short_id},
    spec::{parse_map, sorted},
    units::go_time,
};

#[derive(Debug, Subcommand)]
pub enum Network {
    /// Create an overlay network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show networks in detail
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

impl Network {
    pub async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(create) => create.run(client).await,
            Self::Ls(ls) => ls.run(client).await,
            Self::Inspect(inspect) => inspect.run(client).await,
            Self::Rm(rm) => rm.run(client).await,
        }
    }
}

#[derive(Debug, Args)]
pub struct Create {
    /// Driver of the network
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Its subnet; the next free one of the pool when absent
    #[arg(long, value_name = "CIDR", value_parser = parse_net)]
    subnet: Option<ipnet::Ipv4Net>,
    /// Address of the gateway
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<std::net::Ipv4Addr>,
    /// Part of the subnet that addresses are taken from
    #[arg(long, value_name = "CIDR", value_parser = parse_net)]
    ip_range: Option<ipnet::Ipv4Net>,
    /// Let containers that are no tasks attach
    #[arg(long)]
    attachable: bool,
    /// No way out of the network
    #[arg(long)]
    internal: bool,
    /// Carry the routing mesh
    #[arg(long)]
    ingress: bool,
    /// IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Option of the driver
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", action = ArgAction::Append)]
    opt: Vec<String>,
    name: String,
}

fn parse_net(text: &str) -> Result<ipnet::Ipv4Net, String> {
    let wrong = |_| "want an IPv4 network such as 10.6.0.0/24".to_owned();
    text.parse().map_err(wrong)
}

impl Create {
    async fn run(self, client: &Client) -> Result<()> {
        let route = Route::new("networks").segment("create");
        let answer: NetworkCreateResponse = client.post(route, &self.request()?).await?;
        if !answer.warning.is_empty() {
            eprintln!("WARNING: {}", answer.warning);
        }
        println!("{}", answer.id);
        Ok(())
    }

    fn request(self) -> Result<NetworkCreateRequest> {
        if self.subnet.is_none() && (self.gateway.is_some() || self.ip_range.is_some()) {
            bail!("--gateway and --ip-range need the --subnet that they are part of");
        }
        let config = self.subnet.map(|subnet| IpamConfig {
            subnet: Some(subnet.to_string()),
            ip_range: self.ip_range.map(|range| range.to_string()),
            gateway: self.gateway.map(|gateway| gateway.to_string()),
            auxiliary_addresses: None,
        });
        Ok(NetworkCreateRequest {
            name: self.name,
            driver: Some(self.driver),
            scope: Some("swarm".to_owned()),
            internal: Some(self.internal),
            attachable: Some(self.attachable),
            ingress: Some(self.ingress),
            enable_ipv6: Some(self.ipv6),
            ipam: Some(Ipam {
                driver: Some("default".to_owned()),
                config: Some(config.into_iter().collect()),
                options: None,
            }),
            options: Some(parse_map(&self.opt)),
            labels: Some(parse_map(&self.label)),
            ..NetworkCreateRequest::default()
        })
    }
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Only networks that match: driver, id, label, name, scope, type
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Ls {
    async fn run(self, client: &Client) -> Result<()> {
        let networks = client.networks(&Filters::parse(&self.filter)?).await?;
        self.listing.print(&rows(networks, !self.no_trunc))
    }
}

fn rows(networks: Vec<models::Network>, shorten: bool) -> Vec<NetworkRow> {
    let mut rows: Vec<NetworkRow> = networks
        .into_iter()
        .map(|network| NetworkRow::new(network, shorten))
        .collect();
    rows.sort_by(|a, b| alphanumeric_sort::compare_str(&a.name, &b.name));
    rows
}

/// All values are text here, as in Docker.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkRow {
    created_at: String,
    driver: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "IPv4")]
    ipv4: String,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: String,
    name: String,
    scope: String,
}

impl NetworkRow {
    fn new(network: models::Network, shorten: bool) -> Self {
        let id = network.id.unwrap_or_default();
        Self {
            created_at: go_time(network.created.as_deref()),
            driver: network.driver.unwrap_or_default(),
            id: if shorten {
                short_id(&id).to_owned()
            } else {
                id
            },
            ipv4: network.enable_ipv4.unwrap_or(true).to_string(),
            ipv6: network.enable_ipv6.unwrap_or_default().to_string(),
            internal: network.internal.unwrap_or_default().to_string(),
            labels: sorted(&network.labels.unwrap_or_default()).join(","),
            name: network.name.unwrap_or_default(),
            scope: network.scope.unwrap_or_default(),
        }
    }
}

impl Row for NetworkRow {
    const HEADERS: &'static [&'static str] = &["NETWORK ID", "NAME", "DRIVER", "SCOPE"];

    fn cells(&self) -> Vec<String> {
        [&self.id, &self.name, &self.driver, &self.scope]
            .map(Clone::clone)
            .into()
    }

    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    output: Inspected,
    /// Services and tasks of the network too
    #[arg(short, long)]
    verbose: bool,
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Inspect {
    async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let mut texts = Vec::new();
        for name in &self.networks {
            let mut route = Route::new("networks").segment(name);
            if self.verbose {
                route = route.query("verbose", true);
            }
            match client.get_text(route).await {
                Ok(text) => texts.push(text),
                err => outcomes.add(err.map(drop)),
            }
        }
        print!("{}", print_objects(&self.output.format, &texts)?);
        outcomes.end()
    }
}

#[derive(Debug, Args)]
pub struct Rm {
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Rm {
    async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        for name in &self.networks {
            let outcome = client.delete(Route::new("networks").segment(name)).await;
            outcomes.add(outcome.map(|()| println!("{name}")));
        }
        outcomes.end()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::output::{Format, render};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn request(args: &[&str]) -> Result<serde_json::Value> {
        let line = Line::try_parse_from(std::iter::once(&"x").chain(args))?;
        Ok(serde_json::to_value(line.create.request()?)?)
    }

    #[test]
    fn create_carries_the_subnet_and_flags_before_or_after_the_name() {
        let before = request(&[
            "-d",
            "overlay",
            "--subnet",
            "10.9.0.0/24",
            "--attachable",
            "net",
        ]);
        let after = request(&["net", "--attachable", "--subnet=10.9.0.0/24"]);
        let before = before.unwrap();
        assert_eq!(before, after.unwrap());
        assert_eq!(before["IPAM"]["Config"], json!([{"Subnet": "10.9.0.0/24"}]));
        assert_eq!(
            (&before["Attachable"], &before["Name"]),
            (&json!(true), &json!("net"))
        );
        let plain = request(&["net", "-o", "encrypted", "--label", "a=b"]).unwrap();
        assert_eq!(plain["IPAM"]["Config"], json!([]));
        assert_eq!(plain["Options"], json!({"encrypted": ""}));
        assert_eq!(plain["Labels"], json!({"a": "b"}));
    }

    #[test]
    fn what_cannot_be_is_refused_before_the_daemon_is_asked() {
        assert!(request(&["net", "--gateway", "10.9.0.1"]).is_err());
        assert!(request(&["net", "--subnet", "10.9.0.0"]).is_err());
        assert!(request(&[]).is_err());
    }

    #[test]
    fn table_is_dockers() {
        let networks = serde_json::from_value(json!([
            {"Id": "bbbbbbbbbbbbbbbbbbbbbbbbb", "Name": "my-network", "Driver": "overlay", "Scope": "swarm"},
            {"Id": "aaaaaaaaaaaaaaaaaaaaaaaaa", "Name": "ingress", "Driver": "overlay", "Scope": "swarm"},
        ]))
        .unwrap();
        assert_eq!(
            render(&Format::Table, &rows(networks, true)).unwrap(),
            concat!(
                "NETWORK ID     NAME         DRIVER    SCOPE\n",
                "aaaaaaaaaaaa   ingress      overlay   swarm\n",
                "bbbbbbbbbbbb   my-network   overlay   swarm\n",
            )
        );
    }
}
