//! Figures by name, with every sample; ratios are of medians.

use std::{collections::BTreeMap, fs, io::Write as _};

use anyhow::Result;
use lab::meter::Requests;
use serde_json::json;

/// Samples of one figure on one path.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// A ratio to show: `path` against `peer`, for one figure.
struct Row {
    figure: &'static str,
    path: &'static str,
    peer: &'static str,
}

#[derive(Default)]
pub struct Report {
    samples: BTreeMap<(&'static str, &'static str), Samples>,
    rows: Vec<Row>,
}

pub const STREAM: &str = "TCP stream, Gbit/s";
pub const REQUESTS: &str = "request/response, 1/s";
pub const REQUEST_P50: &str = "request/response p50, us";
pub const REQUEST_P99: &str = "request/response p99, us";
pub const CONNECTIONS: &str = "connect+request, 1/s";
pub const CONNECTION_P99: &str = "connect+request p99, us";
/// In the order that they are shown.
pub const ALL: [&str; 6] = [
    STREAM,
    REQUESTS,
    REQUEST_P50,
    REQUEST_P99,
    CONNECTIONS,
    CONNECTION_P99,
];

impl Report {
    pub fn add(&mut self, figure: &'static str, path: &'static str, sample: f64) {
        self.samples
            .entry((figure, path))
            .or_default()
            .0
            .push(sample);
    }

    pub fn add_requests(&mut self, path: &'static str, requests: Requests) {
        self.add(REQUESTS, path, requests.per_second);
        self.add(REQUEST_P50, path, requests.p50_us);
        self.add(REQUEST_P99, path, requests.p99_us);
    }

    pub fn add_connections(&mut self, path: &'static str, requests: Requests) {
        self.add(CONNECTIONS, path, requests.per_second);
        self.add(CONNECTION_P99, path, requests.p99_us);
    }

    /// Shows `path` as a ratio to `peer`, for every figure.
    pub fn compare(&mut self, path: &'static str, peer: &'static str) {
        self.rows
            .extend(ALL.map(|figure| Row { figure, path, peer }));
    }

    /// Shows a figure that has no peer.
    pub fn show(&mut self, figure: &'static str, path: &'static str) {
        self.rows.push(Row {
            figure,
            path,
            peer: "",
        });
    }

    fn median(&self, figure: &'static str, path: &'static str) -> f64 {
        self.samples
            .get(&(figure, path))
            .map_or(f64::NAN, Samples::median)
    }

    pub fn table(&self) -> Result<String> {
        let mut table = tabwriter::TabWriter::new(Vec::new()).padding(3);
        writeln!(table, "PATH\tPEER\tFIGURE\tOURS\tPEER'S\tRATIO")?;
        for row in &self.rows {
            let (ours, peers) = (
                self.median(row.figure, row.path),
                self.median(row.figure, row.peer),
            );
            if row.peer.is_empty() {
                writeln!(table, "{}\t\t{}\t{ours:.2}\t\t", row.path, row.figure)?;
            } else {
                let (path, peer, figure) = (row.path, row.peer, row.figure);
                writeln!(
                    table,
                    "{path}\t{peer}\t{figure}\t{ours:.2}\t{peers:.2}\t{:.2}",
                    ours / peers
                )?;
            }
        }
        Ok(String::from_utf8(table.into_inner()?)?)
    }

    pub fn json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let (ours, peers) = (
                    self.median(row.figure, row.path),
                    self.median(row.figure, row.peer),
                );
                let ratio = if row.peer.is_empty() {
                    None
                } else {
                    Some(ours / peers)
                };
                json!({
                    "path": row.path, "peer": row.peer, "figure": row.figure, "ours": ours,
                    "peers": if row.peer.is_empty() { None } else { Some(peers) }, "ratio": ratio,
                })
            })
            .collect();
        let samples: Vec<_> = self
            .samples
            .iter()
            .map(|((figure, path), samples)| json!({"figure": figure, "path": path, "samples": samples.0}))
            .collect();
        json!({ "machine": machine(), "ratios": rows, "samples": samples })
    }
}

/// What the figures are from.
fn machine() -> serde_json::Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    json!({
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}
