//! Long steps show that they go on, and how long they took.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Runs a step under a spinner; a line stays when it is done, also where there is no terminal.
///
/// # Errors
/// Those of the step.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let spinner = ProgressBar::new_spinner()
        .with_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a valid template"),
        )
        .with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let outcome = work();
    spinner.finish_and_clear();
    let mark = if outcome.is_ok() { "ok" } else { "failed" };
    println!("{what} … {mark}, {:.1} s", started.elapsed().as_secs_f32());
    outcome
}
