//! A manager: the store, its office when it leads, and the gRPC server for the other nodes.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ca::{Connector, NodeTls};
use jiff::Timestamp;
use model::{
    NodeId, Version,
    inspect::NodeRow,
    object::{NodeState, RaftId},
    rpc::{
        ApiRequest, ApiServer, AuthorityServer, Certified, DispatcherServer, EnrolRequest,
        MembershipClient, MembershipServer, RaftServer, leader_named,
    },
    spec::ClusterSpec,
};
use store::{Standing, Start, Store, StoreConfig, StoreError, WriteError};
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Status, service::Routes};
use tracing::{error, info, warn};
use vault::UnlockKey;

use crate::{
    access::Access,
    authority::{self, AuthorityService},
    bootstrap::{self, BootstrapError, InitOptions, NodeCredentials},
    dispatcher::DispatcherService,
    external::{self, ExternalCaError},
    forward::{self, ApiHandler, ApiService, Forwarded},
    lock,
    membership::MembershipService,
    office::{self, Offices, STOP_WAIT},
    raft::{GrpcTransport, RaftService},
};

/// Between attempts to become a manager.
const ENROL_RETRY: Duration = Duration::from_millis(500);
/// For one attempt, which waits for the log to be copied.
const ENROL_WAIT: Duration = Duration::from_secs(30);

/// Where a manager keeps its state and is reached.
#[derive(Clone)]
pub struct ManagerConfig {
    /// Of the manager alone; made when missing.
    pub state_dir: PathBuf,
    /// For the other nodes. Port 0 asks for a free one.
    pub listen_addr: SocketAddr,
    /// Answers the API's requests that other managers forward to this one.
    pub api: Arc<dyn ApiHandler>,
    /// Opens what the manager keeps, where managers are locked.
    pub unlock: Option<UnlockKey>,
}

/// A member of the cluster that is to be a manager.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its certificate is a manager's.
    pub tls: NodeTls,
    /// Where its manager is reached.
    pub addr: SocketAddrV4,
    /// Managers to ask; any will do.
    pub managers: Vec<SocketAddrV4>,
}

/// What a manager of the cluster is to the others, as this one knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    pub leads: bool,
    pub reachable: bool,
}

/// Why a manager does not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("cannot listen on {addr}: {source}; is another manager running there?")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("there is no swarm in `{}`; make one with `swarmnet init`, or join one", .0.display())]
    NoCluster(PathBuf),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the first write failed: {0}")]
    Write(String),
}

/// A running manager. A clone is the same one; it stops with [`Manager::shutdown`], or, without
/// its orderly end, when the last clone goes.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    offices: Offices,
    tls: NodeTls,
    local_addr: SocketAddr,
    tasks: TaskTracker,
    cancel: CancellationToken,
    _cancel_on_drop: DropGuard,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("local_addr", &self.inner.local_addr)
            .finish_non_exhaustive()
    }
}

impl Manager {
    /// Makes a new cluster with this node as its first, and starts its manager.
    ///
    /// # Errors
    /// When the address is taken, the store cannot be opened or has a cluster already, or the
    /// options do not fit. The store is left without a cluster then.
    pub async fn bootstrap(
        config: ManagerConfig,
        init: InitOptions,
    ) -> Result<(Self, NodeCredentials), ManagerError> {
        let (listener, local_addr) = listen(config.listen_addr).await?;
        let advertised = init.advertise_port.unwrap_or(local_addr.port());
        let addr = SocketAddr::from((init.advertise_addr, advertised));
        let transport = Arc::new(GrpcTransport::default());
        let store = open_store(&config, addr, Start::Found, transport.clone()).await?;
        let founding =
            bootstrap::found(&init, local_addr.port(), store.id(), Timestamp::now()).await;
        let created = match founding {
            Ok(founding) => store.write(|tx| bootstrap::create(tx, founding)).await,
            Err(error) => Err(WriteError::Refused(error)),
        };
        match created {
            Ok((credentials, _)) => {
                info!(cluster.id = %credentials.cluster, node.id = %credentials.node, "swarm made");
                let tls = credentials.tls.clone();
                transport.secure(tls.clone());
                let manager = Self::start(store, tls, listener, config).await;
                Ok((manager, credentials))
            }
            Err(error) => {
                store.shutdown().await;
                Err(match error {
                    WriteError::Refused(error) => error.into(),
                    other => ManagerError::Write(other.to_string()),
                })
            }
        }
    }

    /// Starts the manager of a cluster that was made earlier, on the node that has `tls`.
    ///
    /// # Errors
    /// When the address is taken, the store cannot be opened, or it has no cluster.
    pub async fn open(config: ManagerConfig, tls: NodeTls) -> Result<Self, ManagerError> {
        let (listener, local_addr) = listen(config.listen_addr).await?;
        let transport = GrpcTransport::secured(tls.clone());
        let store = open_store(&config, local_addr, Start::Join, transport).await?;
        if store.members().voters.is_empty() {
            store.shutdown().await;
            return Err(ManagerError::NoCluster(config.state_dir));
        }
        Ok(Self::start(store, tls, listener, config).await)
    }

