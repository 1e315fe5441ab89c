//! A table that is looked at again and again, with the rates of its counters since the last look.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write, stdout},
    time::Instant,
};

use anyhow::Result;

use super::{Inspected, bytes};
use crate::output::{Row, table};

/// Home, and clear to the end (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J";

type Counters = HashMap<String, [u64; 2]>;

#[derive(Debug, Default)]
pub(super) struct Screen {
    last: Option<(Instant, Counters)>,
}

impl Screen {
    pub fn new() -> Self {
        Self::default()
    }

    /// A terminal is cleared; elsewhere an empty line parts one look from the next.
    pub fn show<R: Inspected>(&mut self, rows: &[R]) -> Result<()> {
        let mut out = stdout().lock();
        let text = self.render(rows, Instant::now());
        match out.is_terminal() {
            true => write!(out, "{CLEAR}{text}")?,
            false => writeln!(out, "{text}")?,
        }
        Ok(out.flush()?)
    }

    fn render<R: Inspected>(&mut self, rows: &[R], now: Instant) -> String {
        let counted = rows.iter().filter_map(|row| row.facts().counters);
        let counters: Counters = counted.collect();
        if counters.is_empty() {
            self.last = Some((now, counters));
            return table(R::HEADERS, rows.iter().map(Row::cells));
        }
        let headers = [R::HEADERS, &["PACKETS/S", "BYTES/S"]].concat();
        let cells = rows.iter().map(|row| {
            let mut cells = row.cells();
            cells.extend(self.rates(row, now));
            cells
        });
        let text = table(&headers, cells);
        self.last = Some((now, counters));
        text
    }

    /// What was not there at the last look has counted from zero since; at the first, nobody knows.
    fn rates(&self, row: &impl Inspected, now: Instant) -> [String; 2] {
        let unknown = || ["-".to_owned(), "-".to_owned()];
        let (Some((at, last)), Some((id, counters))) = (&self.last, row.facts().counters) else {
            return unknown();
        };
        let seconds = now.duration_since(*at).as_secs_f64();
        let before = last.get(&id).copied().unwrap_or_default();
        let rate = |nth: usize| {
            // A counter that got a new owner begins again.
            let grown = counters[nth].saturating_sub(before[nth]);
            grown as f64 / seconds
        };
        [format!("{:.0}", rate(0)), bytes(rate(1) as u64)]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::inspect::{DropRow, NodeRow};

    use super::*;

    fn drops(packets: u64) -> DropRow {
        DropRow {
            reason: "no-backend".into(),
            explanation: "The service.".into(),
            packets,
            bytes: 2048 * packets,
            programs: Vec::new(),
        }
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let (mut screen, begun) = (Screen::new(), Instant::now());
        let last = |text: &str| {
            let line = text.lines().nth(1).unwrap();
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            words[words.len() - 2..].to_vec()
        };
        let look = |screen: &mut Screen, packets, after| {
            last(&screen.render(&[drops(packets)], begun + Duration::from_secs(after)))
        };
        assert_eq!(look(&mut screen, 10, 0), ["-", "-"]);
        assert_eq!(look(&mut screen, 30, 2), ["10", "20KiB"]);
        assert_eq!(look(&mut screen, 30, 3), ["0", "0B"]);
        assert_eq!(
            look(&mut screen, 5, 4),
            ["0", "0B"],
            "counters that began again"
        );
    }

    #[test]
    fn tables_without_counters_have_no_rates() {
        let text = Screen::new().render::<NodeRow>(&[], Instant::now());
        assert!(!text.contains("PACKETS/S"), "{text}");
    }
}
