//! The node behind the API: in no cluster, a worker, or a manager.

mod departure;
mod revival;
mod role;

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use agent::{Agent, AgentConfig, Applied, Credentials};
use anyhow::{Context, Result};
use api::{
    Answers, ApiError, Host, HostPort, InitRequest, JoinParams, LocalNode, LocalStatus,
    MemberState, PortUser, PublishedPorts, RemoteManager,
};
use ca::{CaError, NodeKey, NodeTls};
use control::{Candidate, InitOptions, Manager, ManagerConfig, ManagerError, NodeCredentials};
use hyper::StatusCode;
use jiff::Timestamp;
use model::{
    NodeId,
    inspect::{Table, TraceAnswer, TraceQuery},
    object::NodeDescription,
    rpc::{JoinRequest, MANAGER_PORT},
    spec::{NodeRole, Protocol},
};
use store::StoreError;
use tokio::sync::{RwLock, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};
use vault::{KeyFile, KeyFileError, UnlockKey};

use super::{
    addresses::{self, AddrError, LocalAddr},
    backup,
    certificates::Certificates,
    config::DaemonConfig,
    description::description,
    join::{self, Joined},
    member::{ManagerAddrs, Member, near},
    ports,
    renewal::{Renewal, Signer},
};

/// For a new manager to take part, before the user is told that it goes on without them.
const MANAGER_WAIT: Duration = Duration::from_secs(20);

/// The daemon's one node.
pub struct Node {
    config: DaemonConfig,
    /// For what outlives a call.
    me: Weak<Self>,
    /// What the API asks for without waiting. Changed only while `agent` is held for writing.
    seen: Mutex<Seen>,
    /// Held for writing while the node joins, leaves, starts or stops, so that these exclude each
    /// other; for reading while the agent is asked.
    agent: RwLock<Option<Agent>>,
}

#[derive(Default)]
struct Seen {
    /// The membership of a manager that wants the unlock key; then there is no other.
    locked: Option<Member>,
    /// The manager has the log of a backup: only [`Node::force_new_cluster`] goes on with it.
    restored: Option<Restored>,
    member: Option<Membership>,
    manager: Option<Manager>,
    /// Why a manager that is to run here does not.
    failure: Option<String>,
    /// Ends the look at whether the manager stops by itself when it goes.
    watch: Option<DropGuard>,
    renewal: Option<Renewal>,
    /// What the managers last told.
    told: Option<watch::Receiver<Applied>>,
}

/// What opens a restored manager's data key, if it is sealed.
#[derive(Clone)]
struct Restored(Option<UnlockKey>);

/// Who the node is in its cluster, and its proof.
#[derive(Debug, Clone)]
struct Membership {
    member: Member,
    tls: NodeTls,
}

