//! The life of one task on this node: network, preparation, start, exit or stop, removal. One
//! runner a task; it ends when the task left the view.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use datapath::LocalTask;
use dns::TaskResolver;
use executor::{ExecError, Exit, ProcessExecutor, StopSignal, TaskEnvironment};
use jiff::Timestamp;
use model::{
    TaskId, TaskState,
    feed::{NodeView, TaskAssignment, TaskStatusUpdate},
    object::ContainerStatus,
    spec::Protocol,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    gateway::GatewayPool,
    netns::{Netns, NetnsError},
    network::{self, NetworkPaths, NetworkRecord},
    ports::PortHolder,
    serving,
};

/// Where each task's resolver listens (Docker's address).
const DNS_ADDR: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

/// What a runner asks of the agent.
#[derive(Debug)]
pub enum RunnerMessage {
    /// Put the task's interfaces under the programs; answered when they serve.
    Attach {
        network: NetworkRecord,
        local: LocalTask,
        done: oneshot::Sender<Result<()>>,
    },
    /// Take them out; answered when no packet is sent there any more.
    Detach {
        task: TaskId,
        done: oneshot::Sender<()>,
    },
    Status(TaskStatusUpdate),
    /// Nothing of the task is left on the node.
    Gone(TaskId),
}

/// What every runner shares.
#[derive(Clone)]
pub struct RunnerContext {
    pub executor: ProcessExecutor,
    pub paths: NetworkPaths,
    pub gateways: Arc<Mutex<GatewayPool>>,
    pub ports: Arc<Mutex<PortHolder>>,
    pub view: watch::Receiver<Arc<NodeView>>,
    /// MTU of the uplink, as new tasks' interfaces are to have it.
    pub underlay_mtu: watch::Receiver<u32>,
    /// The node's resolvers.
    pub upstreams: Vec<SocketAddr>,
    pub messages: mpsc::Sender<RunnerMessage>,
}

/// The agent's hold on a runner.
pub struct RunnerHandle {
    /// What the managers want of the task.
    pub desired: watch::Sender<TaskState>,
    /// Cancelled when the task left the view: nothing of it may stay.
    pub removed: CancellationToken,
    pub join: tokio::task::JoinHandle<()>,
}

/// How the runner finds its task.
pub enum Origin {
    Fresh,
    /// Running already when the agent started, its network under the programs.
    Adopted {
        record: NetworkRecord,
        pid: u32,
    },
    /// It ended while no agent ran; a network may be left.
    Ended {
        exit: Exit,
        record: Option<NetworkRecord>,
    },
}

pub struct Runner {
    task: TaskAssignment,
    desired: watch::Receiver<TaskState>,
    removed: CancellationToken,
    context: RunnerContext,
}

/// Why a task did not come to run.
struct Refusal {
    state: TaskState,
    message: &'static str,
    err: String,
}

impl RunnerContext {
    /// What a task's network took of the node is free for others.
    pub fn give_back(&self, record: &NetworkRecord) {
        let mut gateways = self.gateways.lock().expect("no holder panics");
        gateways.give_back(record.gateway);
        let mut ports = self.ports.lock().expect("no holder panics");
        ports.give_back(record.task);
    }
}

impl Runner {
    pub fn spawn(task: TaskAssignment, origin: Origin, context: RunnerContext) -> RunnerHandle {
        let (desired, watch) = watch::channel(task.desired);
        let removed = CancellationToken::new();
        let runner = Self {
            task,
            desired: watch,
            removed: removed.clone(),
            context,
        };
        let join = tokio::spawn(runner.run(origin));
        RunnerHandle {
            desired,
            removed,
            join,
        }
    }

    async fn run(mut self, origin: Origin) {
        let record = match origin {
            Origin::Fresh => self.run_fresh().await,
            Origin::Adopted { record, pid } => {
                self.report_adopted(pid, &record).await;
                // Its resolver went with the agent before.
                let resolver = self.start_resolver().inspect_err(|err| {
                    warn!(task.id = %self.task.id, "the task has no resolver: {err:#}");
                });
                self.see_through().await;
                drop(resolver);
                Some(record)
            }
            Origin::Ended { exit, record } => {
                self.report_exit(&exit).await;
                record
            }
        };
        if let Some(record) = record {
            self.tear_down(&record).await;
        }
        self.removed.cancelled().await;
        if let Err(err) = self.context.executor.remove(self.task.id).await {
            warn!(task.id = %self.task.id, "cannot remove what the task left: {err}");
        }
        self.send(RunnerMessage::Gone(self.task.id)).await;
    }

