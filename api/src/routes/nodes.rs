//! Nodes.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use bollard_stubs::models as docker;
use control::{Reach, ops};
use model::{
    object::{Node, RaftId},
    spec::{Labels, NodeRole},
};

use super::{Ctx, state, store};
use crate::{
    convert,
    error::ApiError,
    reference,
    request::{Body, Params},
};

const FILTERS: &[&str] = &["id", "label", "membership", "name", "node.label", "role"];

pub(super) async fn list(
    State(node): State<Ctx>,
    params: Params,
) -> Result<Json<Vec<docker::Node>>, ApiError> {
    let state = state(&node)?;
    let filters = params.filters(FILTERS)?;
    for role in filters.values("role") {
        if !matches!(role.as_str(), "worker" | "manager") {
            return Err(ApiError::invalid(format!("Invalid role filter: '{role}'")));
        }
    }
    for membership in filters.values("membership") {
        if !matches!(membership.as_str(), "accepted" | "pending") {
            return Err(ApiError::invalid(format!(
                "Invalid membership filter: '{membership}'"
            )));
        }
    }
    let wanted = |node: &&Arc<Node>| {
        filters.prefix("id", &node.id.to_string())
            && filters.prefix("name", &node.description.hostname)
            && filters.any("role", |role| role == role_word(node.spec.role))
            // A node in the store has been accepted.
            && filters.any("membership", |membership| membership == "accepted")
            && filters.labels("node.label", &node.spec.labels)
            // Engines have no labels here.
            && filters.labels("label", &Labels::new())
    };
    let reach = reach(&node);
    let cluster = state.cluster().map(Arc::as_ref);
    Ok(Json(
        state
            .nodes()
            .filter(wanted)
            .map(|node| convert::node(node, cluster, &reach))
            .collect(),
    ))
}

/// What the manager here knows of the others.
fn reach(local: &Ctx) -> impl Fn(RaftId) -> Reach {
    let manager = local.manager();
    move |id| {
        manager.as_ref().map_or(
            Reach {
                leads: false,
                reachable: false,
            },
            |manager| manager.reach(id),
        )
    }
}

fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// The node meant by an id, a host name, the beginning of an id, or `self`.
pub(super) fn find(
    local: &Ctx,
    state: &store::State,
    reference: &str,
) -> Result<Arc<Node>, ApiError> {
    if reference == "self"
        && let Some(node) = local.status().node.and_then(|id| state.node(id))
    {
        return Ok(node.clone());
    }
    reference::find(
        "node",
        reference,
        state.nodes(),
        |node| node.id.to_string(),
        |node| node.description.hostname.clone(),
    )
    .cloned()
}

pub(super) async fn inspect(
    State(local): State<Ctx>,
    Path(reference): Path<String>,
) -> Result<Json<docker::Node>, ApiError> {
    let state = state(&local)?;
    let node = find(&local, &state, &reference)?;
    let cluster = state.cluster().map(Arc::as_ref);
    Ok(Json(convert::node(&node, cluster, reach(&local))))
}

pub(super) async fn update(
    State(local): State<Ctx>,
    Path(reference): Path<String>,
    params: Params,
    Body(spec): Body<docker::NodeSpec>,
) -> Result<(), ApiError> {
    let store = store(&local)?;
    let version = params.version("node")?;
    let node = find(&local, &store.state(), &reference)?;
    let spec = convert::node_spec_from_docker(&spec)?;
    ops::update_node(&store, node.id, version, spec).await?;
    Ok(())
}

pub(super) async fn remove(
    State(local): State<Ctx>,
    Path(reference): Path<String>,
    params: Params,
) -> Result<(), ApiError> {
    let store = store(&local)?;
    let node = find(&local, &store.state(), &reference)?;
    ops::remove_node(&store, node.id, params.flag("force")).await?;
    Ok(())
}
