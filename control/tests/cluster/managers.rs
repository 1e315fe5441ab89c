//! Several managers over real gRPC on loopback.

use std::time::{Duration, Instant};

use model::{
    object::Node,
    rpc::{ApiRequest, EnrolRequest, LeaveRequest, MembershipClient, leader_named},
    spec::NodeRole,
};
use store::{Standing, raft::RaftId};
use swarmnet_control::{Forwarded, Manager, Reach, ops};
use tonic::Code;

use crate::support::{Agent, Cluster, Credentials, LOST_ONCE, in_time, was_lost};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// From an election until who waited for the former leader has heard of it, with slow machines in mind.
const LATE: Duration = Duration::from_secs(3);

async fn until(what: &str, is_so: impl Fn() -> bool) {
    in_time(what, async {
        while !is_so() {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
}

async fn leader<'a>(managers: &[&'a Manager]) -> &'a Manager {
    let leads = |manager: &&&Manager| manager.store().standing().borrow().leads();
    until("one leads", || managers.iter().any(|m| leads(&m))).await;
    managers.iter().find(leads).unwrap()
}

fn request() -> ApiRequest {
    ApiRequest {
        method: "GET".to_owned(),
        uri: "/services".to_owned(),
        content_type: None,
        body: Default::default(),
    }
}

/// Managers join by their token, and the store names them as the Raft group does. One that does not
/// lead sends agents and API requests to the one that does, and when that goes another takes its
/// place, with everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_join_and_another_takes_over() {
    let mut cluster = Cluster::new().await;
    let worker = cluster.join().await;
    let (second_node, second) = cluster.join_manager().await;
    let (_, third) = cluster.join_manager().await;
    let first = cluster.manager.clone();
    assert_eq!(first.store().members().voters.len(), 3);
    let stored = cluster.state().node(second_node.id).unwrap().manager;
    assert_eq!(stored.unwrap().raft, second.store().id());
    let everywhere = Reach {
        leads: false,
        reachable: true,
    };
    assert_eq!(first.reach(second.store().id()), everywhere);
    assert!(first.reach(first.store().id()).leads);

    let follows = |m: &Manager| matches!(*m.store().standing().borrow(), Standing::Follows { .. });
    until("the second follows", || follows(&second)).await;
    let refused = Agent::connect(second.local_addr(), &worker)
        .await
        .end()
        .await;
    assert_eq!(
        leader_named(&refused).map(Into::into),
        Some(first.local_addr())
    );
    let Forwarded::Answered(answer) = second.forward(&request()).await else {
        panic!("the leader answers");
    };
    assert_eq!(answer.body, "/services");
    assert!(matches!(first.forward(&request()).await, Forwarded::Here));

    let version = cluster.state().version();
    first.shutdown().await;
    let next = leader(&[&second, &third]).await;
    assert!(next.store().state().version() >= version);
    in_time("the next one takes agents in", async {
        loop {
            let agent = Agent::connect(next.local_addr(), &worker).await;
            tokio::select! {
                () = agent.until("managers", |view| {
                    view.cluster.as_ref().is_some_and(|cluster| cluster.managers.len() == 3)
                }) => return,
                // Before it has taken office.
                () = tokio::time::sleep(LOOK * 20) => {}
            }
        }
    })
    .await;
    for manager in [second, third] {
        manager.shutdown().await;
    }
}

/// A leader whose machine dies says nothing. Whoever waits for its answer hears of the next leader's
/// election: what was only a question is put to that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_on_its_way_to_a_leader_that_is_lost_does_not_outlast_the_election() {
    let mut cluster = Cluster::new().await;
    let (_, second) = cluster.join_manager().await;
    let (_, third) = cluster.join_manager().await;
    let first = cluster.manager.clone();
    let follows = |m: &Manager| matches!(*m.store().standing().borrow(), Standing::Follows { .. });
    until("the second follows", || follows(&second)).await;
    let on_its_way = |method: &str| {
        let request = ApiRequest {
            method: method.to_owned(),
            uri: format!("{LOST_ONCE}{method}"),
            ..request()
        };
        let second = second.clone();
        tokio::spawn(async move { second.forward(&request).await })
    };
    let (read, write) = (on_its_way("GET"), on_its_way("POST"));
    let is_asked = || ["GET", "POST"].map(|method| was_lost(&format!("{LOST_ONCE}{method}")));
    until("the leader is asked", || is_asked() == [true; 2]).await;

    // Its connections stay, and so do its answers.
    first.store().shutdown().await;
    leader(&[&second, &third]).await;
    let elected = Instant::now();
    let write = write.await.unwrap();
    let Forwarded::InDoubt { leader, reason } = write else {
        panic!("it may have been done: {write:?}");
    };
    assert_eq!(leader.addr, first.local_addr());
    assert!(reason.contains("leads no more"), "{reason}");
    match read.await.unwrap() {
        Forwarded::Answered(answer) => assert_eq!(answer.body, "/lost-once/GET"),
        Forwarded::Here => assert!(second.store().standing().borrow().leads()),
        other => panic!("the next leader answers: {other:?}"),
    }
    assert!(elected.elapsed() < LATE, "waited {:?}", elected.elapsed());
    for manager in [second, third] {
        manager.shutdown().await;
    }
}

