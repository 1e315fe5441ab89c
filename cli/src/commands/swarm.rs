//! `init`, `join`, `join-token`, `update`, `ca`, `unlock`, `unlock-key`, `leave`.

use anyhow::{Context, Result};
use bollard_stubs::models::{
    Node, Swarm, SwarmInitRequest, SwarmSpec, SwarmSpecCaConfig, SwarmSpecCaConfigExternalCas,
    SwarmSpecDispatcher, SwarmSpecEncryptionConfig, SwarmSpecOrchestration, SwarmSpecRaft, TlsInfo,
    UnlockKeyResponse,
};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    client::{Client, Filters, Route},
    spec::external_ca,
    units::parse_nanos,
};

const LISTEN_DEFAULT: &str = "0.0.0.0:2377";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    Active,
    Pause,
    Drain,
}

#[derive(Debug, Args)]
pub struct Init {
    /// Address that other nodes reach this one at
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = LISTEN_DEFAULT)]
    listen_addr: String,
    /// Address for traffic between tasks
    #[arg(long, value_name = "IP|INTERFACE")]
    data_path_addr: Option<String>,
    /// UDP port for traffic between tasks (1024 - 49151)
    #[arg(long, value_name = "PORT", default_value_t = 4789,
        value_parser = clap::value_parser!(u32).range(1024..=49151))]
    data_path_port: u32,
    /// Pool that subnets of overlay networks are cut from; may be repeated
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<ipnet::Ipv4Net>,
    /// Prefix length of those subnets
    #[arg(long, value_name = "LENGTH", default_value_t = 24,
        value_parser = clap::value_parser!(u32).range(1..=30))]
    default_addr_pool_mask_length: u32,
    /// Whether this node gets tasks
    #[arg(long, value_enum, default_value = "active")]
    availability: Availability,
    /// Form a cluster of one from the state on this node's disk
    #[arg(long)]
    force_new_cluster: bool,
    /// Life of node certificates
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    cert_expiry: Option<i64>,
    /// Period of the nodes' heartbeats
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    dispatcher_heartbeat: Option<i64>,
    /// Ended tasks kept for each slot
    #[arg(long, value_name = "COUNT")]
    task_history_limit: Option<i64>,
    /// Log entries between snapshots
    #[arg(long, value_name = "COUNT")]
    snapshot_interval: Option<u64>,
    /// Without effect here: the one snapshot that is kept has everything
    #[arg(long, value_name = "COUNT")]
    max_snapshots: Option<u64>,
    /// Lock managers: one that starts wants the unlock key
    #[arg(long)]
    autolock: bool,
    /// Who signs certificates in place of the managers, as protocol=cfssl,url=URL,cacert=FILE; may be
    /// repeated
    #[arg(long, value_name = "SPEC", value_parser = external_ca)]
    external_ca: Vec<SwarmSpecCaConfigExternalCas>,
}

/// What Swarm keeps as files beside its log for somebody to restore by hand.
fn warn_of_snapshots(max: Option<u64>) {
    if max.is_some_and(|max| max > 0) {
        eprintln!(
            "WARNING: --max-snapshots is noted and has no effect: each snapshot replaces the one \
             before it; keep older states with `swarmnet backup FILE`"
        );
    }
}

/// The request with what the generated type leaves out.
#[derive(Serialize)]
struct InitRequest {
    #[serde(flatten)]
    request: SwarmInitRequest,
    #[serde(rename = "Availability")]
    availability: Availability,
    #[serde(rename = "AutoLockManagers")]
    autolock: bool,
}

impl Init {
    pub async fn run(self, client: &Client) -> Result<()> {
        let autolock = self.autolock;
        warn_of_snapshots(self.max_snapshots);
        let node: String = client
            .post(Route::new("swarm").segment("init"), &self.request())
            .await?;
        println!("Swarm initialized: current node ({node}) is now a manager.\n");
        print_join_command(client, &node, Role::Worker).await?;
        println!(
            "To add a manager to this swarm, run 'swarmnet join-token manager' and follow the \
             instructions."
        );
        if autolock {
            println!();
            print_unlock_key(&unlock_key(client).await?);
        }
        Ok(())
    }

