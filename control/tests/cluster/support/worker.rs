use std::collections::BTreeMap;

use model::{TaskId, TaskState, feed::NodeView};
use tokio::task::JoinHandle;

use super::Agent;

/// An agent whose tasks start and stop as they are told.
pub struct Worker {
    heard: tokio::sync::watch::Receiver<super::Heard>,
    work: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Worker {
    pub fn new(agent: Agent) -> Self {
        Self {
            heard: agent.watch(),
            work: tokio::spawn(work(agent)),
        }
    }

    pub fn view(&self) -> NodeView {
        self.heard.borrow().view.clone()
    }

    pub async fn until(&self, what: &str, is_so: impl Fn(&NodeView) -> bool) {
        let mut heard = self.heard.clone();
        let so = heard.wait_for(|heard| is_so(&heard.view));
        super::in_time(what, so).await.expect("the session goes on");
    }
}

async fn work(mut agent: Agent) {
    let mut heard = agent.watch();
    let mut said = BTreeMap::<TaskId, TaskState>::new();
    loop {
        for task in heard.borrow_and_update().view.tasks.values() {
            let is_over = said.get(&task.id).unwrap_or(&task.state).is_terminal();
            let state = match task.desired {
                _ if is_over => continue,
                TaskState::Shutdown => TaskState::Shutdown,
                TaskState::Running => TaskState::Running,
                _ => TaskState::Ready,
            };
            said.insert(task.id, state);
        }
        for (task, state) in &said {
            let is_known = heard
                .borrow()
                .view
                .tasks
                .get(task)
                .is_none_or(|t| t.state >= *state);
            if !is_known {
                agent.report(*task, *state).await;
            }
        }
        if heard.changed().await.is_err() {
            return;
        }
    }
}
