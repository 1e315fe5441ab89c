//! The few ways in which the orchestrator changes the state.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use model::{
    TaskId, TaskState, Version,
    object::{Meta, Service, Task, TaskStatus},
    spec::{PortSpec, PublishMode},
};
use store::{Key, State, Transaction};
use tokio::time::Instant;

use super::slot::SlotKey;

/// A transaction with a bound on its size and the time of the next thing to do.
pub(super) struct Editor<'a> {
    tx: &'a mut Transaction,
    writes: usize,
    writes_max: usize,
    now: Instant,
    waiting: &'a mut Waiting,
    wake: Option<Instant>,
}

/// Tasks that wait to be started, with when they were first seen to. Delays are measured from there: a
/// date that another leader wrote tells its own clock, so the next one measures anew.
#[derive(Debug, Default)]
pub(super) struct Waiting(HashMap<TaskId, Instant>);

impl Waiting {
    /// Forgets those that wait no more.
    pub(super) fn retain(&mut self, state: &State) {
        let waits = |task: &Task| task.desired == TaskState::Ready;
        self.0
            .retain(|id, _| state.task(*id).is_some_and(|task| waits(task)));
    }
}

impl<'a> Editor<'a> {
    pub(super) fn new(
        tx: &'a mut Transaction,
        writes_max: usize,
        now: Instant,
        waiting: &'a mut Waiting,
    ) -> Self {
        Self {
            tx,
            writes: 0,
            writes_max,
            now,
            waiting,
            wake: None,
        }
    }

    pub(super) fn state(&self) -> &State {
        self.tx.state()
    }

    /// For delays.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// By this leader's clock, for a person to read.
    pub(super) fn date(&self) -> Timestamp {
        self.tx.now()
    }

    /// That of what is written here.
    pub(super) fn version(&self) -> Version {
        self.tx.version()
    }

    /// When the task was first seen to wait.
    pub(super) fn waits_since(&mut self, task: &Task) -> Instant {
        *self.waiting.0.entry(task.id).or_insert(self.now)
    }

    pub(super) fn tx(&mut self) -> &mut Transaction {
        self.tx
    }

    /// Writes and deletions so far.
    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    /// Whether the rest is for the next transaction.
    pub(super) fn is_exhausted(&self) -> bool {
        self.writes >= self.writes_max
    }

    /// Asks for a step at `at`.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub(super) fn take_wake(&mut self) -> Option<Instant> {
        self.wake.take()
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// The service as it is now.
    pub(super) fn service(&self, service: &Service) -> Arc<Service> {
        let found = self.state().service(service.id);
        Arc::clone(found.expect("services are only removed by users"))
    }

    pub(super) fn put_task(&mut self, task: Task) {
        self.writes += 1;
        self.tx.put(task).expect("read in this transaction");
    }

    pub(super) fn put_service(&mut self, service: Service) {
        self.writes += 1;
        self.tx.put(service).expect("read in this transaction");
    }

    pub(super) fn delete(&mut self, task: TaskId) {
        self.writes += 1;
        self.tx.remove(Key::Task(task));
    }

    /// Writes a desired state if it is a step forward. A task that no agent knows of is deleted
    /// when it is no longer wanted: nobody would report its end.
    pub(super) fn want(&mut self, task: &Task, desired: TaskState) {
        if desired <= task.desired {
            return;
        }
        if desired > TaskState::Running && task.status.state < TaskState::Assigned {
            return self.delete(task.id);
        }
        self.put_task(Task {
            desired,
            ..task.clone()
        });
    }

    /// A new task of the service's newest spec.
    pub(super) fn create(&mut self, service: &Service, key: SlotKey, desired: TaskState) {
        let now = self.date();
        let service = self.service(service);
        let (slot, node) = match key {
            SlotKey::Number(number) => (Some(number), None),
            SlotKey::Node(node) => (None, Some(node)),
        };
        self.put_task(Task {
            id: TaskId::generate(),
            meta: Meta::new(now),
            service: service.id,
            service_name: service.spec.name.clone(),
            slot,
            node,
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            host_ports: host_ports(&service),
            desired,
            status: TaskStatus {
                timestamp: now,
                state: TaskState::New,
                message: "created".to_owned(),
                err: None,
                container: None,
                ports: Vec::new(),
            },
            attachments: Vec::new(),
            endpoint: None,
        });
    }
}

/// Ports that its tasks publish on their nodes.
pub(super) fn host_ports(service: &Service) -> Vec<PortSpec> {
    let ports = service.endpoint.ports.iter();
    ports
        .filter(|port| port.mode == PublishMode::Host)
        .cloned()
        .collect()
}
