//! Waiting for a state.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// How long, and how often is looked.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    pub most: Duration,
    pub look: Duration,
}

impl Wait {
    /// Until it is so.
    ///
    /// # Errors
    /// When it is over, with `what`; or at once, what a look found wrong.
    pub fn until(self, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let Self { most, look } = self;
        let begun = Instant::now();
        while !is_so()? {
            ensure!(begun.elapsed() < most, "waited {most:?} in vain for {what}");
            thread::sleep(look);
        }
        Ok(())
    }
}
