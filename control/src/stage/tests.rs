use std::{net::SocketAddr, path::Path};

use model::{ServiceId, TaskState, spec::ServiceMode};
use store::StoreConfig;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::{allocator, fixture, ops};

/// A store on disk with the pipeline running on it.
struct Running {
    store: Store,
    cancel: CancellationToken,
    pipeline: JoinHandle<()>,
}

impl Running {
    async fn open(dir: &Path) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], 2377));
        let store = Store::open(dir, StoreConfig::alone(addr)).await.unwrap();
        let cancel = CancellationToken::new();
        let pipeline = tokio::spawn(run(store.clone(), cancel.clone()));
        Self {
            store,
            cancel,
            pipeline,
        }
    }

    async fn close(self) {
        self.cancel.cancel();
        timeout(Duration::from_secs(10), self.pipeline)
            .await
            .unwrap()
            .unwrap();
        self.store.shutdown().await;
    }

    /// Waits until that many tasks of the service are assigned.
    async fn assigned(&self, service: ServiceId, wanted: usize) {
        let mut states = self.store.watch();
        let assigned = |state: &Arc<State>| {
            let tasks = state.tasks_of_service(service);
            let assigned = tasks.filter(|task| task.status.state == TaskState::Assigned);
            assigned.count() == wanted
        };
        let reached = timeout(Duration::from_secs(20), states.wait_for(assigned)).await;
        reached.expect("in time").expect("the store runs");
    }
}

async fn scale(store: &Store, id: ServiceId, replicas: u64) {
    let service = store.state().service(id).unwrap().clone();
    let mut spec = service.spec.clone();
    spec.mode = ServiceMode::Replicated { replicas };
    ops::update_service(store, id, service.meta.version, spec)
        .await
        .unwrap();
}

/// The loop works on a store on disk, one commit for each wish, and goes on after a restart.
#[tokio::test]
async fn wishes_become_assigned_tasks_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(dir.path()).await;
    let made: Result<_, WriteError<Infallible>> = running
        .store
        .write(|tx| {
            tx.put(fixture::cluster()).unwrap();
            allocator::create_ingress(tx).unwrap();
            (0..3).for_each(|i| tx.put(fixture::node(&format!("node{i}"))).unwrap());
            Ok(())
        })
        .await;
    made.unwrap();
    let spec = fixture::service("web", 3, &[]);
    let id = ops::create_service(&running.store, spec).await.unwrap();
    running.assigned(id, 3).await;

    let before = running.store.state().version();
    scale(&running.store, id, 50).await;
    running.assigned(id, 50).await;
    assert_eq!(running.store.state().version().0, before.0 + 2);

    // The pipeline dies before it sees the wish.
    running.cancel.cancel();
    timeout(Duration::from_secs(10), running.pipeline)
        .await
        .unwrap()
        .unwrap();
    scale(&running.store, id, 60).await;
    running.store.shutdown().await;
    drop(running.store);

    let running = Running::open(dir.path()).await;
    running.assigned(id, 60).await;
    running.close().await;
}

/// A delay is kept by the loop itself: nothing changes while it waits.
#[tokio::test]
async fn loop_wakes_when_a_delay_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(dir.path()).await;
    let made: Result<_, WriteError<Infallible>> = running
        .store
        .write(|tx| {
            tx.put(fixture::cluster()).unwrap();
            allocator::create_ingress(tx).unwrap();
            tx.put(fixture::node("node")).unwrap();
            Ok(())
        })
        .await;
    made.unwrap();
    let mut spec = fixture::service("web", 1, &[]);
    spec.task.restart = Some(model::spec::RestartPolicy {
        delay: Some(Duration::from_millis(300)),
        ..Default::default()
    });
    let id = ops::create_service(&running.store, spec).await.unwrap();
    running.assigned(id, 1).await;
    let failed: Result<_, WriteError<Infallible>> = running
        .store
        .write(|tx| {
            let task = tx.state().tasks_of_service(id).next().unwrap();
            let mut task = model::object::Task::clone(task);
            task.status.state = TaskState::Failed;
            tx.put(task).unwrap();
            Ok(())
        })
        .await;
    failed.unwrap();
    let mut states = running.store.watch();
    let promoted = states.wait_for(|state| {
        let mut tasks = state.tasks_of_service(id);
        tasks.any(|task| {
            task.status.state == TaskState::Assigned && task.desired == TaskState::Running
        })
    });
    timeout(Duration::from_secs(20), promoted)
        .await
        .expect("in time")
        .unwrap();
    let state = running.store.state();
    let task = state
        .tasks_of_service(id)
        .find(|task| task.desired == TaskState::Running)
        .unwrap();
    let waited = task.meta.updated_at.duration_since(task.meta.created_at);
    assert!(
        waited >= jiff::SignedDuration::from_millis(300),
        "{waited:?}"
    );
    running.close().await;
}
