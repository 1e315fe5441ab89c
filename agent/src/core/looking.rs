//! The look at all maps that is under way, if one is. It is long where services are many, and the actor
//! goes on meanwhile.

use std::future;

use anyhow::{Context, Result};
use datapath::{Look, Sight};
use tokio::task::{JoinHandle, spawn_blocking};

#[derive(Default)]
pub(super) struct Looking(Option<JoinHandle<Result<Sight, datapath::DatapathError>>>);

impl Looking {
    /// Begins a look, unless one is under way.
    pub fn begin(&mut self, look: impl FnOnce() -> Option<Look>) {
        if self.0.is_none() {
            self.0 = look().map(|look| spawn_blocking(|| look.take()));
        }
    }

    /// What the look that is under way has seen. Cancel-safe.
    pub async fn seen(&mut self) -> Result<Sight> {
        let Some(look) = &mut self.0 else {
            return future::pending().await;
        };
        let seen = look.await;
        self.0 = None;
        Ok(seen.context("the look at the maps broke off")??)
    }

    /// Waits until none is under way.
    pub async fn end(&mut self) {
        if let Some(look) = self.0.take() {
            // What it saw is of no interest any more.
            let _ = look.await;
        }
    }
}
