//! The agent's one actor: it owns the view, the data plane and the runners, and is the only one to
//! change any of them.

mod adopt;
mod aside;
mod compare;
mod haste;
mod leave;
mod pins;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use datapath::{Datapath, Doubt, LocalState, LocalTask, Sight};
use executor::{ExecutorConfig, ProcessExecutor};
use model::{
    TaskId, TaskState,
    feed::{AgentMessage, NodeView, Update},
    inspect::{DoubtRow, DropRow, ProgramDrops, Table, TraceAnswer, TraceQuery},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    agent::QUEUE_LEN,
    config::{AgentConfig, Credentials},
    gateway::{self, GatewayPool},
    links::{self, NodeLinks, NodeLinksSpec},
    nat, netns,
    network::{NetworkPaths, NetworkRecord},
    nft,
    pulse::PulseView,
    reassembly::Reassembly,
    repair::Repairs,
    runner::{Origin, Runner, RunnerContext, RunnerHandle, RunnerMessage},
    session::{Applied, SessionEvent},
    status::StatusBook,
    view_file::ViewFile,
};

/// Between two comparisons of what should be with what is, when nothing hastens one.
const COMPARE_PERIOD: Duration = Duration::from_secs(5);

/// What the handle asks of the actor.
pub(crate) enum Command {
    Inspect(Table, oneshot::Sender<Result<serde_json::Value>>),
    Trace(Box<TraceQuery>, oneshot::Sender<Result<TraceAnswer>>),
    Leave(oneshot::Sender<Result<()>>),
}

pub(crate) struct Core {
    view_file: ViewFile,
    links_spec: NodeLinksSpec,
    links: NodeLinks,
    watch: links::Watch,
    haste: haste::Haste,
    comparison: compare::Comparison,
    /// At all maps.
    look: aside::Aside<Sight>,
    masquerade: nft::Table,
    reassembly: Reassembly,
    datapath: Datapath,
    view: Arc<NodeView>,
    local: LocalState,
    /// Of the tasks in `local`.
    networks: BTreeMap<TaskId, NetworkRecord>,
    /// The maps held what the view and `local` say, when they were last looked at.
    is_in_step: bool,
    applied: watch::Sender<Applied>,
    /// The newest view, applied or not, for the resolvers.
    views: watch::Sender<Arc<NodeView>>,
    underlay_mtu: watch::Sender<u32>,
    runners: BTreeMap<TaskId, RunnerHandle>,
    /// Found at the start and not known to the view: they wait for a word from a manager.
    strays: BTreeMap<TaskId, Origin>,
    /// An update was applied to the view and not yet acknowledged.
    owes_ack: bool,
    context: RunnerContext,
    runner_inbox: mpsc::Receiver<RunnerMessage>,
    statuses: StatusBook,
    pins: pins::PinBook,
    pulse: PulseView,
    outbox: mpsc::Sender<AgentMessage>,
    cancel: CancellationToken,
}

impl Core {
    /// Everything up to the point where the node serves what the last view (`applied`) says. A
    /// first start that fails leaves nothing behind.
    pub(crate) async fn start(
        config: AgentConfig,
        credentials: &Credentials,
        pulse: PulseView,
        applied: watch::Sender<Applied>,
        outbox: mpsc::Sender<AgentMessage>,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let is_first = !ViewFile::new(&config.state_dir).exists();
        let (datapath, run_dir) = (config.datapath(), config.run_dir.clone());
        let started = Self::set_up(config, credentials, pulse, applied, outbox, cancel).await;
        if started.is_err() && is_first {
            leave::undo_set_up(&datapath, &run_dir).await;
        }
        started
    }

