//! From what a user asks for to what agents are told: the whole manager, with agents that run
//! nothing but report as if.

use std::{collections::BTreeSet, time::Duration};

use model::{
    NodeId, ServiceId, TaskState,
    feed::{BackendState, NodeView},
    object::NodeState,
    spec::{
        NetworkAttachmentSpec, NetworkSpec, PortSpec, Protocol, PublishMode, ServiceMode,
        ServiceSpec,
    },
};
use store::State;
use swarmnet_control::ops;

use crate::support::{Cluster, Worker};

const HEARTBEAT: Duration = Duration::from_millis(500);

fn active(view: &NodeView, service: ServiceId) -> BTreeSet<NodeId> {
    let endpoints = view.endpoints.values();
    endpoints
        .filter(|e| e.service == service && e.state == BackendState::Active)
        .map(|e| e.node)
        .collect()
}

fn running(state: &State, service: ServiceId) -> Vec<NodeId> {
    let tasks = state.tasks_of_service(service);
    tasks
        .filter(|task| task.status.state == TaskState::Running)
        .filter(|task| task.desired == TaskState::Running)
        .map(|task| task.node.unwrap())
        .collect()
}

fn web(replicas: u64, network: model::NetworkId) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: "web".to_owned(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    spec.task.container.image = "host".to_owned();
    spec.task.networks = vec![NetworkAttachmentSpec {
        network,
        aliases: Vec::new(),
    }];
    spec.endpoint.ports = vec![PortSpec {
        name: None,
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(8080),
        mode: PublishMode::Ingress,
    }];
    spec
}

#[tokio::test]
async fn a_service_is_spread_scaled_survives_a_lost_node_and_goes() {
    let mut cluster = Cluster::with_heartbeat(HEARTBEAT).await;
    let nodes = [
        cluster.first.clone(),
        cluster.join().await,
        cluster.join().await,
    ];
    let mut workers = Vec::new();
    for node in &nodes {
        workers.push(Worker::new(cluster.connect(node).await));
        cluster.until_node(node.id, NodeState::Ready).await;
    }
    let store = cluster.manager.store().clone();
    let network = NetworkSpec {
        name: "back".to_owned(),
        ..NetworkSpec::default()
    };
    let network = ops::create_network(&store, network).await.unwrap();
    let service = ops::create_service(&store, web(3, network)).await.unwrap();

    // One task on each node, and every node knows all three as backends.
    let everywhere: BTreeSet<_> = nodes.iter().map(|node| node.id).collect();
    for worker in &workers {
        worker
            .until("three backends", |view| active(view, service) == everywhere)
            .await;
        let view = worker.view();
        assert!(view.networks.contains_key(&network));
        assert!(view.services[&service].networks[0].vip.is_some());
        assert_eq!(view.services[&service].ports[0].published, 8080);
    }

    let version = store.state().service(service).unwrap().meta.version;
    ops::update_service(&store, service, version, web(1, network))
        .await
        .unwrap();
    let one_left = |view: &NodeView| {
        view.endpoints
            .values()
            .filter(|e| e.service == service)
            .count()
            == 1
    };
    for worker in &workers {
        worker.until("one backend", one_left).await;
    }
    let stopped = store.state();
    let stopped = stopped
        .tasks_of_service(service)
        .filter(|t| t.desired != TaskState::Running);
    for task in stopped {
        assert_eq!(task.status.state, TaskState::Shutdown, "stopped in order");
    }

    // The node of the last task falls silent: the task is replaced on another.
    let [lost] = running(&store.state(), service)[..] else {
        panic!("one task runs");
    };
    let at = nodes.iter().position(|node| node.id == lost).unwrap();
    drop(workers.remove(at));
    cluster.until_node(lost, NodeState::Down).await;
    cluster
        .until(
            "replaced",
            |state| matches!(running(state, service)[..], [node] if node != lost),
        )
        .await;
    for worker in &workers {
        let is_moved = |view: &NodeView| {
            let backends = active(view, service);
            backends.len() == 1 && !backends.contains(&lost)
        };
        worker.until("the replacement alone", is_moved).await;
    }

    ops::remove_service(&store, service).await.unwrap();
    for worker in &workers {
        worker
            .until("nothing of the service", |view| {
                view.services.is_empty() && view.endpoints.is_empty()
            })
            .await;
    }
}
