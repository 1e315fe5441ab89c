//! A manager and agents over real gRPC on loopback: what an agent sees of the cluster's life.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::support::{Agent, Cluster, Credentials, Heard, in_time, init_options};
use model::{
    EndpointId, TaskId, TaskState, Version,
    feed::{AgentMessage, BackendState, NodeView, PINS_PER_NODE_MAX, Pin, ViewKey},
    object::NodeState,
    rpc::{DispatcherClient, LeaveRequest, MembershipClient},
    token::JoinToken,
};
use swarmnet_control::{BootstrapError, Manager, ManagerError};
use tonic::Code;

fn is_backend(endpoint: EndpointId, state: BackendState) -> impl Fn(&NodeView) -> bool {
    move |view| {
        view.endpoints
            .get(&endpoint)
            .is_some_and(|e| e.state == state)
    }
}

fn is_desired(task: TaskId, desired: TaskState) -> impl Fn(&NodeView) -> bool {
    move |view| {
        view.tasks
            .get(&task)
            .is_some_and(|task| task.desired == desired)
    }
}

#[tokio::test]
async fn a_node_joins_gets_its_task_and_reports_it_running() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    assert_eq!(
        cluster.state().node(node.id).unwrap().status.state,
        NodeState::Unknown
    );

    let addr = cluster.state().node(node.id).unwrap().status.addr;
    assert_eq!(addr, Ipv4Addr::LOCALHOST, "where it called from");

    let mut agent = cluster.connect(&node).await;
    cluster.until_node(node.id, NodeState::Ready).await;
    agent
        .until("cluster and peers", |view| {
            view.cluster.is_some() && view.peers.len() == 2
        })
        .await;
    let heartbeat = agent.heard().welcome.unwrap().as_secs_f64();
    assert!(
        (4.5..=5.5).contains(&heartbeat),
        "{heartbeat} is 5 s within 10 %"
    );

    let (task, endpoint) = cluster.add_task(node.id, 8080).await;
    agent
        .until("the task", |view| view.tasks.contains_key(&task))
        .await;
    let view = agent.view();
    assert_eq!(view.tasks[&task].state, TaskState::Assigned);
    assert_eq!(view.endpoints[&endpoint].state, BackendState::Starting);
    assert_eq!(
        view.services.values().next().unwrap().ports[0].published,
        8080
    );

    agent.report(task, TaskState::Running).await;
    assert_eq!(
        cluster.state().task(task).unwrap().status.state,
        TaskState::Running
    );
    agent
        .until("active", is_backend(endpoint, BackendState::Active))
        .await;
    cluster.until_applied(node.id).await;
    assert_eq!(
        cluster.applied(cluster.first.id).0,
        0,
        "it never had a session"
    );
}

#[tokio::test]
async fn statuses_only_move_forward_and_only_for_the_nodes_own_tasks() {
    let mut cluster = Cluster::new().await;
    let (first, second) = (cluster.join().await, cluster.join().await);
    let mut owner = cluster.connect(&first).await;
    let mut other = cluster.connect(&second).await;
    let (task, _) = cluster.add_task(first.id, 8080).await;
    let state = || cluster.state().task(task).unwrap().status.state;

    other.report(task, TaskState::Failed).await;
    assert_eq!(state(), TaskState::Assigned, "another node's task");
    owner.report(task, TaskState::Orphaned).await;
    assert_eq!(state(), TaskState::Assigned, "managers alone say ORPHANED");
    owner.report(task, TaskState::Running).await;
    owner.report(task, TaskState::Starting).await;
    assert_eq!(state(), TaskState::Running, "no way back");
    owner.report(task, TaskState::Failed).await;
    owner.report(task, TaskState::Rejected).await;
    assert_eq!(state(), TaskState::Failed, "ended is ended");
    // Acknowledged all the same: the agent need not say it again.
    owner.report(TaskId::generate(), TaskState::Running).await;
}

/// Three nodes with agents, and a task that runs on the second.
struct Running {
    cluster: Cluster,
    owner: Agent,
    others: [Agent; 2],
    node: Credentials,
    task: TaskId,
    endpoint: EndpointId,
}