    /// From nothing to the end of the process. Returns the network to tear down.
    async fn run_fresh(&mut self) -> Option<NetworkRecord> {
        if self.is_unwanted() {
            self.report(TaskState::Shutdown, "stopped before it started", None, None)
                .await;
            return None;
        }
        self.report(TaskState::Accepted, "accepted", None, None)
            .await;
        self.report(TaskState::Preparing, "preparing", None, None)
            .await;
        let record = match self.take_record() {
            Ok(record) => record,
            Err(err) => {
                self.report(
                    TaskState::Rejected,
                    "no network",
                    Some(format!("{err:#}")),
                    None,
                )
                .await;
                return None;
            }
        };
        match self.bring_up(&record).await {
            Ok(Some(resolver)) => {
                self.see_through().await;
                drop(resolver);
            }
            Ok(None) => {
                self.report(TaskState::Shutdown, "stopped before it started", None, None)
                    .await;
            }
            Err(refusal) => {
                info!(task.id = %self.task.id, task.name = %self.task.name, "task refused: {}", refusal.err);
                self.report(refusal.state, refusal.message, Some(refusal.err), None)
                    .await;
            }
        }
        Some(record)
    }

    fn take_record(&self) -> Result<NetworkRecord> {
        let gateway = self
            .context
            .gateways
            .lock()
            .expect("no holder panics")
            .take()?;
        let ports = self
            .context
            .ports
            .lock()
            .expect("no holder panics")
            .take(self.task.id, &self.task.host_ports);
        let host_ports = ports.inspect_err(|_| {
            let mut gateways = self.context.gateways.lock().expect("no holder panics");
            gateways.give_back(gateway);
        })?;
        Ok(NetworkRecord {
            task: self.task.id,
            endpoint: self.task.endpoint,
            gateway,
            attachments: self.task.attachments.clone(),
            host_ports,
        })
    }

    /// To RUNNING. `None` when the managers changed their mind in between.
    async fn bring_up(&mut self, record: &NetworkRecord) -> Result<Option<TaskResolver>, Refusal> {
        let rejected = |message| {
            move |err: anyhow::Error| Refusal {
                state: TaskState::Rejected,
                message,
                err: format!("{err:#}"),
            }
        };
        let mtu = *self.context.underlay_mtu.borrow();
        let local = network::create(&self.context.paths, record, mtu)
            .await
            .map_err(rejected("cannot make the task's network"))?;
        self.attach(record.clone(), local)
            .await
            .map_err(rejected("the task's interfaces are not served"))?;
        let resolver = self
            .start_resolver()
            .map_err(rejected("cannot start the task's resolver"))?;
        let environment = self.environment(record);
        let lacking = self
            .context
            .executor
            .prepare(&self.task, &environment)
            .await
            .map_err(refusal)?;
        for what in lacking {
            warn!(task.id = %self.task.id, "{what}");
        }
        self.report(TaskState::Ready, "prepared", None, None).await;
        let wanted = self
            .desired
            .wait_for(|desired| *desired >= TaskState::Running)
            .await;
        if wanted.map_or(true, |desired| desired.asks_to_stop()) {
            return Ok(None);
        }
        self.report(TaskState::Starting, "starting", None, None)
            .await;
        let started = self
            .context
            .executor
            .start(self.task.id)
            .await
            .map_err(refusal)?;
        self.come_to_serve().await;
        self.report_running(started.pid, record).await;
        Ok(Some(resolver))
    }

    /// With RUNNING come new connections, and a process that does not listen yet would refuse them.
    async fn come_to_serve(&self) {
        let (ports, Ok(netns)) = (self.served_ports(), self.netns()) else {
            return;
        };
        if ports.is_empty() {
            return;
        }
        let mut desired = self.desired.clone();
        tokio::select! {
            missing = serving::listens(&netns, &ports) => if missing > 0 {
                warn!(task.id = %self.task.id, task.ports = ?ports,
                    "the task does not listen on each of its published ports; some connections fail");
            },
            _ = self.context.executor.wait(self.task.id) => {}
            _ = desired.wait_for(|desired| desired.asks_to_stop()) => {}
        }
    }

