//! Has this manager's data key sealed as the cluster wants it: by the unlock key, or not at all.

use store::{State, Store};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use vault::UnlockKey;

/// Runs until cancelled or the store has stopped.
pub(crate) async fn run(store: Store, cancel: CancellationToken) {
    let mut states = store.watch();
    // At the start the file may be sealed by the key before.
    let mut sealed: Option<Option<UnlockKey>> = None;
    let work = async {
        loop {
            let wanted = wanted(&states.borrow_and_update());
            if sealed.as_ref() != Some(&wanted) {
                match store.seal_key(wanted.clone()).await {
                    Ok(()) => info!(lock.on = wanted.is_some(), "data key sealed as wanted"),
                    // The next change tries again; until then it opens with what it opened with.
                    Err(error) => error!(%error, "cannot seal the data key"),
                }
                sealed = Some(wanted);
            }
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