async fn set_role(manager: &Manager, node: &Credentials, role: NodeRole) {
    let node = manager.store().state().node(node.id).unwrap().clone();
    let mut spec = node.spec.clone();
    spec.role = role;
    let store = manager.store();
    let changed = ops::update_node(store, node.id, node.meta.version, spec).await;
    changed.unwrap();
}

/// A worker that was promoted enrols, a demoted manager is let go by the group before its node is
/// told, and one that leaves resigns first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_promoted_demoted_and_leave() {
    let mut cluster = Cluster::new().await;
    let node = cluster.join().await;
    let agent = cluster.connect(&node).await;
    let is = |role| {
        move |view: &model::feed::NodeView| {
            view.cluster.as_ref().is_some_and(|c| c.role == Some(role))
        }
    };
    agent.until("a worker", is(NodeRole::Worker)).await;

    let first = cluster.manager.clone();
    let unasked = enrol(&cluster, &node).await.unwrap_err();
    assert_eq!(unasked.code(), Code::PermissionDenied);
    assert!(unasked.message().contains("promote"), "{unasked}");
    set_role(&first, &node, NodeRole::Manager).await;
    agent.until("to be a manager", is(NodeRole::Manager)).await;
    let node = cluster.renewed(&node).await;
    let second = cluster.start_manager(&node).await;
    assert_eq!(first.store().members().voters.len(), 2);

    set_role(&first, &node, NodeRole::Worker).await;
    agent.until("a worker again", is(NodeRole::Worker)).await;
    assert_eq!(first.store().members().voters.len(), 1);
    assert_eq!(cluster.state().node(node.id).unwrap().manager, None);
    second.shutdown().await;

    let (leaver, third) = cluster.join_manager().await;
    let addr = first.local_addr();
    let mut client = MembershipClient::new(leaver.dial(addr).await);
    in_time("it leaves", client.leave(LeaveRequest {}))
        .await
        .unwrap();
    assert_eq!(first.store().members().voters.len(), 1);
    third.shutdown().await;
    let mut client = MembershipClient::new(cluster.first.dial(addr).await);
    let last = client.leave(LeaveRequest {}).await.unwrap_err();
    assert!(last.message().contains("last manager"), "{last}");
}

/// Whom the others need for a quorum is not let go: it stays a manager, which they miss when it goes
/// all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manager_that_the_others_need_is_not_let_go() {
    let mut cluster = Cluster::new().await;
    let (_, second) = cluster.join_manager().await;
    let (leaver, third) = cluster.join_manager().await;
    let lost = second.store().id();
    second.shutdown().await;
    let first = cluster.manager.clone();
    until("one is missed", || !first.store().is_reachable(lost)).await;
    let mut client = MembershipClient::new(leaver.dial(first.local_addr()).await);
    let refused = client.leave(LeaveRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("loss of quorum"), "{refused}");
    let stored = cluster.state().node(leaver.id).cloned().unwrap();
    assert_eq!(stored.spec.role, NodeRole::Manager);
    third.shutdown().await;
}

async fn enrol(cluster: &Cluster, node: &Credentials) -> Result<(), tonic::Status> {
    let channel = node.dial(cluster.manager.local_addr()).await;
    let mut client = MembershipClient::new(channel);
    let request = EnrolRequest {
        raft: RaftId(1),
        addr: "127.0.0.1:1".parse().unwrap(),
    };
    client.enrol(request).await.map(drop)
}

/// Two of three managers are lost. The third leads no more and says so; made the only one, it has
/// everything, and the others' nodes are workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivor_of_a_lost_majority_goes_on_alone() {
    let mut cluster = Cluster::new().await;
    let (lost, second) = cluster.join_manager().await;
    let (_, third) = cluster.join_manager().await;
    let survivor = cluster.manager.clone();
    second.shutdown().await;
    third.shutdown().await;
    let vacant = || *survivor.store().standing().borrow() == Standing::Vacant;
    until("it leads no more", vacant).await;
    let Forwarded::NoLeader { .. } = survivor.forward(&request()).await else {
        panic!("nobody leads");
    };
    let before = survivor.store().state();
    let std::net::SocketAddr::V4(addr) = survivor.local_addr() else {
        unreachable!("it listens on 127.0.0.1");
    };
    survivor.shutdown().await;

    let config = cluster.config();
    let alone = Manager::force_new(config, cluster.first.tls.clone(), addr);
    let alone = alone.await.unwrap();
    let state = alone.store().state();
    assert_eq!(
        state.cluster().unwrap().tokens,
        before.cluster().unwrap().tokens
    );
    let former = state.node(lost.id).unwrap();
    assert_eq!((former.spec.role, former.manager), (NodeRole::Worker, None));
    assert_eq!(alone.store().members().voters.len(), 1);
    alone
        .store()
        .write(|tx| {
            let mut node = Node::clone(tx.state().node(lost.id).unwrap());
            node.spec.name = Some("written".to_owned());
            tx.put(node)
        })
        .await
        .unwrap();
    alone.shutdown().await;
}
