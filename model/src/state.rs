//! The life of a task.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a task is in its life. It only moves forward; the numbers are SwarmKit's, so that a
/// later state always compares greater.
///
/// Managers write up to [`Assigned`](Self::Assigned) (and [`Orphaned`](Self::Orphaned)), the agent
/// of the task's node writes the rest. As a *desired* state only `Ready`, `Running`, `Shutdown`,
/// `Complete` and `Remove` occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created by an orchestrator.
    New = 0,
    /// Has its addresses and ports; waits for a node.
    Pending = 64,
    /// The scheduler chose a node.
    Assigned = 192,
    /// The node's agent knows of it.
    Accepted = 256,
    /// The agent makes ready what it needs.
    Preparing = 320,
    /// Could start at once.
    Ready = 384,
    Starting = 448,
    Running = 512,
    /// Ended by itself with exit status 0.
    Complete = 576,
    /// Ended because the desired state said so.
    Shutdown = 640,
    /// Ended by itself with a failure.
    Failed = 704,
    /// Could not be started on its node.
    Rejected = 768,
    /// Waits for its removal.
    Remove = 800,
    /// Its node is gone for good; what became of it is unknown.
    Orphaned = 832,
}

impl TaskState {
    /// Whether the task can never run again.
    pub const fn is_terminal(self) -> bool {
        self as u16 > Self::Running as u16
    }

    /// As a desired state: whether the task is to end. [`Complete`](Self::Complete) lets it run to
    /// its own end.
    pub const fn asks_to_stop(self) -> bool {
        self as u16 >= Self::Shutdown as u16
    }

    /// The name as the Docker API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
