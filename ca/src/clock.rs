//! The wall clock, by which certificates are valid.

use jiff::{SignedDuration, Timestamp};

/// Between two looks at the clock, which may be set.
const LOOK: SignedDuration = SignedDuration::from_mins(5);

/// Returns when the wall clock shows `time`, or somewhat later when it is set meanwhile.
/// Cancel-safe.
pub async fn until(time: Timestamp) {
    loop {
        let left = time.duration_since(Timestamp::now());
        if left <= SignedDuration::ZERO {
            return;
        }
        tokio::time::sleep(left.min(LOOK).unsigned_abs()).await;
    }
}
