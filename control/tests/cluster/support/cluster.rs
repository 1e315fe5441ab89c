use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use ca::{Authority, Connector, NodeCertificate, NodeKey, NodeTls, Roots, Subject};
use jiff::{SignedDuration, Timestamp};
use model::{
    EndpointId, NodeId, ServiceId, TaskId, TaskState,
    object::{
        DataPathConfig, Meta, NodeDescription, NodeState, RootCa, Service, ServiceEndpoint, Task,
        TaskStatus,
    },
    rpc::{ApiRequest, ApiResponse, AuthorityClient, JoinRequest, MembershipClient, RenewRequest},
    spec::{
        Availability, ClusterSpec, NodeRole, PortSpec, Protocol, PublishMode, ServiceMode,
        ServiceSpec,
    },
};
use store::{State, Transaction};
use swarmnet_control::{ApiHandler, Candidate, InitOptions, Manager, ManagerConfig};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};

use super::{Agent, in_time};

/// A node, and what it proves itself with.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub id: NodeId,
    pub tls: NodeTls,
    pub hostname: String,
    pub vtep: Ipv4Addr,
}

impl Credentials {
    /// The node, with another certificate.
    pub fn showing(&self, tls: NodeTls) -> Self {
        Self {
            tls,
            ..self.clone()
        }
    }

    pub async fn dial(&self, addr: SocketAddr) -> Channel {
        let connector = Connector::member(&self.tls);
        net::dial(&connector, addr).await.unwrap()
    }
}

pub struct Cluster {
    pub manager: Manager,
    /// The first node, the manager's own.
    pub first: Credentials,
    dir: TempDir,
    vtep_last: u8,
}

/// A manager names its address before it listens there.
fn free_addr() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, lab::free_port())
}

fn config(dir: &Path) -> ManagerConfig {
    ManagerConfig {
        state_dir: dir.join("manager"),
        listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        unlock: None,
        api: Arc::new(Echo),
    }
}

/// Says what it was asked.
struct Echo;

/// A request for a path below this one is answered the second time that it is asked, by whichever
/// manager: whoever was asked first might as well be dead.
pub const LOST_ONCE: &str = "/lost-once/";

static LOST: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether somebody was asked for the path.
pub fn was_lost(uri: &str) -> bool {
    LOST.lock().unwrap().contains(uri)
}

#[tonic::async_trait]
impl ApiHandler for Echo {
    async fn answer(&self, request: ApiRequest) -> ApiResponse {
        if request.uri.starts_with(LOST_ONCE) && LOST.lock().unwrap().insert(request.uri.clone()) {
            std::future::pending::<()>().await;
        }
        ApiResponse {
            status: 200,
            content_type: None,
            warning: None,
            body: request.uri.into(),
        }
    }
}

/// Of the first node.
pub fn init_options() -> InitOptions {
    InitOptions {
        spec: ClusterSpec::default(),
        data_path: DataPathConfig::default(),
        description: description("first"),
        availability: Availability::Active,
        advertise_addr: Ipv4Addr::LOCALHOST,
        advertise_port: None,
        data_path_addr: Some(Ipv4Addr::new(192, 0, 2, 1)),
    }
}

fn description(hostname: &str) -> NodeDescription {
    NodeDescription {
        hostname: hostname.to_owned(),
        ..NodeDescription::default()
    }
}

impl Cluster {
    pub async fn new() -> Self {
        Self::with_heartbeat(ClusterSpec::default().dispatcher_heartbeat).await
    }

    pub async fn with_heartbeat(dispatcher_heartbeat: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut init = init_options();
        init.spec.dispatcher_heartbeat = dispatcher_heartbeat;
        let (manager, credentials) = Manager::bootstrap(config(dir.path()), init).await.unwrap();
        Self {
            manager,
            first: Credentials {
                id: credentials.node,
                tls: credentials.tls,
                hostname: "first".to_owned(),
                vtep: credentials.vtep,
            },
            dir,
            vtep_last: 1,
        }
    }

    pub fn config(&self) -> ManagerConfig {
        config(self.dir.path())
    }

    /// Stops the manager and opens it anew, on another port.
    pub async fn restart(&mut self) {
        self.manager.clone().shutdown().await;
        self.manager = Manager::open(self.config(), self.first.tls.clone())
            .await
            .unwrap();
    }

