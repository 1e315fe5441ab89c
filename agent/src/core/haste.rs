//! When a comparison shall come early, because the kernel told of a change.

use std::{future, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Changes come in groups, so the first is not answered at once.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Between two early comparisons lies this many times what one takes, however much changes: the actor
/// has other things to do.
const PAUSE_FACTOR: u32 = 4;

#[derive(Debug)]
pub(super) struct Haste {
    due: Option<Instant>,
    pause: Duration,
}

impl Default for Haste {
    fn default() -> Self {
        Self {
            due: None,
            pause: PAUSE_MIN,
        }
    }
}

impl Haste {
    /// Something was altered at `now`. A later change waits for the same comparison.
    pub fn ask(&mut self, now: Instant) {
        self.due.get_or_insert(now + self.pause);
    }

    /// Waits until a comparison is due. Cancel-safe.
    pub async fn due(&self) {
        match self.due {
            Some(at) => sleep_until(at).await,
            None => future::pending().await,
        }
    }

    /// A comparison begins: what is altered from now on asks for another one.
    pub fn begin(&mut self) {
        self.due = None;
    }

    pub fn took(&mut self, duration: Duration) {
        self.pause = PAUSE_MIN.max(duration * PAUSE_FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_moment_have_one_comparison_and_long_ones_come_seldom() {
        let (mut haste, now) = (Haste::default(), Instant::now());
        let later = |millis| now + Duration::from_millis(millis);
        haste.ask(now);
        haste.ask(later(150));
        assert_eq!(haste.due, Some(later(200)));
        haste.begin();
        assert_eq!(haste.due, None);
        haste.took(Duration::from_millis(100));
        haste.ask(later(1_000));
        assert_eq!(haste.due, Some(later(1_400)));
        haste.took(Duration::from_millis(1));
        haste.begin();
        haste.ask(later(2_000));
        assert_eq!(haste.due, Some(later(2_200)));
    }
}
