//! Every route, by subject.

mod distribution;
mod engine;
mod events;
mod leader;
mod leave;
mod networks;
mod nodes;
mod services;
mod swarm;
mod warning;
pub use swarm::WRONG_KEY;
mod swarmnet;
mod system;
mod tasks;

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{delete, get, post},
};
use control::Manager;
use store::{State, Store};

use crate::{
    error::ApiError,
    local_node::{LocalNode, LocalStatus, MemberState},
    version,
};

pub use leader::Answers;
#[cfg(any(test, fuzzing))]
pub(crate) use swarm::{init_request, join_params};

/// What every handler gets.
pub(crate) type Ctx = Arc<dyn LocalNode>;

/// All routes, with and without a version in the path, for [`crate::serve`].
pub fn router(node: Arc<dyn LocalNode>) -> Router {
    let cluster = Router::new()
        .merge(cluster())
        .merge(objects())
        .merge(networks())
        .route_layer(from_fn_with_state(node.clone(), leader::lead));
    let routes = Router::new()
        .merge(system())
        .merge(swarm())
        .merge(cluster)
        .merge(engine::routes())
        .route("/swarmnet/inspect/{table}", get(swarmnet::inspect))
        .route("/swarmnet/trace", get(swarmnet::trace))
        .route("/swarmnet/backup", get(swarmnet::backup))
        .fallback(async || version::page_not_found())
        .method_not_allowed_fallback(async || version::page_not_found())
        .with_state(node);
    // Around the routes and not among them: the path decides the route.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn(version::negotiate))
}

fn system() -> Router<Ctx> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/events", get(events::events))
}

fn swarm() -> Router<Ctx> {
    Router::new()
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(leave::leave))
        .route("/swarm/unlock", post(swarm::unlock))
}

fn cluster() -> Router<Ctx> {
    Router::new()
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarmnet/inspect/nodes", get(swarmnet::nodes))
}

fn objects() -> Router<Ctx> {
    Router::new()
        .route("/nodes", get(nodes::list))
        .route(
            "/nodes/{reference}",
            get(nodes::inspect).delete(nodes::remove),
        )
        .route("/nodes/{reference}/update", post(nodes::update))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route(
            "/services/{reference}",
            get(services::inspect).delete(services::remove),
        )
        .route("/services/{reference}/update", post(services::update))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{reference}", get(tasks::inspect))
        .route("/distribution/{*image}", get(distribution::inspect))
}

fn networks() -> Router<Ctx> {
    Router::new()
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/{reference}", get(networks::inspect))
        .route("/networks/{reference}", delete(networks::remove))
}

/// The manager's store, or the sentence that says why there is none here.
pub(crate) fn store(node: &Ctx) -> Result<Store, ApiError> {
    manager(node).map(|manager| manager.store().clone())
}

/// As Docker's.
fn locked() -> ApiError {
    ApiError::unavailable(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker \
         swarm unlock\" to unlock it.",
    )
}

fn restored() -> ApiError {
    ApiError::unavailable(
        "This manager was restored from a backup. If all others are lost, make it the only one with \
         `swarmnet init --force-new-cluster`; if not, demote it on one of them and promote it again.",
    )
}

fn no_manager(status: &LocalStatus) -> ApiError {
    if let (MemberState::Manager, Some(reason)) = (status.state, &status.error) {
        return ApiError::unavailable(format!(
            "The manager of this node does not run, and starts by itself when it can: {reason}"
        ));
    }
    let sentence = match status.state {
        MemberState::Locked => return locked(),
        MemberState::Restored => return restored(),
        MemberState::Inactive | MemberState::Pending => {
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
             to connect this node to swarm and try again."
        }
        MemberState::Worker => {
            "This node is not a swarm manager. Worker nodes can't be used to view or modify \
             cluster state. Please run this command on a manager node or promote the current \
             node to a manager."
        }
        MemberState::Manager => "The manager of this node is starting. Please try again.",
    };
    let managers: Vec<_> = status
        .remote_managers
        .iter()
        .map(|manager| manager.addr.to_string())
        .collect();
    match (status.state, &managers[..]) {
        (MemberState::Worker, [_, ..]) => ApiError::unavailable(format!(
            "{sentence} The managers are at {}.",
            managers.join(", ")
        )),
        _ => ApiError::unavailable(sentence),
    }
}

/// The manager of this node, or the sentence that says why there is none.
pub(crate) fn manager(node: &Ctx) -> Result<Manager, ApiError> {
    node.manager().ok_or_else(|| no_manager(&node.status()))
}

/// The newest state of [`store()`].
pub(crate) fn state(node: &Ctx) -> Result<Arc<State>, ApiError> {
    store(node).map(|store| store.state())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_node::RemoteManager;

    #[test]
    fn who_is_no_manager_gets_swarms_sentence() {
        let sentence = |state| {
            let err = no_manager(&LocalStatus {
                state,
                ..LocalStatus::default()
            });
            assert_eq!(err.status, 503);
            err.message
        };
        assert_eq!(
            sentence(MemberState::Inactive),
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
        );
        assert_eq!(
            sentence(MemberState::Worker),
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
        );
    }

    #[test]
    fn worker_names_the_managers() {
        let managers = ["192.0.2.1:2377", "192.0.2.2:2377"].map(|addr| RemoteManager {
            node: None,
            addr: addr.parse().unwrap(),
        });
        let err = no_manager(&LocalStatus {
            state: MemberState::Worker,
            remote_managers: managers.into(),
            ..LocalStatus::default()
        });
        let end = "The managers are at 192.0.2.1:2377, 192.0.2.2:2377.";
        assert!(err.message.ends_with(end), "{err}");
    }
}