    pub fn state(&self) -> Arc<State> {
        self.manager.store().state()
    }

    pub async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let mut states = self.manager.store().watch();
        in_time(what, states.wait_for(|state| is_so(state)))
            .await
            .expect("the store goes on");
    }

    pub async fn until_node(&self, node: NodeId, state: NodeState) {
        let is_so = |at: &State| at.node(node).unwrap().status.state == state;
        self.until(&format!("node {node} is {state:?}"), is_so)
            .await;
    }

    pub async fn write<T>(&self, f: impl FnOnce(&mut Transaction) -> T + Send) -> T {
        let write = |tx: &mut Transaction| Ok::<_, std::convert::Infallible>(f(tx));
        self.manager.store().write(write).await.unwrap().0
    }

    fn ca(&self) -> RootCa {
        self.state().cluster().unwrap().ca.clone()
    }

    /// As who joins connects.
    pub async fn dial_as_joiner(&self) -> Channel {
        let roots = Roots::from_pem(&self.ca().certificate_pem).unwrap();
        let connector = Connector::joiner(&roots).unwrap();
        net::dial(&connector, self.manager.local_addr())
            .await
            .unwrap()
    }

    /// A certificate of this cluster's root, for whatever is wanted.
    pub fn certify(&self, subject: Subject, now: Timestamp, expiry: SignedDuration) -> NodeTls {
        let ca = self.ca();
        certify(&ca, &ca.certificate_pem, subject, now, expiry)
    }

    /// A certificate of another root, for one who trusts this cluster's, too.
    pub fn certify_by_another_root(&self, subject: Subject) -> NodeTls {
        let now = Timestamp::now();
        let other = ca::new_root(now).unwrap();
        let roots = other.certificate_pem.clone() + &self.ca().certificate_pem;
        certify(&other, &roots, subject, now, SignedDuration::from_hours(24))
    }

    /// A node that joined with the managers' token, and its manager.
    pub async fn join_manager(&mut self) -> (Credentials, Manager) {
        self.vtep_last += 1;
        let token = self.state().cluster().unwrap().tokens.manager.clone();
        let credentials = self.try_join(token).await.unwrap();
        let role = credentials.tls.with(|own| own.identity().role);
        assert_eq!(role, NodeRole::Manager);
        let manager = self.start_manager(&credentials).await;
        (credentials, manager)
    }

    /// The node, certified anew.
    pub async fn renewed(&self, node: &Credentials) -> Credentials {
        let channel = node.dial(self.manager.local_addr()).await;
        let key = NodeKey::generate().unwrap();
        let request_pem = key.request().unwrap();
        let mut client = AuthorityClient::new(channel);
        let renewed = client.renew(RenewRequest { request_pem }).await;
        let certified = renewed.unwrap().into_inner();
        let roots = Roots::from_pem(&certified.roots_pem).unwrap();
        let certificate = NodeCertificate::new(key, &certified.chain_pem, roots).unwrap();
        node.showing(NodeTls::new(certificate).unwrap())
    }

    /// The manager of a node that is to have one. Returns when it takes part.
    pub async fn start_manager(&self, node: &Credentials) -> Manager {
        let listen_addr = free_addr();
        let config = ManagerConfig {
            state_dir: self.dir.path().join(node.id.to_string()),
            listen_addr: listen_addr.into(),
            unlock: None,
            api: Arc::new(Echo),
        };
        let SocketAddr::V4(known) = self.manager.local_addr() else {
            unreachable!("it listens on 127.0.0.1");
        };
        let candidate = Candidate {
            tls: node.tls.clone(),
            addr: listen_addr,
            managers: vec![known],
        };
        let manager = Manager::join(config, &candidate).await.unwrap();
        manager.enrol(candidate);
        in_time("the manager takes part", manager.takes_part()).await;
        manager
    }

    pub async fn try_join(&self, token: String) -> Result<Credentials, Status> {
        let mut client = MembershipClient::new(self.dial_as_joiner().await);
        let key = NodeKey::generate().unwrap();
        let request = JoinRequest {
            token,
            request_pem: key.request().unwrap(),
            description: description("joiner"),
            advertise_addr: None,
            data_path_addr: Some(Ipv4Addr::new(192, 0, 2, self.vtep_last)),
            availability: Availability::Active,
        };
        let joined = client.join(request).await?.into_inner();
        let roots = Roots::from_pem(&joined.certified.roots_pem).unwrap();
        let chain = &joined.certified.chain_pem;
        let certificate = NodeCertificate::new(key, chain, roots).unwrap();
        Ok(Credentials {
            id: joined.node,
            tls: NodeTls::new(certificate).unwrap(),
            hostname: "joiner".to_owned(),
            vtep: joined.vtep,
        })
    }

    pub async fn join(&mut self) -> Credentials {
        self.vtep_last += 1;
        let token = self.state().cluster().unwrap().tokens.worker.clone();
        self.try_join(token).await.unwrap()
    }

    /// A session of an agent that holds nothing.
    pub async fn connect(&self, node: &Credentials) -> Agent {
        Agent::connect(self.manager.local_addr(), node).await
    }

    pub fn applied(&self, node: NodeId) -> (u64, u64) {
        let rows = self.manager.node_rows();
        let row = rows.iter().find(|row| row.id == node.to_string()).unwrap();
        (row.applied, row.current)
    }

    /// Waits until the node has acknowledged all there is.
    pub async fn until_applied(&self, node: NodeId) {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        in_time("the node acknowledged everything", async {
            while self.applied(node).0 < self.applied(node).1 {
                poll.tick().await;
            }
        })
        .await;
    }

    /// A service with one published port, and its one task on `node`.
    pub async fn add_task(&self, node: NodeId, published: u16) -> (TaskId, EndpointId) {
        self.write(|tx| {
            let service = service(tx, published);
            let id = service.id;
            tx.put(service).unwrap();
            let task = task(tx, tx.state().service(id).unwrap().as_ref(), node);
            let task = Task {
                endpoint: Some(tx.allocate_endpoint_id()),
                ..task
            };
            let ids = (task.id, task.endpoint.unwrap());
            tx.put(task).unwrap();
            ids
        })
        .await
    }

    /// Asks for the end of a task, and of its service, as when the service is removed.
    pub async fn stop(&self, id: TaskId) {
        self.write(|tx| {
            let mut task = Task::clone(tx.state().task(id).unwrap());
            task.desired = TaskState::Shutdown;
            let mut service = Service::clone(tx.state().service(task.service).unwrap());
            service.spec.mode = ServiceMode::Replicated { replicas: 0 };
            tx.put(task).unwrap();
            tx.put(service).unwrap();
        })
        .await;
    }
}

