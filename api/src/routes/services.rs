//! Services.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use bollard_stubs::models as docker;
use control::ops;
use model::{
    NetworkId, ServiceId, TaskState,
    object::Service,
    spec::{PortSpec, Protocol, PublishMode, ServiceMode, ServiceSpec},
    traffic::Traffic,
};
use serde_json::{Value, json};

use super::{Ctx, networks, state, store};
use crate::{
    convert::{self, ServiceObject},
    error::ApiError,
    reference,
    request::{Body, Params},
};

const FILTERS: &[&str] = &["id", "label", "mode", "name", "runtime"];

pub(super) async fn list(
    State(node): State<Ctx>,
    params: Params,
) -> Result<Json<Vec<ServiceObject>>, ApiError> {
    let state = state(&node)?;
    let filters = params.filters(FILTERS)?;
    let wanted = |service: &&Arc<Service>| {
        filters.prefix("id", &service.id.to_string())
            && filters.prefix("name", &service.spec.name)
            && filters.labels("label", &service.spec.labels)
            && filters.any("mode", |mode| mode == mode_word(service.spec.mode))
            && filters.any("runtime", |runtime| runtime == "container")
    };
    let with_status = params.flag("status");
    let object = |service: &Arc<Service>| {
        let status = with_status.then(|| task_count(&state, service));
        convert::service(service, params.flag("insertDefaults"), status)
    };
    Ok(Json(state.services().filter(wanted).map(object).collect()))
}

fn mode_word(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
    }
}

/// How many tasks run, and how many should. A task that is to be replaced no longer counts.
fn task_count(state: &store::State, service: &Service) -> docker::ServiceServiceStatus {
    let wanted = || {
        state
            .tasks_of_service(service.id)
            .filter(|task| task.desired <= TaskState::Running)
    };
    let running = wanted().filter(|task| task.status.state == TaskState::Running);
    docker::ServiceServiceStatus {
        running_tasks: Some(running.count() as u64),
        desired_tasks: Some(match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => wanted().count() as u64,
        }),
        completed_tasks: Some(0),
    }
}

/// The service meant by an id, a name or the beginning of an id.
pub(super) fn find(state: &store::State, reference: &str) -> Result<Arc<Service>, ApiError> {
    reference::find(
        "service",
        reference,
        state.services(),
        |service| service.id.to_string(),
        |service| service.spec.name.clone(),
    )
    .cloned()
}

pub(super) async fn inspect(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
    params: Params,
) -> Result<Json<ServiceObject>, ApiError> {
    let service = find(&*state(&node)?, &reference)?;
    Ok(Json(convert::service(
        &service,
        params.flag("insertDefaults"),
        None,
    )))
}

