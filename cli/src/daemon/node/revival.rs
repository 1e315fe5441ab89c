//! A manager whose store stopped by itself: its disk was full, or failed. The node goes on without
//! it, and opens it anew until that works. What was acknowledged is on the disk.

use std::time::Duration;

use control::{Manager, ManagerError};
use store::StoreError;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};
use vault::UnlockKey;

use super::{Node, unlock_key_of};

/// Between attempts.
const RETRY: Duration = Duration::from_secs(2);

/// Whether the manager may start when its disk is well again.
pub(super) fn may_pass(err: &ManagerError) -> bool {
    use StoreError::{Io, Stopped};
    matches!(err, ManagerError::Store(Io { .. } | Stopped { .. }))
}

impl Node {
    /// Until the guard goes, or another manager is opened.
    pub(super) fn start_watch(&self, manager: &Manager) -> DropGuard {
        let (me, store) = (self.me.clone(), manager.store().clone());
        self.spawn_guarded(async move {
            let Some(reason) = store.failure().await else {
                return;
            };
            drop(store);
            let Some(node) = me.upgrade() else {
                return;
            };
            error!("{reason}; this node goes on without its manager meanwhile");
            if let Some(unlock) = node.retire_manager(reason.to_string()).await {
                node.revive(unlock).await;
            }
        })
    }

    /// For a manager that did not start, and [`may_pass`]. Until the guard goes.
    pub(super) fn start_revival(&self, unlock: Option<UnlockKey>) -> DropGuard {
        let me = self.me.clone();
        self.spawn_guarded(async move {
            if let Some(node) = me.upgrade() {
                node.revive(unlock).await;
            }
        })
    }

    fn spawn_guarded(&self, work: impl Future<Output = ()> + Send + 'static) -> DropGuard {
        let cancel = CancellationToken::new();
        let cancelled = cancel.clone();
        tokio::spawn(async move { cancelled.run_until_cancelled(work).await });
        cancel.drop_guard()
    }

    /// Ends what is left of it. Returns what opens its data key; `None` when somebody else has it.
    async fn retire_manager(&self, reason: String) -> Option<Option<UnlockKey>> {
        let _agent = self.agent.write().await;
        let manager = self.seen().manager.take()?;
        self.seen().failure = Some(reason);
        let unlock = unlock_key_of(&manager);
        manager.shutdown().await;
        Some(unlock)
    }

    async fn revive(&self, unlock: Option<UnlockKey>) {
        loop {
            tokio::time::sleep(RETRY).await;
            let _agent = self.agent.write().await;
            let Some(membership) = self.seen().member.clone() else {
                return;
            };
            let Some(addrs) = membership.member.manager else {
                return;
            };
            match self.open_manager(&membership, addrs, unlock.clone()).await {
                Ok(manager) => {
                    info!("the manager goes on");
                    return self.see(Some(membership), Some(manager));
                }
                Err(err) => {
                    warn!("the manager does not start yet: {err}");
                    self.seen().failure = Some(err.to_string());
                }
            }
        }
    }
}
