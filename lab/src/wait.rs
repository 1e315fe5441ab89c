use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Ample for every state a lab waits for; a test that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// How long to wait here for what usually takes `usual` at most: an environment variable says how
/// many times slower this machine is, as an emulated one.
pub fn patience(usual: Duration) -> Duration {
    let factor = std::env::var("SWARMNET_DEADLINE_FACTOR").ok();
    usual * factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Looks until `look` gives something. An error of `look` counts as "not yet" and is told at the
/// deadline.
///
/// # Errors
/// At the deadline, with `what` and the last error.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let patience = patience(DEADLINE);
    let deadline = Instant::now() + patience;
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(err) => Some(err),
        };
        if Instant::now() >= deadline {
            match last {
                Some(err) => return Err(err.context(format!("waited {patience:?} for {what}"))),
                None => bail!("waited {patience:?} in vain for {what}"),
            }
        }
        thread::sleep(LOOK);
    }
}