pub(super) async fn create(
    State(node): State<Ctx>,
    Body(mut spec): Body<docker::ServiceSpec>,
) -> Result<(StatusCode, Json<docker::ServiceCreateResponse>), ApiError> {
    let store = store(&node)?;
    let state = store.state();
    convert::resolve_networks(&mut spec, |target| network_id(&state, target))?;
    convert::tag_image(&mut spec);
    let mut spec = convert::service_spec_from_docker(&spec)?;
    convert::check_service(&spec)?;
    check_ports_free(&node, &state, &spec)?;
    if spec.name.is_empty() {
        spec.name = free_name(&state);
    }
    let id: ServiceId = ops::create_service(&store, spec).await?;
    let response = docker::ServiceCreateResponse {
        id: Some(id.to_string()),
        warnings: None,
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// Nobody on this node listens where the service is to be published: the programs would take that
/// process's packets. A port that a service publishes is `ops`' to judge. Other nodes are not asked, and
/// one of host mode is its task's: a node that cannot have it refuses the task.
fn check_ports_free(node: &Ctx, state: &store::State, spec: &ServiceSpec) -> Result<(), ApiError> {
    let mut published: BTreeMap<(Protocol, u16), Vec<Vec<Ipv4Addr>>> = BTreeMap::new();
    for (port, addrs) in state
        .services()
        .flat_map(|it| mesh_ports(&it.endpoint.ports, &it.spec))
    {
        published.entry(port).or_default().push(addrs);
    }
    let new = mesh_ports(&spec.endpoint.ports, spec)
        .filter_map(|(port, addrs)| match published.get(&port) {
            None => Some((port, addrs)),
            // It meets the other's addresses, or is on all that it was on.
            Some(others) if addrs.is_empty() || others.iter().any(Vec::is_empty) => None,
            Some(others) => {
                let is_new = |addr: &Ipv4Addr| others.iter().all(|other| !other.contains(addr));
                let addrs: Vec<_> = addrs.into_iter().filter(is_new).collect();
                (!addrs.is_empty()).then_some((port, addrs))
            }
        })
        .collect();
    match node.port_user(&new) {
        None => Ok(()),
        Some(((protocol, port), user)) => Err(ApiError::invalid(format!(
            "port '{port}' ({protocol}) is already in use on this node by {user}: stop it, or \
             publish another port"
        ))),
    }
}

/// The numbered ones of the mesh, with their addresses.
fn mesh_ports<'a>(
    ports: &'a [PortSpec],
    spec: &ServiceSpec,
) -> impl Iterator<Item = ((Protocol, u16), Vec<Ipv4Addr>)> + use<'a> {
    let traffic = Traffic::of(&spec.labels).unwrap_or_default();
    ports
        .iter()
        .filter(|port| port.mode == PublishMode::Ingress)
        .filter_map(|port| Some((port.protocol, port.published?)))
        .map(move |(protocol, port)| ((protocol, port), traffic.addresses_of(protocol, port)))
}

/// A name for a service that the user gave none.
fn free_name(state: &store::State) -> String {
    const COLOURS: [&str; 16] = [
        "amber", "azure", "black", "blue", "brown", "coral", "green", "grey", "indigo", "ivory",
        "olive", "purple", "red", "silver", "white", "yellow",
    ];
    const BIRDS: [&str; 16] = [
        "crane", "dove", "eagle", "falcon", "finch", "heron", "ibis", "kite", "lark", "owl",
        "raven", "robin", "stork", "swan", "swift", "wren",
    ];
    loop {
        let random = ServiceId::generate().raw();
        let word = |words: &[&'static str; 16], shift: u32| words[(random >> shift) as usize % 16];
        let name = format!(
            "{}_{}_{}",
            word(&COLOURS, 0),
            word(&BIRDS, 4),
            (random >> 8) as u16
        );
        if state.service_by_name(&name).is_none() {
            return name;
        }
    }
}

/// The network that a spec names. Docker answers 500 for one that does not exist.
fn network_id(state: &store::State, target: &str) -> Result<NetworkId, ApiError> {
    match networks::find(state, target) {
        Ok(network) => Ok(network.id),
        Err(err) if err.status == StatusCode::NOT_FOUND => Err(ApiError::internal(err.message)),
        Err(err) => Err(err),
    }
}

pub(super) async fn update(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
    params: Params,
    Body(mut spec): Body<docker::ServiceSpec>,
) -> Result<Json<Value>, ApiError> {
    let store = store(&node)?;
    let version = params.version("service")?;
    let state = store.state();
    let service = find(&state, &reference)?;
    match params.get("rollback") {
        None | Some("") => {
            convert::resolve_networks(&mut spec, |target| network_id(&state, target))?;
            convert::tag_image(&mut spec);
            let spec = convert::service_spec_from_docker(&spec)?;
            convert::check_service(&spec)?;
            check_ports_free(&node, &state, &spec)?;
            ops::update_service(&store, service.id, version, spec).await?;
        }
        // The body is the current spec and counts for nothing.
        Some("previous") => {
            if let Some(previous) = &service.previous_spec {
                check_ports_free(&node, &state, previous)?;
            }
            ops::rollback_service(&store, service.id, version).await?;
        }
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "unrecognized rollback option {other}"
            )));
        }
    }
    Ok(Json(json!({"Warnings": null})))
}

pub(super) async fn remove(
    State(node): State<Ctx>,
    Path(reference): Path<String>,
) -> Result<(), ApiError> {
    let store = store(&node)?;
    let service = find(&store.state(), &reference)?;
    ops::remove_service(&store, service.id).await?;
    Ok(())
}
