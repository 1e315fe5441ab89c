//! Agents of the simulated cluster. Each runs what its view says, and the managers know of it what it
//! reports: between them are the feed's own code and links that go and come back. Managers follow each
//! other, agents and nodes restart. Beside the cluster's invariants these hold at any time:
//!
//! * an agent's version only grows;
//! * no task is ever run by two nodes;
//! * no two tasks that run anywhere have an address of one network, nor one endpoint.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::SignedDuration;
use model::{
    EndpointId, NodeId, TaskId, TaskState, Version,
    feed::{NodeView, TaskAssignment, TaskStatusUpdate, Update},
    object::NodeState,
};
use rand::{RngExt, rngs::StdRng};
use store::State;
use tokio::time::Instant;

use crate::{
    dispatcher::{Feed, Flight, Round, Work, apply_statuses},
    drain::Drains,
    projection::{Projection, Touch, networks_of_node, touched},
    sim::Sim,
};

/// Of silence, until a node is DOWN.
const GRACE: Duration = Duration::from_secs(15);
/// Of a leader's clock, either way.
const SKEW_SECS: i64 = 60;
/// Chance that something that can happen in a round does: a message sent or applied, a task's step.
const PACE: f64 = 0.6;

#[derive(Default)]
pub struct Agents {
    agents: BTreeMap<NodeId, Agent>,
    office: Office,
    /// Who ran each task.
    ran: BTreeMap<TaskId, NodeId>,
}

/// What a leader keeps beside the store.
#[derive(Default)]
struct Office {
    round: Round,
    drains: Drains,
    reached: HashMap<NodeId, Version>,
}

#[derive(Default)]
struct Agent {
    view: NodeView,
    /// What became of the tasks that it was told of, by itself.
    tasks: BTreeMap<TaskId, TaskState>,
    session: Option<Session>,
    silent_since: Option<Instant>,
}

struct Session {
    feed: Feed,
    flight: Flight,
    pending: Option<Work>,
    /// On their way to the agent.
    sent: VecDeque<Update>,
}

impl Agents {
    /// One round: managers hand out what changed, agents apply, act and report.
    pub fn step(&mut self, sim: &mut Sim, now: Instant) {
        for (node, agent) in &mut self.agents {
            let is_over = |since: &mut Instant| *since + GRACE <= now;
            if agent.silent_since.take_if(is_over).is_some() {
                sim.set_down(*node, true);
            }
        }
        self.follow(sim, now);
        for (node, agent) in &mut self.agents {
            agent.hear(*node, &mut self.office, &mut sim.rng);
            agent.act(&mut sim.rng);
            agent.report(*node, sim);
        }
        self.release(now);
        self.check();
    }

    /// As the rounds of the dispatcher: from the last state to the newest.
    fn follow(&mut self, sim: &mut Sim, now: Instant) {
        let changes = std::mem::take(&mut sim.world.changes);
        let state = Arc::clone(&sim.world.state);
        let mut touches = touched(&self.office.round.state, &state, &changes);
        for touch in &touches {
            if let Touch::Task { task, .. } = touch {
                let stored = state.task(*task).map(|task| &**task);
                self.office.drains.observe(*task, stored, now);
            }
        }
        self.office.round.state = state;
        touches.extend(self.office.release(now));
        self.publish(touches);
    }

    fn release(&mut self, now: Instant) {
        let touches = self.office.release(now);
        self.publish(touches);
    }

    fn publish(&mut self, touches: BTreeSet<Touch>) {
        self.office.round.held = Arc::new(self.office.drains.held());
        for session in self
            .agents
            .values_mut()
            .filter_map(|agent| agent.session.as_mut())
        {
            match session.pending.get_or_insert_with(Work::none) {
                Work::All => {}
                Work::Touched(pending) => pending.extend(&touches),
            }
        }
    }

