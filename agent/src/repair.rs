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
pub struct Repairs {
    found: Vec<Repair>,
    /// By a comparison that the kernel's word of a change hastened.
    is_hastened: bool,
}

impl Repairs {
    /// Of a comparison, hastened or not.
    pub fn of_comparison(is_hastened: bool) -> Self {
        Self {
            found: Vec::new(),
            is_hastened,
        }
    }

    pub fn note(&mut self, what: impl Into<String>, found: impl Into<String>, why: &'static str) {
        self.found.push(Repair {
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
        let said = self.found.iter();
        said.map(|repair| format!("{} was {}", repair.what, repair.found))
            .collect()
    }

    /// One line for each, and empties the list.
    pub fn log(&mut self, task: Option<TaskId>) {
        let task = task.map(tracing::field::display);
        let soon = if self.is_hastened { " at once" } else { "" };
        for Repair { what, found, why } in self.found.iter().take(LINES_MAX) {
            warn!(
                task.id = task,
                "{what} was {found}; changed back{soon}, as {why}"
            );
        }
        if self.found.len() > LINES_MAX {
            info!(
                task.id = task,
                repair.more = self.found.len() - LINES_MAX,
                "more was changed back"
            );
        }
        self.found.clear();
    }
}
