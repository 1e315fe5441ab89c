//! Reading that is under way on another thread, as it takes long: the actor goes on meanwhile.

use std::future;

use anyhow::{Context, Result};
use datapath::DatapathError;
use tokio::task::{JoinHandle, spawn_blocking};

/// One reading at a time.
pub(super) struct Aside<T>(Option<JoinHandle<Result<T, DatapathError>>>);

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Aside<T> {
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Begins to read. What another reading may still find is of no interest any more.
    pub fn begin(&mut self, read: impl FnOnce() -> Result<T, DatapathError> + Send + 'static) {
        self.0 = Some(spawn_blocking(read));
    }

    /// What the reading that is under way has found. Cancel-safe.
    pub async fn done(&mut self) -> Result<T> {
        let Some(reading) = &mut self.0 else {
            return future::pending().await;
        };
        let found = reading.await;
        self.0 = None;
        Ok(found.context("the maps were not read to the end")??)
    }

    /// Waits until none is under way.
    pub async fn end(&mut self) {
        if let Some(reading) = self.0.take() {
            // What it found is of no interest any more.
            let _ = reading.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Of a reading that nobody lets go on.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The table is read to its end only after the question was answered: were it read in the actor's
    /// turn, neither would ever come about.
    #[tokio::test]
    async fn questions_are_answered_while_a_table_is_read() {
        let (finish, is_finished) = mpsc::channel();
        let (ask, mut questions) = tokio::sync::mpsc::channel(1);
        let mut aside = Aside::default();
        aside.begin(move || Ok(is_finished.recv_timeout(PATIENCE).expect("it is let go on")));
        assert!(!aside.is_idle());
        ask.send("question").await.unwrap();
        let mut course = Vec::new();
        while course.len() < 2 {
            tokio::select! {
                biased;
                found = aside.done() => course.push(found.unwrap()),
                Some(question) = questions.recv() => {
                    course.push(question);
                    finish.send("table").unwrap();
                }
            }
        }
        assert_eq!(course, ["question", "table"]);
        assert!(aside.is_idle());
    }
}