impl Node {
    pub fn new(config: DaemonConfig) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            config,
            me: me.clone(),
            seen: Mutex::default(),
            agent: RwLock::default(),
        })
    }

    /// Takes up the membership that the disk knows of.
    ///
    /// # Errors
    /// The manager or the agent does not start.
    pub async fn resume(&self) -> Result<()> {
        let Some(member) = Member::load(&self.config.state_dir)? else {
            info!("this node is in no cluster yet");
            return Ok(());
        };
        self.go_on(member, None).await
    }

    /// Starts what a member runs. A manager that is locked waits for [`Node::unlock`].
    async fn go_on(&self, member: Member, unlock: Option<UnlockKey>) -> Result<()> {
        let mut agent = self.agent.write().await;
        let vault = || KeyFile::new(&self.config.manager_dir()).read(unlock.as_ref());
        let certificate = match self.certificates().load(vault) {
            Err(err) if is_locked(&err) => return self.stay_locked(&mut agent, member).await,
            loaded => loaded?,
        };
        let tls = NodeTls::new(certificate)?;
        let member = Membership { member, tls };
        let (mut restored, mut failure) = (None, None);
        let manager = match member.member.manager {
            Some(addrs) => match self.open_manager(&member, addrs, unlock.clone()).await {
                Err(err) if is_copy(&err) => {
                    warn!("{err}");
                    restored = Some(Restored(unlock));
                    None
                }
                Err(err) if revival::may_pass(&err) => {
                    warn!("this node goes on without its manager meanwhile: {err}");
                    failure = Some((err.to_string(), self.start_revival(unlock)));
                    None
                }
                // A demotion was cut short: the node's key is its own again, the data key is not.
                Err(ManagerError::Store(StoreError::Key(KeyFileError::Locked(_)))) => {
                    return self.stay_locked(&mut agent, member.member).await;
                }
                Err(ManagerError::Store(StoreError::Key(err))) => return Err(err.into()),
                opened => Some(opened?),
            },
            None => None,
        };
        let started = match agent.take() {
            // It has run without since the start.
            Some(mut running) => {
                running.identify(member.tls.clone());
                Ok(running)
            }
            None => {
                self.start_agent(&member.member, Some(member.tls.clone()))
                    .await
            }
        };
        // Known even when the agent failed: then the manager is stopped in order.
        self.see(Some(member), manager);
        let mut seen = self.seen();
        seen.restored = restored;
        if let Some((reason, revival)) = failure {
            (seen.failure, seen.watch) = (Some(reason), Some(revival));
        }
        drop(seen);
        *agent = Some(started?);
        Ok(())
    }

    async fn stay_locked(&self, agent: &mut Option<Agent>, member: Member) -> Result<()> {
        info!("this manager is locked: until `swarmnet unlock`, tasks and names stay as they are");
        let started = self.start_agent(&member, None).await;
        self.seen().locked = Some(member);
        *agent = Some(started?);
        Ok(())
    }

    /// Ends what runs in this process. Tasks, programs and traffic go on.
    pub async fn stop(&self) {
        let mut agent = self.agent.write().await;
        if let Some(agent) = agent.take() {
            agent.stop().await;
        }
        let manager = self.take_manager();
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // What is in it is whole at every moment.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, member: Option<Membership>, manager: Option<Manager>) {
        let renewal = member.as_ref();
        let renewal = renewal.map(|member| self.start_renewal(member, manager.clone()));
        let watch = manager.as_ref().map(|manager| self.start_watch(manager));
        let mut seen = self.seen();
        if member.is_none() {
            seen.told = None;
        }
        (seen.locked, seen.restored, seen.failure) = (None, None, None);
        seen.watch = watch;
        (seen.member, seen.manager, seen.renewal) = (member, manager, renewal);
    }

    /// Ends what goes on beside the agent.
    fn take_manager(&self) -> Option<Manager> {
        let mut seen = self.seen();
        (seen.renewal, seen.watch) = (None, None);
        seen.manager.take()
    }

    fn start_renewal(&self, membership: &Membership, manager: Option<Manager>) -> Renewal {
        let (me, credentials) = (self.me.clone(), membership.member.credentials.clone());
        let signer = move || match (&manager, me.upgrade()) {
            (Some(manager), _) => Signer::Own(manager.clone()),
            (None, Some(node)) => Signer::Others(node.managers(&credentials)),
            (None, None) => Signer::Others(credentials.managers.clone()),
        };
        Renewal::start(membership.tls.clone(), self.certificates(), signer)
    }

    fn certificates(&self) -> Certificates {
        Certificates::new(&self.config.state_dir)
    }

    fn manager_config(&self, listen_addr: SocketAddr) -> ManagerConfig {
        let me = self.me.upgrade().expect("a method of it runs");
        ManagerConfig {
            state_dir: self.config.manager_dir(),
            listen_addr,
            unlock: None,
            // The manager's end, which the node sees to, ends this circle.
            api: Arc::new(Answers::new(me)),
        }
    }

    /// The manager that ran here before; one that did not get as far as knowing the cluster goes on
    /// asking for it.
    async fn open_manager(
        &self,
        member: &Membership,
        addrs: ManagerAddrs,
        unlock: Option<UnlockKey>,
    ) -> Result<Manager, ManagerError> {
        let config = ManagerConfig {
            unlock,
            ..self.manager_config(addrs.listen)
        };
        match Manager::open(config, member.tls.clone()).await {
            Err(ManagerError::NoCluster(_)) => {
                let (manager, candidate) = self.new_manager(member, addrs).await?;
                manager.enrol(candidate);
                Ok(manager)
            }
            opened => opened,
        }
    }

    /// One that the others do not know of yet.
    async fn new_manager(
        &self,
        membership: &Membership,
        addrs: ManagerAddrs,
    ) -> Result<(Manager, Candidate), ManagerError> {
        let candidate = Candidate {
            tls: membership.tls.clone(),
            addr: addrs.advertised,
            managers: self.managers(&membership.member.credentials),
        };
        let manager = Manager::join(self.manager_config(addrs.listen), &candidate).await?;
        Ok((manager, candidate))
    }

    /// Those of the view, then those that the node joined by.
    fn managers(&self, credentials: &Credentials) -> Vec<SocketAddrV4> {
        let told = self.seen().told.clone();
        let mut managers = told.map_or_else(Vec::new, |told| {
            let view = told.borrow().view.clone();
            let cluster = view.cluster.as_ref();
            cluster.map_or_else(Vec::new, |cluster| cluster.managers.clone())
        });
        for addr in &credentials.managers {
            if !managers.contains(addr) {
                managers.push(*addr);
            }
        }
        managers
    }

    /// Without `tls` the agent goes by what it knows.
    async fn start_agent(&self, member: &Member, tls: Option<NodeTls>) -> Result<Agent> {
        let config = AgentConfig {
            state_dir: self.config.agent_dir(),
            run_dir: self.config.run_dir.clone(),
            pin_dir: self.config.pin_dir.clone(),
            cgroup: self.config.cgroup.clone(),
            uplink: self.config.uplink.clone(),
            uplink_mode: self.config.uplink_mode,
            images_dir: self.config.images_dir.clone(),
            shim: self.config.shim.clone(),
            description: description(),
        };
        let credentials = member.credentials.clone();
        let agent = Agent::start(config, credentials, tls, CancellationToken::new())
            .await
            .context("the agent does not start")?;
        self.seen().told = Some(agent.applied());
        self.follow_role(agent.applied());
        Ok(agent)
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ApiError> {
        let mut agent = self.agent.write().await;
        self.require_no_member()?;
        let addrs = InitAddrs::find(&request, &addresses::list().map_err(invalid_addr)?)?;
        // What an earlier start left that never got as far as being a member.
        remove_dir(&self.config.manager_dir())?;
        let options = InitOptions {
            spec: request.spec,
            data_path: request.data_path,
            description: description(),
            availability: request.availability,
            advertise_addr: addrs.advertise,
            advertise_port: addrs.advertise_port,
            data_path_addr: addrs.data_path,
        };
        let bootstrapped = Manager::bootstrap(self.manager_config(addrs.listen), options).await;
        let (manager, credentials) =
            bootstrapped.map_err(|err| self.undo_files(manager_error(err)))?;
        let member = first_member(credentials, manager.local_addr(), addrs.advertise_port);
        match self.enter(&member, Some(&manager)).await {
            Ok(started) => {
                *agent = Some(started);
                let node = member.member.credentials.node;
                self.see(Some(member), Some(manager));
                Ok(node)
            }
            Err(err) => {
                manager.shutdown().await;
                Err(self.undo_files(err))
            }
        }
    }

    async fn join(&self, params: JoinParams) -> Result<(), ApiError> {
        let mut agent = self.agent.write().await;
        self.require_no_member()?;
        let have = addresses::list().map_err(invalid_addr)?;
        let advertise = advertised(params.advertise.as_ref(), &have)?;
        let data_path = params.data_path_addr.as_ref();
        let data_path = data_path.map(|host| resolve(host, &have)).transpose()?;
        if let Some(vtep) = data_path.or(advertise) {
            addresses::check_local(vtep, &have).map_err(invalid_addr)?;
        }
        let listen_port = params.listen.port.unwrap_or(MANAGER_PORT);
        let listen = resolve(&params.listen.host, &have)?;
        let listen = SocketAddr::from((listen, listen_port));
        let key = NodeKey::generate().map_err(no_key)?;
        let request = JoinRequest {
            token: params.token,
            request_pem: key.request().map_err(no_key)?,
            description: description(),
            advertise_addr: advertise,
            data_path_addr: data_path,
            availability: params.availability,
        };
        let joined = join::join(&params.remotes, &request, key).await?;
        let member = joined_member(joined, listen)?;
        match self.enter_as_certified(member.clone()).await {
            Ok((started, member, manager)) => {
                *agent = Some(started);
                self.see(Some(member), manager.clone());
                drop(agent);
                wait_for_part(manager).await
            }
            Err(err) => {
                // The error is what keeps the node out; the log has the rest.
                let _ = self.tell_managers(&member).await;
                Err(self.undo_files(err))
            }
        }
    }

    /// Starts the agent, and the manager, if the node is certified as one. The others hear of it only
    /// when nothing can fail any more: two managers would wait for one that never came to be.
    async fn enter_as_certified(
        &self,
        mut membership: Membership,
    ) -> Result<(Agent, Membership, Option<Manager>), ApiError> {
        if membership.tls.with(|own| own.identity().role) != NodeRole::Manager {
            let agent = self.enter(&membership, None).await?;
            return Ok((agent, membership, None));
        }
        // What an earlier start left that never got as far as being a member.
        remove_dir(&self.config.manager_dir())?;
        let addrs = membership.member.manager_addrs();
        let made = self.new_manager(&membership, addrs).await;
        let (manager, candidate) = made.map_err(manager_error)?;
        membership.member.manager = Some(addrs);
        match self.enter(&membership, Some(&manager)).await {
            Ok(agent) => {
                manager.enrol(candidate);
                Ok((agent, membership, Some(manager)))
            }
            Err(err) => {
                manager.shutdown().await;
                Err(err)
            }
        }
    }

    async fn force_new_cluster(&self, advertise: Option<&HostPort>) -> Result<NodeId, ApiError> {
        let _agent = self.agent.write().await;
        let member = self.seen().member.clone();
        let Some((mut membership, addrs)) = member.and_then(|membership| {
            let addrs = membership.member.manager?;
            Some((membership, addrs))
        }) else {
            return Err(ApiError::unavailable(
                "no manager has run on this node: --force-new-cluster goes on from the state of a \
                 manager that survived, so use it there",
            ));
        };
        let have = addresses::list().map_err(invalid_addr)?;
        let addr = advertised(advertise, &have)?.unwrap_or(*addrs.advertised.ip());
        let port = advertise.and_then(|advertise| advertise.port);
        let advertised = SocketAddrV4::new(addr, port.unwrap_or(addrs.advertised.port()));
        let node = membership.member.credentials.node;
        let restored = self.seen().restored.clone();
        let former = self.take_manager();
        let unlock = match (&former, &restored) {
            (Some(former), _) => unlock_key_of(former),
            (None, Some(Restored(unlock))) => unlock.clone(),
            (None, None) => None,
        };
        if let Some(former) = former {
            former.shutdown().await;
        }
        let config = ManagerConfig {
            unlock: unlock.clone(),
            ..self.manager_config(addrs.listen)
        };
        let outcome = Manager::force_new(config, membership.tls.clone(), advertised).await;
        let (manager, outcome) = match outcome {
            Ok(manager) => {
                membership.member.manager = Some(ManagerAddrs {
                    advertised,
                    ..addrs
                });
                let saved = membership.member.save(&self.config.state_dir);
                (Some(manager), saved.map_err(|err| format!("{err:#}")))
            }
            // As it was, as far as possible.
            Err(err) => (
                self.open_manager(&membership, addrs, unlock).await.ok(),
                Err(err.to_string()),
            ),
        };
        let restored = restored.filter(|_| manager.is_none());
        self.see(Some(membership), manager);
        self.seen().restored = restored;
        outcome.map(|()| node).map_err(ApiError::internal)
    }

    /// Keeps the membership and starts the agent.
    async fn enter(
        &self,
        membership: &Membership,
        manager: Option<&Manager>,
    ) -> Result<Agent, ApiError> {
        let entered = async {
            self.keep(membership, manager)?;
            let tls = Some(membership.tls.clone());
            self.start_agent(&membership.member, tls).await
        };
        entered
            .await
            .map_err(|err| ApiError::internal(format!("{err:#}")))
    }

    /// Who the node is, on its disk.
    fn keep(&self, membership: &Membership, manager: Option<&Manager>) -> Result<()> {
        let vault = manager.map(|manager| manager.store().data_key());
        let save = |certificate: &_| self.certificates().save(certificate, vault);
        membership.tls.with(save)?;
        // Last: without it the rest counts for nothing.
        membership.member.save(&self.config.state_dir)
    }

    /// Removes what a failed `init` or `join` wrote, and passes its error on.
    fn undo_files(&self, err: ApiError) -> ApiError {
        let undone = Member::forget(&self.config.state_dir)
            .map_err(|err| ApiError::internal(format!("{err:#}")))
            .and_then(|()| remove_dir(self.certificates().dir()))
            .and_then(|()| remove_dir(&self.config.manager_dir()))
            .and_then(|()| remove_dir(&self.config.agent_dir()));
        if let Err(undone) = undone {
            warn!("cannot undo everything: {undone}");
        }
        err
    }

    fn require_no_member(&self) -> Result<(), ApiError> {
        let seen = self.seen();
        if seen.member.is_none() && seen.locked.is_none() {
            return Ok(());
        }
        Err(ApiError::unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm \
             and join another one.",
        ))
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        let Some(member) = self.seen().locked.clone() else {
            return Err(ApiError::new(StatusCode::CONFLICT, "swarm is not locked"));
        };
        let unlocked = self.go_on(member, Some(key)).await;
        unlocked.map_err(|err| match err.downcast_ref() {
            Some(KeyFileError::WrongKey(_)) => ApiError::invalid(api::WRONG_KEY),
            _ => ApiError::internal(format!("{err:#}")),
        })
    }

    async fn backup(&self) -> Result<File, ApiError> {
        // So that nothing is made or removed meanwhile.
        let _agent = self.agent.read().await;
        let manager = self.seen().manager.clone().ok_or_else(in_no_swarm)?;
        let archived = backup::archive(&self.config, manager.store()).await;
        archived.map_err(|err| ApiError::internal(format!("{err:#}")))
    }
}

