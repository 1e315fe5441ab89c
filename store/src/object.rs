//! What a transaction writes.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use model::{
    EndpointId, NetworkId, NodeId, ServiceId, TaskId, Version,
    object::{Cluster, Meta, Network, Node, Service, Task},
};
use serde::{Deserialize, Serialize};

use crate::State;

/// Numbers that are counted up and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// The last endpoint id handed out; 0 before the first.
    pub endpoint_last: u32,
}

impl Counters {
    /// The next endpoint id, from 1.
    ///
    /// # Panics
    /// After 2^32 - 1 of them: 13 years at ten new tasks a second.
    pub(crate) fn next_endpoint(&mut self) -> EndpointId {
        let next = self.endpoint_last.checked_add(1);
        self.endpoint_last = next.expect("a cluster makes fewer than 2^32 tasks in its life");
        EndpointId(self.endpoint_last)
    }
}

/// Any object of the store, shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Network(Arc<Network>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Counters(Counters),
}

/// Names an object of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    Cluster,
    Counters,
    Node(NodeId),
    Network(NetworkId),
    Service(ServiceId),
    Task(TaskId),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Counters => f.write_str("counters"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::Network(id) => write!(f, "network {id}"),
            Self::Service(id) => write!(f, "service {id}"),
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}

macro_rules! into_object {
    ($($name:ident),+) => {$(
        impl From<$name> for Object {
            fn from(object: $name) -> Self {
                Self::$name(Arc::new(object))
            }
        }

        impl From<Arc<$name>> for Object {
            fn from(object: Arc<$name>) -> Self {
                Self::$name(object)
            }
        }
    )+};
}

into_object!(Cluster, Node, Network, Service, Task);

impl From<Counters> for Object {
    fn from(counters: Counters) -> Self {
        Self::Counters(counters)
    }
}

/// Who writes an object, for its [`Meta`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) version: Version,
    pub(crate) at: Timestamp,
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Cluster(_) => Key::Cluster,
            Self::Node(node) => Key::Node(node.id),
            Self::Network(network) => Key::Network(network.id),
            Self::Service(service) => Key::Service(service.id),
            Self::Task(task) => Key::Task(task.id),
            Self::Counters(_) => Key::Counters,
        }
    }

    /// `None` for the counters, which have no version of their own.
    pub fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Cluster(cluster) => Some(&cluster.meta),
            Self::Node(node) => Some(&node.meta),
            Self::Network(network) => Some(&network.meta),
            Self::Service(service) => Some(&service.meta),
            Self::Task(task) => Some(&task.meta),
            Self::Counters(_) => None,
        }
    }

    fn meta_mut(&mut self) -> Option<&mut Meta> {
        match self {
            Self::Cluster(cluster) => Some(&mut Arc::make_mut(cluster).meta),
            Self::Node(node) => Some(&mut Arc::make_mut(node).meta),
            Self::Network(network) => Some(&mut Arc::make_mut(network).meta),
            Self::Service(service) => Some(&mut Arc::make_mut(service).meta),
            Self::Task(task) => Some(&mut Arc::make_mut(task).meta),
            Self::Counters(_) => None,
        }
    }

    /// Version at which the spec changed last, were this written as `version` over `base`.
    fn edited(&self, base: &State, version: Version) -> Version {
        let before = match self {
            Self::Service(service) => base
                .service(service.id)
                .filter(|stored| stored.spec == service.spec)
                .map(|stored| stored.meta.edited),
            Self::Node(node) => base
                .node(node.id)
                .filter(|stored| stored.spec == node.spec)
                .map(|stored| stored.meta.edited),
            _ => None,
        };
        before.unwrap_or(version)
    }

    /// Fills in what only the store knows: versions and times, and a service's `spec_version`.
    /// `base` is the state before the transaction.
    pub(crate) fn stamp(&mut self, base: &State, stamp: Stamp) {
        if let Self::Service(service) = self {
            let spec_version = spec_version(service, base, stamp.version);
            if service.spec_version != spec_version {
                Arc::make_mut(service).spec_version = spec_version;
            }
        }
        let before = base.meta(self.key());
        let meta = Meta {
            version: stamp.version,
            edited: self.edited(base, stamp.version),
            created: before.map_or(stamp.version, |meta| meta.created),
            created_at: before.map_or(stamp.at, |meta| meta.created_at),
            updated_at: stamp.at,
        };
        // Applying the changes of a transaction finds them stamped already: no copy then.
        if self.meta().is_some_and(|found| *found != meta) {
            *self.meta_mut().expect("it has one, as was just seen") = meta;
        }
    }
}

/// Tasks are made from the template, and have the service's host ports.
fn spec_version(service: &Service, base: &State, version: Version) -> Version {
    let is_alike = |stored: &Service| {
        let (old, new) = (&stored.spec, &service.spec);
        old.task == new.task && old.endpoint.host_ports().eq(new.endpoint.host_ports())
    };
    match base.service(service.id) {
        Some(stored) if is_alike(stored) => stored.spec_version,
        _ => version,
    }
}

/// One object written or gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Put(Object),
    Remove(Key),
}

impl Change {
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Remove(key) => *key,
        }
    }
}

/// What a transaction changes; applied whole or not at all. Carries its time, so that applying it
/// gives the same state everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// The version of the state that it was computed from; it applies to no other.
    pub base: Version,
    pub at: Timestamp,
    /// At most one for each key.
    pub changes: Vec<Change>,
}

/// An applied transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// One more than that of the commit before it.
    pub version: Version,
    pub at: Timestamp,
    /// The objects as stored, with their versions.
    pub changes: Vec<Change>,
}