async fn running() -> Running {
    let mut cluster = Cluster::new().await;
    let (node, other) = (cluster.join().await, cluster.join().await);
    let mut owner = cluster.connect(&node).await;
    let others = [
        cluster.connect(&cluster.first).await,
        cluster.connect(&other).await,
    ];
    let (task, endpoint) = cluster.add_task(node.id, 8080).await;
    owner.report(task, TaskState::Running).await;
    for agent in [&owner, &others[0], &others[1]] {
        agent
            .until("active", is_backend(endpoint, BackendState::Active))
            .await;
    }
    Running {
        cluster,
        owner,
        others,
        node,
        task,
        endpoint,
    }
}

#[tokio::test]
async fn the_stop_reaches_the_owner_only_after_the_other_nodes_acknowledged_draining() {
    let Running {
        cluster,
        mut owner,
        others,
        node,
        task,
        endpoint,
    } = running().await;
    others[1].acks(false);
    cluster.stop(task).await;
    for agent in [&owner, &others[0], &others[1]] {
        agent
            .until("draining", is_backend(endpoint, BackendState::Draining))
            .await;
    }
    for id in [node.id, cluster.first.id] {
        cluster.until_applied(id).await;
    }
    owner.round_trip().await;
    assert_eq!(owner.view().tasks[&task].desired, TaskState::Running);

    let acked_at = Instant::now();
    others[1].acks(true);
    owner
        .until("told to stop", is_desired(task, TaskState::Shutdown))
        .await;
    assert!(
        acked_at.elapsed() < Duration::from_secs(19),
        "not the deadline did it"
    );

    owner.report(task, TaskState::Shutdown).await;
    for agent in [&owner, &others[0], &others[1]] {
        agent
            .until("gone", |view| !view.endpoints.contains_key(&endpoint))
            .await;
    }
}

#[tokio::test]
async fn a_node_that_does_not_acknowledge_holds_a_stop_up_until_the_deadline() {
    let Running {
        cluster,
        owner,
        others,
        task,
        ..
    } = running().await;
    others[0].acks(false);
    let asked_at = Instant::now();
    cluster.stop(task).await;
    owner
        .until("told to stop", is_desired(task, TaskState::Shutdown))
        .await;
    assert!(
        asked_at.elapsed() >= Duration::from_secs(19),
        "it waited for the node"
    );
}

#[tokio::test]
async fn after_a_restart_of_the_manager_only_the_difference_is_sent() {
    let Running {
        mut cluster,
        owner,
        others,
        node,
        task,
        endpoint,
    } = running().await;
    cluster.until_applied(node.id).await;
    let before = owner.view();
    cluster.restart().await;
    assert_eq!(owner.end().await.code(), Code::Unavailable);
    drop(others);

    // Nothing changed for the node: nodes that are not heard of yet still count as there.
    let addr = cluster.manager.local_addr();
    let resumed = Agent::resume(addr, &node, before.clone()).await;
    resumed
        .until_heard("the first update", |heard| heard.updates.len() == 1)
        .await;
    let update = resumed.heard().updates[0].clone();
    assert_eq!((update.put, update.removed), (vec![], vec![]));
    assert!(update.version >= before.version);
    drop(resumed);

    // What changed while nobody was connected is sent, and nothing else.
    cluster.stop(task).await;
    let resumed = Agent::resume(addr, &node, before).await;
    resumed
        .until_heard("the first update", |heard| !heard.updates.is_empty())
        .await;
    let update = resumed.heard().updates[0].clone();
    let keys: Vec<_> = update.put.iter().map(|object| object.key()).collect();
    assert_eq!(keys, [ViewKey::Endpoint(endpoint)]);
    assert_eq!(update.removed, []);
    assert_eq!(
        resumed.view().tasks[&task].desired,
        TaskState::Running,
        "held back"
    );
}