    /// Starts a manager that has yet to learn the cluster from the others. They know nothing of it
    /// before [`Manager::enrol`].
    ///
    /// # Errors
    /// When the address is taken or the store cannot be opened.
    pub async fn join(config: ManagerConfig, candidate: &Candidate) -> Result<Self, ManagerError> {
        let (listener, _) = listen(config.listen_addr).await?;
        let tls = candidate.tls.clone();
        let transport = GrpcTransport::secured(tls.clone());
        let store = open_store(&config, candidate.addr.into(), Start::Join, transport).await?;
        Ok(Self::start(store, tls, listener, config).await)
    }

    /// Asks the others to take this manager in, until it takes part, for which
    /// [`Manager::takes_part`] waits. From then on they count on it: two managers do nothing without
    /// both. So its node has to have everything on its disk by now that brings it back.
    pub fn enrol(&self, candidate: Candidate) {
        let enrolling = enrol(self.store().clone(), candidate);
        let cancel = self.inner.cancel.clone();
        self.inner.tasks.spawn(async move {
            cancel.run_until_cancelled(enrolling).await;
        });
    }

    /// Starts the manager of the node that has `tls` as the only one, on the state that it has. See
    /// [`Store::force_new`]. All other managers become workers.
    ///
    /// # Errors
    /// When there is no state, or as [`Manager::open`].
    pub async fn force_new(
        config: ManagerConfig,
        tls: NodeTls,
        advertised: SocketAddrV4,
    ) -> Result<Self, ManagerError> {
        let (listener, _) = listen(config.listen_addr).await?;
        Store::force_new(&config.state_dir, advertised.into(), config.unlock.as_ref()).await?;
        let transport = GrpcTransport::secured(tls.clone());
        let store = open_store(&config, advertised.into(), Start::Join, transport).await?;
        let own = node_of(&tls);
        let reset = store
            .write(|tx| {
                bootstrap::reset_managers(tx, own, store.id(), advertised);
                Ok::<_, std::convert::Infallible>(())
            })
            .await;
        if let Err(error) = reset {
            store.shutdown().await;
            return Err(ManagerError::Write(error.to_string()));
        }
        info!(node.id = %own, "this manager is the only one now");
        Ok(Self::start(store, tls, listener, config).await)
    }

