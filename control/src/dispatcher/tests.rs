//! What a change costs: a real store, the rounds that follow it, and the feed of one of its nodes.

use std::sync::Arc;

use model::{NodeId, TaskState, codec, object::Task, spec::NetworkSpec};
use store::{Store, StoreConfig};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    feed::Feed,
    hub::{Hub, Seat, Work},
    rounds,
};
use crate::{allocator, fixture, ops, stage::Pipeline};

/// A store with services that every node is told of, and what one node has been told.
struct Fed {
    store: Store,
    seat: Seat,
    feed: Feed,
    _dir: tempfile::TempDir,
    cancel: CancellationToken,
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What it took to tell the node of a change.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    touches: usize,
    looked_at: usize,
    objects: usize,
    bytes: usize,
}

impl Fed {
    /// So many services: published, and on a network on which the node has a task of each.
    async fn new(services: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = "127.0.0.1:0".parse().unwrap();
        let store = Store::open(dir.path(), StoreConfig::alone(addr))
            .await
            .unwrap();
        let node = fill(&store, services).await;
        let (hub, cancel) = (Arc::<Hub>::default(), CancellationToken::new());
        tokio::spawn(rounds::run(store.clone(), hub.clone(), cancel.clone()));
        let mut fed = Self {
            seat: hub.seat(node, &cancel),
            feed: Feed::new(node, Vec::new()),
            store,
            _dir: dir,
            cancel,
        };
        let first = fed.hear().await;
        // Services, their tasks, which are the node's, and their endpoints.
        assert!(first.objects > 3 * services, "{first:?}");
        fed
    }

    /// Up to the store's version.
    async fn hear(&mut self) -> Cost {
        loop {
            let pending = self.seat.work().await;
            let update = self.feed.update(&pending.round, &pending.work);
            if pending.round.state.version() < self.store.state().version() {
                continue;
            }
            return Cost {
                touches: match pending.work {
                    Work::All => usize::MAX,
                    Work::Touched(touches) => touches.len(),
                },
                looked_at: self.feed.looked_at(),
                objects: update.put.len() + update.removed.len(),
                bytes: codec::encode(&update).len(),
            };
        }
    }

    /// A service more, a service less, and a task that runs.
    async fn costs(mut self) -> [Cost; 3] {
        let mut spec = fixture::service("another", 0, &[]);
        spec.endpoint.ports = vec![fixture::port(Some(9_999), 80)];
        let another = ops::create_service(&self.store, spec).await.unwrap();
        let come = self.hear().await;
        ops::remove_service(&self.store, another).await.unwrap();
        let gone = self.hear().await;
        self.store
            .write(|tx| {
                let mut task = Task::clone(tx.state().tasks().next().unwrap());
                task.status.state = TaskState::Running;
                tx.put(task)
            })
            .await
            .unwrap();
        [come, gone, self.hear().await]
    }
}

/// Services as [`Fed::new`] says, whose tasks are assigned to the one node there is.
async fn fill(store: &Store, services: usize) -> NodeId {
    let node = fixture::node("one");
    let id = node.id;
    store
        .write(|tx| {
            tx.put(fixture::cluster())?;
            tx.put(node)?;
            allocator::create_ingress(tx).expect("the pools are empty");
            Ok::<_, store::StaleObject>(())
        })
        .await
        .unwrap();
    let spec = NetworkSpec {
        name: "back".to_owned(),
        ..NetworkSpec::default()
    };
    let network = ops::create_network(store, spec).await.unwrap();
    for number in 0..services {
        let mut spec = fixture::service(&format!("s{number:03}"), 1, &[network]);
        let published = u16::try_from(8_000 + number).unwrap();
        spec.endpoint.ports = vec![fixture::port(Some(published), 80)];
        ops::create_service(store, spec).await.unwrap();
    }
    let mut pipeline = Pipeline::default();
    store
        .write(|tx| {
            pipeline.step(tx, Instant::now());
            Ok::<_, std::convert::Infallible>(())
        })
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_change_costs_what_it_changes_in_a_cluster_of_any_size() {
    let few = Fed::new(4).await.costs().await;
    let many = Fed::new(40).await.costs().await;
    assert_eq!(few, many);
    let [come, gone, runs] = few;
    assert_eq!((come.touches, come.looked_at, come.objects), (1, 1, 1));
    assert_eq!((gone.touches, gone.looked_at, gone.objects), (1, 1, 1));
    // The task, and the endpoint that it has.
    assert_eq!((runs.touches, runs.looked_at, runs.objects), (1, 2, 2));
}
