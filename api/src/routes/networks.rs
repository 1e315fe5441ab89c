//! Overlay networks.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use bollard_stubs::models as docker;
use control::ops;
use model::{
    NetworkId, TaskState,
    object::{Attachment, Network, Task},
};
use serde_json::json;

use super::{Ctx, state, store};
use crate::{
    convert,
    error::ApiError,
    filters::Filters,
    reference,
    request::{Body, Params},
};

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// Networks are cluster state: a node that is no manager lists none.
pub(super) async fn list(
    State(node): State<Ctx>,
    params: Params,
) -> Result<Json<Vec<docker::NetworkInspect>>, ApiError> {
    let filters = params.filters(FILTERS)?;
    for kind in filters.values("type") {
        if !matches!(kind.as_str(), "custom" | "builtin") {
            return Err(ApiError::invalid(format!(
                "invalid filter: 'type'='{kind}'"
            )));
        }
    }
    let Ok(state) = state(&node) else {
        return Ok(Json(Vec::new()));
    };
    let used = attached_networks(&state);
    let wanted = |network: &&Arc<Network>| matches(&filters, network, &used);
    Ok(Json(
        state
            .networks()
            .filter(wanted)
            .map(|network| convert::network(network))
            .collect(),
    ))
}

fn matches(filters: &Filters, network: &Network, used: &BTreeSet<NetworkId>) -> bool {
    filters.prefix("id", &network.id.to_string())
        && filters.contains("name", &network.spec.name)
        && filters.any("driver", |driver| driver == "overlay")
        && filters.any("scope", |scope| scope == "swarm")
        && filters.any("type", |kind| kind == "custom")
        && filters.labels("label", &network.spec.labels)
        && filters.any("dangling", |dangling| {
            matches!(dangling, "1" | "true") != used.contains(&network.id)
        })
}

fn attached_networks(state: &store::State) -> BTreeSet<NetworkId> {
    let attachments = state.tasks().flat_map(|task| &task.attachments);
    attachments.map(|attachment| attachment.network).collect()
}

/// The network meant by an id, a name or the beginning of an id.
pub(super) fn find(state: &store::State, reference: &str) -> Result<Arc<Network>, ApiError> {
    reference::find(
        "network",
        reference,
        state.networks(),
        |network| network.id.to_string(),
        |network| network.spec.name.clone(),
    )
    .cloned()
}

pub(super) async fn inspect(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
    params: Params,
) -> Result<Json<docker::NetworkInspect>, ApiError> {
    if !matches!(params.get("scope"), None | Some("" | "swarm")) {
        return Err(ApiError::not_found("network", &reference));
    }
    let Ok(state) = state(&node) else {
        return Err(ApiError::not_found("network", &reference));
    };
    let network = find(&state, &reference)?;
    let mut object = convert::network(&network);
    object.peers = Some(peers(&state, network.id));
    object.containers = Some(local_tasks(&node, &state, network.id));
    if params.flag("verbose") {
        object.services = Some(services(&state, network.id));
    }
    Ok(Json(object))
}

/// The tasks on a network that run or are about to, each with its address there.
fn tasks_on(
    state: &store::State,
    network: NetworkId,
) -> impl Iterator<Item = (&Arc<Task>, &Attachment)> {
    state
        .tasks()
        .filter(|task| task.status.state <= TaskState::Running && task.node.is_some())
        .filter_map(move |task| {
            let attachment = task.attachments.iter().find(|at| at.network == network)?;
            Some((task, attachment))
        })
}

/// The nodes with a task on the network.
fn peers(state: &store::State, network: NetworkId) -> Vec<docker::PeerInfo> {
    let nodes: BTreeSet<_> = tasks_on(state, network)
        .filter_map(|(task, _)| task.node)
        .collect();
    let nodes = nodes.into_iter().filter_map(|id| state.node(id));
    nodes
        .map(|node| docker::PeerInfo {
            name: Some(node.description.hostname.clone()),
            ip: Some(node.vtep.to_string()),
        })
        .collect()
}

fn local_tasks(
    local: &Ctx,
    state: &store::State,
    network: NetworkId,
) -> HashMap<String, docker::EndpointResource> {
    let node = local.status().node;
    tasks_on(state, network)
        .filter(|(task, _)| task.node == node)
        .map(|(task, at)| {
            let [a, b, c, d] = at.addr.octets();
            let resource = docker::EndpointResource {
                name: Some(task.name()),
                endpoint_id: Some(endpoint_id(task)),
                mac_address: Some(format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")),
                ipv4_address: Some(format!("{}/{}", at.addr, at.prefix_len)),
                ipv6_address: Some(String::new()),
            };
            (task.id.to_string(), resource)
        })
        .collect()
}

fn endpoint_id(task: &Task) -> String {
    task.endpoint
        .map(|endpoint| endpoint.to_string())
        .unwrap_or_default()
}

/// What `--verbose` adds: each service on the network with its VIP, ports and tasks everywhere.
fn services(state: &store::State, network: NetworkId) -> HashMap<String, serde_json::Value> {
    let mut services = HashMap::new();
    let attached = state.services().filter(|service| {
        service
            .spec
            .task
            .networks
            .iter()
            .any(|attachment| attachment.network == network)
    });
    for service in attached {
        let vip = service
            .endpoint
            .vips
            .iter()
            .find(|vip| vip.network == network);
        let ports = service.endpoint.ports.iter().map(|port| {
            format!(
                "Target: {}, Publish: {}",
                port.target,
                port.published.unwrap_or(0)
            )
        });
        let tasks = tasks_on(state, network)
            .filter(|(task, _)| task.service == service.id)
            .map(|(task, at)| {
                let node = task.node.and_then(|id| state.node(id));
                json!({
                    "Name": task.name(),
                    "EndpointID": endpoint_id(task),
                    "EndpointIP": at.addr,
                    "Info": {"Host IP": node.map(|node| node.vtep)},
                })
            });
        let info = json!({
            "VIP": vip.map_or_else(|| "<nil>".to_owned(), |vip| vip.addr.to_string()),
            "Ports": ports.collect::<Vec<_>>(),
            "LocalLBIndex": 0,
            "Tasks": tasks.collect::<Vec<_>>(),
        });
        services.insert(service.spec.name.clone(), info);
    }
    services
}

pub(super) async fn create(
    State(node): State<Ctx>,
    Body(request): Body<docker::NetworkCreateRequest>,
) -> Result<(StatusCode, Json<docker::NetworkCreateResponse>), ApiError> {
    let spec = convert::network_spec_from_docker(&request)?;
    convert::check_network(&spec)?;
    let id = ops::create_network(&store(&node)?, spec).await?;
    let response = docker::NetworkCreateResponse {
        id: id.to_string(),
        warning: String::new(),
    };
    Ok((StatusCode::CREATED, Json(response)))
}

pub(super) async fn remove(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    let store = store(&node)?;
    let network = find(&store.state(), &reference)?;
    ops::remove_network(&store, network.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
