//! When this manager stands for election. openraft draws its patience once, when it starts, and
//! looks at it a few times a second: two managers that drew much the same would stand against each
//! other again and again. Here each attempt has a patience of its own.

use std::time::Duration;

use openraft::ServerState;
use rand::{Rng, RngExt};
use tokio::time::{Instant, sleep};

use crate::raft::{Raft, RaftId};

/// Since it last heard from a leader, a manager votes for no other.
pub(crate) const LEASE: Duration = Duration::from_millis(1000);
/// On top of that, or after an attempt, before the next one: long enough apart for one manager's
/// vote to be on the disks of the others before the next one stands.
const PATIENCE_MILLIS: std::ops::Range<u64> = 250..1250;
/// Bounds the wait for something that may change meanwhile.
const LOOK_MAX: Duration = Duration::from_millis(500);
const LOOK_MIN: Duration = Duration::from_millis(10);

/// What counts.
struct Seen {
    /// A voter that does not lead.
    stands: bool,
    /// The vote is for a leader, and so renewed by its heartbeats.
    has_leader: bool,
    heard_at: Option<Instant>,
}

/// Stands whenever there has been no leader for too long, until Raft ends. `draw` gives each attempt's
/// patience.
pub(crate) async fn stand(raft: Raft, id: RaftId, mut draw: impl FnMut() -> Duration) {
    let started = Instant::now();
    let mut patience = draw();
    loop {
        let asked = raft.with_raft_state(move |state| {
            let mut voters = state.membership_state.effective().voter_ids();
            Seen {
                stands: voters.any(|voter| voter == id)
                    && state.server_state != ServerState::Leader,
                has_leader: state.vote_ref().is_committed(),
                heard_at: state.vote_last_modified(),
            }
        });
        let Ok(seen) = asked.await else {
            return;
        };
        let lease = if seen.has_leader {
            LEASE
        } else {
            Duration::ZERO
        };
        let due = seen.heard_at.unwrap_or(started).max(started) + lease + patience;
        let left = due.saturating_duration_since(Instant::now());
        if !seen.stands {
            sleep(LOOK_MAX).await;
        } else if left.is_zero() {
            if raft.trigger().elect().await.is_err() {
                return;
            }
            patience = draw();
        } else {
            sleep(left.clamp(LOOK_MIN, LOOK_MAX)).await;
        }
    }
}

/// A patience by `random`.
pub(crate) fn patience(random: &mut impl Rng) -> Duration {
    Duration::from_millis(random.random_range(PATIENCE_MILLIS))
}
