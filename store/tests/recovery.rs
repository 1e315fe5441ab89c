//! What is on disk after a crash, and after damage.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use model::{NodeId, Version};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{ADDR, cluster, node, open};
use swarmnet_store::{State, Store, StoreConfig, StoreError};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Tells the child of the kill test that it is one, and where to write.
const CHILD_DIR: &str = "SWARMNET_STORE_TEST_CHILD_DIR";
const CHILD_WRITERS: u64 = 4;

/// Not a test of its own: the process that `kill_9_loses_no_acknowledged_write` kills. Writes nodes
/// until then, and prints the id of each as it is acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by kill_9_loses_no_acknowledged_write"]
async fn child_that_writes() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let store = open(Path::new(&dir)).await;
    store
        .write(|tx| match tx.state().cluster() {
            Some(_) => Ok(()),
            // Small, so that snapshots are among what is interrupted.
            None => tx.put(cluster(20)),
        })
        .await
        .unwrap();
    let mut writers = JoinSet::new();
    for _ in 0..CHILD_WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            loop {
                let id = NodeId::generate();
                store.write(|tx| tx.put(node(id.raw()))).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {id}").unwrap();
                out.flush().unwrap();
            }
        });
    }
    writers.join_all().await;
}

/// Killed when dropped, so that a failing test leaves none behind.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a child write until it has acknowledged `count` writes, and kills it in the middle of the
/// next ones. Returns all that it acknowledged.
fn write_and_kill(dir: &Path, count: usize) -> Vec<NodeId> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .map(KilledOnDrop)
        .unwrap();
    let out = BufReader::new(child.0.stdout.take().unwrap());
    let mut acknowledged = Vec::new();
    for line in out.lines() {
        // The harness prints its own lines, too, and the last one may be torn.
        if let Some((_, id)) = line.unwrap().split_once("acknowledged ")
            && let Ok(id) = id.parse()
        {
            acknowledged.push(id);
        }
        if acknowledged.len() == count {
            child.0.kill().unwrap();
        }
    }
    let status = child.0.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(9),
        "the child ended by itself: {status}"
    );
    assert!(acknowledged.len() >= count);
    acknowledged
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_write() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        acknowledged.extend(write_and_kill(dir.path(), 30 + 17 * round));
        let store = open(dir.path()).await;
        let state = store.state();
        for id in &acknowledged {
            assert!(state.node(*id).is_some(), "round {round}: {id} is lost");
        }
        // At most one more a writer and round: written, and killed before it could be said.
        let unsaid = state.node_count() - acknowledged.len();
        assert!(
            unsaid as u64 <= CHILD_WRITERS * (round as u64 + 1),
            "{unsaid} unsaid"
        );
        store.shutdown().await;
    }
}

const WRITES: u64 = 120;

/// The file of a store that was not shut down, with `WRITES` acknowledged writes, as a crash would
/// leave it; and the state.
async fn crash_image(dir: &TempDir, snapshot_interval: u64) -> (Vec<u8>, State) {
    let store = open(dir.path()).await;
    let interval = cluster(snapshot_interval);
    store.write(|tx| tx.put(interval)).await.unwrap();
    for id in 1..WRITES {
        let written = store.write(|tx| tx.put(node(id.into()))).await;
        written.unwrap();
    }
    let image = fs::read(file(dir.path())).unwrap();
    let state = State::clone(&store.state());
    store.shutdown().await;
    (image, state)
}

const KEY: &str = "data.key";

fn file(dir: &Path) -> PathBuf {
    dir.join("store.redb")
}

/// Opens a store with this file, and the key in `from`: either with all that was acknowledged, or
/// not at all. Returns whether it opened.
async fn whole_or_refused(from: &TempDir, image: &[u8], wanted: &State, what: &str) -> bool {
    let dir = TempDir::new().unwrap();
    fs::write(file(dir.path()), image).unwrap();
    fs::copy(from.path().join(KEY), dir.path().join(KEY)).unwrap();
    match Store::open(dir.path(), StoreConfig::alone(ADDR)).await {
        Ok(store) => {
            assert_eq!(*store.state(), *wanted, "{what}");
            let written = store.write(|tx| tx.put(node(1 << 100))).await;
            assert_eq!(written.unwrap().1, Version(WRITES + 1), "{what}");
            store.shutdown().await;
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                matches!(error, StoreError::Damaged { .. }),
                "{what}: {text}"
            );
            assert!(
                text.contains(file(dir.path()).to_str().unwrap()),
                "{what}: {text}"
            );
            false
        }
    }
}

#[tokio::test]
async fn a_crash_leaves_a_file_that_opens() {
    for snapshot_interval in [0, 10] {
        let dir = TempDir::new().unwrap();
        let (image, state) = crash_image(&dir, snapshot_interval).await;
        assert!(whole_or_refused(&dir, &image, &state, "undamaged").await);
    }
}

#[tokio::test]
async fn a_truncated_file_is_whole_or_refused() {
    let dir = TempDir::new().unwrap();
    let (image, state) = crash_image(&dir, 0).await;
    let clean = fs::read(file(dir.path())).unwrap();
    let mut refused = 0;
    for image in [image, clean] {
        let mut lens: Vec<_> = (1..16).map(|part| image.len() * part / 16).collect();
        lens.extend([
            1,
            511,
            4096,
            image.len() - 4096,
            image.len() - 512,
            image.len() - 1,
        ]);
        for len in lens {
            let what = format!("{len} of {} bytes", image.len());
            refused += usize::from(!whole_or_refused(&dir, &image[..len], &state, &what).await);
        }
    }
    assert!(refused > 0, "some of what is needed was cut off");
}

/// Of which each is a file and its damage.
const SEEDS: u64 = 60;

/// Overwrites parts of the file, of a crashed and of a cleanly stopped store, with and without
/// snapshots.
#[tokio::test]
async fn a_corrupted_file_is_whole_or_refused() {
    for snapshot_interval in [0, 10] {
        let dir = TempDir::new().unwrap();
        let (crashed, state) = crash_image(&dir, snapshot_interval).await;
        let clean = fs::read(file(dir.path())).unwrap();
        let mut refused = 0;
        for seed in 0..SEEDS {
            let mut random = StdRng::seed_from_u64(seed);
            let mut image = if random.random() {
                crashed.clone()
            } else {
                clean.clone()
            };
            // Mostly where something is.
            let used = used_pages(&image);
            let page = used[random.random_range(0..used.len())];
            let at = page + random.random_range(0..4096);
            let len = *[1, 16, 512, 4096].get(random.random_range(0..4)).unwrap();
            let end = (at + len).min(image.len());
            random.fill(&mut image[at..end]);
            let what = format!("interval {snapshot_interval}, seed {seed}: {len} bytes at {at}");
            refused += usize::from(!whole_or_refused(&dir, &image, &state, &what).await);
        }
        assert!(refused > 0, "some of what is needed was overwritten");
    }
}

fn used_pages(image: &[u8]) -> Vec<usize> {
    let pages = image.chunks_exact(4096).enumerate();
    pages
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(number, _)| number * 4096)
        .collect()
}

/// Killed while it made the file: what is left is no store yet, and in nobody's way.
#[tokio::test]
async fn an_unfinished_file_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let unfinished = dir.path().join("store.new");
    fs::write(&unfinished, [7; 10_000]).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.state().version(), Version(0));
    assert!(!unfinished.exists());
    store.shutdown().await;
}