#[tokio::test]
async fn an_agent_that_was_told_to_stop_a_task_is_not_told_otherwise_after_a_restart() {
    let Running {
        mut cluster,
        owner,
        others,
        node,
        task,
        ..
    } = running().await;
    cluster.stop(task).await;
    owner
        .until("told to stop", is_desired(task, TaskState::Shutdown))
        .await;
    let before = owner.view();
    cluster.restart().await;
    drop((owner, others));

    let resumed = Agent::resume(cluster.manager.local_addr(), &node, before).await;
    cluster.until_node(node.id, NodeState::Ready).await;
    cluster.until_applied(node.id).await;
    resumed.round_trip().await;
    for update in resumed.heard().updates {
        assert_eq!(update.put, [], "nothing of the task changed");
    }
    assert_eq!(resumed.view().tasks[&task].desired, TaskState::Shutdown);
}

#[tokio::test]
async fn a_node_that_misses_its_heartbeats_is_down_and_ready_again_at_once() {
    let heartbeat = Duration::from_millis(200);
    let mut cluster = Cluster::with_heartbeat(heartbeat).await;
    let node = cluster.join().await;
    let mut agent = cluster.connect(&node).await;
    let watcher = cluster.connect(&cluster.first).await;
    let (task, endpoint) = cluster.add_task(node.id, 8080).await;
    agent.report(task, TaskState::Running).await;
    watcher
        .until("active", is_backend(endpoint, BackendState::Active))
        .await;

    let silent_since = Instant::now();
    agent.beats(false);
    cluster.until_node(node.id, NodeState::Down).await;
    assert!(
        silent_since.elapsed() >= heartbeat,
        "not at the first missed one"
    );
    assert_eq!(agent.end().await.code(), Code::Aborted);
    watcher
        .until("backend and peer down", |view| {
            let drains = view.endpoints[&endpoint].state == BackendState::Draining;
            drains && !view.peers[&node.id].up
        })
        .await;

    let agent = cluster.connect(&node).await;
    cluster.until_node(node.id, NodeState::Ready).await;
    watcher
        .until("peer up", |view| view.peers[&node.id].up)
        .await;
    agent
        .until("its task", |view| view.tasks.contains_key(&task))
        .await;
}

/// A machine that is installed anew joins as another node with the address that it had.
#[tokio::test]
async fn a_tunnel_address_is_another_nodes_only_when_the_one_that_has_it_is_down() {
    let heartbeat = Duration::from_millis(200);
    let mut cluster = Cluster::with_heartbeat(heartbeat).await;
    let before = cluster.join().await;
    let agent = cluster.connect(&before).await;
    let watcher = cluster.connect(&cluster.first).await;
    let (_, endpoint) = cluster.add_task(before.id, 8080).await;
    watcher
        .until("its endpoint", |view| {
            view.endpoints.contains_key(&endpoint)
        })
        .await;
    let token = cluster.state().cluster().unwrap().tokens.worker.clone();
    let after = cluster.try_join(token).await.unwrap();
    assert_eq!(after.vtep, before.vtep);

    let refused = cluster.connect(&after).await.end().await;
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert!(refused.message().contains(&before.id.to_string()));
    let had_by = |view: &NodeView| {
        let peers = view.peers.values().filter(|peer| peer.vtep == before.vtep);
        peers.map(|peer| peer.node).collect::<Vec<_>>()
    };
    cluster.until_applied(cluster.first.id).await;
    assert_eq!(had_by(&watcher.view()), [before.id]);
    agent.round_trip().await;

    agent.beats(false);
    cluster.until_node(before.id, NodeState::Down).await;
    let agent = cluster.connect(&after).await;
    agent
        .until("itself", |view| view.peers.contains_key(&after.id))
        .await;
    watcher
        .until("the other", |view| had_by(view) == [after.id])
        .await;
    assert!(!watcher.view().peers.contains_key(&before.id));
    assert!(!watcher.view().endpoints.contains_key(&endpoint));

    let refused = cluster.connect(&before).await.end().await;
    assert!(
        refused.message().contains(&after.id.to_string()),
        "{refused}"
    );
}

