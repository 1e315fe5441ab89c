//! The keys of the probes between nodes: made with the cluster, or by the first leader that knows of
//! them, and rotated like Swarm's gossip keys. Nodes hear of them with their view.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model::object::Cluster;
use store::{State, Store, Transaction};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// As SwarmKit's (`manager/keymanager`): a key seals for so long, and opens for as long before and after.
const ROTATION: SignedDuration = SignedDuration::from_hours(12);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(60);

/// Rotates when it is time, until cancelled.
pub(crate) async fn run(store: Store, cancel: CancellationToken) {
    let mut states = store.watch();
    let work = async {
        loop {
            states.mark_unchanged();
            let due = due_in(&store.state(), Timestamp::now());
            let Some(due) = due else {
                // No cluster yet.
                if states.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::time::sleep(due).await;
            let written = store
                .write(|tx| {
                    step(tx);
                    Ok::<_, std::convert::Infallible>(())
                })
                .await;
            if let Err(error) = written {
                warn!(%error, "the keys of the probes between nodes are not rotated; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

/// Time until the next rotation; `None` without a cluster.
fn due_in(state: &State, now: Timestamp) -> Option<Duration> {
    let probes = &state.cluster()?.probes;
    if probes.keys.is_empty() {
        return Some(Duration::ZERO);
    }
    let age = now.duration_since(probes.rotated);
    Some((ROTATION - age).max(SignedDuration::ZERO).unsigned_abs())
}

/// Rotates if it is time.
fn step(tx: &mut Transaction) {
    let now = tx.now();
    if due_in(tx.state(), now) != Some(Duration::ZERO) {
        return;
    }
    let cluster = tx.state().cluster().expect("it is due");
    let mut cluster = Cluster::clone(cluster);
    cluster.probes.keys.rotate();
    cluster.probes.rotated = now;
    tx.put(cluster).expect("it was read in this transaction");
    info!("the keys of the probes between nodes were rotated");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::object::Probes;

    use super::*;
    use crate::fixture::{self, epoch};

    fn rotated_after(age: SignedDuration, probes: Probes) -> Probes {
        let now = epoch() + age;
        let mut tx = Transaction::new(Arc::new(State::default()), now);
        tx.put(Cluster {
            probes,
            ..fixture::cluster()
        })
        .unwrap();
        step(&mut tx);
        tx.state().cluster().unwrap().probes.clone()
    }

    #[test]
    fn keys_are_made_where_there_are_none_and_rotated_when_they_are_old() {
        let made = rotated_after(SignedDuration::ZERO, Probes::default());
        assert!(!made.keys.is_empty());
        assert_eq!(made.rotated, epoch());
        let early = rotated_after(ROTATION - SignedDuration::from_secs(1), made.clone());
        assert_eq!(early, made);
        let late = rotated_after(ROTATION, made.clone());
        assert_ne!(late.keys, made.keys);
        assert_eq!(late.rotated, epoch() + ROTATION);
    }

    /// A clock that was set back must not keep a key for ever, nor have the leader turn in circles.
    #[test]
    fn keys_of_the_future_wait_for_no_longer_than_their_time_and_what_the_clock_went_back() {
        let mut tx = Transaction::new(Arc::new(State::default()), epoch());
        let probes = Probes {
            keys: model::probe::ProbeKeys::generate(),
            rotated: epoch() + SignedDuration::from_hours(1),
        };
        tx.put(Cluster {
            probes,
            ..fixture::cluster()
        })
        .unwrap();
        let due = due_in(tx.state(), epoch());
        assert_eq!(due, Some(Duration::from_secs(13 * 3600)));
    }
}
