//! A cluster of one manager and agents that only talk: they apply what they are sent to a view, and
//! acknowledge and beat as told.

mod agent;
mod cluster;
mod intruder;
mod worker;

use std::time::Duration;

pub use agent::{Agent, Heard};
pub use cluster::{Cluster, Credentials, LOST_ONCE, init_options, was_lost};
pub use intruder::intrude;
pub use worker::Worker;

/// For what must come to happen. Long, for slow machines; a test that passes does not wait it out.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The outcome of `wait`, or a panic that says what was waited for.
pub async fn in_time<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}