#[tokio::test]
async fn a_node_that_was_never_heard_of_after_a_start_is_down_after_twice_the_grace() {
    let heartbeat = Duration::from_millis(200);
    let mut cluster = Cluster::with_heartbeat(heartbeat).await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    cluster.until_node(node.id, NodeState::Ready).await;

    cluster.restart().await;
    drop(agent);
    let started_at = Instant::now();
    let state = cluster.state().node(node.id).unwrap().status.state;
    assert_eq!(state, NodeState::Unknown);
    cluster.until_node(node.id, NodeState::Down).await;
    assert!(
        started_at.elapsed() >= heartbeat * 4,
        "twice the grace of three heartbeats"
    );

    cluster.restart().await;
    let state = cluster.state().node(node.id).unwrap().status.state;
    assert_eq!(
        state,
        NodeState::Down,
        "down stays down until it is heard of"
    );
}

#[tokio::test]
async fn forged_and_rotated_tokens_are_refused() {
    let cluster = Cluster::new().await;
    let tokens = cluster.state().cluster().unwrap().tokens.clone();
    let forged = {
        let (root, _) = tokens.worker.rsplit_once('-').unwrap();
        format!("{root}-{}", model::id::base36(7))
    };
    for token in [
        forged,
        String::new(),
        JoinToken::generate(&[1; 32]).to_string(),
    ] {
        let refused = cluster.try_join(token).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), "invalid join token");
    }
    let fresh = {
        let (root, _) = tokens.worker.rsplit_once('-').unwrap();
        format!("{root}-{}", model::id::base36(8))
    };
    cluster
        .write(|tx| {
            let mut changed = model::object::Cluster::clone(tx.state().cluster().unwrap());
            changed.tokens.worker = fresh.clone();
            tx.put(changed).unwrap();
        })
        .await;
    let refused = cluster.try_join(tokens.worker).await.unwrap_err();
    assert_eq!(refused.message(), "invalid join token");
    cluster.try_join(fresh).await.unwrap();
    assert_eq!(cluster.state().node_count(), 2);
}

#[tokio::test]
async fn a_session_begins_with_a_hello() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let mut client = DispatcherClient::new(node.dial(cluster.manager.local_addr()).await);
    let ack = AgentMessage::Ack {
        version: Version(1),
    };
    let mut session = client
        .session(tokio_stream::iter([ack]))
        .await
        .unwrap()
        .into_inner();
    let refused = in_time("refusal", session.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let state = cluster.state().node(node.id).unwrap().status.state;
    assert_eq!(state, NodeState::Unknown);
}

#[tokio::test]
async fn the_newer_of_two_sessions_of_a_node_wins() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let older = cluster.connect(&node).await;
    older.until("peers", |view| view.peers.len() == 2).await;
    let mut newer = cluster.connect(&node).await;
    assert_eq!(older.end().await.code(), Code::Aborted);

    let (task, _) = cluster.add_task(node.id, 8080).await;
    newer
        .until("the task", |view| view.tasks.contains_key(&task))
        .await;
    newer.report(task, TaskState::Running).await;
    cluster.until_applied(node.id).await;
}

#[tokio::test]
async fn an_agent_whose_view_drifted_is_made_to_begin_again_and_repaired() {
    let Running {
        cluster,
        owner,
        node,
        endpoint,
        ..
    } = running().await;
    cluster.until_applied(node.id).await;
    let mut drifted = owner.view();
    drifted.endpoints.remove(&endpoint);
    let digest = drifted.digest();
    owner.beats(false);
    for _ in 0..2 {
        owner
            .say(AgentMessage::Heartbeat {
                applied: drifted.version,
                digest,
            })
            .await;
    }
    assert_eq!(owner.end().await.code(), Code::Aborted);

    let repaired = Agent::resume(cluster.manager.local_addr(), &node, drifted).await;
    repaired
        .until("repaired", is_backend(endpoint, BackendState::Active))
        .await;
    let keys: Vec<_> = repaired.heard().updates[0]
        .put
        .iter()
        .map(|o| o.key())
        .collect();
    assert_eq!(keys, [ViewKey::Endpoint(endpoint)]);
}