    /// The task's TCP ports that are published, by all nodes or by this one.
    fn served_ports(&self) -> BTreeSet<u16> {
        let view = self.context.view.borrow();
        let service = view.services.get(&self.task.service);
        let by_all = service.iter().flat_map(|service| &service.ports);
        let by_all = by_all.map(|port| (port.protocol, port.target));
        let here = self.task.host_ports.iter();
        let here = here.map(|port| (port.protocol, port.target));
        let tcp = by_all
            .chain(here)
            .filter(|(protocol, _)| *protocol == Protocol::Tcp);
        tcp.map(|(_, target)| target).collect()
    }

    /// An agent that died right after the start may not have been heard.
    async fn report_adopted(&self, pid: u32, record: &NetworkRecord) {
        if self.task.state < TaskState::Running {
            self.report_running(pid, record).await;
        }
    }

    async fn report_running(&self, pid: u32, record: &NetworkRecord) {
        let status = self.status(TaskState::Running, "started");
        self.say(TaskStatusUpdate {
            container: Some(self.container(pid, None)),
            ports: record.host_ports.clone(),
            ..status
        })
        .await;
    }

    /// From RUNNING to the end, by itself or because the managers want it.
    async fn see_through(&self) {
        let executor = self.context.executor.clone();
        let task = self.task.id;
        let mut desired = self.desired.clone();
        let ended = tokio::select! {
            exit = executor.wait(task) => Some(exit),
            _ = desired.wait_for(|desired| desired.asks_to_stop()) => None,
        };
        let exit = match ended {
            Some(exit) => exit,
            None => tokio::select! {
                exit = executor.wait(task) => exit,
                () = self.drain() => self.stop().await,
            },
        };
        // With the report the endpoint goes from everybody's tables, and the namespace after it.
        if let Ok(netns) = self.netns() {
            serving::last_bytes_leave(&netns).await;
        }
        match exit {
            Ok(exit) => self.report_exit(&exit).await,
            Err(err) => {
                let err = Some(err.to_string());
                self.report(
                    TaskState::Failed,
                    "lost",
                    err,
                    Some(self.container(0, None)),
                )
                .await;
            }
        }
    }

    /// The managers let a task be stopped once every node knows that it drains; what is left are
    /// connections that were open by then.
    async fn drain(&self) {
        let Ok(netns) = self.netns() else {
            return;
        };
        let open = serving::connections_end(&netns).await;
        if open > 0 {
            info!(task.id = %self.task.id, task.connections = open, "stopped with open connections");
        }
    }

    fn netns(&self) -> Result<Netns, NetnsError> {
        Netns::open(&self.context.paths.netns(self.task.id))
    }

    async fn stop(&self) -> Result<Exit, ExecError> {
        let container = &self.task.spec.container;
        let grace = container.stop_grace_period_or_default();
        // Checked when the task was prepared.
        let signal = container
            .stop_signal
            .as_deref()
            .and_then(|signal| signal.parse().ok());
        self.context
            .executor
            .stop(self.task.id, signal.unwrap_or(StopSignal::TERM), grace)
            .await
    }

    async fn report_exit(&self, exit: &Exit) {
        let stopped = self.desired.borrow().asks_to_stop();
        let (state, message, err) = match exit.code {
            _ if stopped => (TaskState::Shutdown, "shutdown", None),
            Some(0) => (TaskState::Complete, "finished", None),
            // Docker's words: `service ps` shows them as the task's error.
            _ => (TaskState::Failed, "started", Some(failure(exit))),
        };
        self.report(
            state,
            message,
            err,
            Some(self.container(0, Some(exit.status()))),
        )
        .await;
    }

    async fn tear_down(&self, record: &NetworkRecord) {
        let (done, detached) = oneshot::channel();
        self.send(RunnerMessage::Detach {
            task: self.task.id,
            done,
        })
        .await;
        drop(detached.await);
        match network::destroy(&self.context.paths, record).await {
            Ok(()) => self.context.give_back(record),
            // The address stays taken: an interface may still have it.
            Err(err) => {
                warn!(task.id = %self.task.id, "cannot remove the task's network: {err:#}");
            }
        }
    }

