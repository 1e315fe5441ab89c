//! `node`: the machines of the cluster.

mod pretty;

use anyhow::{Context, Result};
use bollard_stubs::models::{
    self, NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum as NodeRole, SwarmInfo, TlsInfo,
};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::{Outcomes, swarm::Availability};
use crate::{
    client::{Client, Filters, Route},
    names::Names,
    output::{Inspected, Listing, Row, capitalized, print_objects},
    spec::edit_map,
    tasks::TaskListing,
};

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show nodes in detail
    Inspect(Inspect),
    /// List tasks on nodes, by default on this one
    Ps(Ps),
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Change a node's availability, role or labels
    Update(Update),
    /// Make workers managers
    Promote(NodeNames),
    /// Make managers workers
    Demote(NodeNames),
}

impl Node {
    pub async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Ls(ls) => ls.run(client).await,
            Self::Inspect(inspect) => inspect.run(client).await,
            Self::Ps(ps) => ps.run(client).await,
            Self::Rm(rm) => rm.run(client).await,
            Self::Update(update) => update.run(client).await,
            Self::Promote(names) => names.set_role(client, NodeRole::MANAGER).await,
            Self::Demote(names) => names.set_role(client, NodeRole::WORKER).await,
        }
    }
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Only nodes that match: id, label, node.label, membership, name, role
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Ls {
    async fn run(self, client: &Client) -> Result<()> {
        let nodes = client.nodes(&Filters::parse(&self.filter)?).await?;
        let swarm = client.info().await?.swarm.unwrap_or_default();
        self.listing.print(&rows(nodes, &swarm))
    }
}

fn rows(nodes: Vec<models::Node>, swarm: &SwarmInfo) -> Vec<NodeRow> {
    let mut rows: Vec<NodeRow> = nodes
        .into_iter()
        .map(|node| NodeRow::new(node, swarm))
        .collect();
    rows.sort_by(|a, b| alphanumeric_sort::compare_str(&a.hostname, &b.hostname));
    rows
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeRow {
    availability: String,
    engine_version: String,
    hostname: String,
    #[serde(rename = "ID")]
    id: String,
    manager_status: String,
    #[serde(rename = "Self")]
    is_self: bool,
    status: String,
    #[serde(rename = "TLSStatus")]
    tls_status: &'static str,
}

impl NodeRow {
    /// `swarm` is what the daemon says of its own node and cluster.
    fn new(node: models::Node, swarm: &SwarmInfo) -> Self {
        let id = node.id.unwrap_or_default();
        let description = node.description.unwrap_or_default();
        let availability = node.spec.and_then(|spec| spec.availability);
        let state = node.status.and_then(|status| status.state);
        let manager_status = node.manager_status.map(|status| match status.leader {
            Some(true) => "Leader".to_owned(),
            _ => shown(status.reachability),
        });
        Self {
            availability: shown(availability),
            engine_version: description
                .engine
                .and_then(|engine| engine.engine_version)
                .unwrap_or_default(),
            hostname: description.hostname.unwrap_or_default(),
            is_self: swarm.node_id.as_deref() == Some(&id),
            id,
            manager_status: manager_status.unwrap_or_default(),
            status: shown(state),
            tls_status: tls_status(description.tls_info.as_ref(), swarm),
        }
    }
}

/// Whether the node's certificate is of the cluster's present root.
fn tls_status(of_node: Option<&TlsInfo>, swarm: &SwarmInfo) -> &'static str {
    let of_cluster = swarm
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.tls_info.as_ref());
    match (of_node, of_cluster) {
        (Some(of_node), Some(of_cluster)) if of_node == of_cluster => "Ready",
        (Some(_), Some(_)) => "Needs Rotation",
        _ => "Unknown",
    }
}

