//! What only the leader does. It takes office when everything that was ever acknowledged is in its
//! state, and leaves it when another leads or a quorum is out of reach. Each time in office begins
//! with nothing but the store: who comes after another cannot tell from who comes first.

use std::{
    convert::Infallible, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use futures::FutureExt;
use model::{
    NodeId,
    object::{ManagerStatus, Node},
    rpc,
    spec::NodeRole,
};
use store::{Standing, Store, Transaction, WriteError};
use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;
use tracing::{Instrument, error, error_span, info, warn};

use crate::{
    dispatcher::{self, Hub, StatusSink},
    liveness::Liveness,
    members, probe_keys, stage,
};

/// For loops and sessions to end.
pub(crate) const STOP_WAIT: Duration = Duration::from_secs(5);
/// Between attempts to take office.
const RETRY: Duration = Duration::from_millis(200);

/// A leader's time in office: its loops, and what they share with the services.
pub(crate) struct Office {
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) statuses: StatusSink,
    /// Cancelled at the end.
    pub(crate) cancel: CancellationToken,
    /// Loops and sessions, whose end is waited for.
    pub(crate) tasks: TaskTracker,
}

/// Where services find the office, if this manager holds it.
#[derive(Clone)]
pub(crate) struct Offices {
    store: Store,
    open: watch::Receiver<Option<Arc<Office>>>,
}

impl Offices {
    /// # Errors
    /// The refusal that names the leader.
    pub(crate) fn get(&self) -> Result<Arc<Office>, Status> {
        self.now()
            .ok_or_else(|| rpc::not_leader(leader_addr(&self.store)))
    }

    pub(crate) fn now(&self) -> Option<Arc<Office>> {
        self.open.borrow().clone()
    }

    /// Waits for the office of a manager that leads, or until it does not.
    pub(crate) async fn opened(&self) {
        let (mut open, mut standing) = (self.open.clone(), self.store.standing());
        // Either fails when the manager stops.
        tokio::select! {
            _ = open.wait_for(Option::is_some) => {}
            _ = standing.wait_for(|now| !now.leads()) => {}
        }
    }
}

/// Of another manager.
fn leader_addr(store: &Store) -> Option<SocketAddr> {
    match &*store.standing().borrow() {
        Standing::Follows { member, .. } => Some(member.addr),
        Standing::Vacant | Standing::Leads { .. } => None,
    }
}

/// Holds the office whenever this manager, which runs on the node `own`, leads. Until cancelled.
pub(crate) fn hold(
    store: Store,
    own: NodeId,
    cancel: CancellationToken,
) -> (Offices, impl Future<Output = ()> + Send) {
    let (show, open) = watch::channel(None);
    let offices = Offices {
        store: store.clone(),
        open,
    };
    let holding = async move {
        let mut standing = store.standing();
        loop {
            let reign = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                reign = begun(&mut standing) => match reign {
                    Some(reign) => reign,
                    None => return,
                },
            };
            match Office::open(&store, own).await {
                Ok(office) => {
                    info!(raft.id = %store.id(), "this manager leads");
                    show.send_replace(Some(Arc::clone(&office)));
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        _ = standing.wait_for(|now| *now != Standing::Leads { reign }) => {}
                    }
                    show.send_replace(None);
                    info!(raft.id = %store.id(), "this manager does not lead any more");
                    office.close().await;
                }
                Err(error) => {
                    warn!(%error, "cannot take office; trying again");
                    cancel.run_until_cancelled(sleep(RETRY)).await;
                }
            }
        }
    };
    (offices, holding)
}

/// The number of a reign, once one has begun. `None` when the store has stopped.
async fn begun(standing: &mut watch::Receiver<Standing>) -> Option<u64> {
    match *standing.wait_for(Standing::leads).await.ok()? {
        Standing::Leads { reign } => Some(reign),
        _ => None,
    }
}

impl Office {
    async fn open(store: &Store, own: NodeId) -> Result<Arc<Self>, WriteError<Infallible>> {
        let liveness = Arc::new(Liveness::default());
        let me = own_status(store);
        store
            .write(|tx| {
                claim(tx, own, me);
                Ok(())
            })
            .await?;
        liveness.start(store).await?;
        let (statuses, source) = dispatcher::status_sink();
        let office = Arc::new(Self {
            store: store.clone(),
            hub: Arc::default(),
            liveness,
            statuses,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        office.start_loops(source);
        Ok(office)
    }

    fn start_loops(&self, statuses: dispatcher::StatusSource) {
        let Self {
            store, hub, cancel, ..
        } = self;
        let rounds = dispatcher::run_rounds(store.clone(), hub.clone(), cancel.clone());
        self.spawn("rounds", rounds);
        let statuses = dispatcher::run_statuses(store.clone(), statuses, cancel.clone());
        self.spawn("statuses", statuses);
        self.spawn("pipeline", stage::run(store.clone(), cancel.clone()));
        self.spawn("members", members::run(store.clone(), cancel.clone()));
        self.spawn("probe keys", probe_keys::run(store.clone(), cancel.clone()));
        let on_down = {
            let hub = hub.clone();
            move |node| hub.end_session(node)
        };
        let watch = self.liveness.clone();
        let watch = watch.run(store.clone(), on_down, cancel.clone());
        self.spawn("liveness", watch);
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        spawn(&self.tasks, &self.cancel, name, work);
    }

    async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(STOP_WAIT, self.tasks.wait()).await;
        if ended.is_err() {
            warn!(
                tasks = self.tasks.len(),
                "not every loop and session of the office ended in time"
            );
        }
    }
}

/// Runs a loop of the manager that is to end only when it is cancelled.
pub(crate) fn spawn(
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let cancel = cancel.clone();
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
    tasks.spawn(watched.instrument(error_span!("manager", task = name)));
}

/// This manager as the others know it.
fn own_status(store: &Store) -> Option<ManagerStatus> {
    let member = store.members().voters.remove(&store.id())?;
    let SocketAddr::V4(addr) = member.addr else {
        return None;
    };
    let raft = store.id();
    Some(ManagerStatus { raft, addr })
}

/// Sees to it that the leader's own node names its manager: a log from before nodes did, or made
/// anew from a survivor's, names none or another.
fn claim(tx: &mut Transaction, own: NodeId, me: Option<ManagerStatus>) {
    let Some(node) = tx.state().node(own) else {
        return;
    };
    if node.spec.role == NodeRole::Manager && me.is_some() && node.manager != me {
        let mut node = Node::clone(node);
        node.manager = me;
        tx.put(node).expect("it was read in this transaction");
    }
}
