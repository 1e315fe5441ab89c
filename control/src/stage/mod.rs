//! The loop that turns what users want into tasks with addresses on nodes.
//!
//! A stage is a pure step over the newest state; the pipeline runs the stages one after the other
//! in one transaction, so that a change costs one commit however many stages it passes. The loop
//! runs it whenever the store changes or a delay is over. Whatever a stage needs to know is in the
//! store (what it keeps besides are observations that it can do without), so any manager goes on
//! where another stopped.

#[cfg(test)]
mod tests;

use std::{convert::Infallible, sync::Arc, time::Duration};

use jiff::Timestamp;
use store::{State, Store, Transaction, WriteError};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{allocator, orchestrator::Orchestrator, rotation, scheduler};

/// Between attempts to write when another leader or a full disk is in the way.
const RETRY: Duration = Duration::from_millis(500);

/// Orchestrator, allocator and scheduler in a row.
#[derive(Debug, Default)]
pub struct Pipeline {
    orchestrator: Orchestrator,
}

impl Pipeline {
    /// Writes what follows from the state at `now`. Returns when to be run again though
    /// nothing has changed. A step that wrote something may have left something to do: it is to be
    /// run again on what it wrote.
    pub fn step(&mut self, tx: &mut Transaction, now: Instant) -> Option<Instant> {
        let wake = self.orchestrator.step(tx, now);
        allocator::step(tx);
        scheduler::step(tx);
        rotation::step(tx);
        wake
    }
}

/// Runs the pipeline until cancelled or the store has stopped.
pub async fn run(store: Store, cancel: CancellationToken) {
    let mut changes = store.watch();
    let mut pipeline = Pipeline::default();
    while !cancel.is_cancelled() {
        changes.mark_unchanged();
        let pause = match pass(&store, &mut pipeline).await {
            Ok(wake) => wake.map(until),
            Err(WriteError::Store(error)) => {
                warn!(error = %error, "pipeline stopped with the store");
                return;
            }
            Err(WriteError::NotLeader { .. }) => None,
            Err(error) => {
                warn!(error = %error, "pipeline step not committed, trying again");
                Some(RETRY)
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            alive = next_change(&mut changes) => if !alive { return },
            () = pause_for(pause) => {}
        }
    }
}

/// One step, committed. Most changes concern no stage: whether this one does is tried on a
/// snapshot, so that other writers are not held up.
async fn pass(
    store: &Store,
    pipeline: &mut Pipeline,
) -> Result<Option<Instant>, WriteError<Infallible>> {
    let (idle, wake) = try_out(store.state(), pipeline);
    if idle {
        return Ok(wake);
    }
    let (wake, version) = store
        .write(|tx| Ok(pipeline.step(tx, Instant::now())))
        .await?;
    debug!(store.version = %version, "pipeline step committed");
    Ok(wake)
}

fn try_out(state: Arc<State>, pipeline: &mut Pipeline) -> (bool, Option<Instant>) {
    let mut tx = Transaction::new(state, Timestamp::now());
    let wake = pipeline.step(&mut tx, Instant::now());
    (tx.is_empty(), wake)
}

async fn next_change(changes: &mut watch::Receiver<Arc<State>>) -> bool {
    changes.changed().await.is_ok()
}

async fn pause_for(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}

fn until(wake: Instant) -> Duration {
    // A little late rather than early, when there would be nothing to do yet.
    wake.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
}
