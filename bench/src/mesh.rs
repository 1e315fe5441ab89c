//! A client outside, through the mesh: by a node without the task, against the task's own node.

use anyhow::{Context, Result};
use lab::Wiring;

use crate::{
    Parts,
    report::Report,
    way::{Effort, Samples, Way, cluster, only_task},
};

const REMOTE: &str = "remote backend";
const LOCAL: &str = "node of the task";
const PORT: u16 = 5001;

/// # Errors
/// When the mesh carries nothing.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    with_entry(parts, "tc", "mesh, entry by tc", report)?;
    with_entry(parts, "xdp", "mesh, entry by XDP", report)
}

fn with_entry(
    parts: &Parts,
    uplink_mode: &'static str,
    part: &'static str,
    report: &mut Report,
) -> Result<()> {
    let lab = cluster(parts, 3, 1, Wiring::Switch, uplink_mode)?;
    let meter = parts
        .objects
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
        "--publish",
        &format!("{port}:{port}/udp"),
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
    let samples = Samples::measure(part, &ways, Effort::of(parts))?;
    samples.compare(report, part, REMOTE, LOCAL, &[]);
    Ok(())
}
