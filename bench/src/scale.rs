//! From `service scale` to the last node's acknowledgement that its kernel has the change, and on to
//! where the tasks run or have drained, in a cluster that already has many services.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Wiring, progress::step};
use serde_json::{Value, json};

use crate::{
    Parts,
    api::Api,
    report::{Figure, Goal, Report, median, quantile},
    wait::Wait,
    way::cluster,
};

const PART: &str = "service scale, 3 nodes, 300 services, ms";
const SERVICES: u16 = 300;
const FIRST_PORT: u16 = 10_000;
const GOAL_MS: f64 = 50.0;
/// To start all tasks, and for each scaling.
const WAIT: Wait = Wait {
    most: Duration::from_secs(240),
    look: Duration::from_millis(1),
};

/// # Errors
/// When the cluster does not come to where it was sent.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let lab = cluster(parts, 3, 1, Wiring::Switch, "tc")?;
    let api = Api::at(&lab.node(1).socket());
    let whoami = parts.objects.whoami.to_str().context("a path")?;
    step(&format!("starting {SERVICES} services"), || {
        populate(&api, whoami)
    })?;
    lab.settle()?;
    let rounds = if parts.quick { 10 } else { 50 };
    let (mut ups, mut downs) = (Samples::default(), Samples::default());
    let mut syncs = Vec::new();
    let file = File::create(lab.dir().join("fdatasync"))?;
    step(
        &format!("scaling a service up and down, {rounds} times"),
        || {
            for _ in 0..rounds {
                sync(&file, &mut syncs)?;
                scale(&lab, &api, 3, &mut ups)?;
                sync(&file, &mut syncs)?;
                scale(&lab, &api, 2, &mut downs)?;
            }
            Ok(())
        },
    )?;
    for (name, samples, is_goal) in [
        ("2 to 3 replicas, acknowledged", ups.acknowledged, true),
        ("2 to 3 replicas, running", ups.done, false),
        ("3 to 2 replicas, acknowledged", downs.acknowledged, true),
        ("3 to 2 replicas, drained", downs.done, false),
    ] {
        let detail = json!({"samples": samples});
        report.add(Figure::new(PART, format!("{name}: p50"), median(&samples)).detail(detail));
        let p99 = Figure::new(PART, format!("{name}: p99"), quantile(&samples, 0.99));
        report.add(if is_goal {
            p99.goal(Goal::AtMost(GOAL_MS))
        } else {
            p99
        });
    }
    let note = "on the managers' disk; a scaling is two commits, and a commit waits for two";
    let (p50, p99) = (median(&syncs), quantile(&syncs, 0.99));
    report.add(Figure::new(PART, "an fdatasync of 4 KiB: p50", p50).note(note));
    report.add(Figure::new(PART, "an fdatasync of 4 KiB: p99", p99));
    Ok(())
}

fn sync(file: &File, samples: &mut Vec<f64>) -> Result<()> {
    let begun = Instant::now();
    file.write_all_at(&[0; 4096], 0)?;
    file.sync_data()?;
    samples.push(begun.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Milliseconds from the request on.
#[derive(Default)]
struct Samples {
    /// Every kernel has what the managers made of the request.
    acknowledged: Vec<f64>,
    /// So many tasks run, and every node knows it.
    done: Vec<f64>,
}

fn populate(api: &Api, whoami: &str) -> Result<()> {
    for number in 0..SERVICES {
        let replicas = if number == 0 { 2 } else { 1 };
        let port = FIRST_PORT + number;
        api.post(
            "/services/create",
            &json!({
                "Name": format!("s{number}"),
                "TaskTemplate": {"ContainerSpec": {
                    "Image": "host", "Command": [whoami, "80"],
                }},
                "Mode": {"Replicated": {"Replicas": replicas}},
                "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": port}]},
            }),
        )?;
    }
    WAIT.until("all tasks to run", || {
        Ok(running(api, "")? == usize::from(SERVICES) + 1)
    })
}

fn scale(lab: &Lab, api: &Api, replicas: u64, samples: &mut Samples) -> Result<()> {
    let mut service = api.get("/services/s0")?;
    let version = service["Version"]["Index"].as_u64().context("a version")?;
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas.into();
    let id = service["ID"].as_str().context("an id")?.to_owned();
    let started = Instant::now();
    let took = || started.elapsed().as_secs_f64() * 1e3;
    api.post(
        &format!("/services/{id}/update?version={version}"),
        &service["Spec"],
    )?;
    let mut decided = None;
    WAIT.until("the managers' decision", || {
        decided = decision(api, replicas as usize)?;
        Ok(decided.is_some())
    })?;
    let decided = decided.context("a version")?;
    WAIT.until("its acknowledgements", || {
        let rows = nodes(lab, api)?;
        Ok(rows.iter().all(|(applied, _)| *applied >= decided))
    })?;
    samples.acknowledged.push(took());
    let filter = r#"%22service%22:[%22s0%22],"#;
    WAIT.until("the tasks", || {
        Ok(running(api, filter)? == replicas as usize)
    })?;
    WAIT.until("every acknowledgement", || {
        let rows = nodes(lab, api)?;
        Ok(rows.iter().all(|(applied, current)| applied == current))
    })?;
    samples.done.push(took());
    lab.settle()
}

/// The version that has so many tasks of the service on nodes, and the others told to end, once it is
/// there.
fn decision(api: &Api, replicas: usize) -> Result<Option<u64>> {
    let tasks = api.get("/tasks?filters={%22service%22:[%22s0%22]}")?;
    let tasks = tasks.as_array().context("a list of tasks")?;
    let wanted = tasks
        .iter()
        .filter(|task| task["DesiredState"] == "running" && task["NodeID"].is_string());
    if wanted.count() != replicas {
        return Ok(None);
    }
    let versions = tasks.iter().map(|task| task["Version"]["Index"].as_u64());
    Ok(versions.flatten().max())
}

/// What each node has applied, and what there is for it.
fn nodes(lab: &Lab, api: &Api) -> Result<Vec<(u64, u64)>> {
    let rows = api.get("/swarmnet/inspect/nodes")?;
    let rows = rows.as_array().context("a list of nodes")?;
    ensure!(rows.len() == lab.nodes().len(), "a node is missing");
    let version = |row: &Value, of: &str| row[of].as_u64().context("a version");
    rows.iter()
        .map(|row| Ok((version(row, "applied")?, version(row, "current")?)))
        .collect()
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