    fn request(self) -> InitRequest {
        let pools = self.default_addr_pool.iter().map(ToString::to_string);
        let request = SwarmInitRequest {
            listen_addr: Some(self.listen_addr),
            advertise_addr: Some(self.advertise_addr.unwrap_or_default()),
            data_path_addr: Some(self.data_path_addr.unwrap_or_default()),
            data_path_port: Some(self.data_path_port),
            default_addr_pool: Some(pools.collect()),
            force_new_cluster: Some(self.force_new_cluster),
            subnet_size: Some(self.default_addr_pool_mask_length),
            spec: Some(SwarmSpec {
                orchestration: Some(SwarmSpecOrchestration {
                    task_history_retention_limit: self.task_history_limit,
                }),
                raft: Some(SwarmSpecRaft {
                    snapshot_interval: self.snapshot_interval,
                    keep_old_snapshots: self.max_snapshots,
                    ..SwarmSpecRaft::default()
                }),
                dispatcher: Some(SwarmSpecDispatcher {
                    heartbeat_period: self.dispatcher_heartbeat,
                }),
                ca_config: Some(SwarmSpecCaConfig {
                    node_cert_expiry: self.cert_expiry,
                    external_cas: Some(self.external_ca),
                    ..SwarmSpecCaConfig::default()
                }),
                encryption_config: Some(SwarmSpecEncryptionConfig {
                    auto_lock_managers: Some(self.autolock),
                }),
                ..SwarmSpec::default()
            }),
        };
        InitRequest {
            request,
            autolock: self.autolock,
            availability: self.availability,
        }
    }
}

#[derive(Debug, Args)]
pub struct Join {
    /// Token of the cluster, from `swarmnet join-token`
    #[arg(long)]
    token: String,
    /// Address that other nodes reach this one at
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Address to listen on, should the node become a manager
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = LISTEN_DEFAULT)]
    listen_addr: String,
    /// Address for traffic between tasks
    #[arg(long, value_name = "IP|INTERFACE")]
    data_path_addr: Option<String>,
    /// Whether this node gets tasks
    #[arg(long, value_enum, default_value = "active")]
    availability: Availability,
    /// Address of a manager
    #[arg(value_name = "HOST:PORT")]
    remote: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JoinRequest {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    remote_addrs: [String; 1],
    join_token: String,
    availability: Availability,
}

