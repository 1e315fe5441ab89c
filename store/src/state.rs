//! The state machine's state: typed tables with indexes, persistent and so cheap to clone.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use imbl::{OrdMap, OrdSet};
use model::{
    NetworkId, NodeId, ServiceId, TaskId, Version,
    object::{Cluster, Meta, Network, Node, Service, Task},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::object::{Change, ChangeSet, Commit, Counters, Key, Object, Stamp};

/// More transactions than any managers commit between a backup and their loss. JSON's numbers, which
/// are exact to 2^53, have room for two million of these.
const LEAP: u64 = 1 << 32;

/// Everything the cluster has agreed on, at one version. A clone shares all tables with the
/// original, so readers keep one as long as they like.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct State {
    version: Version,
    counters: Counters,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    index: Index,
}

/// Functions of the tables: whatever the order of changes, equal tables have equal indexes. Hence
/// names map to sets of ids, though the managers see to it that each has but one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Index {
    network_names: OrdSet<(String, NetworkId)>,
    service_names: OrdSet<(String, ServiceId)>,
    service_tasks: OrdMap<(ServiceId, TaskId), Arc<Task>>,
    node_tasks: OrdMap<(NodeId, TaskId), Arc<Task>>,
}

/// A change set that was computed from another state than the one it was applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the transaction was computed from version {base}, the store is at {found}; try it again")]
pub struct Superseded {
    pub base: Version,
    pub found: Version,
}

impl State {
    /// The number of transactions applied since the cluster was made.
    pub fn version(&self) -> Version {
        self.version
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// `None` only before the cluster is made.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    /// In the order of ids, as are all that follow.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn networks(&self) -> impl DoubleEndedIterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn network_count(&self) -> usize {
        self.networks.len()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Upper and lower case are one, as in Swarm.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        let least = (folded(name), NetworkId::from_raw(0));
        let (found, id) = self.index.network_names.range(least..).next()?;
        (*found == folded(name)).then(|| &self.networks[id])
    }