    /// One that leads already is in office when this returns.
    async fn start(
        store: Store,
        tls: NodeTls,
        listener: TcpListener,
        config: ManagerConfig,
    ) -> Self {
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (offices, holding) = office::hold(store.clone(), node_of(&tls), cancel.clone());
        office::spawn(&tasks, &cancel, "office", holding);
        let local_addr = listener.local_addr().unwrap_or(config.listen_addr);
        let services = services(&store, &offices, &tls, config.api);
        let access = Arc::new(Access {
            store: store.clone(),
            cluster: tls.with(|own| own.identity().cluster),
        });
        let served = net::serve(listener, tls.clone(), access, services, cancel.clone());
        let serving = async {
            if let Err(error) = served.await {
                error!(%error, "the server for other nodes failed");
            }
        };
        office::spawn(&tasks, &cancel, "server", serving);
        let locking = lock::run(store.clone(), cancel.clone());
        office::spawn(&tasks, &cancel, "lock", locking);
        if store.standing().borrow().leads() {
            offices.opened().await;
        }
        info!(listen.addr = %local_addr, raft.id = %store.id(), "manager is ready");
        Self {
            inner: Arc::new(Inner {
                store,
                offices,
                tls,
                local_addr,
                tasks,
                _cancel_on_drop: cancel.clone().drop_guard(),
                cancel,
            }),
        }
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Where the manager listens, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Has the leader answer a request of the API, if that is another manager.
    pub async fn forward(&self, request: &ApiRequest) -> Forwarded {
        forward::forward(&self.inner.store, &self.inner.tls, request).await
    }

    /// Whether a manager leads, and can be reached from here.
    pub fn reach(&self, id: RaftId) -> Reach {
        let store = &self.inner.store;
        let standing = store.standing().borrow().clone();
        match standing {
            Standing::Follows { leader, .. } => Reach {
                leads: leader == id,
                // Only the leader hears from all.
                reachable: leader == id || store.id() == id,
            },
            standing => Reach {
                leads: standing.leads() && store.id() == id,
                reachable: store.is_reachable(id),
            },
        }
    }

    /// Waits until this manager has a vote and knows the cluster.
    pub async fn takes_part(&self) {
        let store = &self.inner.store;
        let mut states = store.watch();
        let mut look = tokio::time::interval(ENROL_RETRY);
        while !store.members().voters.contains_key(&store.id())
            || states.borrow_and_update().cluster().is_none()
        {
            look.tick().await;
        }
    }

    /// Signs for this manager's own node: it needs no certificate for that, so that a cluster whose
    /// managers were all away for longer than their certificates lived comes back by itself.
    ///
    /// # Errors
    /// A request that is none, or a node that is no member any more.
    pub async fn certify(&self, request_pem: &str) -> Result<Certified, Status> {
        let Inner { store, tls, .. } = &*self.inner;
        authority::renew(store, tls, node_of(tls), request_pem).await
    }

    /// Whether an external CA in `spec` can be used from here, when they are others than before.
    ///
    /// # Errors
    /// Why none can.
    pub async fn reach_external_cas(&self, spec: &ClusterSpec) -> Result<(), ExternalCaError> {
        let Inner { store, tls, .. } = &*self.inner;
        match store.state().cluster() {
            Some(cluster) => external::reach(cluster, spec, tls).await,
            None => Ok(()),
        }
    }

    /// Each node, and how far it follows: `inspect nodes`. Only the leader hears from nodes.
    pub fn node_rows(&self) -> Vec<NodeRow> {
        let state = self.inner.store.state();
        let office = self.inner.offices.now();
        let reached = |node| {
            office
                .as_ref()
                .map_or(Version(0), |office| office.hub.reached(node))
        };
        let Version(current) = state.version();
        let row = |node: &model::object::Node| NodeRow {
            id: node.id.to_string(),
            hostname: node.description.hostname.clone(),
            state: state_name(node.status.state).to_owned(),
            vtep: node.vtep,
            applied: reached(node.id).0,
            current,
            doubt: None,
        };
        state.nodes().map(|node| row(node)).collect()
    }

    /// Stops: no new sessions, the open ones end, the loops end, the store is left in order.
    pub async fn shutdown(self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        // The office has its own time to close.
        if tokio::time::timeout(STOP_WAIT * 2, self.inner.tasks.wait())
            .await
            .is_err()
        {
            warn!(
                tasks = self.inner.tasks.len(),
                "not everything ended in time; stopping anyway"
            );
        }
        self.inner.store.shutdown().await;
        info!("manager has stopped");
    }
}

fn node_of(tls: &NodeTls) -> NodeId {
    tls.with(|own| own.identity().node)
}

async fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ManagerError> {
    net::listen(addr)
        .await
        .map_err(|source| ManagerError::Listen { addr, source })
}

async fn open_store(
    config: &ManagerConfig,
    addr: SocketAddr,
    start: Start,
    transport: Arc<GrpcTransport>,
) -> Result<Store, StoreError> {
    let store = StoreConfig {
        addr,
        start,
        transport,
        unlock: config.unlock.clone(),
    };
    Store::open(&config.state_dir, store).await
}

/// What this manager answers to the other nodes.
fn services(
    store: &Store,
    offices: &Offices,
    tls: &NodeTls,
    handler: Arc<dyn ApiHandler>,
) -> Routes {
    let dispatcher = DispatcherServer::new(DispatcherService {
        offices: offices.clone(),
    });
    let raft = RaftServer::new(RaftService {
        store: store.clone(),
    });
    let api = ApiServer::new(ApiService {
        store: store.clone(),
        handler,
    });
    let membership = MembershipServer::new(MembershipService {
        offices: offices.clone(),
        tls: tls.clone(),
    });
    let authority = AuthorityServer::new(AuthorityService {
        store: store.clone(),
        tls: tls.clone(),
    });
    Routes::new(membership)
        .add_service(authority)
        .add_service(
            dispatcher
                .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(net::MESSAGE_BYTES_MAX),
        )
        .add_service(
            raft.max_decoding_message_size(net::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(net::MESSAGE_BYTES_MAX),
        )
        .add_service(
            api.max_decoding_message_size(net::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(net::MESSAGE_BYTES_MAX),
        )
}

/// Asks one manager after the other, and whom they name, until this one takes part.
async fn enrol(store: Store, candidate: Candidate) {
    let request = EnrolRequest {
        raft: store.id(),
        addr: candidate.addr,
    };
    let mut named = None;
    for asked in candidate.managers.iter().cycle() {
        let addr = named.take().unwrap_or(*asked);
        let failure = match ask(&candidate.tls, addr, request).await {
            Ok(()) => return,
            Err(failure) => failure,
        };
        named = failure.leader;
        if named.is_none() {
            warn!(manager.addr = %addr, reason = failure.reason, "not a manager yet");
            tokio::time::sleep(ENROL_RETRY).await;
        }
    }
}

/// Why a manager did not take another in.
struct NotEnrolled {
    reason: String,
    /// Who may.
    leader: Option<SocketAddrV4>,
}

impl From<Status> for NotEnrolled {
    fn from(status: Status) -> Self {
        Self {
            reason: net::refused_certificate(&status)
                .unwrap_or_else(|| status.message().to_owned()),
            leader: leader_named(&status),
        }
    }
}

async fn ask(tls: &NodeTls, addr: SocketAddrV4, request: EnrolRequest) -> Result<(), NotEnrolled> {
    let channel = net::dial(&Connector::member(tls), addr)
        .await
        .map_err(|error| NotEnrolled {
            reason: error.to_string(),
            leader: None,
        })?;
    let mut client = MembershipClient::new(channel);
    match tokio::time::timeout(ENROL_WAIT, client.enrol(request)).await {
        Ok(answer) => Ok(answer.map(drop)?),
        Err(_) => Err(NotEnrolled {
            reason: format!("no answer within {ENROL_WAIT:?}"),
            leader: None,
        }),
    }
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}
