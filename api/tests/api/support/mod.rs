//! A daemon for the stock `docker` client: the router on a socket, over a real manager and its
//! store, with an agent that speaks the real protocol and says of every task what it was told.

mod agent;
mod client;

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use control::{ApiHandler, InitOptions, Manager, ManagerConfig};
use model::{
    NodeId,
    inspect::{DropRow, Table, TraceAnswer, TraceQuery},
    object::NodeDescription,
    rpc::{ApiRequest, ApiResponse},
    spec::Protocol,
};
use serde_json::{Value, json};
use swarmnet_api::{
    ApiError, HostPort, InitRequest, JoinParams, LocalNode, LocalStatus, MemberState, PortUser,
    PublishedPorts, RemoteManager,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use agent::Agent;
pub use client::{Client, docker_is_here};

/// For anything that happens by itself.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// TCP port that a process of the node listens on.
pub const TAKEN_PORT: u16 = 9999;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The node behind the API: in no swarm, or the manager of its own.
pub struct TestNode {
    dir: TempDir,
    member: Mutex<Option<Member>>,
}

struct Member {
    manager: Manager,
    node: NodeId,
    // Ends its session when dropped.
    _agent: Agent,
}

impl TestNode {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            member: Mutex::new(None),
        })
    }
}

/// No other manager forwards anything.
struct Alone;

#[async_trait]
impl ApiHandler for Alone {
    async fn answer(&self, request: ApiRequest) -> ApiResponse {
        panic!("{} was forwarded", request.uri)
    }
}

#[async_trait]
impl LocalNode for TestNode {
    async fn init(&self, request: InitRequest) -> Result<NodeId, ApiError> {
        let config = ManagerConfig {
            state_dir: self.dir.path().join("manager"),
            listen_addr: SocketAddr::from((LOCALHOST, 0)),
            unlock: None,
            api: Arc::new(Alone),
        };
        let options = InitOptions {
            spec: request.spec,
            data_path: request.data_path,
            description: self.description(),
            availability: request.availability,
            advertise_addr: LOCALHOST,
            advertise_port: None,
            data_path_addr: None,
        };
        let (manager, credentials) = Manager::bootstrap(config, options)
            .await
            .map_err(|err| ApiError::internal(err.to_string()))?;
        let agent = Agent::start(manager.local_addr(), &credentials, self.description());
        *self.member.lock().unwrap() = Some(Member {
            manager,
            node: credentials.node,
            _agent: agent,
        });
        Ok(credentials.node)
    }

    async fn force_new_cluster(&self, _advertise: Option<HostPort>) -> Result<NodeId, ApiError> {
        Err(ApiError::unavailable("no manager has run here"))
    }

    async fn join(&self, params: JoinParams) -> Result<(), ApiError> {
        Err(ApiError::internal(format!(
            "no manager at {:?}",
            params.remotes
        )))
    }

    async fn unlock(&self, _key: vault::UnlockKey) -> Result<(), ApiError> {
        Err(ApiError::invalid(swarmnet_api::WRONG_KEY))
    }

    async fn leave(&self) -> Result<Option<String>, ApiError> {
        let member = self.member.lock().unwrap().take();
        if let Some(member) = member {
            member.manager.shutdown().await;
        }
        Ok(None)
    }

    async fn backup(&self) -> Result<File, ApiError> {
        Err(ApiError::unavailable("no state directory"))
    }

    fn status(&self) -> LocalStatus {
        let member = self.member.lock().unwrap();
        let Some(member) = &*member else {
            return LocalStatus::default();
        };
        let SocketAddr::V4(addr) = member.manager.local_addr() else {
            unreachable!("it listens on 127.0.0.1");
        };
        LocalStatus {
            state: MemberState::Manager,
            node: Some(member.node),
            addr: Some(LOCALHOST),
            remote_managers: vec![RemoteManager {
                node: Some(member.node),
                addr,
            }],
            error: None,
        }
    }

    fn manager(&self) -> Option<Manager> {
        self.member
            .lock()
            .unwrap()
            .as_ref()
            .map(|member| member.manager.clone())
    }

    fn description(&self) -> NodeDescription {
        NodeDescription {
            hostname: "node-1".into(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 2_000_000_000,
            memory_bytes: 4 << 30,
            engine_version: "0.1.0".into(),
        }
    }

    fn port_user(&self, ports: &PublishedPorts) -> Option<((Protocol, u16), PortUser)> {
        let taken = (Protocol::Tcp, TAKEN_PORT);
        let user = PortUser {
            process: Some(("nginx".to_owned(), 4711)),
        };
        ports.contains_key(&taken).then_some((taken, user))
    }

    async fn trace(&self, query: TraceQuery) -> Result<TraceAnswer, ApiError> {
        Err(ApiError::invalid(format!("{query:?}")))
    }

    async fn inspect(&self, table: Table) -> Result<Value, ApiError> {
        match table {
            Table::Drops => Ok(json!([DropRow {
                reason: "NoBackend".into(),
                explanation: "no task to send to".into(),
                packets: 3,
                bytes: 180,
                programs: Vec::new(),
            }])),
            Table::Nodes => Ok(json!([])),
            table => Err(ApiError::unavailable(format!(
                "no data plane for {table:?}"
            ))),
        }
    }
}

/// The router of a [`TestNode`] on a socket. Stops when dropped.
pub struct Daemon {
    stop: CancellationToken,
    dir: TempDir,
    serving: Option<JoinHandle<()>>,
}

impl Daemon {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let socket = dir.path().join("docker.sock");
        let router = swarmnet_api::router(TestNode::new());
        let (path, stopped) = (socket.clone(), stop.clone());
        let serving = tokio::spawn(async move {
            swarmnet_api::serve(&path, router, stopped).await.unwrap();
        });
        let daemon = Self {
            stop,
            dir,
            serving: Some(serving),
        };
        until("the socket answers", || async {
            tokio::net::UnixStream::connect(&socket).await.is_ok()
        })
        .await;
        daemon
    }

    /// A stock client of this daemon.
    pub fn client(&self) -> Client {
        Client::new(self.dir.path())
    }

    /// Stops serving, and waits for its end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let serving = self.serving.take().expect("stopped once");
        in_time("the server ends", serving).await.unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Asks again and again until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let asking = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while !is_so().await {
            pace.tick().await;
        }
    };
    in_time(what, asking).await;
}