    /// The node hears of nobody, nor is it heard of.
    pub fn cut(&mut self, node: NodeId, now: Instant) {
        if let Some(agent) = self.agents.get_mut(&node)
            && agent.session.take().is_some()
        {
            agent.silent_since = Some(now);
        }
    }

    /// Nodes that have joined begin their first sessions; those that are gone are of no concern.
    pub fn join(&mut self, sim: &mut Sim) {
        let nodes = sim.nodes();
        self.agents.retain(|node, _| nodes.contains(node));
        for node in nodes {
            if !self.agents.contains_key(&node) {
                self.connect(sim, node);
            }
        }
    }

    /// A session begins.
    pub fn connect(&mut self, sim: &mut Sim, node: NodeId) {
        let agent = self.agents.entry(node).or_default();
        let mut feed = Feed::new(node, agent.view.digests());
        for task in feed.find_released(&self.office.round) {
            self.office.drains.released_before(*task);
        }
        agent.session = Some(Session {
            feed,
            flight: Flight::default(),
            pending: Some(Work::All),
            sent: VecDeque::new(),
        });
        agent.silent_since = None;
        sim.set_down(node, false);
    }

    /// A session for each node that has none. The others go on with theirs.
    pub fn connect_all(&mut self, sim: &mut Sim) {
        let is_cut = |agent: &Agent| agent.session.is_none();
        let cut = self.agents.iter().filter(|(_, agent)| is_cut(agent));
        let cut: Vec<_> = cut.map(|(node, _)| *node).collect();
        for node in cut {
            self.connect(sim, node);
        }
    }

    /// Nothing that runs on the node outlives this.
    pub fn reboot(&mut self, sim: &mut Sim, node: NodeId) {
        if let Some(agent) = self.agents.get_mut(&node) {
            let running = agent
                .tasks
                .values_mut()
                .filter(|state| !state.is_terminal());
            running.for_each(|state| *state = TaskState::Failed);
        }
        self.connect(sim, node);
    }

    /// Another manager leads: it has the store, a clock of its own, and hears of the agents what they
    /// say.
    pub fn change_leader(&mut self, sim: &mut Sim, now: Instant) {
        sim.restart_manager();
        sim.world.skew = SignedDuration::from_secs(sim.rng.random_range(-SKEW_SECS..=SKEW_SECS));
        let state = Arc::clone(&sim.world.state);
        sim.world.changes.clear();
        self.office = Office::default();
        for task in state.tasks() {
            self.office.drains.observe(task.id, Some(task), now);
        }
        self.office.round = Round {
            state,
            held: Arc::new(self.office.drains.held()),
        };
        let connected: Vec<_> = self
            .agents
            .iter_mut()
            .filter_map(|(node, agent)| agent.session.take().map(|_| *node))
            .collect();
        for node in connected {
            self.connect(sim, node);
        }
    }

    fn check(&mut self) {
        let mut addresses = BTreeSet::new();
        let mut endpoints = BTreeSet::<EndpointId>::new();
        for (node, agent) in &self.agents {
            for (task, assignment) in agent.running() {
                let first = *self.ran.entry(task).or_insert(*node);
                assert_eq!(first, *node, "task {task} runs on two nodes");
                assert!(
                    endpoints.insert(assignment.endpoint),
                    "{assignment:?} twice"
                );
                for attachment in &assignment.attachments {
                    let place = (attachment.network, attachment.addr);
                    assert!(addresses.insert(place), "{attachment:?} twice");
                }
            }
        }
    }

    /// Whether each agent has what the newest state is to its node.
    pub fn have_converged(&self, state: &State) -> bool {
        let nothing_held = BTreeSet::new();
        self.agents.iter().all(|(node, agent)| {
            let networks = networks_of_node(state, *node);
            let projection = Projection::new(state, *node, networks, &nothing_held);
            let mut wanted = NodeView {
                version: agent.view.version,
                ..NodeView::default()
            };
            projection.objects().for_each(|object| wanted.put(object));
            wanted == agent.view
        })
    }
}

