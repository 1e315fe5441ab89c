//! Leaving the cluster: nothing of the agent's making stays.

use std::{path::Path, time::Duration};

use anyhow::Result;
use datapath::{Datapath, DatapathConfig};
use model::TaskState;
use tracing::warn;

use super::{Core, adopt::discard};
use crate::{links, nft, reassembly::Reassembly};

/// How long a leaving node waits for its tasks beyond their own grace periods.
const LEAVE_MARGIN: Duration = Duration::from_secs(15);

impl Core {
    pub(super) async fn leave(mut self) -> Result<()> {
        let graces = self
            .view
            .tasks
            .values()
            .map(|task| task.spec.container.stop_grace_period_or_default());
        let deadline =
            tokio::time::Instant::now() + graces.max().unwrap_or_default() + LEAVE_MARGIN;
        for (task, origin) in std::mem::take(&mut self.strays) {
            self.forget_network(task);
            discard(self.context.clone(), task, origin).await;
        }
        for runner in self.runners.values() {
            runner.desired.send_replace(TaskState::Remove);
            runner.removed.cancel();
        }
        while !self.runners.is_empty() {
            match tokio::time::timeout_at(deadline, self.runner_inbox.recv()).await {
                Ok(Some(message)) => self.hear_runner(message),
                _ => break,
            }
        }
        let left = self.runners.len();
        self.look.end().await;
        self.pins.search.end().await;
        let datapath = self.datapath.detach_all();
        let links = links::remove_node_links().await;
        let reassembly = self.reassembly.remove().await;
        let nft = nft::remove().await;
        let view = self.view_file.remove();
        datapath?;
        links?;
        reassembly?;
        nft?;
        view?;
        anyhow::ensure!(left == 0, "{left} tasks did not end in time");
        Ok(())
    }
}

/// Removes what a first start made before it failed. Goes on after a failure: there is a better
/// error to tell.
pub(super) async fn undo_set_up(config: &DatapathConfig, run_dir: &Path) {
    if let Err(err) = Datapath::open(config).and_then(Datapath::detach_all) {
        warn!("programs of the failed start may be left: {err}");
    }
    if let Err(err) = links::remove_node_links().await {
        warn!("devices of the failed start may be left: {err}");
    }
    if let Err(err) = Reassembly::new(run_dir).remove().await {
        warn!("the namespace for fragments of the failed start may be left: {err:#}");
    }
    if let Err(err) = nft::remove().await {
        warn!("the masquerade rule of the failed start may be left: {err}");
    }
}