    async fn set_up(
        config: AgentConfig,
        credentials: &Credentials,
        mut pulse: PulseView,
        applied: watch::Sender<Applied>,
        outbox: mpsc::Sender<AgentMessage>,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let view_file = ViewFile::new(&config.state_dir);
        let view = applied.borrow().view.clone();
        let links_spec = links_spec(&config, credentials, &view);
        let mut masquerade = nat::table(gateway::subnet());
        let mut reassembly = Reassembly::new(&config.run_dir);
        let mut made = Repairs::default();
        let watch = links::Watch::open()?;
        let links = links::ensure_node_links(&links_spec, &mut made).await?;
        masquerade.ensure(None, &mut made).await?;
        let reassembly_ifindex = reassembly.ensure(links.uplink_mac, &mut made).await?;
        let datapath_config = config.datapath();
        let mut datapath = tokio::task::block_in_place(|| Datapath::open(&datapath_config))?;
        let doubts = datapath.doubts(&view)?;
        pulse.bequeath(doubts.clone());
        datapath.attach_vxlan(links.vxlan_ifindex)?;
        datapath.attach_uplink(links.uplink_ifindex)?;
        if reassembly_ifindex != 0 {
            datapath.attach_reassembly(reassembly_ifindex)?;
        }

        let executor = ProcessExecutor::new(ExecutorConfig {
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            shim: config.shim.clone(),
            cgroup_root: config.cgroup.clone(),
            images_dir: config.images_dir.clone(),
        });
        let paths = NetworkPaths {
            netns_dir: config.run_dir.join("netns"),
            record_dir: config.state_dir.join("networks"),
        };
        let records = paths.records()?;
        let gateways = GatewayPool::new(records.iter().map(|record| record.gateway));
        let (messages, runner_inbox) = mpsc::channel(QUEUE_LEN);
        let (views, view_watch) = watch::channel(view.clone());
        let (underlay_mtu, mtu_watch) = watch::channel(links.underlay_mtu);
        let context = RunnerContext {
            executor,
            paths,
            gateways: Arc::new(Mutex::new(gateways)),
            ports: Arc::default(),
            view: view_watch,
            underlay_mtu: mtu_watch,
            upstreams: node_resolvers(),
            messages,
        };
        let local = LocalState {
            node: credentials.node,
            vxlan_ifindex: links.vxlan_ifindex,
            uplink_ifindex: links.uplink_ifindex,
            underlay_mtu: links.underlay_mtu,
            gateway_ifindex: links.gateway_ifindex,
            gateway_addr: links_spec.gateway.addr(),
            reassembly_ifindex,
            node_addrs: links.addrs.clone(),
            netns_cookie: netns::current_cookie()
                .context("cannot read the network namespace's cookie")?,
            tasks: BTreeMap::new(),
            doubts,
        };
        let mut core = Self {
            view_file,
            links_spec,
            links,
            watch,
            haste: haste::Haste::default(),
            comparison: compare::Comparison::default(),
            look: aside::Aside::default(),
            masquerade,
            reassembly,
            datapath,
            view,
            local,
            networks: BTreeMap::new(),
            is_in_step: false,
            applied,
            views,
            underlay_mtu,
            runners: BTreeMap::new(),
            strays: BTreeMap::new(),
            owes_ack: false,
            context,
            runner_inbox,
            statuses: StatusBook::default(),
            pins: pins::PinBook::default(),
            pulse,
            outbox,
            cancel,
        };
        core.adopt(records).await?;
        Ok(core)
    }

    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<SessionEvent>,
    ) {
        let mut compare = tokio::time::interval(COMPARE_PERIOD);
        compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Ok(()) = self.pulse.doubts.changed() => self.hear_doubts(),
                _ = compare.tick(), if self.comparison.is_over() => {
                    self.begin_comparison(false);
                    self.look_for_flows();
                    self.repeat_statuses();
                }
                () = self.haste.due(), if self.comparison.is_over() => self.begin_comparison(true),
                sight = self.look.done() => self.heed(sight),
                found = self.pins.search.done() => self.heed_flows(found),
                Some(command) = commands.recv() => match command {
                    // A caller that went away needs no answer.
                    Command::Inspect(table, reply) => drop(reply.send(self.inspect(table))),
                    Command::Trace(query, reply) => {
                        let answer = self.datapath.trace(&self.view, &self.local, &query);
                        drop(reply.send(answer.map_err(Into::into)));
                    }
                    Command::Leave(reply) => {
                        drop(reply.send(self.leave().await));
                        return;
                    }
                },
                Some(message) = self.runner_inbox.recv() => self.hear_runner(message),
                Some(event) = events.recv() => self.hear_session(event),
                // Behind all that others wait for.
                () = self.comparison.goes_on() => self.compare_next().await,
                () = self.watch.altered() => self.haste.ask(Instant::now()),
            }
        }
        // Tasks go on without their runners; the next agent adopts them.
        self.runners.values().for_each(|runner| runner.join.abort());
    }

    fn hear_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                self.repeat_statuses();
                self.repeat_pins();
            }
            SessionEvent::Pins(node, pins) => self.hear_pins(node, pins),
            SessionEvent::Settled(version) => self.hear_settled(version),
            SessionEvent::StatusAck(seq) => self.statuses.acknowledge(seq),
            SessionEvent::Update(update) => self.apply(update),
        }
    }

    /// Says again what the managers may not have heard.
    fn repeat_statuses(&mut self) {
        if let Some(message) = self.statuses.resend() {
            self.say(message);
        }
    }

    /// Takes the view to the update's version: disk, kernel, runners; then acknowledges.
    fn apply(&mut self, update: Update) {
        let version = update.version;
        let mut view = NodeView::clone(&self.view);
        view.apply(update);
        if let Err(err) = self.view_file.save(&view) {
            error!("the view is not on disk, a restart without managers would go back: {err}");
        }
        self.view = Arc::new(view);
        self.views.send_replace(self.view.clone());
        self.owes_ack = true;
        self.hold_ports();
        self.settle_strays();
        self.start_runners();
        if let Err(err) = self.sync() {
            // Not acknowledged: the managers see that this node lags. The next comparison tries
            // again.
            error!(feed.version = %version, "cannot apply the update: {err:#}");
        }
    }

    /// No process of the node takes what services publish on it.
    fn hold_ports(&mut self) {
        let mut ports = self.context.ports.lock().expect("no holder panics");
        ports.update(&self.view, &self.local.node_addrs);
    }

    /// Brings the kernel's maps to the view, and says so to the managers.
    fn sync(&mut self) -> Result<()> {
        if !self.view.peers.contains_key(&self.local.node) {
            // Before the first update: nothing is known, and nothing is in the maps.
            return Ok(());
        }
        self.is_in_step = false;
        let report = tokio::task::block_in_place(|| self.datapath.sync(&self.view, &self.local))?;
        self.is_in_step = true;
        if !report.is_unchanged() {
            info!(feed.version = %self.view.version, sync.services = report.services_written,
                sync.rings = report.rings_written, sync.entries = report.entries_written,
                sync.removed = report.entries_removed,
                sync.us = report.duration.as_micros() as u64, "data plane in step");
        }
        for skipped in &report.skipped {
            warn!(feed.version = %self.view.version, "left out of the data plane: {skipped}");
        }
        if report.services_written > 0 {
            self.rings_changed();
        }
        // Each update has its acknowledgement, also one that brings no new version.
        if std::mem::take(&mut self.owes_ack) {
            let at_once = self.pins.waits.put_off(self.view.clone());
            at_once.into_iter().for_each(|view| self.acknowledge(view));
        }
        Ok(())
    }

    /// The kernel has `view`, and its displaced flows are told of.
    fn acknowledge(&mut self, view: Arc<NodeView>) {
        let version = view.version;
        self.applied
            .send_modify(|applied| *applied = applied.next(view));
        self.say(AgentMessage::Ack { version });
    }

    /// New flows go to nodes that answer. Nothing but these words depends on it.
    fn hear_doubts(&mut self) {
        self.local.doubts = self.pulse.doubts.borrow_and_update().clone();
        self.is_in_step = false;
        if let Err(err) = self.sync() {
            error!("new flows go to nodes that do not answer: {err:#}");
        }
    }

    /// Tells each runner what is wanted now, starts those of new tasks, ends those of gone ones.
    fn start_runners(&mut self) {
        for (id, runner) in &self.runners {
            match self.view.tasks.get(id) {
                Some(task) => {
                    runner.desired.send_if_modified(|desired| {
                        std::mem::replace(desired, task.desired) != task.desired
                    });
                }
                None => {
                    runner.desired.send_replace(TaskState::Remove);
                    runner.removed.cancel();
                }
            }
        }
        let new = self
            .view
            .tasks
            .values()
            .filter(|task| !task.state.is_terminal() && !self.runners.contains_key(&task.id));
        for task in new.cloned().collect::<Vec<_>>() {
            let id = task.id;
            let runner = Runner::spawn(task, Origin::Fresh, self.context.clone());
            self.runners.insert(id, runner);
        }
    }

    fn hear_runner(&mut self, message: RunnerMessage) {
        match message {
            RunnerMessage::Status(status) => {
                let message = self.statuses.record(status);
                self.say(message);
            }
            RunnerMessage::Attach {
                network,
                local,
                done,
            } => {
                let attached = self.attach_links(&local).map(drop);
                self.local.tasks.insert(network.task, local);
                self.networks.insert(network.task, network);
                self.is_in_step = false;
                let served = attached.and_then(|()| self.sync());
                let _ = done.send(served);
            }
            RunnerMessage::Detach { task, done } => {
                let local = self.forget_network(task);
                if let Err(err) = self.sync() {
                    error!(task.id = %task, "the task's interfaces are still in the maps: {err:#}");
                }
                local
                    .into_iter()
                    .for_each(|local| self.detach_links(&local));
                let _ = done.send(());
            }
            RunnerMessage::Gone(task) => drop(self.runners.remove(&task)),
        }
    }

    fn forget_network(&mut self, task: TaskId) -> Option<LocalTask> {
        self.networks.remove(&task);
        self.local.tasks.remove(&task)
    }

    fn inspect(&self, table: Table) -> Result<serde_json::Value> {
        let view = &self.view;
        Ok(match table {
            Table::Vips => serde_json::to_value(self.datapath.inspect_vips(view)?)?,
            Table::Services => serde_json::to_value(self.datapath.inspect_services(view)?)?,
            Table::Endpoints => serde_json::to_value(self.datapath.inspect_endpoints(view)?)?,
            Table::Backends => serde_json::to_value(self.datapath.inspect_backends(view)?)?,
            Table::Flows => serde_json::to_value(self.datapath.inspect_flows(view)?)?,
            Table::Drops => serde_json::to_value(self.drops()?)?,
            Table::Dns => serde_json::to_value(dns::rows(view))?,
            Table::Nodes => serde_json::to_value(self.doubt_rows())?,
        })
    }

    fn doubt_rows(&self) -> Vec<DoubtRow> {
        let doubts = self.local.doubts.iter();
        doubts
            .map(|(node, doubt)| DoubtRow {
                node: node.to_string(),
                doubt: match doubt {
                    Doubt::Suspected => "suspected".to_owned(),
                    Doubt::Returning => "returning".to_owned(),
                },
            })
            .collect()
    }

    /// The programs' drops, and what the kernel gives up where it puts fragments in order.
    fn drops(&self) -> Result<Vec<DropRow>> {
        let mut rows = self.datapath.inspect_drops()?;
        let packets = self.reassembly.failures()?;
        if packets > 0 {
            rows.push(DropRow {
                reason: "reassembly-failed".to_owned(),
                explanation:
                    "A packet in fragments that overlap, or of which one did not come in time; \
                              the kernel counts packets, not bytes."
                        .to_owned(),
                packets,
                bytes: 0,
                programs: vec![ProgramDrops {
                    program: "kernel".to_owned(),
                    packets,
                    bytes: 0,
                }],
            });
        }
        rows.extend(self.pulse.ignored.rows());
        Ok(rows)
    }

    /// The session reads fast; when it is gone, what is lost is said again at its return.
    fn say(&self, message: AgentMessage) {
        if self.outbox.try_send(message).is_err() {
            debug!("no session takes the agent's message; it is said again");
        }
    }
}

fn links_spec(config: &AgentConfig, credentials: &Credentials, view: &NodeView) -> NodeLinksSpec {
    let data_path = view
        .cluster
        .as_ref()
        .map(|cluster| cluster.data_path.clone());
    NodeLinksSpec {
        data_port: data_path.unwrap_or_default().port,
        vtep: credentials.vtep,
        uplink: config.uplink.clone(),
        gateway: gateway::bridge(),
    }
}

/// The resolvers of the node's `/etc/resolv.conf`, for names outside the cluster.
fn node_resolvers() -> Vec<SocketAddr> {
    let content = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let config = resolv_conf::Config::parse(&content).unwrap_or_default();
    config
        .nameservers
        .iter()
        .filter_map(|server| match server {
            resolv_conf::ScopedIp::V4(addr) => Some(SocketAddr::new((*addr).into(), 53)),
            resolv_conf::ScopedIp::V6(addr, None) => Some(SocketAddr::new((*addr).into(), 53)),
            resolv_conf::ScopedIp::V6(_, Some(_)) => None,
        })
        .collect()
}
