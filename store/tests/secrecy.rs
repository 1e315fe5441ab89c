//! What somebody reads who takes the disk.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use model::object::Cluster;
use support::{ADDR, cluster, open};
use swarmnet_store::{Store, StoreConfig, StoreError};
use tempfile::TempDir;
use vault::{KeyFile, KeyFileError, UnlockKey};

const SECRET: &str = "SWMTKN-1-of-this-cluster";

/// Writes the secret so often that it is in the log, and in a snapshot.
async fn keep(dir: &Path) {
    let store = open(dir).await;
    for _ in 0..20 {
        let change = store.write(|tx| {
            let meta = tx.state().cluster().map_or(cluster(0).meta, |c| c.meta);
            let mut cluster = Cluster { meta, ..cluster(4) };
            cluster.tokens.worker = SECRET.to_owned();
            cluster.spec.task_history_limit = rand::random();
            tx.put(cluster)
        });
        change.await.unwrap();
    }
    store.snapshot().await.unwrap();
    store.shutdown().await;
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn nothing_is_readable_without_the_key() {
    let dir = TempDir::new().unwrap();
    keep(dir.path()).await;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        let bytes = fs::read(&path).unwrap();
        assert!(!contains(&bytes, SECRET), "{}", path.display());
        // Names of fields, as every encoded object has them.
        assert!(
            !contains(&bytes, "task_history_limit"),
            "{}",
            path.display()
        );
    }
    let mode = fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    let store = open(dir.path()).await;
    assert_eq!(store.state().cluster().unwrap().tokens.worker, SECRET);
    store.shutdown().await;
}

#[tokio::test]
async fn a_missing_or_foreign_key_opens_nothing() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    keep(dir.path()).await;
    keep(other.path()).await;
    let key = dir.path().join("data.key");
    let own = fs::read(&key).unwrap();

    fs::copy(other.path().join("data.key"), &key).unwrap();
    let refused = Store::open(dir.path(), StoreConfig::alone(ADDR))
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");

    fs::remove_file(&key).unwrap();
    let refused = Store::open(dir.path(), StoreConfig::alone(ADDR))
        .await
        .unwrap_err();
    let StoreError::Key(KeyFileError::Missing(path)) = &refused else {
        panic!("{refused}");
    };
    assert_eq!(*path, key);
    assert!(!key.exists(), "no new key takes its place");

    fs::write(&key, own).unwrap();
    let store = open(dir.path()).await;
    store.shutdown().await;
}

#[tokio::test]
async fn a_locked_store_opens_with_the_unlock_key_only() {
    let dir = TempDir::new().unwrap();
    keep(dir.path()).await;
    let (file, unlock) = (KeyFile::new(dir.path()), UnlockKey::generate());
    let key = file.read(None).unwrap();
    file.keep(&key, Some(&unlock)).unwrap();

    let open_with = async |unlock: Option<UnlockKey>| {
        let config = StoreConfig {
            unlock,
            ..StoreConfig::alone(ADDR)
        };
        Store::open(dir.path(), config).await
    };
    let refused = open_with(None).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Key(KeyFileError::Locked(_))),
        "{refused}"
    );
    let refused = open_with(Some(UnlockKey::generate())).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Key(KeyFileError::WrongKey(_))),
        "{refused}"
    );
    let store = open_with(Some(unlock)).await.unwrap();
    assert_eq!(store.state().cluster().unwrap().tokens.worker, SECRET);
    store.shutdown().await;
}
