//! `cargo xtask bench`: figures as ratios of medians from one run, each against the peer that the
//! row names. Timings inform; they fail nothing.

mod convergence;
mod mesh;
mod overlay;
mod report;

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use lab::{
    Host, Lab, LabSpec, RunningTask, Wiring,
    meter::{connect_request_response, request_response, stream},
};
use report::{Report, STREAM};

use crate::{
    build::{Binaries, Profile, build},
    progress::step,
    setup,
};

#[derive(clap::Args)]
pub struct Args {
    /// Times each figure is measured, all figures in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds a measurement lasts.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Also write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure_ready(setup::For::Run)?;
    let binaries = build(Profile::Release)?;
    let length = Duration::from_secs_f64(args.seconds);
    let mut report = Report::default();
    overlay::measure(&binaries, args.rounds, length, &mut report)?;
    mesh::measure(&binaries, args.rounds, length, &mut report)?;
    convergence::measure(&binaries, &mut report)?;
    println!("\n{}", report.table()?);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}

/// A cluster for measurements; the directory is short for the sake of socket paths.
fn cluster(binaries: &Binaries, nodes: u8, wiring: Wiring) -> Result<Lab> {
    step(&format!("starting {nodes} nodes"), || {
        let mut lab = Lab::new(LabSpec {
            name: "snbench".to_owned(),
            dir: PathBuf::from("/var/lib/swarmnet-bench"),
            nodes,
            binary: binaries.swarmnet.clone(),
            uplink_mode: "tc",
            mtu: 1500,
            wiring,
        })?;
        lab.form_cluster()?;
        Ok(lab)
    })
}

/// The task of a service with one replica, once every node's tables have it.
fn only_task(lab: &Lab, service: &str) -> Result<RunningTask> {
    let mut tasks = lab.wait_running(service, 1)?;
    lab.settle()?;
    Ok(tasks.remove(0))
}

/// A way from one host to a `meter` on another.
struct Way<'a> {
    name: &'static str,
    from: &'a Host,
    to: (Ipv4Addr, u16),
}

impl Way<'_> {
    /// Every figure once.
    fn measure(&self, length: Duration, report: &mut Report) -> Result<()> {
        let Self { name, from, to } = *self;
        let context = || format!("{name} to {}:{}", to.0, to.1);
        report.add(
            STREAM,
            name,
            stream(from, to, length).with_context(context)? / 1e9,
        );
        report.add_requests(
            name,
            request_response(from, to, length).with_context(context)?,
        );
        let connections = connect_request_response(from, to, length).with_context(context)?;
        report.add_connections(name, connections);
        Ok(())
    }
}
