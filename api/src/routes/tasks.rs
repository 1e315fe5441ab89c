//! Tasks.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
};
use model::{NodeId, ServiceId, TaskState, object::Task};

use super::{Ctx, nodes, services, state};
use crate::{
    convert::{self, TaskObject},
    error::ApiError,
    filters::Filters,
    reference,
    request::Params,
};

const FILTERS: &[&str] = &[
    "_up-to-date",
    "desired-state",
    "id",
    "label",
    "name",
    "node",
    "runtime",
    "service",
];

pub(super) async fn list(
    State(node): State<Ctx>,
    params: Params,
) -> Result<Json<Vec<TaskObject>>, ApiError> {
    let state = state(&node)?;
    let wanted = Wanted::parse(&node, &state, params.filters(FILTERS)?)?;
    let tasks = state.tasks().filter(|task| wanted.matches(&state, task));
    Ok(Json(tasks.map(|task| object(&state, task)).collect()))
}

fn object(state: &store::State, task: &Task) -> TaskObject {
    convert::task(task, |id| state.network(id).map(Arc::as_ref))
}

/// The filters, with references resolved.
struct Wanted {
    filters: Filters,
    services: BTreeSet<ServiceId>,
    nodes: BTreeSet<NodeId>,
}

impl Wanted {
    fn parse(local: &Ctx, state: &store::State, filters: Filters) -> Result<Self, ApiError> {
        let services = filters.values("service").iter();
        let nodes = filters.values("node").iter();
        for word in filters.values("desired-state") {
            if !DESIRED.iter().any(|desired| desired.as_str() == word) {
                return Err(ApiError::invalid(format!(
                    "Invalid desired-state filter: '{word}'"
                )));
            }
        }
        Ok(Self {
            services: services
                .map(|reference| services::find(state, reference).map(|service| service.id))
                .collect::<Result<_, _>>()?,
            nodes: nodes
                .map(|reference| nodes::find(local, state, reference).map(|node| node.id))
                .collect::<Result<_, _>>()?,
            filters,
        })
    }

    fn matches(&self, state: &store::State, task: &Task) -> bool {
        let service = state.service(task.service);
        let filters = &self.filters;
        (self.services.is_empty() || self.services.contains(&task.service))
            && (self.nodes.is_empty() || task.node.is_some_and(|node| self.nodes.contains(&node)))
            && filters.prefix("id", &task.id.to_string())
            && filters.prefix("name", &task.name())
            && filters.any("desired-state", |word| word == task.desired.as_str())
            && filters.any("runtime", |runtime| runtime == "container")
            // A task has its service's labels.
            && (filters.values("label").is_empty()
                || service.is_some_and(|service| filters.labels("label", &service.spec.labels)))
            && (filters.values("_up-to-date").is_empty()
                || service.is_some_and(|service| task.spec_version == service.spec_version))
    }
}

/// The states that can be desired, and `accepted`, which the `docker` command's help names.
const DESIRED: [TaskState; 6] = [
    TaskState::Accepted,
    TaskState::Ready,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Remove,
];

pub(super) async fn inspect(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
) -> Result<Json<TaskObject>, ApiError> {
    let state = state(&node)?;
    let task = reference::find(
        "task",
        &reference,
        state.tasks(),
        |task| task.id.to_string(),
        |task| task.name(),
    )?;
    Ok(Json(object(&state, task)))
}
