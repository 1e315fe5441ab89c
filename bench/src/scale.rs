//! From `service scale` to the last node's acknowledgement that its kernel has the change, in a
//! cluster that already has many services.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Wiring, progress::step};
use serde_json::{Value, json};

use crate::{
    Parts,
    api::Api,
    report::{Figure, Goal, Report, median},
    way::cluster,
};

const PART: &str = "service scale, 3 nodes, 300 services, ms";
const SERVICES: u16 = 300;
const FIRST_PORT: u16 = 10_000;
const GOAL_MS: f64 = 50.0;
/// To start all tasks, and for each scaling.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(1);

/// # Errors
/// When the cluster does not come to where it was sent.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let lab = cluster(parts, 3, Wiring::Switch, "tc")?;
    let api = Api::at(&lab.node(1).socket());
    step(&format!("starting {SERVICES} services"), || populate(&api))?;
    lab.settle()?;
    let rounds = if parts.quick { 10 } else { 50 };
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    step(
        &format!("scaling a service up and down, {rounds} times"),
        || {
            for _ in 0..rounds {
                ups.push(scale(&lab, &api, 3)?);
                downs.push(scale(&lab, &api, 2)?);
            }
            Ok(())
        },
    )?;
    for (name, samples) in [
        ("2 to 3 replicas, running", ups),
        ("3 to 2 replicas, drained", downs),
    ] {
        let detail = json!({"samples": samples});
        report.add(Figure::new(PART, format!("{name}: p50"), median(&samples)).detail(detail));
        let p99 = Figure::new(PART, format!("{name}: p99"), quantile(samples, 0.99));
        report.add(p99.goal(Goal::AtMost(GOAL_MS)));
    }
    Ok(())
}

fn populate(api: &Api) -> Result<()> {
    for number in 0..SERVICES {
        let replicas = if number == 0 { 2 } else { 1 };
        let port = FIRST_PORT + number;
        api.post(
            "/services/create",
            &json!({
                "Name": format!("s{number}"),
                "TaskTemplate": {"ContainerSpec": {
                    "Image": "host", "Command": ["sleep", "infinity"],
                    // Ends at once when told to: the drain is what is measured.
                    "Init": true,
                }},
                "Mode": {"Replicated": {"Replicas": replicas}},
                "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": port}]},
            }),
        )?;
    }
    until("all tasks to run", || {
        Ok(running(api, "")? == usize::from(SERVICES) + 1)
    })
}

/// Milliseconds until so many tasks run and every node has acknowledged it.
fn scale(lab: &Lab, api: &Api, replicas: u64) -> Result<f64> {
    let mut service = api.get("/services/s0")?;
    let version = service["Version"]["Index"].as_u64().context("a version")?;
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas.into();
    let id = service["ID"].as_str().context("an id")?.to_owned();
    let started = Instant::now();
    api.post(
        &format!("/services/{id}/update?version={version}"),
        &service["Spec"],
    )?;
    let filter = r#"%22service%22:[%22s0%22],"#;
    until("the tasks", || {
        Ok(running(api, filter)? == replicas as usize)
    })?;
    until("every acknowledgement", || {
        let rows = api.get("/swarmnet/inspect/nodes")?;
        let rows = rows.as_array().context("a list of nodes")?;
        ensure!(rows.len() == lab.nodes().len(), "a node is missing");
        Ok(rows.iter().all(|row| row["applied"] == row["current"]))
    })?;
    let took = started.elapsed().as_secs_f64() * 1e3;
    lab.settle()?;
    Ok(took)
}

/// Tasks that run and should.
fn running(api: &Api, filter: &str) -> Result<usize> {
    let tasks = api.get(&format!(
        "/tasks?filters={{{filter}%22desired-state%22:[%22running%22]}}"
    ))?;
    let runs = |task: &&Value| task["Status"]["State"] == "running";
    Ok(tasks
        .as_array()
        .context("a list of tasks")?
        .iter()
        .filter(runs)
        .count())
}

fn until(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !look()? {
        ensure!(
            begun.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        thread::sleep(LOOK);
    }
    Ok(())
}

fn quantile(mut samples: Vec<f64>, share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let nth = ((samples.len() - 1) as f64 * share).round() as usize;
    samples[nth]
}
