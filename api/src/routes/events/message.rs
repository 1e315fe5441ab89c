//! One event, from one change.

use std::collections::HashMap;

use axum::body::Bytes;
use bollard_stubs::models as docker;
use docker::EventMessageTypeEnum as Kind;
use jiff::Timestamp;
use model::{
    object::{Node, NodeState, Service, UpdateState},
    spec::{Availability, Labels, NodeRole, ServiceMode},
};
use store::{Change, Commit, Key, Object, State};

use crate::filters::Filters;

/// What happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    kind: Kind,
    action: &'static str,
    id: String,
    name: String,
    labels: Labels,
    /// What changed, as `field.old` and `field.new`.
    attributes: Vec<(&'static str, String, String)>,
    at: Timestamp,
}

/// The events of a commit that `before` has not seen. Changes that only the managers' own work
/// makes, such as a heartbeat or a new address, are none.
pub(super) fn messages(before: &State, commit: &Commit) -> impl Iterator<Item = Message> {
    commit.changes.iter().filter_map(|change| {
        let message = match change {
            Change::Put(object) => put(before, object),
            Change::Remove(key) => removed(before, *key),
        }?;
        Some(Message {
            at: commit.at,
            ..message
        })
    })
}

fn put(before: &State, object: &Object) -> Option<Message> {
    match object {
        Object::Service(new) => match before.service(new.id) {
            None => Some(service(new, "create", Vec::new())),
            Some(old) => service_update(old, new),
        },
        Object::Node(new) => match before.node(new.id) {
            None => Some(node(new, "create", Vec::new())),
            Some(old) => node_update(old, new),
        },
        Object::Network(new) => before
            .network(new.id)
            .is_none()
            .then(|| network(new, "create")),
        Object::Cluster(_) | Object::Task(_) | Object::Counters(_) => None,
    }
}

fn removed(before: &State, key: Key) -> Option<Message> {
    match key {
        Key::Service(id) => before
            .service(id)
            .map(|old| service(old, "remove", Vec::new())),
        Key::Node(id) => before.node(id).map(|old| node(old, "remove", Vec::new())),
        Key::Network(id) => before.network(id).map(|old| network(old, "remove")),
        Key::Cluster | Key::Task(_) | Key::Counters => None,
    }
}

type Attributes = Vec<(&'static str, String, String)>;

fn service(service: &Service, action: &'static str, attributes: Attributes) -> Message {
    Message {
        kind: Kind::SERVICE,
        action,
        id: service.id.to_string(),
        name: service.spec.name.clone(),
        labels: service.spec.labels.clone(),
        attributes,
        at: service.meta.updated_at,
    }
}

fn service_update(old: &Service, new: &Service) -> Option<Message> {
    let mut attributes = Vec::new();
    let image = |service: &Service| service.spec.task.container.image.clone();
    differing(&mut attributes, "image", image(old), image(new));
    differing(&mut attributes, "replicas", replicas(old), replicas(new));
    differing(
        &mut attributes,
        "updatestate",
        update_word(old),
        update_word(new),
    );
    let changed = old.spec != new.spec || !attributes.is_empty();
    changed.then(|| service(new, "update", attributes))
}

fn replicas(service: &Service) -> String {
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas.to_string(),
        ServiceMode::Global => String::new(),
    }
}

fn update_word(service: &Service) -> String {
    let word = service
        .update_status
        .as_ref()
        .map(|status| match status.state {
            UpdateState::Updating => "updating",
            UpdateState::Paused => "paused",
            UpdateState::Completed => "completed",
            UpdateState::RollbackStarted => "rollback_started",
            UpdateState::RollbackPaused => "rollback_paused",
            UpdateState::RollbackCompleted => "rollback_completed",
        });
    word.unwrap_or_default().to_owned()
}

fn node(node: &Node, action: &'static str, attributes: Attributes) -> Message {
    Message {
        kind: Kind::NODE,
        action,
        id: node.id.to_string(),
        name: node.description.hostname.clone(),
        labels: node.spec.labels.clone(),
        attributes,
        at: node.meta.updated_at,
    }
}

fn node_update(old: &Node, new: &Node) -> Option<Message> {
    let mut attributes = Vec::new();
    let role = |node: &Node| match node.spec.role {
        NodeRole::Worker => "worker".to_owned(),
        NodeRole::Manager => "manager".to_owned(),
    };
    let availability = |node: &Node| match node.spec.availability {
        Availability::Active => "active".to_owned(),
        Availability::Pause => "pause".to_owned(),
        Availability::Drain => "drain".to_owned(),
    };
    let state = |node: &Node| match node.status.state {
        NodeState::Unknown => "unknown".to_owned(),
        NodeState::Down => "down".to_owned(),
        NodeState::Ready => "ready".to_owned(),
        NodeState::Disconnected => "disconnected".to_owned(),
    };
    differing(&mut attributes, "role", role(old), role(new));
    differing(
        &mut attributes,
        "availability",
        availability(old),
        availability(new),
    );
    differing(&mut attributes, "state", state(old), state(new));
    let changed = old.spec != new.spec || !attributes.is_empty();
    changed.then(|| node(new, "update", attributes))
}

fn network(network: &model::object::Network, action: &'static str) -> Message {
    Message {
        kind: Kind::NETWORK,
        action,
        id: network.id.to_string(),
        name: network.spec.name.clone(),
        labels: network.spec.labels.clone(),
        attributes: Vec::new(),
        at: network.meta.updated_at,
    }
}

fn differing(attributes: &mut Attributes, name: &'static str, old: String, new: String) {
    if old != new {
        attributes.push((name, old, new));
    }
}

impl Message {
    pub(super) fn matches(&self, filters: &Filters) -> bool {
        const OBJECTS: [(&str, Kind); 9] = [
            ("config", Kind::CONFIG),
            ("container", Kind::CONTAINER),
            ("daemon", Kind::DAEMON),
            ("image", Kind::IMAGE),
            ("network", Kind::NETWORK),
            ("node", Kind::NODE),
            ("plugin", Kind::PLUGIN),
            ("secret", Kind::SECRET),
            ("service", Kind::SERVICE),
        ];
        filters.any("type", |kind| kind == self.kind.as_ref())
            && filters.any("event", |action| action == self.action)
            && filters.any("scope", |scope| scope == "swarm")
            && filters.values("volume").is_empty()
            && filters.labels("label", &self.labels)
            && OBJECTS.iter().all(|(key, kind)| {
                filters.any(key, |want| {
                    self.kind == *kind && (self.name == want || self.id.starts_with(want))
                })
            })
    }

    /// The event as a line of JSON.
    pub(super) fn line(&self) -> Bytes {
        let mut attributes = HashMap::from([("name".to_owned(), self.name.clone())]);
        for (field, old, new) in &self.attributes {
            attributes.insert(format!("{field}.old"), old.clone());
            attributes.insert(format!("{field}.new"), new.clone());
        }
        let message = docker::EventMessage {
            typ: Some(self.kind),
            action: Some(self.action.to_owned()),
            actor: Some(docker::EventActor {
                id: Some(self.id.clone()),
                attributes: Some(attributes),
            }),
            scope: Some(docker::EventMessageScopeEnum::SWARM),
            time: Some(self.at.as_second()),
            time_nano: i64::try_from(self.at.as_nanosecond()).ok(),
        };
        let mut line = serde_json::to_vec(&message).expect("text and numbers always encode");
        line.push(b'\n');
        line.into()
    }
}

#[cfg(test)]
mod tests;
