//! Thousands of live connections under seeded schedules of changes: real programs, maps and rings on
//! nodes as network namespaces; only the managers are played.
//!
//! `SWARMNET_SEEDS=100..200` runs other seeds than the few of every day.

#[path = "../common/mod.rs"]
mod common;
#[path = "../node/mod.rs"]
mod node;
mod plot;
mod traffic;
mod world;

use std::ops::Range;

use plot::Plot;

/// Of every day.
const SEEDS: Range<u64> = 1..3;
const STEPS: usize = 6;
const CONNECTIONS: usize = 2_000;

#[test]
fn connections_live_through_any_schedule_of_changes() {
    for seed in seeds() {
        let mut plot = Plot::new(seed, CONNECTIONS);
        for step in 0..STEPS {
            plot.step(step);
        }
        println!("seed {seed}: {}", plot.summary());
    }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SWARMNET_SEEDS") else {
        return SEEDS;
    };
    let range = text.split_once("..").and_then(|(from, to)| {
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        Some(from..to)
    });
    range.unwrap_or_else(|| panic!("SWARMNET_SEEDS is `{text}`, want a range like 100..200"))
}
