//! What was not as it should be, and is again: every verb that ensures something notes it here, so
//! that a repair is one line of the log and a first making is none.

use datapath::Deviation;
use model::TaskId;
use tracing::{info, warn};

/// More of them at once are one event, and the rest is counted.
const LINES_MAX: usize = 16;

/// One thing that was put right.
#[derive(Debug)]
struct Repair {
    /// Such as `address 10.0.1.3/24 on eth0`.
    what: String,
    /// Such as `missing`.
    found: String,
    /// Who needs it as it is now.
    why: &'static str,
}

#[derive(Debug, Default)]
pub struct Repairs(Vec<Repair>);

impl Repairs {
    pub fn note(&mut self, what: impl Into<String>, found: impl Into<String>, why: &'static str) {
        self.0.push(Repair {
            what: what.into(),
            found: found.into(),
            why,
        });
    }

    /// What the data plane put right.
    pub fn extend(&mut self, found: impl IntoIterator<Item = Deviation>, why: &'static str) {
        for deviation in found {
            self.note(deviation.what, deviation.found, why);
        }
    }

    /// What a log would say first of each.
    #[cfg(test)]
    pub fn said(&self) -> Vec<String> {
        let said = self.0.iter();
        said.map(|repair| format!("{} was {}", repair.what, repair.found))
            .collect()
    }

    /// One line for each, and empties the list.
    pub fn log(&mut self, task: Option<TaskId>) {
        let task = task.map(tracing::field::display);
        for Repair { what, found, why } in self.0.iter().take(LINES_MAX) {
            warn!(task.id = task, "{what} was {found}; changed back, as {why}");
        }
        if self.0.len() > LINES_MAX {
            info!(
                task.id = task,
                repair.more = self.0.len() - LINES_MAX,
                "more was changed back"
            );
        }
        self.0.clear();
    }
}
