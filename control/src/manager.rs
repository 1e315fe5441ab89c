//! A manager: the store, the loops that work on it, and the gRPC server for the other nodes.

use std::{io, net::SocketAddr, panic::AssertUnwindSafe, path::PathBuf, sync::Arc, time::Duration};

use ca::NodeTls;
use futures::FutureExt;
use model::{
    Version,
    inspect::NodeRow,
    object::NodeState,
    rpc::{AuthorityServer, Certified, DispatcherServer, MembershipServer},
};
use store::{Store, StoreConfig, StoreError, WriteError};
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Status, service::Routes};
use tracing::{Instrument, error, error_span, info, warn};
use vault::UnlockKey;

use crate::{
    access::Access,
    authority::{self, AuthorityService},
    bootstrap::{self, BootstrapError, InitOptions, NodeCredentials},
    dispatcher::{self, DispatcherService, Hub},
    liveness::Liveness,
    lock,
    membership::MembershipService,
    stage,
};

/// For the loops and sessions to end when the manager stops.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Where a manager keeps its state and is reached.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Of the manager alone; made when missing.
    pub state_dir: PathBuf,
    /// For the other nodes. Port 0 asks for a free one.
    pub listen_addr: SocketAddr,
    /// Opens what the manager keeps, where managers are locked.
    pub unlock: Option<UnlockKey>,
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
    hub: Arc<Hub>,
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
        let advertised = SocketAddr::from((init.advertise_addr, advertised));
        let store = open_store(&config, advertised).await?;
        let created = store
            .write(|tx| bootstrap::create(tx, &init, local_addr.port()))
            .await;
        match created {
            Ok((credentials, _)) => {
                info!(cluster.id = %credentials.cluster, node.id = %credentials.node, "swarm made");
                let tls = credentials.tls.clone();
                let manager = Self::start(store, tls, listener, local_addr).await?;
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
        let store = open_store(&config, local_addr).await?;
        if store.state().cluster().is_none() {
            store.shutdown().await;
            return Err(ManagerError::NoCluster(config.state_dir));
        }
        Self::start(store, tls, listener, local_addr).await
    }

    async fn start(
        store: Store,
        tls: NodeTls,
        listener: TcpListener,
        local_addr: SocketAddr,
    ) -> Result<Self, ManagerError> {
        let liveness = Arc::new(Liveness::default());
        if let Err(error) = liveness.start(&store).await {
            store.shutdown().await;
            return Err(ManagerError::Write(error.to_string()));
        }
        let cancel = CancellationToken::new();
        let manager = Self {
            inner: Arc::new(Inner {
                store,
                hub: Arc::default(),
                tls,
                local_addr,
                tasks: TaskTracker::new(),
                _cancel_on_drop: cancel.clone().drop_guard(),
                cancel,
            }),
        };
        manager.start_tasks(liveness, listener);
        info!(listen.addr = %local_addr, "manager is ready");
        Ok(manager)
    }

    /// Everything that runs in a manager, besides the store.
    fn start_tasks(&self, liveness: Arc<Liveness>, listener: TcpListener) {
        let Inner {
            store,
            hub,
            tls,
            cancel,
            ..
        } = &*self.inner;
        let (sink, source) = dispatcher::status_sink();

        self.spawn(
            "rounds",
            dispatcher::run_rounds(store.clone(), hub.clone(), cancel.clone()),
        );
        self.spawn(
            "statuses",
            dispatcher::run_statuses(store.clone(), source, cancel.clone()),
        );
        self.spawn("pipeline", stage::run(store.clone(), cancel.clone()));
        self.spawn("lock", lock::run(store.clone(), cancel.clone()));
        let on_down = {
            let hub = hub.clone();
            move |node| hub.end_session(node)
        };
        let watch = liveness.clone().run(store.clone(), on_down, cancel.clone());
        self.spawn("liveness", watch);

        let membership = MembershipService {
            store: store.clone(),
            hub: hub.clone(),
            liveness: liveness.clone(),
        };
        let dispatcher = DispatcherService {
            store: store.clone(),
            hub: hub.clone(),
            liveness,
            statuses: sink,
            cancel: cancel.clone(),
            sessions: self.inner.tasks.clone(),
        };
        let authority = AuthorityService {
            store: store.clone(),
        };
        let dispatcher = DispatcherServer::new(dispatcher)
            .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
        let services = Routes::new(MembershipServer::new(membership))
            .add_service(AuthorityServer::new(authority))
            .add_service(dispatcher);
        let access = Arc::new(Access {
            store: store.clone(),
        });
        let served = net::serve(listener, tls.clone(), access, services, cancel.clone());
        self.spawn("server", async {
            if let Err(error) = served.await {
                error!(%error, "the server for other nodes failed");
            }
        });
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.inner.cancel.clone();
        let watched = async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                // The panic's message is out already. A manager without one of its loops would
                // look healthy and do nothing; a restarted one resumes from the store, and the
                // nodes' traffic does not depend on it.
                error!("a loop of the manager panicked; the daemon ends");
                std::process::abort();
            }
            if !cancel.is_cancelled() {
                error!("a loop of the manager ended though the manager goes on");
            }
        };
        self.inner
            .tasks
            .spawn(watched.instrument(error_span!("manager", task = name)));
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Where the manager listens, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Signs for this manager's own node: it needs no certificate for that, so that a cluster whose
    /// managers were all away for longer than their certificates lived comes back by itself.
    ///
    /// # Errors
    /// A request that is none, or a node that is no member any more.
    pub fn certify(&self, request_pem: &str) -> Result<Certified, Status> {
        let node = self.inner.tls.with(|own| own.identity().node);
        authority::renew(&self.inner.store, node, request_pem)
    }

    /// Each node, and how far it follows: `inspect nodes`.
    pub fn node_rows(&self) -> Vec<NodeRow> {
        let state = self.inner.store.state();
        let Version(current) = state.version();
        let row = |node: &model::object::Node| NodeRow {
            id: node.id.to_string(),
            hostname: node.description.hostname.clone(),
            state: state_name(node.status.state).to_owned(),
            vtep: node.vtep,
            applied: self.inner.hub.reached(node.id).0,
            current,
        };
        state.nodes().map(|node| row(node)).collect()
    }

    /// Stops: no new sessions, the open ones end, the loops end, the store is left in order.
    pub async fn shutdown(self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(STOP_WAIT, self.inner.tasks.wait())
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

async fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ManagerError> {
    net::listen(addr)
        .await
        .map_err(|source| ManagerError::Listen { addr, source })
}

async fn open_store(config: &ManagerConfig, addr: SocketAddr) -> Result<Store, StoreError> {
    let store = StoreConfig {
        unlock: config.unlock.clone(),
        ..StoreConfig::alone(addr)
    };
    Store::open(&config.state_dir, store).await
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}