fn no_key(err: CaError) -> ApiError {
    ApiError::internal(err.to_string())
}

/// Waits until a node that joined as a manager has a vote.
async fn wait_for_part(manager: Option<Manager>) -> Result<(), ApiError> {
    let Some(manager) = manager else {
        return Ok(());
    };
    let waited = tokio::time::timeout(MANAGER_WAIT, manager.takes_part()).await;
    waited.map_err(|_| {
        ApiError::unavailable(
            "Timeout was reached before node joined. The attempt to join the swarm will continue in \
             the background. Use the \"docker info\" command to see the current swarm status of \
             your node.",
        )
    })
}

/// The addresses of a new cluster's first node.
#[derive(Debug, PartialEq, Eq)]
struct InitAddrs {
    listen: SocketAddr,
    advertise: Ipv4Addr,
    advertise_port: Option<u16>,
    data_path: Option<Ipv4Addr>,
}

impl InitAddrs {
    fn find(request: &InitRequest, have: &[LocalAddr]) -> Result<Self, ApiError> {
        let listen = resolve(&request.listen.host, have)?;
        let listen_port = request.listen.port.unwrap_or(MANAGER_PORT);
        let advertise = match advertised(request.advertise.as_ref(), have)? {
            Some(advertise) => advertise,
            // A manager that listens on one address is reached there.
            None if !listen.is_unspecified() => listen,
            None => addresses::only(have).map_err(invalid_addr)?,
        };
        let data_path = request.data_path_addr.as_ref();
        let data_path = data_path.map(|host| resolve(host, have)).transpose()?;
        addresses::check_local(data_path.unwrap_or(advertise), have).map_err(invalid_addr)?;
        Ok(Self {
            listen: SocketAddr::new(listen.into(), listen_port),
            advertise,
            advertise_port: request
                .advertise
                .as_ref()
                .and_then(|advertise| advertise.port),
            data_path,
        })
    }
}