    /// # Errors
    /// When the programs do not serve the task's interfaces.
    async fn attach(&self, network: NetworkRecord, local: LocalTask) -> Result<()> {
        let (done, attached) = oneshot::channel();
        self.send(RunnerMessage::Attach {
            network,
            local,
            done,
        })
        .await;
        // An agent that stops drops the sender; the runner is about to be dropped as well.
        attached.await.context("the agent is stopping")?
    }

    fn start_resolver(&self) -> Result<TaskResolver> {
        let path = self.context.paths.netns(self.task.id);
        let sockets = Netns::open(&path)?
            .run(|| {
                let udp = UdpSocket::bind(DNS_ADDR)?;
                let tcp = TcpListener::bind(DNS_ADDR)?;
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp))
            })
            .with_context(|| format!("cannot listen on {}:{}", DNS_ADDR.0, DNS_ADDR.1))?;
        let networks = self.task.attachments.iter().map(|at| at.network).collect();
        Ok(TaskResolver::spawn(
            sockets,
            self.task.id,
            networks,
            self.context.view.clone(),
            self.upstreams(),
        )?)
    }

    fn upstreams(&self) -> Vec<SocketAddr> {
        let chosen = &self.task.spec.container.dns.nameservers;
        if chosen.is_empty() {
            return self.context.upstreams.clone();
        }
        chosen
            .iter()
            .filter_map(|server| Some(SocketAddr::new(server.parse().ok()?, 53)))
            .collect()
    }

    fn environment(&self, record: &NetworkRecord) -> TaskEnvironment {
        let container = &self.task.spec.container;
        let short_id: String = self.task.id.to_string().chars().take(12).collect();
        let hostname = container.hostname.clone().unwrap_or(short_id);
        TaskEnvironment {
            netns: self.context.paths.netns(self.task.id),
            resolv_conf: resolv_conf(&container.dns),
            hosts: hosts(&hostname, record, &container.hosts),
            hostname,
        }
    }

    fn container(&self, pid: u32, exit_code: Option<i32>) -> ContainerStatus {
        ContainerStatus {
            container_id: self.task.id.to_string(),
            pid,
            exit_code,
        }
    }

    fn is_unwanted(&self) -> bool {
        self.desired.borrow().asks_to_stop()
    }

    async fn report(
        &self,
        state: TaskState,
        message: &str,
        err: Option<String>,
        container: Option<ContainerStatus>,
    ) {
        let status = self.status(state, message);
        self.say(TaskStatusUpdate {
            err,
            container,
            ..status
        })
        .await;
    }

    fn status(&self, state: TaskState, message: &str) -> TaskStatusUpdate {
        TaskStatusUpdate {
            task: self.task.id,
            timestamp: Timestamp::now(),
            state,
            message: message.to_owned(),
            err: None,
            container: None,
            ports: Vec::new(),
        }
    }

    async fn say(&self, status: TaskStatusUpdate) {
        info!(task.id = %self.task.id, task.name = %self.task.name, task.state = %status.state,
            "task state");
        self.send(RunnerMessage::Status(status)).await;
    }

    /// The agent outlives its runners but for its own stop, when nothing matters any more.
    async fn send(&self, message: RunnerMessage) {
        drop(self.context.messages.send(message).await);
    }
}

/// An executor's refusal of a task.
fn refusal(err: ExecError) -> Refusal {
    let state = if err.is_rejection() {
        TaskState::Rejected
    } else {
        TaskState::Failed
    };
    Refusal {
        state,
        message: "cannot start the task",
        err: err.to_string(),
    }
}

fn failure(exit: &Exit) -> String {
    exit.error
        .clone()
        .unwrap_or_else(|| format!("task: non-zero exit ({})", exit.status()))
}

fn resolv_conf(dns: &model::spec::DnsConfig) -> String {
    let mut text = format!("nameserver {}\n", DNS_ADDR.0);
    if !dns.search.is_empty() {
        text += &format!("search {}\n", dns.search.join(" "));
    }
    let options = if dns.options.is_empty() {
        "ndots:0".to_owned()
    } else {
        dns.options.join(" ")
    };
    text + &format!("options {options}\n")
}

fn hosts(hostname: &str, record: &NetworkRecord, extra: &[String]) -> String {
    let own = record
        .attachments
        .first()
        .map_or(record.gateway, |at| at.addr);
    let mut text = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n"
    );
    extra.iter().for_each(|line| text += &format!("{line}\n"));
    text
}
