//! What each node bears.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use model::{
    NodeId, ServiceId, TaskState,
    object::{Node, Task},
    spec::Protocol,
};
use store::State;

use super::filter::{Demand, host_ports};

/// A node where a service failed so often ...
const FAILURES_MAX: usize = 5;
/// ... within this time comes last.
const FAILURES_WINDOW: Duration = Duration::from_secs(5 * 60);

/// A node and its tasks.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) node: Arc<Node>,
    /// Tasks that are wanted there.
    total: usize,
    of_service: HashMap<ServiceId, usize>,
    failures: HashMap<ServiceId, usize>,
    nano_cpus_left: i64,
    memory_bytes_left: i64,
    host_ports: HashSet<(Protocol, u16)>,
}

impl Load {
    fn of(state: &State, node: &Arc<Node>, now: Timestamp) -> Self {
        let mut load = Self {
            node: Arc::clone(node),
            total: 0,
            of_service: HashMap::new(),
            failures: HashMap::new(),
            nano_cpus_left: node.description.nano_cpus,
            memory_bytes_left: node.description.memory_bytes,
            host_ports: HashSet::new(),
        };
        for task in state.tasks_of_node(node.id) {
            load.add(task, now);
        }
        load
    }

    fn add(&mut self, task: &Task, now: Timestamp) {
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        if failed && task.status.timestamp + FAILURES_WINDOW > now {
            *self.failures.entry(task.service).or_default() += 1;
        }
        // A global service's task that waits is bound to the node but not on it.
        if task.status.state.is_terminal() || task.status.state < TaskState::Assigned {
            return;
        }
        // One that is stopping still takes what it reserved, but makes way for others. What there is,
        // the node says: any number.
        let reserved = &task.spec.resources;
        let (cpus, memory) = (reserved.reserve_nano_cpus, reserved.reserve_memory_bytes);
        self.nano_cpus_left = self.nano_cpus_left.saturating_sub(cpus.unwrap_or(0));
        self.memory_bytes_left = self.memory_bytes_left.saturating_sub(memory.unwrap_or(0));
        self.host_ports.extend(host_ports(task));
        if task.desired <= TaskState::Running {
            self.total += 1;
            *self.of_service.entry(task.service).or_default() += 1;
        }
    }

    fn replicas(&self, service: ServiceId) -> usize {
        self.of_service.get(&service).copied().unwrap_or(0)
    }

    /// Lower is better.
    pub(super) fn rank(&self, demand: &Demand) -> (bool, usize, usize, NodeId) {
        let failures = self.failures.get(&demand.service).copied().unwrap_or(0);
        let replicas = self.replicas(demand.service);
        let fails = failures >= FAILURES_MAX;
        (fails, replicas, self.total, self.node.id)
    }

    pub(super) fn has_room(&self, demand: &Demand) -> bool {
        demand.nano_cpus <= self.nano_cpus_left.max(0)
            && demand.memory_bytes <= self.memory_bytes_left.max(0)
    }

    pub(super) fn has_ports(&self, demand: &Demand) -> bool {
        let mut ports = demand.host_ports.iter();
        !ports.any(|port| self.host_ports.contains(port))
    }

    pub(super) fn is_below_max(&self, demand: &Demand) -> bool {
        demand.max_replicas == 0 || (self.replicas(demand.service) as u64) < demand.max_replicas
    }
}

/// All nodes, with what was assigned in this step.
#[derive(Debug)]
pub(super) struct Cluster(BTreeMap<NodeId, Load>);

impl Cluster {
    pub(super) fn of(state: &State, now: Timestamp) -> Self {
        let loads = state
            .nodes()
            .map(|node| (node.id, Load::of(state, node, now)));
        Self(loads.collect())
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Load> {
        self.0.values()
    }

    pub(super) fn assign(&mut self, node: NodeId, demand: &Demand) {
        let Some(load) = self.0.get_mut(&node) else {
            return;
        };
        load.total += 1;
        *load.of_service.entry(demand.service).or_default() += 1;
        load.nano_cpus_left -= demand.nano_cpus;
        load.memory_bytes_left -= demand.memory_bytes;
        load.host_ports.extend(&demand.host_ports);
    }

    /// The service's tasks by the values of the labels that it prefers to be spread over.
    pub(super) fn groups<'a>(&self, demand: &'a Demand) -> Groups<'a> {
        let mut groups = Groups {
            labels: &demand.preferences,
            tasks: HashMap::new(),
        };
        if !demand.preferences.is_empty() {
            for load in self.0.values() {
                let replicas = load.replicas(demand.service);
                for group in groups.of(&load.node) {
                    *groups.tasks.entry(group).or_default() += replicas;
                }
            }
        }
        groups
    }
}

/// Nested groups of nodes: by the first label's value, within those by the second's, and so on. A
/// missing label is a value of its own.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    labels: &'a [String],
    tasks: HashMap<Vec<String>, usize>,
}

impl Groups<'_> {
    /// The groups that the node is in, from the outermost.
    fn of(&self, node: &Node) -> Vec<Vec<String>> {
        let values: Vec<String> = self.labels.iter().map(|label| value(node, label)).collect();
        (1..=values.len())
            .map(|len| values[..len].to_vec())
            .collect()
    }

    /// Tasks in each of the node's groups, from the outermost; lower is better.
    pub(super) fn rank(&self, node: &Node) -> Vec<usize> {
        let tasks = |group| self.tasks.get(&group).copied().unwrap_or(0);
        self.of(node).into_iter().map(tasks).collect()
    }
}

fn value(node: &Node, label: &str) -> String {
    let label = label.strip_prefix("spread=").unwrap_or(label);
    let label = label.strip_prefix("node.labels.").unwrap_or(label);
    node.spec.labels.get(label).cloned().unwrap_or_default()
}