impl Office {
    /// Stops that every live node knows of, or that are overdue.
    fn release(&mut self, now: Instant) -> BTreeSet<Touch> {
        let state = &self.round.state;
        let live = state
            .nodes()
            .filter(|node| node.status.state != NodeState::Down);
        let reached = live.map(|node| self.reached.get(&node.id).copied().unwrap_or_default());
        let by_all = reached.min().unwrap_or(Version(u64::MAX));
        let released = self.drains.release(by_all, now);
        let touch = |task| Touch::Task {
            task,
            endpoint: state.task(task).and_then(|task| task.endpoint),
        };
        released.into_iter().map(|stop| touch(stop.task)).collect()
    }
}

impl Agent {
    fn hear(&mut self, node: NodeId, office: &mut Office, random: &mut StdRng) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.flight.has_room()
            && random.random_bool(PACE)
            && let Some(work) = session.pending.take()
        {
            let update = session.feed.update(&office.round, &work);
            let is_news = !update.put.is_empty() || !update.removed.is_empty();
            session.flight.evaluated(update.version, is_news);
            session.sent.extend(Some(update).filter(|_| is_news));
        }
        if random.random_bool(PACE)
            && let Some(update) = session.sent.pop_front()
        {
            let version = update.version;
            assert!(
                version >= self.view.version,
                "{node} went back to {version}"
            );
            self.view.apply(update);
            session.flight.ack(version);
        }
        let reached = office.reached.entry(node).or_default();
        *reached = session.flight.reached().max(*reached);
    }

    /// Its tasks take a step, whether anybody hears of it or not.
    fn act(&mut self, random: &mut StdRng) {
        let view = &self.view.tasks;
        self.tasks.retain(|task, _| view.contains_key(task));
        for (id, assignment) in view {
            let state = self.tasks.entry(*id).or_insert(assignment.state);
            if let Some(next) = next_state(*state, assignment)
                && random.random_bool(PACE)
            {
                *state = next;
            }
        }
    }

    fn report(&self, node: NodeId, sim: &mut Sim) {
        if self.session.is_none() {
            return;
        }
        let status = |(task, state): (&TaskId, &TaskState)| TaskStatusUpdate {
            task: *task,
            timestamp: sim.world.now,
            state: *state,
            message: String::new(),
            err: None,
            container: None,
            ports: Vec::new(),
        };
        let known = &sim.world.state;
        let is_news = |task: &TaskId, state: TaskState| {
            known
                .task(*task)
                .is_some_and(|task| task.status.state != state)
        };
        let news = self
            .tasks
            .iter()
            .filter(|(task, state)| is_news(task, **state));
        let statuses: Vec<_> = news.map(status).collect();
        sim.world.write(|tx| apply_statuses(tx, node, &statuses));
    }

    fn running(&self) -> impl Iterator<Item = (TaskId, &TaskAssignment)> {
        let is_running = |state: TaskState| state >= TaskState::Preparing && !state.is_terminal();
        let running = self
            .tasks
            .iter()
            .filter(move |(_, state)| is_running(**state));
        running.filter_map(|(task, _)| Some((*task, self.view.tasks.get(task)?)))
    }
}

/// What a task comes to next by what its node was told.
fn next_state(state: TaskState, assignment: &TaskAssignment) -> Option<TaskState> {
    if state.is_terminal() {
        return None;
    }
    if assignment.desired.asks_to_stop() {
        return Some(TaskState::Shutdown);
    }
    match state {
        TaskState::Assigned => Some(TaskState::Accepted),
        TaskState::Accepted => Some(TaskState::Preparing),
        TaskState::Preparing => Some(TaskState::Ready),
        TaskState::Ready if assignment.desired == TaskState::Ready => None,
        TaskState::Ready => Some(TaskState::Starting),
        TaskState::Starting => Some(TaskState::Running),
        _ => None,
    }
}
