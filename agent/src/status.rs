//! Task statuses on their way to a manager: the newest of each task is kept until acknowledged.

use std::collections::BTreeMap;

use model::{
    TaskId,
    feed::{AgentMessage, TaskStatusUpdate},
};

#[derive(Debug, Default)]
pub struct StatusBook {
    seq: u64,
    unacknowledged: BTreeMap<TaskId, (u64, TaskStatusUpdate)>,
}

impl StatusBook {
    /// Notes a status and gives the message that reports it.
    pub fn record(&mut self, status: TaskStatusUpdate) -> AgentMessage {
        self.seq += 1;
        self.unacknowledged
            .insert(status.task, (self.seq, status.clone()));
        AgentMessage::Status {
            seq: self.seq,
            statuses: vec![status],
        }
    }

    /// Every status up to `seq` is committed.
    pub fn acknowledge(&mut self, seq: u64) {
        self.unacknowledged.retain(|_, (sent, _)| *sent > seq);
    }

    /// All that the managers may not have, for a new session.
    pub fn resend(&mut self) -> Option<AgentMessage> {
        if self.unacknowledged.is_empty() {
            return None;
        }
        self.seq += 1;
        let statuses = self.unacknowledged.values_mut().map(|(sent, status)| {
            *sent = self.seq;
            status.clone()
        });
        let statuses = statuses.collect();
        Some(AgentMessage::Status {
            seq: self.seq,
            statuses,
        })
    }
}

#[cfg(test)]
mod tests {
    use model::TaskState;

    use super::*;

    fn status(task: u128, state: TaskState) -> TaskStatusUpdate {
        TaskStatusUpdate {
            task: TaskId::from_raw(task),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            state,
            message: String::new(),
            err: None,
            container: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn only_the_newest_unacknowledged_status_of_a_task_is_said_again() {
        let mut book = StatusBook::default();
        book.record(status(1, TaskState::Starting));
        book.record(status(2, TaskState::Running));
        book.acknowledge(2);
        book.record(status(1, TaskState::Running));
        let Some(AgentMessage::Status { seq, statuses }) = book.resend() else {
            panic!("none")
        };
        assert_eq!(statuses, [status(1, TaskState::Running)]);
        book.acknowledge(seq);
        assert_eq!(book.resend(), None);
    }

    #[test]
    fn late_acknowledgement_does_not_cover_a_later_status() {
        let mut book = StatusBook::default();
        book.record(status(1, TaskState::Starting));
        book.record(status(1, TaskState::Running));
        book.acknowledge(1);
        assert!(book.resend().is_some());
    }
}