/// The advertised address, when it was named; `:2377` names a port only.
fn advertised(
    advertise: Option<&HostPort>,
    have: &[LocalAddr],
) -> Result<Option<Ipv4Addr>, ApiError> {
    let addr = advertise
        .map(|advertise| resolve(&advertise.host, have))
        .transpose()?;
    Ok(addr.filter(|addr| !addr.is_unspecified()))
}

fn resolve(host: &Host, have: &[LocalAddr]) -> Result<Ipv4Addr, ApiError> {
    addresses::resolve(host, have).map_err(invalid_addr)
}

fn invalid_addr(err: AddrError) -> ApiError {
    ApiError::invalid(err.to_string())
}

fn manager_error(err: ManagerError) -> ApiError {
    match err {
        ManagerError::Bootstrap(err) => ApiError::invalid(err.to_string()),
        err => ApiError::internal(err.to_string()),
    }
}

/// `listen` is where the manager came to listen.
fn first_member(
    credentials: NodeCredentials,
    listen: SocketAddr,
    advertise_port: Option<u16>,
) -> Membership {
    let advertise_port = advertise_port.unwrap_or(listen.port());
    let member = Member {
        manager: Some(ManagerAddrs {
            listen,
            advertised: SocketAddrV4::new(credentials.addr, advertise_port),
        }),
        credentials: Credentials {
            node: credentials.node,
            cluster: credentials.cluster,
            addr: credentials.addr,
            vtep: credentials.vtep,
            // The agent beside it reaches it without leaving the node.
            managers: vec![near(listen)],
        },
        listen: None,
    };
    let tls = credentials.tls;
    Membership { member, tls }
}