    /// Upper and lower case are one, as in Swarm.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        let least = (folded(name), ServiceId::from_raw(0));
        let (found, id) = self.index.service_names.range(least..).next()?;
        (*found == folded(name)).then(|| &self.services[id])
    }

    pub fn tasks_of_service(&self, id: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.index
            .service_tasks
            .range(ids_under(id, TaskId::from_raw))
            .map(|(_, task)| task)
    }

    pub fn tasks_of_node(&self, id: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.index
            .node_tasks
            .range(ids_under(id, TaskId::from_raw))
            .map(|(_, task)| task)
    }

    pub fn contains(&self, key: Key) -> bool {
        match key {
            Key::Cluster => self.cluster.is_some(),
            Key::Counters => true,
            Key::Node(id) => self.nodes.contains_key(&id),
            Key::Network(id) => self.networks.contains_key(&id),
            Key::Service(id) => self.services.contains_key(&id),
            Key::Task(id) => self.tasks.contains_key(&id),
        }
    }

    /// Version and times of an object; `None` when it is not there, and for the counters.
    pub fn meta(&self, key: Key) -> Option<&Meta> {
        match key {
            Key::Cluster => self.cluster.as_ref().map(|cluster| &cluster.meta),
            Key::Counters => None,
            Key::Node(id) => self.nodes.get(&id).map(|node| &node.meta),
            Key::Network(id) => self.networks.get(&id).map(|network| &network.meta),
            Key::Service(id) => self.services.get(&id).map(|service| &service.meta),
            Key::Task(id) => self.tasks.get(&id).map(|task| &task.meta),
        }
    }

    /// Moves to a version that no node has seen: those that this state may be behind of were handed
    /// out by managers that are lost.
    pub(crate) fn leap(&mut self) {
        self.version.0 += LEAP;
    }

    /// Applies a transaction: the state moves to the next version.
    ///
    /// # Errors
    /// [`Superseded`] when it was computed from another version; nothing has changed then.
    pub fn apply(&mut self, set: ChangeSet) -> Result<Commit, Superseded> {
        if set.base != self.version {
            return Err(Superseded {
                base: set.base,
                found: self.version,
            });
        }
        let stamp = Stamp {
            version: self.version.next(),
            at: set.at,
        };
        let base = self.clone();
        let mut changes = set.changes;
        for change in &mut changes {
            if let Change::Put(object) = change {
                object.stamp(&base, stamp);
            }
            self.change(change);
        }
        self.version = stamp.version;
        Ok(Commit {
            version: stamp.version,
            at: stamp.at,
            changes,
        })
    }

    /// Every object, as changes that make an empty state into this one.
    fn objects(&self) -> impl Iterator<Item = Object> {
        let cluster = self.cluster.iter().cloned().map(Object::Cluster);
        cluster
            .chain([Object::Counters(self.counters)])
            .chain(self.nodes.values().cloned().map(Object::Node))
            .chain(self.networks.values().cloned().map(Object::Network))
            .chain(self.services.values().cloned().map(Object::Service))
            .chain(self.tasks.values().cloned().map(Object::Task))
    }

    /// The state that has these objects, as they are.
    fn rebuild(version: Version, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut state = Self {
            version,
            ..Self::default()
        };
        objects.into_iter().for_each(|object| state.put(object));
        state
    }

    pub(crate) fn change(&mut self, change: &Change) {
        match change {
            Change::Put(object) => self.put(object.clone()),
            Change::Remove(key) => self.remove(*key),
        }
    }

    fn put(&mut self, object: Object) {
        self.unindex(object.key());
        match object {
            Object::Cluster(cluster) => self.cluster = Some(cluster),
            Object::Counters(counters) => self.counters = counters,
            Object::Node(node) => {
                self.nodes.insert(node.id, node);
            }
            Object::Network(network) => {
                let name = folded(&network.spec.name);
                self.index.network_names.insert((name, network.id));
                self.networks.insert(network.id, network);
            }
            Object::Service(service) => {
                let name = folded(&service.spec.name);
                self.index.service_names.insert((name, service.id));
                self.services.insert(service.id, service);
            }
            Object::Task(task) => {
                self.index.put_task(&task);
                self.tasks.insert(task.id, task);
            }
        }
    }

    fn remove(&mut self, key: Key) {
        self.unindex(key);
        match key {
            Key::Cluster => self.cluster = None,
            Key::Counters => self.counters = Counters::default(),
            Key::Node(id) => {
                self.nodes.remove(&id);
            }
            Key::Network(id) => {
                self.networks.remove(&id);
            }
            Key::Service(id) => {
                self.services.remove(&id);
            }
            Key::Task(id) => {
                self.tasks.remove(&id);
            }
        }
    }

    /// Takes the stored object, if any, out of the indexes.
    fn unindex(&mut self, key: Key) {
        match key {
            Key::Cluster | Key::Counters | Key::Node(_) => {}
            Key::Network(id) => {
                if let Some(network) = self.networks.get(&id) {
                    let name = folded(&network.spec.name);
                    self.index.network_names.remove(&(name, id));
                }
            }
            Key::Service(id) => {
                if let Some(service) = self.services.get(&id) {
                    let name = folded(&service.spec.name);
                    self.index.service_names.remove(&(name, id));
                }
            }
            Key::Task(id) => {
                if let Some(task) = self.tasks.get(&id) {
                    self.index.remove_task(task);
                }
            }
        }
    }
}

impl Index {
    fn put_task(&mut self, task: &Arc<Task>) {
        let of_service = (task.service, task.id);
        self.service_tasks.insert(of_service, Arc::clone(task));
        if let Some(node) = task.node {
            self.node_tasks.insert((node, task.id), Arc::clone(task));
        }
    }

    fn remove_task(&mut self, task: &Task) {
        self.service_tasks.remove(&(task.service, task.id));
        if let Some(node) = task.node {
            self.node_tasks.remove(&(node, task.id));
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("version", &self.version)
            .field("nodes", &self.nodes.len())
            .field("networks", &self.networks.len())
            .field("services", &self.services.len())
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

fn folded(name: &str) -> String {
    name.to_lowercase()
}

/// All pairs that begin with `first`.
fn ids_under<A: Copy, B>(first: A, from_raw: fn(u128) -> B) -> RangeInclusive<(A, B)> {
    (first, from_raw(0))..=(first, from_raw(u128::MAX))
}

/// A state in a snapshot. Indexes are made anew when it is read.
#[derive(Serialize, Deserialize)]
struct Image {
    version: Version,
    objects: Vec<Object>,
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let image = Image {
            version: self.version,
            objects: self.objects().collect(),
        };
        image.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let image = Image::deserialize(deserializer)?;
        Ok(Self::rebuild(image.version, image.objects))
    }
}