#[tokio::test]
async fn a_node_that_left_is_down_and_cannot_come_back() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    agent.until("peers", |view| view.peers.len() == 2).await;
    let addr = cluster.manager.local_addr();
    let mut manager = MembershipClient::new(cluster.first.dial(addr).await);
    assert_eq!(
        manager.leave(LeaveRequest {}).await.unwrap_err().code(),
        Code::FailedPrecondition
    );

    let mut client = MembershipClient::new(node.dial(addr).await);
    client.leave(LeaveRequest {}).await.unwrap();
    assert_eq!(agent.end().await.code(), Code::Aborted);
    let state = cluster.state().node(node.id).unwrap().status.state;
    assert_eq!(state, NodeState::Down);
    assert_eq!(
        cluster.connect(&node).await.end().await.code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_node_that_is_removed_loses_its_session() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    agent.until("peers", |view| view.peers.len() == 2).await;
    cluster
        .write(|tx| tx.remove(store::Key::Node(node.id)))
        .await;
    assert_eq!(agent.end().await.code(), Code::NotFound);
}

#[tokio::test]
async fn a_directory_without_a_swarm_is_no_manager_and_one_with_is_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new().await;
    let tls = cluster.first.tls.clone();
    let mut empty = cluster.config();
    empty.state_dir = dir.path().join("empty");
    let refused = Manager::open(empty.clone(), tls.clone()).await.unwrap_err();
    assert!(matches!(refused, ManagerError::NoCluster(_)), "{refused}");
    // Nothing is left behind that a new swarm would trip over.
    let (second, _) = Manager::bootstrap(empty, init_options()).await.unwrap();
    second.shutdown().await;

    let mut taken = cluster.config();
    taken.listen_addr = cluster.manager.local_addr();
    let refused = Manager::open(taken, tls.clone()).await.unwrap_err();
    assert!(matches!(refused, ManagerError::Listen { .. }), "{refused}");

    let id = cluster.state().cluster().unwrap().id;
    cluster.manager.clone().shutdown().await;
    let refused = Manager::bootstrap(cluster.config(), init_options())
        .await
        .unwrap_err();
    let ManagerError::Bootstrap(refused) = refused else {
        panic!("{refused}");
    };
    assert!(matches!(refused, BootstrapError::AlreadyInitialised));
    let manager = Manager::open(cluster.config(), tls).await.unwrap();
    assert_eq!(manager.store().state().cluster().unwrap().id, id);
    manager.shutdown().await;
}

#[tokio::test]
async fn sessions_take_up_a_new_heartbeat_period() {
    let mut cluster = Cluster::with_heartbeat(Duration::from_millis(300)).await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    agent.until("peers", |view| view.peers.len() == 2).await;
    cluster
        .write(|tx| {
            let mut changed = model::object::Cluster::clone(tx.state().cluster().unwrap());
            changed.spec.dispatcher_heartbeat = Duration::from_secs(60);
            tx.put(changed).unwrap();
        })
        .await;
    let is_long = |period: Option<Duration>| period.is_some_and(|p| p > Duration::from_secs(50));
    agent
        .until_heard("the new period", |heard| is_long(heard.welcome))
        .await;
}

/// A slot of a ring knows one owner before: a connection whose slot moves twice has to be pinned in
/// between.
#[tokio::test]
async fn rings_move_again_only_when_every_node_has_the_last_move_and_its_pins() {
    let Running {
        cluster,
        mut owner,
        others,
        node,
        task,
        endpoint,
    } = running().await;
    let (second, backend) = cluster.add_task(node.id, 9090).await;
    let comes = |view: &NodeView| view.endpoints.contains_key(&backend);
    owner.until("the second task", comes).await;
    others[1].acks(false);
    cluster.stop(task).await;
    let drains = is_backend(endpoint, BackendState::Draining);
    owner.until("the first move", drains).await;
    let version = owner.view().version;
    let is_active = is_backend(backend, BackendState::Active);
    owner.report(second, TaskState::Running).await;
    // What is no move of rings goes on meanwhile, such as pins.
    others[1].say(AgentMessage::Pins(vec![pin(1)])).await;
    let arrived = |heard: &Heard| heard.pins.values().any(|pins| *pins == [pin(1)]);
    owner.until_heard("pins", arrived).await;
    assert!(!is_active(&owner.view()), "one node lacks the first move");

    others[1].say(AgentMessage::Pins(vec![pin(2)])).await;
    others[1].acks(true);
    owner.until("the second move", is_active).await;
    let heard = owner.heard();
    assert!(heard.settled >= version);
    assert!(heard.pins.values().any(|pins| *pins == [pin(2)]));
}