fn joined_member(joined: Joined, listen: SocketAddr) -> Result<Membership, ApiError> {
    let response = joined.response;
    let member = Member {
        credentials: Credentials {
            node: response.node,
            cluster: response.cluster,
            addr: response.addr,
            vtep: response.vtep,
            managers: vec![joined.manager],
        },
        manager: None,
        listen: Some(listen),
    };
    let tls = NodeTls::new(joined.certificate).map_err(no_key)?;
    Ok(Membership { member, tls })
}

fn remove_dir(path: &Path) -> Result<(), ApiError> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(ApiError::internal(format!(
            "cannot remove {}: {err}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn is_locked(err: &anyhow::Error) -> bool {
    matches!(err.downcast_ref(), Some(KeyFileError::Locked(_)))
}

/// What opens its data key the next time, where managers are locked.
fn unlock_key_of(manager: &Manager) -> Option<UnlockKey> {
    manager.store().state().cluster()?.unlock_key.clone()
}

fn is_copy(err: &ManagerError) -> bool {
    matches!(err, ManagerError::Store(StoreError::Copy { .. }))
}

/// What a locked manager tells of itself.
fn locked_status(member: &Member) -> LocalStatus {
    LocalStatus {
        state: MemberState::Locked,
        node: Some(member.credentials.node),
        addr: Some(member.credentials.addr),
        ..LocalStatus::default()
    }
}

fn status(membership: Option<&Membership>, remote_managers: Vec<RemoteManager>) -> LocalStatus {
    let Some(Membership { member, tls }) = membership else {
        return LocalStatus::default();
    };
    let credentials = &member.credentials;
    LocalStatus {
        state: match member.manager {
            Some(_) => MemberState::Manager,
            None => MemberState::Worker,
        },
        node: Some(credentials.node),
        addr: Some(credentials.addr),
        remote_managers,
        error: tls
            .with(|own| own.identity().expired(Timestamp::now()))
            .map(ca::expired),
    }
}

/// The managers that the node knows of: by the store on a manager, elsewhere by what it was told.
fn remote_managers(manager: Option<&Manager>, addrs: Vec<SocketAddrV4>) -> Vec<RemoteManager> {
    let Some(manager) = manager else {
        let remote = |addr| RemoteManager { node: None, addr };
        return addrs.into_iter().map(remote).collect();
    };
    let state = manager.store().state();
    let managers = state.nodes().filter_map(|node| {
        let addr = node.manager?.addr;
        Some(RemoteManager {
            node: Some(node.id),
            addr,
        })
    });
    managers.collect()
}

#[async_trait::async_trait]
impl LocalNode for Node {
    async fn init(&self, request: InitRequest) -> Result<NodeId, ApiError> {
        Node::init(self, request).await
    }

    async fn force_new_cluster(&self, advertise: Option<HostPort>) -> Result<NodeId, ApiError> {
        Node::force_new_cluster(self, advertise.as_ref()).await
    }

    async fn join(&self, params: JoinParams) -> Result<(), ApiError> {
        Node::join(self, params).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        Node::unlock(self, key).await
    }

    async fn backup(&self) -> Result<File, ApiError> {
        Node::backup(self).await
    }

    async fn leave(&self) -> Result<Option<String>, ApiError> {
        Node::leave(self).await
    }

    fn status(&self) -> LocalStatus {
        let (locked, restored, failure, member, manager) = {
            let seen = self.seen();
            (
                seen.locked.clone(),
                seen.restored.is_some(),
                seen.failure.clone(),
                seen.member.clone(),
                seen.manager.clone(),
            )
        };
        if let Some(member) = locked {
            return locked_status(&member);
        }
        let managers = member.as_ref().map_or_else(Vec::new, |member| {
            let addrs = self.managers(&member.member.credentials);
            remote_managers(manager.as_ref(), addrs)
        });
        let mut status = status(member.as_ref(), managers);
        if restored {
            status.state = MemberState::Restored;
            status.error = Some("restored from a backup".to_owned());
        }
        status.error = failure.or(status.error);
        status
    }

    fn manager(&self) -> Option<Manager> {
        self.seen().manager.clone()
    }

    fn description(&self) -> NodeDescription {
        description()
    }

    fn port_user(&self, ports: &PublishedPorts) -> Option<((Protocol, u16), PortUser)> {
        ports::user(ports)
    }

    async fn inspect(&self, table: Table) -> Result<serde_json::Value, ApiError> {
        let agent = self.agent.read().await;
        let rows = agent.as_ref().ok_or_else(in_no_swarm)?.inspect(table).await;
        rows.map_err(|err| ApiError::internal(format!("{err:#}")))
    }

    async fn trace(&self, query: TraceQuery) -> Result<TraceAnswer, ApiError> {
        let agent = self.agent.read().await;
        let answer = agent.as_ref().ok_or_else(in_no_swarm)?.trace(query).await;
        answer.map_err(|err| ApiError::invalid(format!("{err:#}")))
    }
}

fn in_no_swarm() -> ApiError {
    ApiError::unavailable("this node is in no swarm: use `swarmnet init` or `swarmnet join` first")
}

#[cfg(test)]
mod tests {
    use model::{
        object::DataPathConfig,
        spec::{Availability, ClusterSpec},
    };

    use super::*;

    fn have() -> Vec<LocalAddr> {
        [("lo", [127, 0, 0, 1]), ("eth0", [192, 0, 2, 1])]
            .map(|(interface, addr)| LocalAddr {
                interface: interface.to_owned(),
                addr: addr.into(),
            })
            .into()
    }

    fn find(
        listen: &str,
        advertise: Option<&str>,
        data: Option<&str>,
    ) -> Result<InitAddrs, ApiError> {
        let request = InitRequest {
            listen: listen.parse().unwrap(),
            advertise: advertise.map(|text| text.parse().unwrap()),
            data_path_addr: data.map(|text| text.parse().unwrap()),
            data_path: DataPathConfig::default(),
            spec: ClusterSpec::default(),
            availability: Availability::Active,
        };
        InitAddrs::find(&request, &have())
    }

    #[test]
    fn the_only_address_is_advertised_and_named_ones_are_taken() {
        let eth0 = Ipv4Addr::new(192, 0, 2, 1);
        let plain = find("0.0.0.0:2377", None, None).unwrap();
        assert_eq!((plain.advertise, plain.advertise_port), (eth0, None));
        assert_eq!(plain.listen, "0.0.0.0:2377".parse().unwrap());
        let named = find("eth0:2400", Some("eth0:2500"), None).unwrap();
        assert_eq!(named.listen, "192.0.2.1:2400".parse().unwrap());
        assert_eq!((named.advertise, named.advertise_port), (eth0, Some(2500)));
        let loopback = find("127.0.0.1", None, Some("lo")).unwrap();
        assert_eq!(loopback.advertise, Ipv4Addr::LOCALHOST);
        assert_eq!(loopback.listen.port(), MANAGER_PORT);
    }

    #[test]
    fn tunnel_must_end_on_this_node() {
        let err = find("0.0.0.0:2377", Some("203.0.113.9"), None).unwrap_err();
        assert!(
            err.message.contains("203.0.113.9") && err.message.contains("eth0"),
            "{err}"
        );
        let behind_nat = find("0.0.0.0:2377", Some("203.0.113.9"), Some("eth0")).unwrap();
        assert_eq!(behind_nat.advertise, Ipv4Addr::new(203, 0, 113, 9));
    }

    pub(super) fn credentials() -> NodeCredentials {
        NodeCredentials {
            node: NodeId::generate(),
            cluster: model::ClusterId::generate(),
            addr: [192, 0, 2, 1].into(),
            vtep: [192, 0, 2, 1].into(),
            tls: NodeTls::new(super::super::certificates::tests::certificate()).unwrap(),
        }
    }

    #[test]
    fn status_follows_the_membership() {
        assert_eq!(status(None, Vec::new()), LocalStatus::default());
        let credentials = credentials();
        let node = credentials.node;
        let mut member = first_member(credentials, "0.0.0.0:2377".parse().unwrap(), Some(9));
        assert_eq!(
            member.member.credentials.managers,
            ["127.0.0.1:2377".parse().unwrap()]
        );
        let manager = status(Some(&member), Vec::new());
        assert_eq!(
            (manager.state, manager.node),
            (MemberState::Manager, Some(node))
        );
        let addrs = member.member.manager_addrs();
        assert_eq!(addrs.advertised, "192.0.2.1:2377".parse().unwrap());
        member.member.manager = None;
        let told = remote_managers(None, vec![addrs.advertised]);
        let worker = status(Some(&member), told.clone());
        assert_eq!(
            (worker.state, worker.remote_managers),
            (MemberState::Worker, told)
        );
    }
}
