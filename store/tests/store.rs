//! A store of one manager.

mod support;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{NodeId, Version, object::Cluster};
use redb::{ReadableDatabase, ReadableTableMetadata, TableDefinition};
use support::{ADDR, cluster, node, open, service};
use swarmnet_store::{Change, Key, StaleObject, Store, StoreConfig, StoreError, WriteError};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

const DEADLINE: Duration = Duration::from_secs(30);

async fn put_node(store: &Store, id: u128) -> Version {
    let written = store.write(|tx| tx.put(node(id))).await;
    written.unwrap().1
}

fn file(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("store.redb")
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    let id = store.id();
    assert_eq!(put_node(&store, 1).await, Version(1));
    assert_eq!(put_node(&store, 2).await, Version(2));
    let before = store.state();
    store.shutdown().await;

    let begun = Instant::now();
    let store = open(dir.path()).await;
    println!("opened in {:?}", begun.elapsed());
    assert_eq!(store.id(), id);
    assert_eq!(store.state(), before);
    assert_eq!(put_node(&store, 3).await, Version(3));
    store.shutdown().await;
}

#[tokio::test]
async fn a_stale_update_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    put_node(&store, 1).await;
    let read = store.state().node(NodeId::from_raw(1)).cloned().unwrap();
    store.write(|tx| tx.put(Arc::clone(&read))).await.unwrap();

    // Also when the function passes over the refusal.
    let written = store
        .write(|tx| {
            tx.put(service(1, "web")).unwrap();
            let _ = tx.put(Arc::clone(&read));
            Ok::<_, Infallible>(())
        })
        .await;
    let stale = StaleObject {
        key: Key::Node(read.id),
        stored: Version(2),
        given: Version(1),
    };
    assert!(
        matches!(written, Err(WriteError::Stale(found)) if found == stale),
        "{written:?}"
    );
    assert_eq!(store.state().version(), Version(2));
    assert!(store.state().service_by_name("web").is_none());
    store.shutdown().await;
}

#[tokio::test]
async fn a_refused_transaction_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    let written = store
        .write(|tx| {
            tx.put(node(1)).unwrap();
            Err::<(), _>("no")
        })
        .await;
    assert!(matches!(written, Err(WriteError::Refused("no"))));
    assert_eq!(store.state().version(), Version(0));
    store.shutdown().await;
}

#[tokio::test]
async fn an_empty_transaction_commits_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    put_node(&store, 1).await;
    let mut commits = store.commits();
    let (count, version) = store
        .write(|tx| {
            tx.remove(Key::Node(NodeId::from_raw(99)));
            Ok::<_, Infallible>(tx.state().node_count())
        })
        .await
        .unwrap();
    assert_eq!((count, version), (1, Version(1)));
    assert_eq!(store.state().version(), Version(1));
    assert!(commits.try_recv().is_err());
    store.shutdown().await;
}

#[tokio::test]
async fn a_panicking_transaction_writes_nothing_and_hinders_nobody() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    let panicking = store.clone();
    let panicked = tokio::spawn(async move {
        let f = |_: &mut swarmnet_store::Transaction| -> Result<(), Infallible> {
            panic!("as intended")
        };
        panicking.write(f).await.map(drop)
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(put_node(&store, 1).await, Version(1));
    store.shutdown().await;
}

/// Concurrent writers each raise one number: none is lost, each version is committed once and in
/// order, and whoever hears of a commit finds it in the state.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_lose_nothing_and_all_is_seen_in_order() {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 25;
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    store.write(|tx| tx.put(cluster(0))).await.unwrap();
    let mut commits = store.commits();
    let mut watch = store.watch();
    let watching = tokio::spawn(async move {
        let mut seen = vec![watch.borrow_and_update().version()];
        while *seen.last().unwrap() < Version(1 + WRITERS * WRITES) {
            watch.changed().await.unwrap();
            seen.push(watch.borrow_and_update().version());
        }
        seen
    });

    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            let mut versions = Vec::new();
            for _ in 0..WRITES {
                let written = store.write(|tx| {
                    let mut cluster = Cluster::clone(tx.state().cluster().unwrap());
                    cluster.spec.task_history_limit += 1;
                    tx.put(cluster)
                });
                let ((), version) = written.await.unwrap();
                assert!(store.state().version() >= version);
                versions.push(version);
            }
            versions
        });
    }
    for version in 2..=1 + WRITERS * WRITES {
        let commit = timeout(DEADLINE, commits.recv()).await.unwrap().unwrap();
        assert_eq!(commit.version, Version(version));
        assert!(store.state().version() >= commit.version);
        assert!(
            matches!(&commit.changes[..], [Change::Put(object)] if object.key() == Key::Cluster)
        );
    }
    let acknowledged: BTreeSet<_> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(acknowledged.len() as u64, WRITERS * WRITES);
    let seen = timeout(DEADLINE, watching).await.unwrap().unwrap();
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    let raised = store.state().cluster().unwrap().spec.task_history_limit;
    assert_eq!(
        raised,
        cluster(0).spec.task_history_limit + WRITERS * WRITES
    );
    store.shutdown().await;
}

