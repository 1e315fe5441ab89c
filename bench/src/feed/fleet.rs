//! Agents by the hundred in one process: each has joined, holds a session of its own by the client of
//! the real ones (`agent::Session`), keeps its view, acknowledges at once, and says of each task that
//! it runs as soon as it is to, or that it has ended. Nothing is in a kernel, and nothing runs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use agent::{Applied, Session, SessionEvent, StatusBook};
use anyhow::Result;
use lab::Lab;
use model::{
    NodeId, ServiceId, TaskId, TaskState,
    feed::{AgentMessage, NodeView, TaskAssignment, TaskStatusUpdate, Update, ViewObject},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::managers::door::{Door, Joined};

/// As in the agent.
const QUEUE_LEN: usize = 1024;

pub struct Fleet {
    runtime: Runtime,
    joined: Vec<Joined>,
    heard: Arc<Heard>,
    cancel: CancellationToken,
    _end: DropGuard,
}

/// What the agents saw and said.
#[derive(Default)]
struct Heard {
    /// When each one's session last began.
    welcomed: Mutex<HashMap<NodeId, Instant>>,
    /// Tasks that were last said to run.
    running: AtomicUsize,
    watch: Mutex<Watch>,
}

/// Who first heard of an endpoint of one service when.
#[derive(Default)]
struct Watch {
    service: Option<ServiceId>,
    first: HashMap<NodeId, Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// Joins so many agents through the lab's first node. None has a session yet.
    ///
    /// # Errors
    /// When the manager refuses one.
    pub fn join(lab: &Lab, door: &Door, agents: usize) -> Result<Self> {
        // Its threads are in the client's namespace, as the one that starts them.
        let (runtime, joined) = lab.client().within(|| {
            let mut builder = Builder::new_multi_thread();
            let runtime = builder.worker_threads(2).enable_all().build()?;
            let joined = runtime.block_on(door.join(agents))?;
            Ok((runtime, joined))
        })?;
        let cancel = CancellationToken::new();
        Ok(Self {
            runtime,
            joined,
            heard: Arc::default(),
            _end: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// Has all of them begin their sessions.
    pub fn begin(&mut self) {
        for joined in self.joined.drain(..) {
            let (heard, cancel) = (Arc::clone(&self.heard), self.cancel.clone());
            self.runtime.spawn(follow(joined, heard, cancel));
        }
    }

    /// When each session began that began since.
    pub fn welcomed_since(&self, when: Instant) -> Vec<Instant> {
        let welcomed = lock(&self.heard.welcomed);
        welcomed.values().copied().filter(|at| *at > when).collect()
    }

    /// Tasks that their agents say run.
    pub fn running(&self) -> usize {
        self.heard.running.load(Ordering::Relaxed)
    }

    /// From now on it is noted who hears of the service's endpoints.
    pub fn watch(&self, service: ServiceId) {
        *lock(&self.heard.watch) = Watch {
            service: Some(service),
            first: HashMap::new(),
        };
    }

    /// When each agent that heard of the watched service's endpoints first did.
    pub fn heard(&self) -> Vec<Instant> {
        lock(&self.heard.watch).first.values().copied().collect()
    }
}

impl Heard {
    fn hear(&self, node: NodeId, update: &Update) {
        let now = Instant::now();
        let mut watch = lock(&self.watch);
        let Some(service) = watch.service else { return };
        let is_of_it = |object: &ViewObject| matches!(object, ViewObject::Endpoint(endpoint) if endpoint.service == service);
        if update.put.iter().any(is_of_it) {
            watch.first.entry(node).or_insert(now);
        }
    }
}

/// One agent, until cancelled.
async fn follow(joined: Joined, heard: Arc<Heard>, cancel: CancellationToken) {
    let (events, mut inbox) = mpsc::channel(QUEUE_LEN);
    let (outbox, said) = mpsc::channel(QUEUE_LEN);
    let applied = watch::Sender::new(Applied::default());
    let mut agent = Agent {
        node: joined.credentials.node,
        heard,
        applied,
        outbox,
        statuses: StatusBook::default(),
        said: HashMap::new(),
    };
    let session = Session {
        credentials: joined.credentials,
        tls: joined.tls,
        description: joined.description,
        applied: agent.applied.subscribe(),
        events,
        outbox: said,
        cancel,
    };
    let acting = async {
        while let Some(event) = inbox.recv().await {
            agent.act(event).await;
        }
    };
    tokio::join!(session.run(), acting);
}

struct Agent {
    node: NodeId,
    heard: Arc<Heard>,
    applied: watch::Sender<Applied>,
    outbox: mpsc::Sender<AgentMessage>,
    statuses: StatusBook,
    /// What was last said of each task.
    said: HashMap<TaskId, TaskState>,
}

impl Agent {
    async fn act(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                lock(&self.heard.welcomed).insert(self.node, Instant::now());
                if let Some(message) = self.statuses.resend() {
                    self.say(message).await;
                }
            }
            SessionEvent::Update(update) => self.update(update).await,
            SessionEvent::StatusAck(seq) => self.statuses.acknowledge(seq),
            SessionEvent::Pins(..) | SessionEvent::Settled(_) => {}
        }
    }

    async fn update(&mut self, update: Update) {
        self.heard.hear(self.node, &update);
        let before = self.applied.borrow().clone();
        let mut view = NodeView::clone(&before.view);
        let named: Vec<_> = update.put.iter().filter_map(task_of).collect();
        view.apply(update);
        let version = view.version;
        let view = Arc::new(view);
        self.applied.send_replace(before.next(Arc::clone(&view)));
        self.say(AgentMessage::Ack { version }).await;
        for task in named {
            if let Some(status) = self.proceed(&view.tasks[&task]) {
                let message = self.statuses.record(status);
                self.say(message).await;
            }
        }
        self.said.retain(|task, _| view.tasks.contains_key(task));
    }

    /// Takes the task to where it is to be; a status if it was not there.
    fn proceed(&mut self, task: &TaskAssignment) -> Option<TaskStatusUpdate> {
        let state = match task.desired {
            desired if desired.asks_to_stop() => TaskState::Shutdown,
            TaskState::Ready => TaskState::Ready,
            _ => TaskState::Running,
        };
        let before = self.said.insert(task.id, state);
        if before.is_some_and(|before| before >= state) {
            return None;
        }
        let running = &self.heard.running;
        if state == TaskState::Running {
            running.fetch_add(1, Ordering::Relaxed);
        }
        if before == Some(TaskState::Running) {
            running.fetch_sub(1, Ordering::Relaxed);
        }
        Some(TaskStatusUpdate {
            task: task.id,
            timestamp: jiff::Timestamp::now(),
            state,
            message: "simulated".to_owned(),
            err: None,
            container: None,
            ports: Vec::new(),
        })
    }

    async fn say(&self, message: AgentMessage) {
        // Fails when the session has ended for good, and with it the agent.
        let _ = self.outbox.send(message).await;
    }
}

fn task_of(object: &ViewObject) -> Option<TaskId> {
    match object {
        ViewObject::Task(task) => Some(task.id),
        _ => None,
    }
}
