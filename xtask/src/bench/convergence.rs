//! From `service scale` to the last node's acknowledgement that its kernel has the change.

use std::time::Instant;

use anyhow::Result;
use lab::Wiring;

use super::{cluster, report::Report};
use crate::{build::Binaries, progress::step};

const FIGURE: &str = "ms";
const UP: &str = "service scale 2 to 3, tasks and tables on all nodes";
const DOWN: &str = "service scale 3 to 2, drained on all nodes";
const ROUNDS: usize = 10;

pub fn measure(binaries: &Binaries, report: &mut Report) -> Result<()> {
    let lab = cluster(binaries, 3, Wiring::Switch)?;
    let manager = lab.node(1);
    manager.cli(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "3",
        "--publish",
        "5001:5001",
        "--",
        "sleep",
        "infinity",
    ])?;
    lab.wait_running("web", 3)?;
    lab.settle()?;
    step(
        &format!("scaling a service {ROUNDS} times up and down"),
        || {
            for _ in 0..ROUNDS {
                for (figure, replicas) in [(DOWN, 2), (UP, 3)] {
                    let started = Instant::now();
                    manager.cli(&["service", "scale", "--detach", &format!("web={replicas}")])?;
                    wait_active(&lab, replicas)?;
                    report.add(FIGURE, figure, started.elapsed().as_secs_f64() * 1e3);
                    lab.settle()?;
                }
            }
            Ok(())
        },
    )?;
    report.show(FIGURE, UP);
    report.show(FIGURE, DOWN);
    Ok(())
}

/// Waits until every node's own tables have so many active backends.
fn wait_active(lab: &lab::Lab, replicas: usize) -> Result<()> {
    lab::wait_for("the backends on every node", || {
        for node in lab.nodes() {
            let rows = node.cli_json(&["inspect", "backends"])?;
            if rows.iter().filter(|row| row["state"] == "active").count() != replicas {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}
