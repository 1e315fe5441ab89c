//! The handle that the rest of a manager has on the replicated state.

#[cfg(test)]
pub(crate) mod simulated;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use model::{Version, spec::ClusterSpec};
use openraft::{ChangeMembers, Config, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::{
    sync::{broadcast, watch},
    task::spawn_blocking,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vault::{DataKey, UnlockKey};

use crate::{
    Commit, Members, ReadError, Standing, State, StoreError, Transaction, WriteError,
    disk::{Disk, DiskError, Slot},
    election::{self, LEASE, VOTE_TIMEOUT, Voter},
    question::Question,
    raft::{
        Member, Network, NoTransport, Raft, RaftCall, RaftId, RaftReply, RaftTransport, answer,
        log::LogStore,
        machine::{self, Machine, Publisher},
    },
    standing::{self, Contacts, QUORUM_LOST_AFTER},
    writer::Writer,
};

/// For entries to be on a follower's disk, and its answer to come. Two heartbeats.
pub(crate) const APPEND_TIMEOUT: Duration = Duration::from_millis(500);
/// Receiving and storing a chunk of a snapshot.
const SNAPSHOT_CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;
/// Entries kept behind a snapshot, so that a follower that lags a little need not take it.
const LOG_KEPT: u64 = 500;
/// For a change of the members, with the catching up of a new one.
const MEMBERSHIP_CHANGE: Duration = Duration::from_secs(15);
/// For a cluster of one to elect itself: two fsyncs, and the replay of the log.
const ALONE_READY: Duration = Duration::from_secs(30);

/// What to do when the directory has no log yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Make a cluster of one.
    Found,
    /// Wait until a leader adds this manager ([`Store::add_member`]).
    Join,
}

/// How a manager takes part.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where other managers reach this one.
    pub addr: SocketAddr,
    /// Only looked at when the directory has no log yet.
    pub start: Start,
    /// How this one reaches others.
    pub transport: Arc<dyn RaftTransport>,
    /// Opens the data key, where managers are locked.
    pub unlock: Option<UnlockKey>,
}

impl StoreConfig {
    /// A cluster of one, which reaches nobody.
    pub fn alone(addr: SocketAddr) -> Self {
        Self {
            addr,
            start: Start::Found,
            transport: Arc::new(NoTransport),
            unlock: None,
        }
    }
}

