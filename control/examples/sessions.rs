//! What many nodes' sessions cost the leader: the processor's time of its threads while nothing
//! happens and for a change that all nodes hear of, and how long a new leader takes to have all
//! sessions back.
//!
//!     cargo run --release -p swarmnet-control --example sessions -- [nodes]
//!
//! Agents are in the same process, on threads of their own; their time is not counted.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ca::{Authority, Connector, NodeCertificate, NodeKey, NodeTls, Roots, Subject};
use jiff::{SignedDuration, Timestamp};
use model::{
    NodeId,
    feed::{AgentMessage, Hello, ManagerMessage, NodeView},
    object::{
        DataPathConfig, Meta, Node, NodeDescription, NodeState, NodeStatus, RootCa, Service,
        ServiceEndpoint,
    },
    rpc::{ApiRequest, ApiResponse, DispatcherClient},
    spec::{
        Availability, ClusterSpec, NodeRole, NodeSpec, PortSpec, Protocol, PublishMode,
        ServiceMode, ServiceSpec,
    },
};
use store::Transaction;
use swarmnet_control::{ApiHandler, InitOptions, Manager, ManagerConfig};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;

/// The name of the threads whose time counts.
const LEADER: &str = "leader";
/// With heartbeats of five seconds, as by default.
const IDLE: Duration = Duration::from_secs(20);
const CHANGES: u32 = 20;
/// Between two looks at how far the nodes are.
const LOOK: Duration = Duration::from_millis(2);
/// What `getconf CLK_TCK` says on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Nothing is forwarded here.
struct Alone;

#[tonic::async_trait]
impl ApiHandler for Alone {
    async fn answer(&self, request: ApiRequest) -> ApiResponse {
        unreachable!("{} was forwarded to the only manager", request.uri)
    }
}

/// A node, and what its agent has to show.
struct Member {
    node: NodeId,
    vtep: Ipv4Addr,
    tls: NodeTls,
}

fn main() {
    let nodes = std::env::args().nth(1);
    let nodes: usize = nodes.map_or(1000, |text| text.parse().expect("nodes are a number"));
    let dir = tempfile::tempdir().expect("a directory");
    let (leader, agents) = (runtime(LEADER), runtime("agents"));
    let config = || ManagerConfig {
        state_dir: dir.path().to_owned(),
        listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        unlock: None,
        api: Arc::new(Alone),
    };
    let (mut manager, first) = leader
        .block_on(leader.spawn(Manager::bootstrap(config(), init())))
        .expect("it does not panic")
        .expect("a cluster is made");
    let members = leader.block_on(join(&manager, nodes));
    let address = watch::Sender::new(manager.local_addr());
    let began = cpu();
    for member in members {
        agents.spawn(agent(member, address.subscribe()));
    }
    let took = leader.block_on(all_reached(&manager, nodes));
    println!(
        "first contact: {nodes} nodes in {took:.2?}, {:.2} s of the processor",
        cpu() - began
    );
    report_idle();
    report_changes(&leader, &manager, nodes);

    // As a manager that comes to lead: nothing but the store, and all agents at once.
    leader.block_on(manager.shutdown());
    let (opened, began) = (Instant::now(), cpu());
    manager = leader
        .block_on(leader.spawn(Manager::open(config(), first.tls)))
        .expect("it does not panic")
        .expect("the manager opens");
    address.send_replace(manager.local_addr());
    leader.block_on(all_reached(&manager, nodes));
    println!(
        "a new leader has all sessions back after {:.2?}, {:.2} s of the processor",
        opened.elapsed(),
        cpu() - began
    );
    leader.block_on(manager.shutdown());
}

fn runtime(name: &str) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.thread_name(name).worker_threads(2).enable_all();
    builder.build().expect("threads")
}

fn init() -> InitOptions {
    InitOptions {
        spec: ClusterSpec::default(),
        data_path: DataPathConfig::default(),
        description: NodeDescription::default(),
        availability: Availability::Drain,
        advertise_addr: Ipv4Addr::LOCALHOST,
        advertise_port: None,
        data_path_addr: Some(Ipv4Addr::new(10, 255, 0, 1)),
    }
}

fn report_idle() {
    let began = cpu();
    std::thread::sleep(IDLE);
    let share = (cpu() - began) / IDLE.as_secs_f64() * 100.0;
    println!(
        "idle: {share:.1} % of one processor; {} MiB for both sides",
        memory()
    );
}

fn report_changes(leader: &Runtime, manager: &Manager, nodes: usize) {
    let (began, mut took) = (cpu(), Vec::new());
    for number in 0..CHANGES {
        let changed = manager
            .store()
            .write(|tx| tx.put(service(tx, 8000 + number as u16)));
        leader.block_on(changed).expect("it is written");
        took.push(leader.block_on(all_reached(manager, nodes)));
    }
    took.sort();
    println!(
        "a change that all hear of: acknowledged by all after {:.0?} in the median, {:.0?} at most; \
         {:.0} ms of the processor each",
        took[took.len() / 2],
        took[took.len() - 1],
        (cpu() - began) * 1000.0 / f64::from(CHANGES)
    );
}

