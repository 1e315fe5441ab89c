//! What a user may do. Every function checks everything and commits one transaction, or changes
//! nothing and says why, in Docker's words where Docker has words for it.
//!
//! The functions on a [`store::Transaction`] are the same without the commit.

pub mod cluster;
mod error;
pub mod network;
pub mod node;
pub mod service;
#[cfg(test)]
mod tests;
mod validate;

use model::{
    NetworkId, NodeId, ServiceId, Version,
    spec::{ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec},
};
use store::{Store, Transaction};

pub use cluster::Rotate;
pub use error::OpError;

/// Makes a service. Its addresses and ports are allocated at once, its tasks follow.
///
/// # Errors
/// A spec that makes no sense, a taken name or port, a full network.
pub async fn create_service(store: &Store, spec: ServiceSpec) -> Result<ServiceId, OpError> {
    commit(store, |tx| service::create(tx, spec)).await
}

/// Replaces the spec of a service, if it is still as at `version`. That the orchestrator wrote the
/// service since does not matter.
///
/// # Errors
/// As [`create_service`]; [`OpError::OutOfSequence`]; another name or mode.
pub async fn update_service(
    store: &Store,
    id: ServiceId,
    version: Version,
    spec: ServiceSpec,
) -> Result<(), OpError> {
    commit(store, |tx| service::update(tx, id, version, spec)).await
}

/// Takes a service back to its previous spec, if its spec is still as at `version`.
///
/// # Errors
/// As [`update_service`]; no previous spec.
pub async fn rollback_service(
    store: &Store,
    id: ServiceId,
    version: Version,
) -> Result<(), OpError> {
    commit(store, |tx| service::rollback(tx, id, version)).await
}

/// Removes a service; its ports and VIPs are free at once, its tasks end in their own time.
///
/// # Errors
/// No such service.
pub async fn remove_service(store: &Store, id: ServiceId) -> Result<(), OpError> {
    commit(store, |tx| service::remove(tx, id)).await
}

/// Makes an overlay network.
///
/// # Errors
/// A taken name, a subnet that overlaps another's, no subnet left.
pub async fn create_network(store: &Store, spec: NetworkSpec) -> Result<NetworkId, OpError> {
    commit(store, |tx| network::create(tx, spec)).await
}

/// Removes a network that no service uses.
///
/// # Errors
/// No such network, or one in use.
pub async fn remove_network(store: &Store, id: NetworkId) -> Result<(), OpError> {
    commit(store, |tx| network::remove(tx, id)).await
}

/// Replaces the spec of a node, if it is still as at `version`, whatever became of the node since.
///
/// # Errors
/// [`OpError::OutOfSequence`], or a manager that the others cannot do without.
pub async fn update_node(
    store: &Store,
    id: NodeId,
    version: Version,
    spec: NodeSpec,
) -> Result<(), OpError> {
    let is_reachable = |id| store.is_reachable(id);
    commit(store, |tx| {
        node::update(tx, id, version, spec, is_reachable)
    })
    .await
}

/// Removes a node that is down, or any worker with `force`.
///
/// # Errors
/// A node that is up, or a manager.
pub async fn remove_node(store: &Store, id: NodeId, force: bool) -> Result<(), OpError> {
    commit(store, |tx| node::remove(tx, id, force)).await
}

/// Replaces the cluster's settings, if its version is still `version`, and the secrets named.
///
/// # Errors
/// [`OpError::OutOfSequence`], or settings that make no sense.
pub async fn update_cluster(
    store: &Store,
    version: Version,
    spec: ClusterSpec,
    rotate: Rotate,
) -> Result<(), OpError> {
    commit(store, |tx| cluster::update(tx, version, spec, rotate)).await
}

async fn commit<T>(
    store: &Store,
    op: impl FnOnce(&mut Transaction) -> Result<T, OpError> + Send,
) -> Result<T, OpError> {
    let (out, _) = store.write(op).await?;
    Ok(out)
}