/// A manager's part of the replicated store. A clone is the same store; when the last one is
/// dropped, it stops.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    id: RaftId,
    raft: Raft,
    voter: Voter,
    disk: Arc<Disk>,
    log: LogStore,
    publisher: Publisher,
    writer: Arc<Writer>,
    /// Index of the last entry of the log at the start.
    last: Option<u64>,
    leads: Question,
    standing: Arc<watch::Sender<Standing>>,
    contacts: Arc<Contacts>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Store {
    /// Opens the store in the directory `dir`, which is made if need be. Returns when all that was
    /// ever acknowledged is applied, if this is the only manager; at once otherwise.
    ///
    /// # Errors
    /// When the directory is taken, locked, damaged, or of a newer format.
    pub async fn open(dir: &Path, config: StoreConfig) -> Result<Self, StoreError> {
        let dir = dir.to_owned();
        let unlock = config.unlock.clone();
        let opened = spawn_blocking(move || open_disk(&dir, unlock.as_ref())).await;
        let opened =
            opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let draw = || election::patience(&mut rand::rng());
        Self::start(opened, config, LOG_KEPT, draw).await
    }

    /// `log_kept`: see [`LOG_KEPT`]; `draw`: see [`election::stand`].
    async fn start(
        opened: Opened,
        config: StoreConfig,
        log_kept: u64,
        draw: impl FnMut() -> Duration + Send + 'static,
    ) -> Result<Self, StoreError> {
        let Opened {
            disk,
            id,
            log,
            last,
            machine,
            publisher,
        } = opened;
        let contacts = Arc::<Contacts>::default();
        let network = Network::new(Arc::clone(&config.transport), Arc::clone(&contacts));
        let raft = Raft::new(
            id,
            raft_config(log_kept),
            network.clone(),
            log.sending(network.clone()),
            machine,
        )
        .await
        .map_err(|error| damaged(&disk, &error))?;
        let writer = Writer::new(Arc::clone(&disk), publisher.state.subscribe());
        let store = Self(Arc::new(Inner {
            id,
            voter: Voter {
                raft: raft.clone(),
                log: log.clone(),
            },
            raft,
            disk,
            log,
            publisher,
            writer: Arc::new(writer),
            last,
            leads: Question::default(),
            standing: Arc::default(),
            contacts,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }));
        store.spawn_tasks(network, draw);
        store.take_office(&config, last).await?;
        Ok(store)
    }

    /// Makes the cluster whose log is in `dir` one of a single manager, with everything in the log,
    /// acknowledged or not, in force. It has another name from then on, so that no call of the
    /// former group reaches it. To be used when a majority of the managers is lost for good, on one
    /// survivor; the others must never come back with their logs.
    ///
    /// # Errors
    /// When the directory has no log, or as [`Store::open`].
    pub async fn force_new(
        dir: &Path,
        addr: SocketAddr,
        unlock: Option<&UnlockKey>,
    ) -> Result<(), StoreError> {
        let (dir, unlock) = (dir.to_owned(), unlock.cloned());
        let forced = spawn_blocking(move || {
            let disk = Disk::open(&dir, unlock.as_ref())?;
            make_alone(&Arc::new(disk), RaftId(rand::random()), addr)
        });
        let forced = forced.await;
        forced.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// This manager's name in the Raft group.
    pub fn id(&self) -> RaftId {
        self.0.id
    }

    /// The newest state applied here.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.publisher.state.borrow())
    }

    /// The newest state, whenever it changes. A slow receiver skips some, but never goes back.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.publisher.state.subscribe()
    }

    /// Every commit from now on; by the time it is received, [`Store::state`] includes it.
    /// Versions have no gaps: who misses some (`Lagged`, or a version that does not follow, after
    /// a snapshot came from the leader) starts anew from [`Store::state`].
    pub fn commits(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.0.publisher.commits.subscribe()
    }

    /// What this manager is to the others, whenever it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// The managers, by the newest membership in the log here.
    pub fn members(&self) -> Members {
        Members::of(&self.0.raft.metrics().borrow())
    }

    /// Whether the other manager has answered lately. Only the leader, and who stands for
    /// election, calls the others.
    pub fn is_reachable(&self, id: RaftId) -> bool {
        id == self.0.id || self.0.contacts.is_recent(id)
    }

    /// The newest state there is, not only here: every write acknowledged by any manager before
    /// this call is in it. Only at the leader.
    ///
    /// # Errors
    /// When this manager does not lead, or a quorum does not answer in time.
    pub async fn read(&self) -> Result<Arc<State>, ReadError> {
        let confirmed = async {
            let leads = async { self.0.raft.ensure_linearizable().await.is_ok() };
            self.0.standing.borrow().leads() && self.0.leads.ask(leads).await
        };
        let confirmed = tokio::time::timeout(QUORUM_LOST_AFTER, confirmed).await;
        if confirmed.unwrap_or(false) {
            return Ok(self.state());
        }
        Err(ReadError {
            missing: self.unreachable(),
        })
    }

    /// Managers that do not answer, by address.
    pub fn unreachable(&self) -> Vec<Member> {
        let Members { voters, .. } = self.members();
        let unreachable = voters.into_iter().filter(|(id, _)| !self.is_reachable(*id));
        let mut members: Vec<_> = unreachable.map(|(_, member)| member).collect();
        members.sort_by_key(|member| member.addr);
        members
    }

    /// Runs `f` on the newest state and commits what it wrote. Returns when that is on disk, agreed
    /// on and applied. Writers take turns; `f` must be short. A transaction that wrote nothing
    /// commits nothing and returns the version it has read.
    ///
    /// Not cancel-safe: dropped, the write may still take place.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write<T, E>(
        &self,
        f: impl FnOnce(&mut Transaction) -> Result<T, E> + Send,
    ) -> Result<(T, Version), WriteError<E>> {
        if !self.0.stop.is_cancelled() {
            self.leads()?;
        }
        match self.0.writer.write(f).await {
            Err(WriteError::InDoubt { .. }) => Err(WriteError::InDoubt {
                missing: self.unreachable(),
            }),
            outcome => outcome,
        }
    }

    fn leads<E>(&self) -> Result<(), WriteError<E>> {
        match &*self.0.standing.borrow() {
            Standing::Leads { .. } => Ok(()),
            Standing::Follows { member, .. } => Err(WriteError::NotLeader {
                leader: member.clone(),
            }),
            Standing::Vacant => Err(WriteError::NoQuorum {
                missing: self.unreachable(),
            }),
        }
    }

    /// Answers a call from another manager. `None` when another one was meant.
    pub async fn answer(&self, call: RaftCall) -> Option<RaftReply> {
        if call.to == self.0.id {
            Some(answer(&self.0.voter, call.request).await)
        } else {
            None
        }
    }

    /// Makes a manager, opened with [`Start::Join`], a voting member. Returns when it has caught up
    /// and the members agree; until then it has no vote, so one that does not come up costs the
    /// others nothing. Only the leader can.
    ///
    /// # Errors
    /// When this is not the leader, another such change is going on, or it takes too long; it may
    /// be tried again.
    pub async fn add_member(&self, id: RaftId, member: Member) -> Result<(), StoreError> {
        self.change(async {
            let raft = &self.0.raft;
            raft.add_learner(id, member, true).await?;
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
            raft.change_membership(voters, false).await.map(drop)
        })
        .await
    }

    /// Takes a member out. The leader may take itself out, and leads no more then. Returns when
    /// the members agree.
    ///
    /// # Errors
    /// As [`Store::add_member`].
    pub async fn remove_member(&self, id: RaftId) -> Result<(), StoreError> {
        let ids = BTreeSet::from([id]);
        let change = match self.members().voters.contains_key(&id) {
            true => ChangeMembers::RemoveVoters(ids),
            false => ChangeMembers::RemoveNodes(ids),
        };
        self.change(async { self.0.raft.change_membership(change, false).await.map(drop) })
            .await
    }

    async fn change<E: std::error::Error>(
        &self,
        change: impl Future<Output = Result<(), E>>,
    ) -> Result<(), StoreError> {
        match tokio::time::timeout(MEMBERSHIP_CHANGE, change).await {
            Ok(changed) => changed.map_err(|error| StoreError::Members(error.to_string())),
            Err(_) => Err(StoreError::Members(format!(
                "it takes longer than {MEMBERSHIP_CHANGE:?}"
            ))),
        }
    }

    /// Writes a snapshot and drops the log entries that it stands for, but for the newest few.
    /// Happens by itself every [`ClusterSpec::snapshot_interval`] entries. Returns when it is
    /// begun.
    ///
    /// # Errors
    /// When the store has stopped.
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        let begun = self.0.raft.trigger().snapshot().await;
        begun.map_err(|error| self.stopped(&error))
    }

    /// Has the data key sealed by `unlock`, or kept plain without one. Returns when it is on disk:
    /// `false` when it was so already.
    ///
    /// # Errors
    /// When it cannot be written; it stays as it was.
    pub async fn seal_key(&self, unlock: Option<UnlockKey>) -> Result<bool, StoreError> {
        let disk = Arc::clone(&self.0.disk);
        let sealed = spawn_blocking(move || disk.seal_key(unlock.as_ref())).await;
        sealed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Copies the log, as it is at a moment of the call, to an empty file: for a directory from which
    /// [`Store::force_new`] makes a cluster, and nothing else goes on. What is in it is sealed as it
    /// is here; the data key is not in it.
    ///
    /// # Errors
    /// When the file cannot be written, or the store has stopped.
    pub async fn copy_to(&self, file: File) -> Result<(), StoreError> {
        let disk = Arc::clone(&self.0.disk);
        let copied = spawn_blocking(move || disk.copy_to(file)).await;
        let copied = copied.unwrap_or(Err(DiskError::Panicked));
        copied.map_err(|error| StoreError::NotCopied {
            path: self.0.disk.path().to_owned(),
            reason: error.to_string(),
        })
    }

    /// Waits until the state here is as new as it ever was before this start: until everything that the
    /// log had then is applied, or what came in its place. Where a quorum is missing, it takes until
    /// there is one.
    ///
    /// # Errors
    /// When the store stops.
    pub async fn replayed(&self) -> Result<(), StoreError> {
        let last = self.0.last;
        let wait = self.0.raft.wait(None);
        let is_so =
            |metrics: &RaftMetrics<RaftId, Member>| metrics.last_applied.map(|id| id.index) >= last;
        let waited = wait.metrics(is_so, "the log is applied").await;
        waited.map(drop).map_err(|error| self.stopped(&error))
    }

    /// What this manager's files are sealed with; for those beside the store's.
    pub fn data_key(&self) -> &DataKey {
        self.0.disk.data_key()
    }

    /// Waits until the store stops by itself, as it does when its disk refuses a write: what it then
    /// holds for true is not known to be on disk. To be opened anew, after [`Store::shutdown`]. `None`
    /// when it was shut down.
    pub async fn failure(&self) -> Option<StoreError> {
        let mut metrics = self.0.raft.metrics();
        loop {
            metrics.mark_unchanged();
            if self.0.stop.is_cancelled() {
                return None;
            }
            if let Some(failure) = self.ended() {
                return Some(failure);
            }
            if metrics.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Why Raft ended.
    fn ended(&self) -> Option<StoreError> {
        let state = self.0.raft.metrics().borrow().running_state.clone();
        state.err().map(|error| self.stopped(&error))
    }

    /// Stops, leaving the disk in order. Writes fail from now on.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(error = %error, "raft did not stop cleanly");
        }
        if let Err(error) = self.0.log.flush().await {
            tracing::warn!(error = %error, "last note of what is committed not written");
        }
        let disk = Arc::clone(&self.0.disk);
        if spawn_blocking(move || disk.close()).await.is_err() {
            tracing::warn!("store file not closed cleanly");
        }
    }

    fn spawn_tasks(&self, network: Network, draw: impl FnMut() -> Duration + Send + 'static) {
        let inner = &self.0;
        let raft = || inner.raft.clone();
        self.spawn(standing::follow(raft(), Arc::clone(&inner.standing)));
        self.spawn(election::beat(raft()));
        self.spawn(inner.voter.clone().stand(inner.id, network, draw));
        self.spawn(take_snapshots(raft(), inner.publisher.state.subscribe()));
        let writer = Arc::clone(&inner.writer);
        let writing = writer.run(raft(), inner.standing.subscribe(), inner.stop.clone());
        inner.tasks.spawn(writing);
    }

    /// Until the store stops.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        let tasks = &self.0.tasks;
        tasks.spawn(async move { stop.run_until_cancelled(work).await });
    }

    /// Founds the cluster if it is to be. If there is no other manager, leads it, and applies the
    /// log up to the entry `last`.
    async fn take_office(&self, config: &StoreConfig, last: Option<u64>) -> Result<(), StoreError> {
        let raft = &self.0.raft;
        let initialized = raft.is_initialized().await;
        if !initialized.map_err(|error| self.stopped(&error))? {
            if config.start == Start::Join {
                return Ok(());
            }
            let member = Member { addr: config.addr };
            raft.initialize(BTreeMap::from([(self.0.id, member)]))
                .await
                .map_err(|error| self.stopped(&error))?;
        }
        let standing = self.at_start().await?;
        if !standing.alone {
            return Ok(());
        }
        if !standing.leads {
            let elected = raft.trigger().elect().await;
            elected.map_err(|error| self.stopped(&error))?;
        }
        self.caught_up(last).await
    }

    /// Asks Raft itself: its metrics lag.
    async fn at_start(&self) -> Result<AtStart, StoreError> {
        let id = self.0.id;
        let asked = self.0.raft.with_raft_state(move |state| AtStart {
            alone: state.membership_state.effective().voter_ids().eq([id]),
            leads: state.server_state == ServerState::Leader,
        });
        asked.await.map_err(|error| self.stopped(&error))
    }

    async fn caught_up(&self, last: Option<u64>) -> Result<(), StoreError> {
        let caught_up = |metrics: &RaftMetrics<RaftId, Member>| {
            metrics.state == ServerState::Leader && metrics.last_applied.map(|id| id.index) >= last
        };
        let wait = self.0.raft.wait(Some(ALONE_READY));
        let leads = async {
            wait.metrics(caught_up, "leads alone").await.is_ok()
                && self.standing().wait_for(Standing::leads).await.is_ok()
        };
        match tokio::time::timeout(ALONE_READY, leads).await {
            Ok(true) => Ok(()),
            _ => Err(self.ended().unwrap_or_else(|| StoreError::NotElected {
                path: self.0.disk.path().to_owned(),
                after: ALONE_READY,
            })),
        }
    }

    /// The disk's own words are plainer than Raft's.
    fn stopped(&self, error: &dyn std::error::Error) -> StoreError {
        let disk = self.0.disk.failure_seen();
        StoreError::Stopped {
            path: self.0.disk.path().to_owned(),
            reason: disk.map_or_else(|| error.to_string(), str::to_owned),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("id", &self.0.id)
            .field("path", &self.0.disk.path())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Where this manager stands as it starts.
struct AtStart {
    /// The only voter.
    alone: bool,
    leads: bool,
}

struct Opened {
    disk: Arc<Disk>,
    id: RaftId,
    log: LogStore,
    /// Index of the last log entry.
    last: Option<u64>,
    machine: Machine,
    publisher: Publisher,
}

fn open_disk(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Opened, StoreError> {
    read_disk(Arc::new(Disk::open(dir, unlock)?), RaftId(rand::random()))
}

/// What the disk has. It takes the name `new` if it has none.
fn read_disk(disk: Arc<Disk>, new: RaftId) -> Result<Opened, StoreError> {
    match disk.is_copy() {
        Ok(false) => {}
        Ok(true) => {
            let path = disk.path().to_owned();
            return Err(StoreError::Copy { path });
        }
        Err(error) => return Err(disk.failure(&error)),
    }
    let read = || {
        let id = match disk.get(Slot::RaftId)? {
            Some(id) => id,
            None => {
                disk.set(Slot::RaftId, &new)?;
                new
            }
        };
        let log = LogStore::new(Arc::clone(&disk), id)?;
        let last = log.last_index()?;
        let (machine, publisher) = Machine::load(Arc::clone(&disk))?;
        Ok((id, log, last, machine, publisher))
    };
    let (id, log, last, machine, publisher) = read().map_err(|error| disk.failure(&error))?;
    Ok(Opened {
        disk,
        id,
        log,
        last,
        machine,
        publisher,
    })
}

/// See [`Store::force_new`]; `id` is the new name. Closes the disk.
fn make_alone(disk: &Arc<Disk>, id: RaftId, addr: SocketAddr) -> Result<(), StoreError> {
    let detached = machine::detach(disk, id, Member { addr });
    let outcome = detached.map_err(|error| disk.failure(&error));
    disk.close();
    match outcome? {
        true => Ok(()),
        false => Err(StoreError::Empty {
            path: disk.path().to_owned(),
        }),
    }
}

fn damaged(disk: &Disk, error: &dyn std::error::Error) -> StoreError {
    StoreError::Damaged {
        path: disk.path().to_owned(),
        reason: error.to_string(),
    }
}

fn raft_config(log_kept: u64) -> Arc<Config> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).expect("it is seconds");
    let config = Config {
        cluster_name: "swarmnet".to_owned(),
        // `election` has its own times; these are what else openraft derives from its own.
        enable_heartbeat: false,
        heartbeat_interval: millis(APPEND_TIMEOUT),
        enable_elect: false,
        election_timeout_min: millis(VOTE_TIMEOUT),
        election_timeout_max: millis(LEASE),
        install_snapshot_timeout: millis(SNAPSHOT_CHUNK_TIMEOUT),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        // The interval can change while the cluster runs: see `take_snapshots`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: log_kept,
        ..Config::default()
    };
    Arc::new(config.validate().expect("the constants fit each other"))
}

/// Asks for a snapshot whenever enough was applied since the last. Ends when Raft does.
async fn take_snapshots(raft: Raft, state: watch::Receiver<Arc<State>>) {
    let mut metrics = raft.metrics();
    let mut asked_at = 0;
    while metrics.changed().await.is_ok() {
        let (applied, snapshot) = {
            let metrics = metrics.borrow_and_update();
            let index = |id: Option<openraft::LogId<RaftId>>| id.map_or(0, |id| id.index);
            (index(metrics.last_applied), index(metrics.snapshot))
        };
        let interval = snapshot_interval(&state.borrow());
        if interval == 0 || applied < snapshot.max(asked_at) + interval {
            continue;
        }
        asked_at = applied;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// In log entries; 0 is never.
fn snapshot_interval(state: &State) -> u64 {
    state.cluster().map_or_else(
        || ClusterSpec::default().snapshot_interval,
        |cluster| cluster.spec.snapshot_interval,
    )
}