impl Row for NodeRow {
    const HEADERS: &'static [&'static str] = &[
        "ID",
        "HOSTNAME",
        "STATUS",
        "AVAILABILITY",
        "MANAGER STATUS",
        "ENGINE VERSION",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{} {}", self.id, if self.is_self { '*' } else { ' ' }),
            self.hostname.clone(),
            self.status.clone(),
            self.availability.clone(),
            self.manager_status.clone(),
            self.engine_version.clone(),
        ]
    }

    fn id(&self) -> &str {
        &self.id
    }
}

/// A word of the API with a capital, or nothing.
fn shown(word: Option<impl ToString>) -> String {
    word.map(|word| capitalized(&word.to_string()))
        .unwrap_or_default()
}

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    output: Inspected,
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// `self` is this node
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Inspect {
    async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let mut texts = Vec::new();
        for name in &self.nodes {
            let name = resolve_self(client, name).await?;
            match client.get_text(Route::new("nodes").segment(&name)).await {
                Ok(text) => texts.push(text),
                err => outcomes.add(err.map(drop)),
            }
        }
        if self.pretty {
            for text in &texts {
                print!("{}", pretty::node(&serde_json::from_str(text)?));
            }
        } else {
            print!("{}", print_objects(&self.output.format, &texts)?);
        }
        outcomes.end()
    }
}

/// The node's id for `self`, any other name as it is.
async fn resolve_self(client: &Client, name: &str) -> Result<String> {
    if name != "self" {
        return Ok(name.to_owned());
    }
    let swarm = client.info().await?.swarm.unwrap_or_default();
    swarm
        .node_id
        .filter(|id| !id.is_empty())
        .context("this node is in no cluster: use `swarmnet init` or `swarmnet join` first")
}

#[derive(Debug, Args)]
pub struct Ps {
    #[command(flatten)]
    listing: TaskListing,
    /// `self` is this node
    #[arg(value_name = "NODE", default_value = "self")]
    nodes: Vec<String>,
}

impl Ps {
    async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let filters = Filters::parse(&self.listing.filter)?;
        let mut tasks = Vec::new();
        let mut found = false;
        for name in &self.nodes {
            let name = resolve_self(client, name).await?;
            match client.node(&name).await {
                Ok(node) => {
                    found = true;
                    let id = node.id.unwrap_or_default();
                    tasks.extend(client.tasks(&filters.clone().with("node", &id)).await?);
                }
                Err(err) => outcomes.add(Err(err)),
            }
        }
        if found {
            let names = match self.listing.no_resolve {
                true => Names::default(),
                false => Names::load(client).await?,
            };
            self.listing.print(tasks, &names, Timestamp::now())?;
        }
        outcomes.end()
    }
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Even when the node is not down
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl Rm {
    async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        for name in &self.nodes {
            let route = Route::new("nodes").segment(name);
            let outcome = client.delete(route.flag("force", self.force)).await;
            outcomes.add(outcome.map(|()| println!("{name}")));
        }
        outcomes.end()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    Worker,
    Manager,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Whether the node gets tasks
    #[arg(long, value_enum)]
    availability: Option<Availability>,
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// Add or replace a label
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[arg(value_name = "NODE")]
    node: String,
}

impl Update {
    async fn run(self, client: &Client) -> Result<()> {
        let node = client
            .node(&resolve_self(client, &self.node).await?)
            .await?;
        let spec = self.edit(node.spec.clone().unwrap_or_default());
        update(client, &node, &spec).await?;
        println!("{}", self.node);
        Ok(())
    }

    fn edit(&self, mut spec: NodeSpec) -> NodeSpec {
        if let Some(availability) = self.availability {
            spec.availability = Some(match availability {
                Availability::Active => NodeSpecAvailabilityEnum::ACTIVE,
                Availability::Pause => NodeSpecAvailabilityEnum::PAUSE,
                Availability::Drain => NodeSpecAvailabilityEnum::DRAIN,
            });
        }
        if let Some(role) = self.role {
            spec.role = Some(match role {
                RoleName::Worker => NodeRole::WORKER,
                RoleName::Manager => NodeRole::MANAGER,
            });
        }
        edit_map(&mut spec.labels, &self.label_rm, &self.label_add);
        spec
    }
}