/// A node that comes back while commits wait for a move of rings hears at once what the others have: they
/// may wait for its own acknowledgement.
#[tokio::test]
async fn a_session_that_begins_while_rings_move_has_what_there_is_so_far() {
    let Running {
        cluster,
        mut owner,
        others: [first, silent],
        node,
        task,
        endpoint,
    } = running().await;
    let (second, backend) = cluster.add_task(node.id, 9090).await;
    let comes = |view: &NodeView| view.endpoints.contains_key(&backend);
    owner.until("the second task", comes).await;
    silent.acks(false);
    cluster.stop(task).await;
    let drains = is_backend(endpoint, BackendState::Draining);
    owner.until("the first move", &drains).await;
    owner.report(second, TaskState::Running).await;
    drop(first);
    let first = cluster.connect(&cluster.first).await;
    first.until("the first move", &drains).await;
    let is_active = is_backend(backend, BackendState::Active);
    assert!(!is_active(&first.view()), "one node lacks the first move");

    silent.acks(true);
    first.until("the second move", is_active).await;
}

fn pin(port: u16) -> Pin {
    Pin {
        client: format!("203.0.113.9:{port}").parse().unwrap(),
        frontend: "192.0.2.1:8080".parse().unwrap(),
        endpoint: EndpointId(7),
    }
}

/// Pins go from one node to all others, also to those that come later; a version is settled when all
/// nodes that are up have applied it, and not before their pins have been passed on.
#[tokio::test]
async fn pins_are_relayed_and_settled_with_the_version() {
    let mut cluster = Cluster::new().await;
    let (first, second) = (cluster.join().await, cluster.join().await);
    let _managers = cluster.connect(&cluster.first).await;
    let owner = cluster.connect(&first).await;
    let other = cluster.connect(&second).await;
    other.until("peers", |view| view.peers.len() == 3).await;
    for pins in [vec![pin(1), pin(2)], vec![pin(2)]] {
        owner.say(AgentMessage::Pins(pins.clone())).await;
        let arrived = |heard: &Heard| heard.pins.get(&first.id) == Some(&pins);
        other.until_heard("the pins", arrived).await;
    }
    assert!(owner.heard().pins.is_empty(), "they are its own");

    // The owner holds its acknowledgement back, so nobody hears that the next version is settled.
    owner.acks(false);
    let (task, endpoint) = cluster.add_task(second.id, 8080).await;
    let is_there = |view: &NodeView| view.endpoints.contains_key(&endpoint);
    other
        .until("the task", |view| view.tasks.contains_key(&task))
        .await;
    owner.until("the endpoint", is_there).await;
    let version = owner.view().version;
    owner.say(AgentMessage::Pins(vec![pin(3)])).await;
    let arrived = |heard: &Heard| heard.pins.get(&first.id) == Some(&vec![pin(3)]);
    other.until_heard("the pins of the version", arrived).await;
    assert!(other.heard().settled < version);
    owner.acks(true);
    owner.say(AgentMessage::Ack { version }).await;
    other
        .until_heard("the version to be settled", |heard| {
            heard.settled >= version
        })
        .await;

    let third = cluster.join().await;
    let late = cluster.connect(&third).await;
    late.until_heard("the pins of before", arrived).await;
}

/// All nodes would have to hold them.
#[tokio::test]
async fn more_pins_than_a_node_may_have_end_its_session() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    let pins = vec![pin(1); PINS_PER_NODE_MAX + 1];
    agent.say(AgentMessage::Pins(pins)).await;
    let end = agent.end().await;
    assert_eq!(end.code(), Code::InvalidArgument, "{end}");
}
