//! Committed writes by clients of the leader: ours by the Docker API on its socket, etcd's by gRPC. Both
//! clients read an object of their own, in which a quorum of the members takes part, and replace what they
//! read, 256 bytes, over a connection of their own; both clusters have a member on each node, with the same
//! precedence, and their logs on the same disk, and acknowledge what a majority has synced. Ours are objects
//! with checks, between managers with TLS, encrypted on disk; etcd is as it comes, in the clear. Members and
//! clients share the machine, and who does not write rests.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::{Lab, Wiring, progress::step};
use serde_json::json;

use super::{door, etcd, etcd::Etcd, labels::LabelWriter};
use crate::{
    Parts,
    api::{Api, Connection},
    report::{Figure, Report, median, quantile},
    way::cluster,
};

const PART: &str = "committed writes by the API at the leader";
const MANAGERS: [u8; 3] = [1, 3, 5];
const CLIENTS: [usize; 2] = [1, 64];
const VALUE_BYTES: usize = 256;

/// # Errors
/// When a cluster does not come up, or refuses a write.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    if parts.etcd.is_none() {
        println!("no etcd on this machine (Debian's package etcd-server): ours alone is measured");
    }
    for managers in MANAGERS {
        with(parts, managers, report).with_context(|| format!("{managers} managers"))?;
    }
    Ok(())
}

fn with(parts: &Parts, managers: u8, report: &mut Report) -> Result<()> {
    let lab = cluster(parts, managers, managers, Wiring::Switch, "tc")?;
    let api = Api::at(&lab.node(1).socket());
    let most = CLIENTS.into_iter().max().unwrap_or(0);
    let nodes = step("joining nodes to write to", || door::join(&lab, &api, most))?;
    let etcd = parts.etcd.as_deref();
    let etcd = etcd.map(|binary| Etcd::start(binary, &lab)).transpose()?;
    let (rounds, length) = match parts.quick {
        true => (2, Duration::from_secs(1)),
        false => (5, Duration::from_secs(3)),
    };
    for clients in CLIENTS {
        let (mut ours, mut theirs) = (Runs::default(), Runs::default());
        step(
            &format!("{managers} managers, {clients} clients, {rounds} rounds"),
            || {
                for _ in 0..rounds {
                    ours.add(write_ours(&lab, &nodes[..clients], length)?);
                    if etcd.is_some() {
                        theirs.add(write_etcd(&lab, clients, length)?);
                    }
                }
                Ok(())
            },
        )?;
        let name = format!("{managers} managers, {clients} clients");
        let peer = etcd.as_ref().map(|etcd| (etcd.name.as_str(), &theirs));
        ours.show(peer, &name, report);
    }
    Ok(())
}

/// Of the runs of one cluster.
#[derive(Default)]
struct Runs {
    per_second: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

impl Runs {
    fn add(&mut self, run: Run) {
        self.per_second.push(run.per_second);
        self.p50_ms.push(quantile(&run.took_ms, 0.5));
        self.p99_ms.push(quantile(&run.took_ms, 0.99));
    }

    fn named(&self) -> [(&str, &[f64]); 3] {
        [
            ("writes a second", &self.per_second),
            ("write p50, ms", &self.p50_ms),
            ("write p99, ms", &self.p99_ms),
        ]
    }

    fn show(&self, peer: Option<(&str, &Self)>, name: &str, report: &mut Report) {
        let peers = peer.map(|(peer, runs)| (peer, runs.named()));
        for (nth, (what, samples)) in self.named().into_iter().enumerate() {
            let mut figure = Figure::new(PART, format!("{name}: {what}"), median(samples));
            let mut detail = json!({"samples": samples});
            if let Some((peer, (_, theirs))) = peers.map(|(peer, named)| (peer, named[nth])) {
                figure = figure.against(peer, median(theirs));
                detail["peer_samples"] = json!(theirs);
            }
            report.add(figure.detail(detail));
        }
    }
}

struct Run {
    per_second: f64,
    /// Of each write, without the read before it.
    took_ms: Vec<f64>,
}

fn write_ours(lab: &Lab, nodes: &[String], length: Duration) -> Result<Run> {
    let leader = leader(lab)?;
    let socket = lab.node(leader).socket();
    drive(nodes.len(), length, |client| {
        let api = Connection::open(&socket)?;
        let mut writer = LabelWriter::new(api, nodes[client].clone());
        Ok(move |value: &str| {
            let read = writer.read()?;
            let begun = Instant::now();
            writer.write(&read, value)?;
            Ok(begun.elapsed())
        })
    })
}

fn write_etcd(lab: &Lab, clients: usize, length: Duration) -> Result<Run> {
    let (node, _) = etcd::leader(lab.nodes())?;
    // Threads are of the host of the thread that starts them.
    node.host().within(|| {
        drive(clients, length, |client| {
            let mut connection = etcd::Client::connect(node)?;
            let key = format!("bench-{client}");
            Ok(move |value: &str| {
                let read = connection.read(&key)?;
                let begun = Instant::now();
                connection.write(&read, &key, value)?;
                Ok(begun.elapsed())
            })
        })
    })
}

/// Number of the node whose manager leads.
pub fn leader(lab: &Lab) -> Result<usize> {
    let running = (1..).zip(lab.nodes()).filter(|(_, node)| node.is_running());
    for (_, node) in running {
        let nodes = Api::at(&node.socket()).get("/nodes");
        let nodes = nodes.unwrap_or_default();
        let mut rows = nodes.as_array().into_iter().flatten();
        let leader = rows.find(|row| row["ManagerStatus"]["Leader"] == true);
        let name = leader.and_then(|row| row["Description"]["Hostname"].as_str());
        let is_it = |node: &lab::Node| Some(node.name()) == name;
        if let Some(place) = lab.nodes().iter().position(is_it) {
            return Ok(place + 1);
        }
    }
    anyhow::bail!("no manager leads")
}

/// So many clients, each on a thread of its own, write one after the other for this long.
fn drive<W>(
    clients: usize,
    length: Duration,
    connect: impl Fn(usize) -> Result<W> + Sync,
) -> Result<Run>
where
    W: FnMut(&str) -> Result<Duration>,
{
    let (ready, over) = (Barrier::new(clients + 1), AtomicBool::new(false));
    let work = |client: usize| -> Result<Vec<f64>> {
        let connected = connect(client);
        ready.wait();
        let mut write = connected?;
        let mut took_ms = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let value = format!("{:0VALUE_BYTES$}", took_ms.len());
            took_ms.push(write(&value)?.as_secs_f64() * 1e3);
        }
        Ok(took_ms)
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..clients)
            .map(|client| scope.spawn(move || work(client)))
            .collect();
        ready.wait();
        let begun = Instant::now();
        thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        let mut took_ms = Vec::new();
        for thread in threads {
            let of_client = thread.join();
            let of_client = of_client.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            took_ms.extend(of_client?);
        }
        let per_second = took_ms.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(Run {
            per_second,
            took_ms,
        })
    })
}