/// One writer at a time: the watch shows each version.
#[tokio::test]
async fn the_watch_shows_every_version_in_order() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    let mut watch = store.watch();
    for version in 1..=10 {
        put_node(&store, version).await;
        assert!(watch.has_changed().unwrap());
        assert_eq!(watch.borrow_and_update().version(), Version(version as u64));
    }
    store.shutdown().await;
}

/// A writer that goes away while its write is under way leaves no gap for others to fall into.
#[tokio::test]
async fn dropped_writes_happen_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    store.write(|tx| tx.put(cluster(0))).await.unwrap();
    let raise = || {
        store.write(|tx| {
            let mut cluster = Cluster::clone(tx.state().cluster().unwrap());
            cluster.spec.task_history_limit += 1;
            tx.put(cluster)
        })
    };
    for _ in 0..10 {
        let mut dropped = Box::pin(raise());
        assert!(futures::poll!(&mut dropped).is_pending());
        drop(dropped);
        raise().await.unwrap();
    }
    let raised = store.state().cluster().unwrap().spec.task_history_limit;
    assert_eq!(raised, cluster(0).spec.task_history_limit + 20);
    store.shutdown().await;
}

#[tokio::test]
async fn writes_after_shutdown_fail() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    store.shutdown().await;
    let written = store.write(|tx| tx.put(node(1))).await;
    assert!(
        matches!(written, Err(WriteError::Store(StoreError::Stopped { .. }))),
        "{written:?}"
    );
    // Stopping twice is no error.
    store.shutdown().await;
}

/// Snapshots are taken at the interval that the cluster object names, the log behind them goes,
/// and snapshot and rest of the log make the state again.
#[tokio::test]
async fn snapshots_bound_the_log() {
    const WRITES: u128 = 800;
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    store.write(|tx| tx.put(cluster(50))).await.unwrap();
    let mut writers = JoinSet::new();
    for id in 0..WRITES {
        let store = store.clone();
        writers.spawn(async move { put_node(&store, id).await });
    }
    writers.join_all().await;
    // Batches are few entries: one at a time, to make many.
    for _ in 0..700 {
        let written = store.write(|tx| {
            let read = tx.state().node(NodeId::from_raw(1)).cloned().unwrap();
            tx.put(read)
        });
        written.await.unwrap();
    }
    let before = store.state();
    store.shutdown().await;
    let kept = log_len(&file(&dir));
    assert!((500..650).contains(&kept), "{kept} entries kept");

    let store = open(dir.path()).await;
    assert_eq!(store.state(), before);
    put_node(&store, WRITES + 1).await;
    store.shutdown().await;
}

fn log_len(path: &Path) -> u64 {
    let database = redb::Database::open(path).unwrap();
    let tx = database.begin_read().unwrap();
    let log: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
    tx.open_table(log).unwrap().len().unwrap()
}

#[tokio::test]
async fn nobody_else_may_read_the_files() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("raft");
    let store = open(&state).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    for entry in fs::read_dir(&state).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    store.shutdown().await;
}

async fn refusal(dir: &Path) -> StoreError {
    let refused = Store::open(dir, StoreConfig::alone(ADDR)).await;
    refused.expect_err("must be refused")
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    let error = refusal(dir.path()).await;
    assert!(matches!(error, StoreError::Taken { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(file(&dir).to_str().unwrap()), "{text}");
    // And the one that has it goes on.
    put_node(&store, 1).await;
    store.shutdown().await;
}

/// Nobody called `shutdown`: the tasks end by themselves, and the lock goes with them.
#[tokio::test]
async fn a_dropped_store_gives_up_its_directory() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).await;
    put_node(&store, 1).await;
    drop(store);
    let reopen = async {
        loop {
            match Store::open(dir.path(), StoreConfig::alone(ADDR)).await {
                Err(StoreError::Taken { .. }) => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    };
    let store = timeout(DEADLINE, reopen).await.unwrap();
    assert_eq!(store.state().version(), Version(1));
    store.shutdown().await;
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    open(dir.path()).await.shutdown().await;
    set_format(&file(&dir), 3);
    let error = refusal(dir.path()).await;
    assert!(
        matches!(
            error,
            StoreError::NewerFormat {
                found: 3,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(file(&dir).to_str().unwrap()), "{text}");
    set_format(&file(&dir), 2);
    open(dir.path()).await.shutdown().await;
}

fn set_format(path: &Path, format: u32) {
    let database = redb::Database::open(path).unwrap();
    let tx = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
    tx.open_table(meta)
        .unwrap()
        .insert("format", format.to_le_bytes().as_slice())
        .unwrap();
    tx.commit().unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let dir = TempDir::new().unwrap();
    open(dir.path()).await.shutdown().await;
    fs::write(
        file(&dir),
        "not a database, but long enough to look at".repeat(200),
    )
    .unwrap();
    let error = refusal(dir.path()).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}