impl Join {
    pub async fn run(self, client: &Client) -> Result<()> {
        let request = JoinRequest {
            listen_addr: self.listen_addr,
            advertise_addr: self.advertise_addr.unwrap_or_default(),
            data_path_addr: self.data_path_addr.unwrap_or_default(),
            remote_addrs: [self.remote],
            join_token: self.token.trim().to_owned(),
            availability: self.availability,
        };
        client
            .post_only(Route::new("swarm").segment("join"), &request)
            .await?;
        let swarm = client.info().await?.swarm.unwrap_or_default();
        let role = match swarm.control_available {
            Some(true) => "manager",
            _ => "worker",
        };
        println!("This node joined a swarm as a {role}.");
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Worker,
    Manager,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

#[derive(Debug, Args)]
pub struct JoinToken {
    #[arg(value_enum)]
    role: Role,
    /// Only display the token
    #[arg(short, long)]
    quiet: bool,
    /// Replace the token: the old one stops working for new nodes
    #[arg(long)]
    rotate: bool,
}

impl JoinToken {
    pub async fn run(self, client: &Client) -> Result<()> {
        if self.rotate {
            rotate(client, self.role).await?;
            if !self.quiet {
                println!("Successfully rotated {} join token.\n", self.role.as_str());
            }
        }
        if self.quiet {
            println!("{}", token(client, self.role).await?);
            return Ok(());
        }
        let info = client.info().await?.swarm.unwrap_or_default();
        let node = info.node_id.unwrap_or_default();
        print_join_command(client, &node, self.role).await
    }
}

async fn rotate(client: &Client, role: Role) -> Result<()> {
    let swarm = client.swarm().await?;
    let route = update_route(&swarm)
        .query("rotateWorkerToken", role == Role::Worker)
        .query("rotateManagerToken", role == Role::Manager);
    client.post_only(route, &swarm.spec).await?;
    Ok(())
}

/// An update of what was read.
fn update_route(swarm: &Swarm) -> Route {
    let version = swarm.version.as_ref().and_then(|version| version.index);
    Route::new("swarm")
        .segment("update")
        .query("version", version.unwrap_or_default())
}

async fn token(client: &Client, role: Role) -> Result<String> {
    let tokens = client.swarm().await?.join_tokens.unwrap_or_default();
    let token = match role {
        Role::Worker => tokens.worker,
        Role::Manager => tokens.manager,
    };
    token.context("the daemon tells no join token")
}

async fn print_join_command(client: &Client, node: &str, role: Role) -> Result<()> {
    let token = token(client, role).await?;
    let status = client.node(node).await?.manager_status;
    let addr = status
        .and_then(|status| status.addr)
        .context("this node has no manager address: run the command on a manager")?;
    let role = role.as_str();
    println!("To add a {role} to this swarm, run the following command:\n");
    println!("    swarmnet join --token {token} {addr}\n");
    Ok(())
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Update {
    /// Lock managers: one that starts wants the unlock key
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    autolock: Option<bool>,
    /// Life of node certificates
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    cert_expiry: Option<i64>,
    /// Period of the nodes' heartbeats
    #[arg(long, value_name = "DURATION", value_parser = parse_nanos)]
    dispatcher_heartbeat: Option<i64>,
    /// Ended tasks kept for each slot
    #[arg(long, value_name = "COUNT")]
    task_history_limit: Option<i64>,
    /// Log entries between snapshots
    #[arg(long, value_name = "COUNT")]
    snapshot_interval: Option<u64>,
    /// Without effect here: the one snapshot that is kept has everything
    #[arg(long, value_name = "COUNT")]
    max_snapshots: Option<u64>,
    /// Who signs certificates in place of the managers, as protocol=cfssl,url=URL,cacert=FILE; may be
    /// repeated
    #[arg(long, value_name = "SPEC", value_parser = external_ca)]
    external_ca: Vec<SwarmSpecCaConfigExternalCas>,
}

impl Update {
    pub async fn run(self, client: &Client) -> Result<()> {
        warn_of_snapshots(self.max_snapshots);
        let swarm = client.swarm().await?;
        let spec = swarm.spec.clone().unwrap_or_default();
        let was_locking = is_locking(&spec);
        let spec = self.applied_to(spec);
        client.post_only(update_route(&swarm), &spec).await?;
        println!("Swarm updated.");
        if is_locking(&spec) && !was_locking {
            println!();
            print_unlock_key(&unlock_key(client).await?);
        }
        Ok(())
    }

    /// The settings with those that were given.
    fn applied_to(&self, mut spec: SwarmSpec) -> SwarmSpec {
        if let Some(autolock) = self.autolock {
            let encryption = spec.encryption_config.get_or_insert_default();
            encryption.auto_lock_managers = Some(autolock);
        }
        if let Some(expiry) = self.cert_expiry {
            spec.ca_config.get_or_insert_default().node_cert_expiry = Some(expiry);
        }
        if !self.external_ca.is_empty() {
            let ca = spec.ca_config.get_or_insert_default();
            ca.external_cas = Some(self.external_ca.clone());
        }
        if let Some(period) = self.dispatcher_heartbeat {
            spec.dispatcher.get_or_insert_default().heartbeat_period = Some(period);
        }
        if let Some(limit) = self.task_history_limit {
            let orchestration = spec.orchestration.get_or_insert_default();
            orchestration.task_history_retention_limit = Some(limit);
        }
        if let Some(interval) = self.snapshot_interval {
            spec.raft.get_or_insert_default().snapshot_interval = Some(interval);
        }
        if let Some(keep) = self.max_snapshots {
            spec.raft.get_or_insert_default().keep_old_snapshots = Some(keep);
        }
        spec
    }
}

fn is_locking(spec: &SwarmSpec) -> bool {
    let encryption = spec.encryption_config.as_ref();
    encryption.and_then(|encryption| encryption.auto_lock_managers) == Some(true)
}

#[derive(Debug, Args)]
pub struct Ca {
    /// Replace the root certificate, and with it all others, while the cluster runs
    #[arg(long)]
    rotate: bool,
    /// Do not wait until it is replaced
    #[arg(short, long, requires = "rotate")]
    detach: bool,
}

/// Between two looks at a rotation.
const ROTATION_LOOK: std::time::Duration = std::time::Duration::from_millis(200);

impl Ca {
    pub async fn run(self, client: &Client) -> Result<()> {
        if self.rotate {
            let old = trust_root(client.swarm().await?.tls_info);
            rotate_root(client).await?;
            if self.detach {
                return Ok(());
            }
            let mut shown = String::new();
            while client.swarm().await?.root_rotation_in_progress == Some(true) {
                let line = rotation_line(&client.nodes(&Filters::default()).await?, &old);
                if line != shown {
                    // The certificate alone is on the standard output.
                    eprintln!("{line}");
                    shown = line;
                }
                tokio::time::sleep(ROTATION_LOOK).await;
            }
        }
        let root = client
            .swarm()
            .await?
            .tls_info
            .unwrap_or_default()
            .trust_root;
        let root = root.context("the daemon tells no root certificate")?;
        println!("{}", root.trim_end());
        Ok(())
    }
}

fn trust_root(info: Option<TlsInfo>) -> String {
    info.unwrap_or_default().trust_root.unwrap_or_default()
}

/// How far a rotation is, and whom it waits for: those whose certificates are from the `old` root.
fn rotation_line(nodes: &[Node], old: &str) -> String {
    let description = |node: &Node| node.description.clone().unwrap_or_default();
    let waits = nodes.iter().map(description);
    let waits = waits.filter(|node| trust_root(node.tls_info.clone()) == old);
    let mut names: Vec<_> = waits.filter_map(|node| node.hostname).collect();
    names.sort();
    let renewed = nodes.len() - names.len();
    let line = format!("renewed certificates: {renewed} of {} nodes", nodes.len());
    match names.is_empty() {
        true => line,
        false => format!("{line}, waiting for {}", names.join(", ")),
    }
}

async fn rotate_root(client: &Client) -> Result<()> {
    let swarm = client.swarm().await?;
    let mut spec = swarm.spec.clone().unwrap_or_default();
    let ca = spec.ca_config.get_or_insert_default();
    ca.force_rotate = Some(ca.force_rotate.unwrap_or_default() + 1);
    client.post_only(update_route(&swarm), &spec).await?;
    Ok(())
}

#[derive(Debug, Args)]
pub struct Unlock {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct UnlockRequest {
    unlock_key: String,
}

impl Unlock {
    /// The key is read from the standard input: an argument would be seen by everybody.
    pub async fn run(self, client: &Client) -> Result<()> {
        use std::io::Write;
        // On the standard error, so that the answer alone is on the standard output.
        eprint!("Enter unlock key: ");
        std::io::stderr().flush()?;
        let mut key = String::new();
        std::io::stdin()
            .read_line(&mut key)
            .context("cannot read the unlock key")?;
        let request = UnlockRequest {
            unlock_key: key.trim().to_owned(),
        };
        client
            .post_only(Route::new("swarm").segment("unlock"), &request)
            .await?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct UnlockKey {
    /// Only display the key
    #[arg(short, long)]
    quiet: bool,
    /// Replace the key
    #[arg(long)]
    rotate: bool,
}

impl UnlockKey {
    pub async fn run(self, client: &Client) -> Result<()> {
        if self.rotate {
            let swarm = client.swarm().await?;
            let route = update_route(&swarm).query("rotateManagerUnlockKey", true);
            client.post_only(route, &swarm.spec).await?;
            if !self.quiet {
                println!("Successfully rotated manager unlock key.\n");
            }
        }
        let key = unlock_key(client).await?;
        match self.quiet {
            true => println!("{key}"),
            false => print_unlock_key(&key),
        }
        Ok(())
    }
}

async fn unlock_key(client: &Client) -> Result<String> {
    let route = Route::new("swarm").segment("unlockkey");
    let answer: UnlockKeyResponse = client.get(route).await?;
    let key = answer.unlock_key.filter(|key| !key.is_empty());
    key.context("no unlock key is set: lock managers with `swarmnet update --autolock` first")
}

fn print_unlock_key(key: &str) {
    println!(
        "To unlock a swarm manager after it restarts, run the `swarmnet unlock`\ncommand and provide \
         the following key:\n\n    {key}\n\nPlease remember to store this key in a password manager, \
         since without it you\nwill not be able to restart the manager."
    );
}

#[derive(Debug, Args)]
pub struct Leave {
    /// Leave even as a manager, or when it ends the cluster
    #[arg(short, long)]
    force: bool,
}

impl Leave {
    pub async fn run(self, client: &Client) -> Result<()> {
        let route = Route::new("swarm").segment("leave");
        client
            .post_only(route.flag("force", self.force), &())
            .await?;
        println!("Node left the swarm.");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        init: Init,
    }

    #[test]
    fn init_request_is_what_docker_sends() {
        let line = Line::parse_from(["x", "--advertise-addr", "eth0", "--cert-expiry", "90days"]);
        let request = serde_json::to_value(line.init.request()).unwrap();
        assert_eq!(request["ListenAddr"], "0.0.0.0:2377");
        assert_eq!(request["AdvertiseAddr"], "eth0");
        assert_eq!(request["Availability"], "active");
        assert_eq!(request["SubnetSize"], 24);
        assert_eq!(
            request["Spec"]["CAConfig"]["NodeCertExpiry"],
            7_776_000_000_000_000_i64
        );
    }

    #[derive(Debug, Parser)]
    struct UpdateLine {
        #[command(flatten)]
        update: Update,
    }

    #[test]
    fn update_changes_what_was_given_and_nothing_else() {
        let update = |args: &[&str]| {
            let line = UpdateLine::try_parse_from([&["x"], args].concat()).unwrap();
            let spec = SwarmSpec {
                name: Some("default".to_owned()),
                ..SwarmSpec::default()
            };
            serde_json::to_value(line.update.applied_to(spec)).unwrap()
        };
        let spec = update(&["--cert-expiry", "2160h0m0s", "--task-history-limit", "0"]);
        let expiry = 7_776_000_000_000_000_i64;
        assert_eq!(spec["CAConfig"]["NodeCertExpiry"], expiry);
        assert_eq!(spec["Orchestration"]["TaskHistoryRetentionLimit"], 0);
        assert_eq!(spec["Name"], "default");
        assert_eq!(spec["Raft"], serde_json::Value::Null);
        for (args, on) in [
            ("--autolock", true),
            ("--autolock=true", true),
            ("--autolock=false", false),
        ] {
            assert_eq!(update(&[args])["EncryptionConfig"]["AutoLockManagers"], on);
        }
        let nothing = UpdateLine::try_parse_from(["x"]).unwrap_err().to_string();
        assert!(nothing.contains("--cert-expiry"), "{nothing}");
        let cfssl = "protocol=cfssl,url=https://ca.example";
        let external = &update(&["--external-ca", cfssl])["CAConfig"]["ExternalCAs"];
        assert_eq!(external[0]["URL"], "https://ca.example");
    }

    #[test]
    fn rotation_names_the_nodes_it_waits_for() {
        let node = |name: &str, root: &str| {
            let node = serde_json::json!({"Description": {"Hostname": name,
                "TLSInfo": {"TrustRoot": root}}});
            serde_json::from_value::<Node>(node).unwrap()
        };
        let nodes = [node("b", "old"), node("c", "new"), node("a", "old")];
        assert_eq!(
            rotation_line(&nodes, "old"),
            "renewed certificates: 1 of 3 nodes, waiting for a, b"
        );
        assert_eq!(
            rotation_line(&nodes[1..2], "old"),
            "renewed certificates: 1 of 1 nodes"
        );
    }

    #[test]
    fn ports_and_pools_out_of_range_are_refused() {
        for args in [
            ["x", "--data-path-port", "80"],
            ["x", "--default-addr-pool", "10.0.0.0/33"],
            ["x", "--default-addr-pool-mask-length", "31"],
            ["x", "--availability", "asleep"],
        ] {
            assert!(Line::try_parse_from(args).is_err(), "{args:?}");
        }
    }
}