/// Waits until every node has acknowledged everything.
async fn all_reached(manager: &Manager, nodes: usize) -> Duration {
    let began = Instant::now();
    loop {
        let rows = manager.node_rows();
        let there = rows.iter().filter(|row| row.applied >= row.current);
        if there.count() >= nodes {
            return began.elapsed();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Members by the store alone: joining is not measured.
async fn join(manager: &Manager, nodes: usize) -> Vec<Member> {
    let state = manager.store().state();
    let cluster = state.cluster().expect("it was made");
    let authority = Authority::new(&cluster.ca).expect("the root is ours");
    let mut members = Vec::with_capacity(nodes);
    for number in 0..nodes {
        let node = NodeId::generate();
        let subject = Subject {
            node,
            cluster: cluster.id,
            role: NodeRole::Worker,
        };
        let tls = certified(&authority, &cluster.ca, subject);
        let vtep = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 254, 0, 1)) + number as u32);
        let member = Member { node, vtep, tls };
        let written = manager
            .store()
            .write(|tx| tx.put(object(tx, &member)))
            .await;
        written.expect("it is written");
        members.push(member);
    }
    members
}

fn certified(authority: &Authority, root: &RootCa, subject: Subject) -> NodeTls {
    let certify = || {
        let key = NodeKey::generate()?;
        let request = ca::Request::from_pem(&key.request()?)?;
        let life = SignedDuration::from_hours(24);
        let chain = authority.issue(&request, subject, Timestamp::now(), life)?;
        let roots = Roots::from_pem(&root.certificate_pem)?;
        NodeTls::new(NodeCertificate::new(key, &chain, roots)?)
    };
    certify().expect("the root certifies")
}

fn object(tx: &Transaction, member: &Member) -> Node {
    Node {
        id: member.node,
        meta: Meta::new(tx.now()),
        spec: NodeSpec::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: String::new(),
            addr: member.vtep,
        },
        issuer: None,
        vtep: member.vtep,
        manager: None,
    }
}

/// Without tasks: published on every node all the same.
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
        mode: ServiceMode::Replicated { replicas: 0 },
        ..ServiceSpec::default()
    };
    "host".clone_into(&mut spec.task.container.image);
    spec.endpoint.ports = vec![port.clone()];
    Service {
        id: model::ServiceId::generate(),
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

/// Follows the feed at whatever address the leader has.
async fn agent(member: Member, mut leader: watch::Receiver<SocketAddr>) {
    let mut view = NodeView::default();
    loop {
        let addr = *leader.borrow_and_update();
        tokio::select! {
            () = session(&member, addr, &mut view) => tokio::time::sleep(LOOK).await,
            _ = leader.changed() => {}
        }
    }
}

/// Until it breaks.
async fn session(member: &Member, addr: SocketAddr, view: &mut NodeView) {
    let Ok(channel) = net::dial(&Connector::member(&member.tls), addr).await else {
        return;
    };
    let (say, said) = mpsc::channel(16);
    let hello = Hello {
        description: NodeDescription::default(),
        vtep: member.vtep,
        applied: view.version,
        known: view.digests(),
    };
    let greeted = say.try_send(AgentMessage::Hello(Box::new(hello)));
    greeted.expect("the queue is empty");
    let mut client = DispatcherClient::new(channel)
        .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
    let Ok(feed) = client.session(ReceiverStream::new(said)).await else {
        return;
    };
    let mut feed = feed.into_inner();
    let mut heartbeat = tokio::time::interval(ClusterSpec::default().dispatcher_heartbeat);
    loop {
        let answer = tokio::select! {
            heard = feed.message() => match heard {
                Ok(Some(ManagerMessage::Update(update))) => {
                    view.apply(update);
                    AgentMessage::Ack { version: view.version }
                }
                Ok(Some(ManagerMessage::Welcome { heartbeat: period })) => {
                    heartbeat = tokio::time::interval(period);
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => return,
            },
            _ = heartbeat.tick() => AgentMessage::Heartbeat {
                applied: view.version,
                digest: view.digest(),
            },
        };
        if say.send(answer).await.is_err() {
            return;
        }
    }
}

/// Seconds that the leader's threads have used.
fn cpu() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let ticks = tasks.filter_map(|task| ticks(&task.ok()?.path()));
    ticks.sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// `utime` and `stime` of proc(5), if it is a thread of the leader's. One that ended has none.
fn ticks(task: &Path) -> Option<u64> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    (name == LEADER).then_some(field(14)? + field(15)?)
}

/// Resident, in MiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let lines: BTreeMap<_, _> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let kib = lines["VmRSS"].trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") / 1024
}
