//! Taking up what an agent before this one left running.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use executor::{Adopted, AdoptedState, Exit, StopSignal};
use jiff::Timestamp;
use model::{TaskId, spec::STOP_GRACE_PERIOD_DEFAULT};
use tracing::{error, info, warn};

use super::Core;
use crate::{
    network::{self, NetworkRecord},
    runner::{Origin, Runner, RunnerContext},
};

impl Core {
    /// Takes up the tasks of the agent before: their interfaces must be known before the first
    /// sync, or it would take them out of the maps. What is wrong with one task is that task's
    /// failure, not the agent's.
    pub(super) async fn adopt(&mut self, records: Vec<NetworkRecord>) -> Result<()> {
        let mut records: BTreeMap<_, _> = records
            .into_iter()
            .map(|record| (record.task, record))
            .collect();
        for adopted in self.context.executor.adopt().await? {
            let task = adopted.task;
            let record = records.remove(&task);
            match self.origin(adopted, record.clone()).await {
                Some(origin) => drop(self.strays.insert(task, origin)),
                None => records.extend(record.map(|record| (task, record))),
            }
        }
        self.hold_ports();
        if let Err(err) = self.sync() {
            error!("cannot bring the data plane in step; trying again: {err:#}");
        }
        // Networks whose task never came to run.
        for record in records.into_values() {
            discard_network(&self.context, &record).await;
        }
        self.adopt_known();
        self.start_runners();
        Ok(())
    }

    /// How a runner finds the task; `None` when it is to begin again from nothing.
    async fn origin(&mut self, adopted: Adopted, record: Option<NetworkRecord>) -> Option<Origin> {
        let task = adopted.task;
        match (adopted.state, record) {
            (AdoptedState::Running { pid }, Some(record)) => {
                match network::adopt(&self.context.paths, &record).await {
                    Ok(Some(local)) => {
                        if let Err(err) = self.attach_links(&local) {
                            error!(task.id = %task, "its interfaces are not served: {err:#}");
                        }
                        self.local.tasks.insert(task, local);
                        self.networks.insert(task, record.clone());
                        self.hold_ports_again(&record);
                        Some(Origin::Adopted { record, pid })
                    }
                    Ok(None) => {
                        let exit = self.end(task, "its network was removed by hand").await;
                        Some(Origin::Ended {
                            exit,
                            record: Some(record),
                        })
                    }
                    Err(err) => {
                        let exit = self
                            .end(task, &format!("its network is lost: {err:#}"))
                            .await;
                        Some(Origin::Ended {
                            exit,
                            record: Some(record),
                        })
                    }
                }
            }
            (AdoptedState::Running { .. }, None) => {
                let exit = self.end(task, "nothing is known of its network").await;
                Some(Origin::Ended { exit, record: None })
            }
            (AdoptedState::Exited(exit), record) => Some(Origin::Ended { exit, record }),
            (AdoptedState::Prepared, _) => {
                if let Err(err) = self.context.executor.remove(task).await {
                    warn!(task.id = %task, "cannot undo its preparation: {err}");
                }
                None
            }
        }
    }

    /// The sockets that held the task's ports went with the agent before.
    fn hold_ports_again(&self, record: &NetworkRecord) {
        let mut ports = self.context.ports.lock().expect("no holder panics");
        if let Err(err) = ports.take(record.task, &record.host_ports) {
            warn!(task.id = %record.task, "the task keeps its port all the same: {err}");
        }
    }

    /// Ends a task that cannot go on.
    async fn end(&self, task: TaskId, why: &str) -> Exit {
        error!(task.id = %task, "the task cannot go on: {why}");
        if let Err(err) = self
            .context
            .executor
            .stop(task, StopSignal::KILL, Duration::ZERO)
            .await
        {
            warn!(task.id = %task, "cannot end it: {err}");
        }
        Exit {
            code: None,
            signal: None,
            error: Some(why.to_owned()),
            at: Timestamp::now(),
        }
    }

    /// Gives runners to the tasks found running that the view names.
    fn adopt_known(&mut self) {
        let known: Vec<_> = self
            .strays
            .keys()
            .copied()
            .filter(|task| self.view.tasks.contains_key(task))
            .collect();
        for task in known {
            let (assignment, origin) = (self.view.tasks[&task].clone(), self.strays.remove(&task));
            let origin = origin.expect("its key was just found");
            info!(task.id = %task, task.name = %assignment.name, "task adopted");
            let runner = Runner::spawn(assignment, origin, self.context.clone());
            self.runners.insert(task, runner);
        }
    }

    /// After a word from a manager: tasks found running that the cluster does not know of end.
    /// Before it they go on, however little the agent itself remembers of them.
    pub(super) fn settle_strays(&mut self) {
        self.adopt_known();
        for (task, origin) in std::mem::take(&mut self.strays) {
            warn!(task.id = %task, "the cluster knows no such task; stopping it");
            if let Some(local) = self.forget_network(task) {
                self.detach_links(&local);
            }
            tokio::spawn(discard(self.context.clone(), task, origin));
        }
    }
}

/// Ends a task found running and removes all of it.
pub(super) async fn discard(context: RunnerContext, task: TaskId, origin: Origin) {
    let executor = &context.executor;
    let record = match origin {
        Origin::Fresh => None,
        Origin::Adopted { record, .. } => {
            if let Err(err) = executor
                .stop(task, StopSignal::TERM, STOP_GRACE_PERIOD_DEFAULT)
                .await
            {
                warn!(task.id = %task, "cannot stop the unknown task: {err}");
            }
            Some(record)
        }
        Origin::Ended { record, .. } => record,
    };
    if let Err(err) = executor.remove(task).await {
        warn!(task.id = %task, "cannot remove the unknown task: {err}");
    }
    if let Some(record) = record {
        discard_network(&context, &record).await;
    }
}

async fn discard_network(context: &RunnerContext, record: &NetworkRecord) {
    match network::destroy(&context.paths, record).await {
        Ok(()) => context.give_back(record),
        // The address stays taken: an interface may still have it.
        Err(err) => warn!(task.id = %record.task, "cannot remove its network: {err:#}"),
    }
}
