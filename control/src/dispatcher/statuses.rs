//! What agents report of their tasks, committed in batches: all reports that wait go into one
//! transaction.

use std::convert::Infallible;

use model::{
    NodeId, TaskState,
    feed::TaskStatusUpdate,
    object::{Task, TaskStatus},
};
use store::{Store, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Reports that wait for their transaction; sessions wait when it is full.
const REPORTS_MAX: usize = 256;

struct Report {
    node: NodeId,
    statuses: Vec<TaskStatusUpdate>,
    committed: oneshot::Sender<()>,
}

/// Where sessions hand in what their agents report.
#[derive(Clone)]
pub(crate) struct StatusSink(mpsc::Sender<Report>);

/// The other end, for [`run`].
pub(crate) struct StatusSource(mpsc::Receiver<Report>);

/// The report was not committed; the agent says it again in its next session.
#[derive(Debug, thiserror::Error)]
#[error("the statuses could not be committed; report them again")]
pub(crate) struct NotCommitted;

pub(crate) fn sink() -> (StatusSink, StatusSource) {
    let (sender, receiver) = mpsc::channel(REPORTS_MAX);
    (StatusSink(sender), StatusSource(receiver))
}

impl StatusSink {
    /// Returns once the statuses are committed, or need not be.
    pub(crate) async fn commit(
        &self,
        node: NodeId,
        statuses: Vec<TaskStatusUpdate>,
    ) -> Result<(), NotCommitted> {
        let (committed, done) = oneshot::channel();
        let report = Report {
            node,
            statuses,
            committed,
        };
        self.0.send(report).await.map_err(|_| NotCommitted)?;
        done.await.map_err(|_| NotCommitted)
    }
}

/// Runs until cancelled.
pub(crate) async fn run(store: Store, mut source: StatusSource, cancel: CancellationToken) {
    let mut reports = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            count = source.0.recv_many(&mut reports, REPORTS_MAX) => if count == 0 {
                return;
            },
        }
        let outcome = store
            .write(|tx| {
                for report in &reports {
                    apply(tx, report.node, &report.statuses);
                }
                Ok::<_, Infallible>(())
            })
            .await;
        match outcome {
            Ok(_) => reports.drain(..).for_each(|report| {
                // A session that ended meanwhile does not listen; its agent asks again.
                let _ = report.committed.send(());
            }),
            Err(error) => {
                warn!(%error, "task statuses not committed");
                reports.clear();
            }
        }
    }
}

pub(crate) fn apply(tx: &mut Transaction, node: NodeId, statuses: &[TaskStatusUpdate]) {
    for update in statuses {
        match accept(tx, node, update) {
            Ok(task) => tx.put(task).expect("it was read in this transaction"),
            Err(reason) => debug!(node.id = %node, task.id = %update.task,
                task.state = %update.state, reason, "task status ignored"),
        }
    }
}

/// The task with its new status, or why it is not taken.
fn accept(tx: &Transaction, node: NodeId, update: &TaskStatusUpdate) -> Result<Task, &'static str> {
    if !is_agents(update.state) {
        return Err("only managers set this state");
    }
    let task = tx
        .state()
        .task(update.task)
        .ok_or("there is no such task")?;
    if task.node != Some(node) {
        return Err("it is another node's task");
    }
    let status = TaskStatus {
        // A clock that is ahead would have a failure count for longer, and nothing can be added to
        // the last of all dates.
        timestamp: update.timestamp.min(tx.now()),
        state: update.state,
        message: update.message.clone(),
        err: update.err.clone(),
        container: update.container.clone(),
        ports: update.ports.clone(),
    };
    if !is_news(&task.status, &status) {
        return Err("it is not news");
    }
    Ok(Task {
        status,
        ..Task::clone(task)
    })
}

/// States that the agent of a task's node decides on.
fn is_agents(state: TaskState) -> bool {
    (TaskState::Accepted..=TaskState::Rejected).contains(&state)
}

/// States only move forward. Within one that has not ended, a later report may say more.
fn is_news(stored: &TaskStatus, reported: &TaskStatus) -> bool {
    if reported.state != stored.state {
        return reported.state > stored.state && !stored.state.is_terminal();
    }
    !stored.state.is_terminal() && reported.timestamp > stored.timestamp
}
