//! Figures in the order that they were found: ours, the peer's, the ratio, the goal.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// The one in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The sample below which this share of them is: 0.5 is the one in the middle, 1 the largest.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    let nth = (last * share).round() as usize;
    sorted.get(nth).copied().unwrap_or(f64::NAN)
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

pub struct Peer {
    pub name: String,
    pub value: f64,
}

pub struct Figure {
    /// The table it is a row of.
    pub part: &'static str,
    /// What was measured, with its unit.
    pub name: String,
    pub ours: f64,
    pub peer: Option<Peer>,
    pub goal: Option<Goal>,
    /// What one must know to read it.
    pub note: String,
    /// Samples and further values, for the file.
    pub detail: Value,
}

impl Figure {
    pub fn new(part: &'static str, name: impl Into<String>, ours: f64) -> Self {
        Self {
            part,
            name: name.into(),
            ours,
            peer: None,
            goal: None,
            note: String::new(),
            detail: Value::Null,
        }
    }

    pub fn against(mut self, name: impl Into<String>, value: f64) -> Self {
        self.peer = Some(Peer {
            name: name.into(),
            value,
        });
        self
    }

    pub fn goal(mut self, goal: impl Into<Option<Goal>>) -> Self {
        self.goal = goal.into();
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| self.ours / peer.value)
    }

    /// `None` without a goal.
    fn is_met(&self) -> Option<bool> {
        let ratio = self.ratio();
        match self.goal? {
            Goal::AtMost(most) => Some(self.ours <= most),
            Goal::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Goal::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
        }
    }

    fn goal_text(&self) -> String {
        let text = match self.goal {
            None => return self.note.clone(),
            Some(Goal::AtMost(most)) => format!("≤ {most}"),
            Some(Goal::RatioAtLeast(least)) => format!("ratio ≥ {least:.2}"),
            Some(Goal::RatioAtMost(most)) => format!("ratio ≤ {most:.2}"),
        };
        let mark = if self.is_met() == Some(true) {
            "met"
        } else {
            "short"
        };
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!("; {}", self.note)
        };
        format!("{text}: {mark}{note}")
    }
}

#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
    /// Further tables for the file, by name.
    tables: Vec<(&'static str, Value)>,
}

impl Report {
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub fn table(&mut self, name: &'static str, table: Value) {
        self.tables.push((name, table));
    }

    /// For a terminal.
    ///
    /// # Errors
    /// Never: the table is text in memory.
    pub fn show(&self) -> Result<String> {
        let mut table = tabwriter::TabWriter::new(Vec::new()).padding(2);
        // A table that was measured in several goes is shown in one piece.
        let first = |part: &str| self.figures.iter().position(|figure| figure.part == part);
        let mut figures: Vec<&Figure> = self.figures.iter().collect();
        figures.sort_by_key(|figure| first(figure.part));
        let mut part = "";
        for figure in figures {
            if part != figure.part {
                part = figure.part;
                writeln!(
                    table,
                    "\n{}\nFIGURE\tOURS\tPEER\tPEER'S\tRATIO\tGOAL",
                    part.to_uppercase()
                )?;
            }
            let (peer, value, ratio) = match (&figure.peer, figure.ratio()) {
                (Some(peer), Some(ratio)) => (
                    peer.name.as_str(),
                    number(peer.value),
                    format!("{ratio:.2}"),
                ),
                _ => ("", String::new(), String::new()),
            };
            let ours = if figure.ours.is_nan() {
                String::new()
            } else {
                number(figure.ours)
            };
            let cells = [
                &figure.name,
                &ours,
                peer,
                &value,
                &ratio,
                &figure.goal_text(),
            ];
            writeln!(table, "{}", cells.join("\t"))?;
        }
        Ok(String::from_utf8(table.into_inner()?)?)
    }

    /// The figures, and the further tables by their names.
    pub fn json(&self) -> Map<String, Value> {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "part": figure.part,
                "figure": figure.name,
                "ours": finite(figure.ours),
                "peer": figure.peer.as_ref().map(|peer| &peer.name),
                "peers": figure.peer.as_ref().map(|peer| peer.value),
                "ratio": figure.ratio(),
                "goal": figure.goal.map(|_| figure.goal_text()),
                "note": figure.note,
                "detail": figure.detail,
            })
        });
        let figures = ("figures".to_owned(), Value::Array(figures.collect()));
        let tables = self.tables.iter();
        let tables = tables.map(|(name, table)| ((*name).to_owned(), table.clone()));
        tables.chain([figures]).collect()
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// With about four digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_or_short() {
        let figure = |ours| Figure::new("part", "figure", ours).against("peer", 10.0);
        let met = |figure: Figure| figure.is_met();
        assert_eq!(met(figure(9.0).goal(Goal::RatioAtLeast(0.9))), Some(true));
        assert_eq!(met(figure(8.9).goal(Goal::RatioAtLeast(0.9))), Some(false));
        assert_eq!(met(figure(8.9).goal(Goal::RatioAtMost(0.9))), Some(true));
        assert_eq!(met(figure(45.1).goal(Goal::AtMost(45.0))), Some(false));
        assert_eq!(met(figure(45.1)), None);
    }

    #[test]
    fn table_names_figure_ours_peer_ratio_and_goal() {
        let mut report = Report::default();
        let figure = Figure::new("overlay", "TCP stream, Gbit/s", 9.5).against("raw veth", 10.0);
        report.add(figure.goal(Goal::RatioAtLeast(0.9)));
        let table = report.show().unwrap();
        let row = table.lines().last().unwrap();
        let cells: Vec<_> = row
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        let expected = [
            "TCP stream, Gbit/s",
            "9.50",
            "raw veth",
            "10.00",
            "0.95",
            "ratio ≥ 0.90: met",
        ];
        assert_eq!(cells, expected);
    }
}