async fn update(client: &Client, node: &models::Node, spec: &NodeSpec) -> Result<()> {
    let version = node.version.as_ref().and_then(|version| version.index);
    let route = Route::new("nodes")
        .segment(node.id.as_deref().unwrap_or_default())
        .segment("update")
        .query("version", version.unwrap_or_default());
    Ok(client.post_only(route, spec).await?)
}

#[derive(Debug, Args)]
pub struct NodeNames {
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl NodeNames {
    async fn set_role(self, client: &Client, role: NodeRole) -> Result<()> {
        let mut outcomes = Outcomes::default();
        for name in &self.nodes {
            outcomes.add(set_role(client, name, role).await);
        }
        outcomes.end()
    }
}

async fn set_role(client: &Client, name: &str, role: NodeRole) -> Result<()> {
    let node = client.node(&resolve_self(client, name).await?).await?;
    let mut spec = node.spec.clone().unwrap_or_default();
    if spec.role == Some(role) {
        println!("Node {name} is already a {role}.");
        return Ok(());
    }
    spec.role = Some(role);
    update(client, &node, &spec).await?;
    match role {
        NodeRole::MANAGER => println!("Node {name} promoted to a manager in the swarm."),
        _ => println!("Manager {name} demoted in the swarm."),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::{Format, render};

    fn nodes() -> Vec<models::Node> {
        serde_json::from_value(json!([
            {
                "ID": "bbbbbbbbbbbbbbbbbbbbbbbbb", "Spec": {"Role": "worker", "Availability": "drain"},
                "Description": {"Hostname": "node10", "Engine": {"EngineVersion": "0.1.0"}},
                "Status": {"State": "down"},
            },
            {
                "ID": "aaaaaaaaaaaaaaaaaaaaaaaaa", "Spec": {"Role": "manager", "Availability": "active"},
                "Description": {"Hostname": "node2", "Engine": {"EngineVersion": "0.1.0"}},
                "Status": {"State": "ready"},
                "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"},
            },
        ]))
        .unwrap()
    }

    fn swarm(own_id: &str) -> SwarmInfo {
        serde_json::from_value(json!({"NodeID": own_id})).unwrap()
    }

    #[test]
    fn table_marks_the_own_node() {
        let rows = rows(nodes(), &swarm("aaaaaaaaaaaaaaaaaaaaaaaaa"));
        assert_eq!(
            render(&Format::Table, &rows).unwrap(),
            concat!(
                "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION\n",
                "aaaaaaaaaaaaaaaaaaaaaaaaa *   node2      Ready     Active         Leader           0.1.0\n",
                "bbbbbbbbbbbbbbbbbbbbbbbbb     node10     Down      Drain                           0.1.0\n",
            )
        );
    }

    #[test]
    fn json_has_dockers_fields() {
        let json = render(&Format::Json, &rows(nodes(), &swarm("x"))).unwrap();
        let row: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(
            row,
            json!({
                "Availability": "Active", "EngineVersion": "0.1.0", "Hostname": "node2",
                "ID": "aaaaaaaaaaaaaaaaaaaaaaaaa", "ManagerStatus": "Leader", "Self": false,
                "Status": "Ready", "TLSStatus": "Unknown",
            })
        );
    }

    #[test]
    fn update_changes_only_what_is_said() {
        let update = Update {
            availability: Some(Availability::Drain),
            role: None,
            label_add: vec!["zone=b".into()],
            label_rm: vec!["old".into()],
            node: "n".into(),
        };
        let spec =
            json!({"Role": "worker", "Availability": "active", "Labels": {"old": "1", "k": "v"}});
        let spec = update.edit(serde_json::from_value(spec).unwrap());
        assert_eq!(
            serde_json::to_value(spec).unwrap(),
            json!({"Role": "worker", "Availability": "drain", "Labels": {"zone": "b", "k": "v"}})
        );
    }
}
