//! Ways from one host to a `meter` on another, and what they carry.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use lab::{
    Host, Lab, LabSpec, RunningTask, Wiring,
    meter::{Requests, connect_request_response, request_response, streams, udp_request_response},
    progress::step,
};
use serde_json::json;

use crate::{
    Parts,
    report::{Figure, Goal, Report, median},
};

pub const STREAM: &str = "TCP stream, Gbit/s";
pub const STREAMS: &str = "32 TCP streams, Gbit/s";
pub const REQUESTS: &str = "TCP request/response, 1/s";
pub const REQUEST_P50: &str = "TCP request/response p50, us";
pub const REQUEST_P99: &str = "TCP request/response p99, us";
pub const DATAGRAMS: &str = "UDP request/response, 1/s";
pub const CONNECTIONS: &str = "connect+request, 1/s";
pub const CONNECTION_P99: &str = "connect+request p99, us";
/// In the order that they are shown.
const FIGURES: [&str; 8] = [
    STREAM,
    STREAMS,
    REQUESTS,
    REQUEST_P50,
    REQUEST_P99,
    DATAGRAMS,
    CONNECTIONS,
    CONNECTION_P99,
];
const MANY: usize = 32;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub length: Duration,
}

impl Effort {
    pub fn of(parts: &Parts) -> Self {
        if parts.quick {
            Self {
                rounds: 3,
                length: Duration::from_millis(200),
            }
        } else {
            Self {
                rounds: 7,
                length: Duration::from_millis(700),
            }
        }
    }
}

pub struct Way<'a> {
    pub name: &'static str,
    pub from: &'a Host,
    pub to: (Ipv4Addr, u16),
}

/// Samples by figure and way.
#[derive(Default)]
pub struct Samples(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Samples {
    /// Every figure of every way, in turn, as often as there are rounds.
    ///
    /// # Errors
    /// When a way carries nothing.
    pub fn measure(what: &str, ways: &[Way], effort: Effort) -> Result<Self> {
        let mut samples = Self::default();
        let what = format!("{what}: {} ways, {} rounds", ways.len(), effort.rounds);
        step(&what, || {
            for _ in 0..effort.rounds {
                for way in ways {
                    let context = || format!("{} to {}:{}", way.name, way.to.0, way.to.1);
                    samples
                        .measure_once(way, effort.length)
                        .with_context(context)?;
                }
            }
            Ok(())
        })?;
        Ok(samples)
    }

    fn measure_once(&mut self, way: &Way, length: Duration) -> Result<()> {
        let Way { name, from, to } = *way;
        let mut add = |figure, sample| self.0.entry((figure, name)).or_default().push(sample);
        add(STREAM, streams(from, to, 1, length)? / 1e9);
        add(STREAMS, streams(from, to, MANY, length)? / 1e9);
        let Requests {
            per_second,
            p50_us,
            p99_us,
        } = request_response(from, to, length)?;
        add(REQUESTS, per_second);
        add(REQUEST_P50, p50_us);
        add(REQUEST_P99, p99_us);
        add(
            DATAGRAMS,
            udp_request_response(from, to, length)?.per_second,
        );
        let connections = connect_request_response(from, to, length)?;
        add(CONNECTIONS, connections.per_second);
        add(CONNECTION_P99, connections.p99_us);
        Ok(())
    }

    /// Shows `way` against `peer`, for every figure; goals by figure.
    pub fn compare(
        &self,
        report: &mut Report,
        part: &'static str,
        way: &'static str,
        peer: &'static str,
        goals: &[(&'static str, f64)],
    ) {
        for figure in FIGURES {
            let of = |name| self.0.get(&(figure, name)).map_or(&[][..], Vec::as_slice);
            let goal = goals.iter().find(|(of, _)| *of == figure);
            report.add(
                Figure::new(part, format!("{way}: {figure}"), median(of(way)))
                    .against(peer, median(of(peer)))
                    .goal(goal.map(|(_, ratio)| Goal::RatioAtLeast(*ratio)))
                    .detail(json!({"samples": of(way), "peer_samples": of(peer)})),
            );
        }
    }
}

/// A cluster for measurements; the directory is short for the sake of socket paths.
///
/// # Errors
/// What the lab says.
pub fn cluster(
    parts: &Parts,
    nodes: u8,
    managers: u8,
    wiring: Wiring,
    uplink_mode: &'static str,
) -> Result<Lab> {
    step(&format!("starting {nodes} nodes"), || {
        let mut lab = Lab::new(LabSpec {
            name: "snbench".to_owned(),
            dir: PathBuf::from("/var/lib/swarmnet-bench"),
            nodes,
            managers,
            binary: parts.objects.swarmnet.clone(),
            uplink_mode,
            mtu: 1500,
            wiring,
        })?;
        lab.form_cluster()?;
        Ok(lab)
    })
}

/// The task of a service with one replica, once every node's tables have it.
///
/// # Errors
/// When it does not come to run.
pub fn only_task(lab: &Lab, service: &str) -> Result<RunningTask> {
    let mut tasks = lab.wait_running(service, 1)?;
    lab.settle()?;
    Ok(tasks.remove(0))
}