fn certify(
    root: &RootCa,
    trusted: &str,
    subject: Subject,
    now: Timestamp,
    expiry: SignedDuration,
) -> NodeTls {
    let key = NodeKey::generate().unwrap();
    let request = ca::Request::from_pem(&key.request().unwrap()).unwrap();
    let authority = Authority::new(root).unwrap();
    let chain = authority.issue(&request, subject, now, expiry).unwrap();
    let roots = Roots::from_pem(trusted).unwrap();
    NodeTls::new(NodeCertificate::new(key, &chain, roots).unwrap()).unwrap()
}

fn service(tx: &Transaction, published: u16) -> Service {
    let port = PortSpec {
        name: None,
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(published),
        mode: PublishMode::Ingress,
    };
    let mut spec = ServiceSpec {
        name: format!("web-{published}"),
        mode: ServiceMode::Replicated { replicas: 1 },
        ..ServiceSpec::default()
    };
    spec.task.container.image = "host".to_owned();
    spec.endpoint.ports = vec![port.clone()];
    Service {
        id: ServiceId::generate(),
        meta: Meta::new(tx.now()),
        endpoint: ServiceEndpoint {
            mode: spec.endpoint.mode,
            ports: vec![port],
            vips: Vec::new(),
        },
        spec,
        previous_spec: None,
        spec_version: tx.version(),
        update_status: None,
    }
}

fn task(tx: &Transaction, service: &Service, node: NodeId) -> Task {
    Task {
        id: TaskId::generate(),
        meta: Meta::new(tx.now()),
        service: service.id,
        service_name: service.spec.name.clone(),
        slot: Some(1),
        node: Some(node),
        spec: service.spec.task.clone(),
        spec_version: service.spec_version,
        host_ports: Vec::new(),
        desired: TaskState::Running,
        status: TaskStatus {
            timestamp: tx.now(),
            state: TaskState::Assigned,
            message: String::new(),
            err: None,
            container: None,
            ports: Vec::new(),
        },
        attachments: Vec::new(),
        endpoint: None,
    }
}
