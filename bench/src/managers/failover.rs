//! From the last write that a leader acknowledged to the next one that another does: three managers, of
//! which the leading one is killed again and again. Clients of the two others write all the time.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Wiring, progress::step, wait_for};
use serde_json::{Value, json};

use super::{door, labels::LabelWriter, writes::leader};
use crate::{
    Parts,
    api::{Api, Connection},
    report::{Figure, Goal, Report, quantile},
    wait::Wait,
    way::cluster,
};

const PART: &str = "failover of three managers";
const MANAGERS: u8 = 3;
const GOAL_S: f64 = 3.0;
/// Acknowledged writes before a leader is killed, and after.
const SETTLED: usize = 50;
const RETRY: Duration = Duration::from_millis(2);
const WAIT: Wait = Wait {
    most: Duration::from_secs(60),
    look: Duration::from_millis(5),
};

/// # Errors
/// When no manager takes over, or a killed one does not come back.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let mut lab = cluster(parts, MANAGERS, MANAGERS, Wiring::Switch, "tc")?;
    let api = Api::at(&lab.node(1).socket());
    // One for each client: no two replace the same object.
    let nodes = door::join(&lab, &api, usize::from(MANAGERS))?;
    let kills = if parts.quick { 10 } else { 50 };
    let mut gaps = Vec::new();
    step(&format!("killing the leader {kills} times"), || {
        for _ in 0..kills {
            gaps.push(fail_over(&mut lab, &nodes)?);
        }
        Ok(())
    })?;
    let detail = json!({"samples": gaps});
    let name = "last acknowledged write to the next, s";
    let p50 = quantile(&gaps, 0.5);
    report.add(Figure::new(PART, format!("{name}: p50"), p50).detail(detail));
    let longest = quantile(&gaps, 1.0);
    let figure = Figure::new(PART, format!("{name}: longest of {kills}"), longest);
    report.add(figure.goal(Goal::AtMost(GOAL_S)));
    Ok(())
}

/// Seconds without an acknowledged write around the kill.
fn fail_over(lab: &mut Lab, nodes: &[String]) -> Result<f64> {
    let leader = leader(lab)?;
    let sockets = (1..)
        .zip(lab.nodes())
        .filter(|(number, _)| *number != leader);
    let sockets: Vec<_> = sockets.map(|(_, node)| node.socket()).collect();
    let (acks, over) = (Mutex::new(Vec::<Instant>::new()), AtomicBool::new(false));
    let count = || acks.lock().unwrap_or_else(PoisonError::into_inner).len();
    let killed = thread::scope(|scope| {
        for (socket, node) in sockets.iter().zip(nodes) {
            let (acks, over) = (&acks, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match write(socket, node) {
                        Ok(at) => acks.lock().unwrap_or_else(PoisonError::into_inner).push(at),
                        Err(_) => thread::sleep(RETRY),
                    }
                }
            });
        }
        let killed = kill_amid(lab, leader, count);
        over.store(true, Ordering::Relaxed);
        killed
    })?;
    let mut acks = acks.into_inner().unwrap_or_else(PoisonError::into_inner);
    acks.sort();
    ensure!(
        acks.last().is_some_and(|last| *last > killed),
        "no write came after"
    );
    let after = acks.windows(2).filter(|pair| pair[1] > killed);
    let longest = after.map(|pair| pair[1] - pair[0]).max();
    let longest = longest.context("no write came before")?;
    lab.node_mut(leader).start()?;
    wait_for("all managers to be reachable", || {
        let nodes = Api::at(&lab.node(leader % lab.nodes().len() + 1).socket()).get("/nodes")?;
        let is_there = |node: &&Value| node["ManagerStatus"]["Reachability"] == "reachable";
        let there = nodes.as_array().context("a list")?.iter().filter(is_there);
        Ok((there.count() == usize::from(MANAGERS)).then_some(()))
    })?;
    Ok(longest.as_secs_f64())
}

fn write(socket: &std::path::Path, node: &str) -> Result<Instant> {
    let mut writer = LabelWriter::new(Connection::open(socket)?, node.to_owned());
    let read = writer.read()?;
    writer.write(&read, &format!("{:?}", Instant::now()))?;
    Ok(Instant::now())
}

/// Kills the leader between writes. Returns when.
fn kill_amid(lab: &mut Lab, leader: usize, acknowledged: impl Fn() -> usize) -> Result<Instant> {
    WAIT.until(
        "writes to be acknowledged",
        || Ok(acknowledged() >= SETTLED),
    )?;
    lab.node_mut(leader).kill()?;
    let killed = Instant::now();
    let before = acknowledged();
    WAIT.until("another leader to acknowledge writes", || {
        Ok(acknowledged() >= before + SETTLED)
    })?;
    Ok(killed)
}
