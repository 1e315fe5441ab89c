//! The pipeline with simulated agents and a simulated clock: a seed gives the history, except for
//! ties that are broken by ids, which are random.

use model::{
    NodeId, ServiceId, TaskState,
    object::{Node, NodeState, Service, Task},
    spec::{Availability, PublishMode, ServiceSpec},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{fixture::World, ops, orchestrator::Orchestrator, stage::Pipeline};

/// Steps until nothing is left to do at one instant; more would be a loop.
const STEPS_MAX: usize = 50;

/// A cluster whose agents do as told, or fail.
pub struct Sim {
    pub world: World,
    pipeline: Pipeline,
    pub rng: StdRng,
    /// Chance that a running task ends by itself in a round.
    pub failure: f64,
    /// Tasks whose arguments have this word cannot be prepared.
    pub broken: Option<String>,
    wake: Option<Duration>,
}

impl Sim {
    pub fn new(seed: u64, nodes: usize) -> Self {
        let mut world = World::new();
        world.add_nodes(nodes);
        Self {
            world,
            pipeline: Pipeline::default(),
            rng: StdRng::seed_from_u64(seed),
            failure: 0.0,
            broken: None,
            wake: None,
        }
    }

    pub fn create(&mut self, spec: ServiceSpec) -> ServiceId {
        let id = self.world.try_write(|tx| ops::service::create(tx, spec));
        id.expect("a good spec")
    }

    pub fn update(&mut self, id: ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let service = self.service(id);
        let mut spec = service.spec.clone();
        change(&mut spec);
        let version = service.meta.version;
        let updated = self
            .world
            .try_write(|tx| ops::service::update(tx, id, version, spec));
        updated.expect("a good spec");
    }

    pub fn scale(&mut self, id: ServiceId, replicas: u64) {
        self.update(id, |spec| {
            spec.mode = model::spec::ServiceMode::Replicated { replicas };
        });
    }

    pub fn service(&self, id: ServiceId) -> Arc<Service> {
        Arc::clone(self.world.state.service(id).expect("the service is there"))
    }

    pub fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        self.world.write(|tx| {
            let mut node = Node::clone(tx.state().node(id).expect("the node is there"));
            change(&mut node);
            tx.put(node).unwrap();
        });
    }

    pub fn set_down(&mut self, id: NodeId, down: bool) {
        self.change_node(id, |node| {
            node.status.state = if down {
                NodeState::Down
            } else {
                NodeState::Ready
            };
        });
    }

    pub fn set_availability(&mut self, id: NodeId, availability: Availability) {
        self.change_node(id, |node| node.spec.availability = availability);
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.world.state.nodes().map(|node| node.id).collect()
    }

    /// Tasks of a service by slot, then by age.
    pub fn tasks(&self, id: ServiceId) -> Vec<Arc<Task>> {
        let mut tasks: Vec<_> = self.world.state.tasks_of_service(id).cloned().collect();
        tasks.sort_by_key(|task| (task.slot, task.node, task.endpoint, task.meta.created_at));
        tasks
    }

    /// Those that are wanted.
    pub fn wanted(&self, id: ServiceId) -> Vec<Arc<Task>> {
        let mut tasks = self.tasks(id);
        tasks.retain(|task| task.desired <= TaskState::Running);
        tasks
    }

    /// Those that serve.
    pub fn running(&self, id: ServiceId) -> Vec<Arc<Task>> {
        let mut tasks = self.wanted(id);
        tasks.retain(|task| task.status.state == TaskState::Running);
        tasks
    }

    /// Forgets everything that is not in the store, as another leader would.
    pub fn restart_manager(&mut self) {
        self.pipeline = Pipeline::default();
    }

    /// Runs the pipeline until nothing is left to do now.
    pub fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let before = self.world.state.version();
            let pipeline = &mut self.pipeline;
            let now = self.world.clock();
            let wake = self.world.write(|tx| pipeline.step(tx, now));
            self.wake = wake.map(|at| at.saturating_duration_since(now));
            if self.world.state.version() == before {
                return;
            }
            self.check();
        }
        panic!("the pipeline finds something to do for ever");
    }

    /// What must hold after every commit.
    fn check(&self) {
        let state = &self.world.state;
        let mut addresses = HashSet::new();
        let mut endpoints = HashSet::new();
        for vip in state.services().flat_map(|service| &service.endpoint.vips) {
            assert!(addresses.insert((vip.network, vip.addr)), "{vip:?} twice");
        }
        for task in state.tasks() {
            for attachment in &task.attachments {
                let network = state.network(attachment.network).expect("no network went");
                assert!(network.subnet.contains(&attachment.addr));
                assert_ne!(attachment.addr, network.gateway);
                if !task.status.state.is_terminal() {
                    let fresh = addresses.insert((attachment.network, attachment.addr));
                    assert!(fresh, "{attachment:?} twice");
                }
            }
            if let Some(endpoint) = task.endpoint {
                assert!(endpoints.insert(endpoint), "endpoint {endpoint} twice");
            }
            let is_assigned = task.status.state >= TaskState::Assigned;
            assert!(!is_assigned || task.endpoint.is_some() && task.node.is_some());
        }
        let mut alive: HashMap<_, usize> = HashMap::new();
        for task in state.tasks() {
            let is_alive = task.desired <= TaskState::Running && !task.status.state.is_terminal();
            let node = task.node.filter(|_| task.slot.is_none());
            let in_slot = alive.entry((task.service, task.slot, node)).or_default();
            *in_slot += usize::from(is_alive);
            assert!(
                *in_slot <= 2,
                "slot {:?} has more than an old and a new task",
                task.slot
            );
        }
        self.check_networks();
        self.check_host_ports();
        let mut ports = HashSet::new();
        let all = state.services().flat_map(|service| &service.endpoint.ports);
        for port in all.filter(|port| port.mode == PublishMode::Ingress) {
            let published = port.published.expect("ingress ports are filled in");
            assert!(ports.insert((port.protocol, published)), "{port:?} twice");
        }
    }

    fn check_networks(&self) {
        let networks: Vec<_> = self.world.state.networks().collect();
        for (place, network) in networks.iter().enumerate() {
            for other in &networks[..place] {
                assert_ne!(network.vni, other.vni, "{network:?} and {other:?}");
                let (one, two) = (network.subnet, other.subnet);
                let overlap = one.contains(&two.network()) || two.contains(&one.network());
                assert!(!overlap, "{network:?} and {other:?}");
            }
        }
    }

    /// Of the tasks on a node that have not ended, one at most has a port of host mode.
    fn check_host_ports(&self) {
        let mut taken = HashSet::new();
        for task in self.world.state.tasks() {
            let state = task.status.state;
            if state < TaskState::Assigned || state.is_terminal() {
                continue;
            }
            for port in task
                .host_ports
                .iter()
                .filter(|port| port.published.is_some())
            {
                let place = (task.node, port.protocol, port.published);
                assert!(taken.insert(place), "{place:?} twice");
            }
        }
    }

    /// Lets time pass in small rounds; after each, agents have reported and managers acted.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// As [`Self::run_for`], until `done`; returns whether it was.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.world.now + time;
        self.settle();
        while self.world.now < end && !done(self) {
            self.world.now += Duration::from_millis(self.rng.random_range(20..200));
            self.world.now = self.world.now.min(end);
            self.agents_report();
            self.settle();
        }
        done(self)
    }

    /// Jumps to the next time that the pipeline asked for, with no agent in between.
    pub fn jump(&mut self) {
        self.settle();
        self.world.now += self.wake.expect("the pipeline waits for something");
        self.settle();
    }

    /// In how long the pipeline wants to be run again.
    pub fn wake(&mut self) -> Option<Duration> {
        self.settle();
        self.wake
    }

    pub fn report(&mut self, task: &Task, state: TaskState) {
        self.world.write(|tx| {
            let mut task = Task::clone(tx.state().task(task.id).expect("the task is there"));
            task.status.state = state;
            task.status.timestamp = tx.now();
            tx.put(task).unwrap();
        });
    }

    fn agents_report(&mut self) {
        let mut tasks: Vec<_> = self.world.state.tasks().cloned().collect();
        tasks.sort_by_key(|task| task.endpoint);
        for task in tasks {
            if let Some(next) = self.next_state(&task) {
                self.report(&task, next);
            }
        }
    }

    /// What the task's agent has to say of it now, if anything.
    fn next_state(&mut self, task: &Task) -> Option<TaskState> {
        let state = task.status.state;
        let node = self.world.state.node(task.node?)?;
        let silent = node.status.state != NodeState::Ready;
        if silent || state < TaskState::Assigned || state.is_terminal() {
            return None;
        }
        if task.desired >= TaskState::Shutdown {
            return self.rng.random_bool(0.3).then_some(TaskState::Shutdown);
        }
        let words = &task.spec.container.args;
        let is_broken = self
            .broken
            .as_ref()
            .is_some_and(|word| words.contains(word));
        let next = match state {
            TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing if is_broken => TaskState::Rejected,
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready if task.desired == TaskState::Ready => return None,
            TaskState::Ready => TaskState::Starting,
            TaskState::Starting => TaskState::Running,
            _ => return self.fails().then(|| self.end()),
        };
        self.rng.random_bool(0.8).then_some(next)
    }

    fn fails(&mut self) -> bool {
        self.rng.random_bool(self.failure)
    }

    fn end(&mut self) -> TaskState {
        let ends = [TaskState::Failed, TaskState::Complete, TaskState::Rejected];
        ends[self.rng.random_range(0..ends.len())]
    }

    /// The orchestrator alone finds nothing to do in this state.
    pub fn assert_quiet(&mut self) {
        let now = self.world.clock();
        self.world.write(|tx| {
            Orchestrator::default().step(tx, now);
            assert!(tx.is_empty());
        });
    }
}
