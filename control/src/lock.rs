//! Has this manager's data key sealed as the cluster wants it: by the unlock key, or not at all.

use store::{State, Store};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use vault::UnlockKey;

/// Runs until cancelled or the store has stopped.
pub(crate) async fn run(store: Store, cancel: CancellationToken) {
    let mut states = store.watch();
    let work = async {
        // The state may begin as of before the key was set or replaced, and the disk is not to go back.
        if store.replayed().await.is_err() {
            return;
        }
        let mut lock = Lock::new(store);
        loop {
            let wanted = wanted(&states.borrow_and_update());
            lock.seal(wanted).await;
            if states.changed().await.is_err() {
                return;
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

fn wanted(state: &State) -> Option<UnlockKey> {
    state.cluster()?.unlock_key.clone()
}

/// The file of the data key.
struct Lock {
    store: Store,
    /// What it is sealed by. Not known at the start, when it may be the key before, and when it could
    /// not be written.
    sealed: Option<Option<UnlockKey>>,
}

impl Lock {
    fn new(store: Store) -> Self {
        let sealed = None;
        Self { store, sealed }
    }

    /// When it fails, the file opens with what it opened with, and the next call tries again.
    async fn seal(&mut self, wanted: Option<UnlockKey>) {
        if self.sealed.as_ref() == Some(&wanted) {
            return;
        }
        let done = self.store.seal_key(wanted.clone()).await;
        match &done {
            Ok(true) => info!(lock.on = wanted.is_some(), "data key sealed as wanted"),
            Ok(false) => {}
            Err(error) => error!(%error, "cannot seal the data key"),
        }
        self.sealed = done.is_ok().then_some(wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr};

    use store::StoreConfig;

    use super::*;

    #[tokio::test]
    async fn key_that_could_not_be_sealed_is_sealed_by_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([192, 0, 2, 1], 2377));
        let config = StoreConfig::alone(addr);
        let store = Store::open(dir.path(), config).await.unwrap();
        let (key, kept) = (dir.path().join("data.key"), dir.path().join("kept"));
        fs::rename(&key, &kept).unwrap();
        fs::create_dir_all(key.join("in the way")).unwrap();

        let mut lock = Lock::new(store.clone());
        let unlock = Some(UnlockKey::generate());
        lock.seal(unlock.clone()).await;
        fs::remove_dir_all(&key).unwrap();
        fs::rename(&kept, &key).unwrap();
        lock.seal(unlock).await;
        let text = fs::read_to_string(&key).unwrap();
        assert!(text.contains("SEALED"), "{text}");
        store.shutdown().await;
    }
}
