//! A client outside, through the mesh: by a node without the task, against the task's own node.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::Wiring;

use super::{Way, cluster, only_task, report::Report};
use crate::{build::Binaries, progress::step};

const REMOTE: &str = "mesh, remote backend";
const LOCAL: &str = "mesh, node of the task";
const PORT: u16 = 5001;

pub fn measure(
    binaries: &Binaries,
    rounds: usize,
    length: Duration,
    report: &mut Report,
) -> Result<()> {
    let lab = cluster(binaries, 3, Wiring::Switch)?;
    let meter = binaries
        .meter
        .to_str()
        .context("the path of the build is no UTF-8")?;
    let port = PORT.to_string();
    let constraint = format!("node.hostname=={}", lab.node(2).name());
    lab.node(1).cli(&[
        "service",
        "create",
        "--detach",
        "--name",
        "meter",
        "--publish",
        &format!("{port}:{port}"),
        "--constraint",
        &constraint,
        "--",
        meter,
        &port,
    ])?;
    only_task(&lab, "meter")?;
    let ways = [(REMOTE, 1), (LOCAL, 2)].map(|(name, entry)| Way {
        name,
        from: lab.client(),
        to: (lab.node(entry).addr(), PORT),
    });
    for round in 1..=rounds {
        step(&format!("mesh, round {round} of {rounds}"), || {
            ways.iter().try_for_each(|way| way.measure(length, report))
        })?;
    }
    report.compare(REMOTE, LOCAL);
    Ok(())
}
