//! What Docker does not have.

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use model::inspect::{NodeRow, TraceAnswer, TraceQuery};
use serde_json::Value;

use super::Ctx;
use crate::error::ApiError;

/// `GET /swarmnet/inspect/{table}`: the rows of a table of this node's data plane as a JSON array.
/// `nodes` is the managers': [`nodes`].
pub(super) async fn inspect(
    State(node): State<Ctx>,
    Path(table): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let table = serde_json::from_value(Value::String(table.clone())).map_err(|_| {
        ApiError::invalid(format!(
            "no table `{table}`: want vips, dns, services, endpoints, backends, flows, drops or nodes"
        ))
    })?;
    node.inspect(table).await.map(Json)
}

/// `GET /swarmnet/inspect/nodes`: the nodes, and how far each follows.
pub(super) async fn nodes(State(node): State<Ctx>) -> Result<Json<Vec<NodeRow>>, ApiError> {
    super::store(&node)?;
    let rows = node.manager().map(|manager| manager.node_rows());
    Ok(Json(rows.unwrap_or_default()))
}

/// `GET /swarmnet/trace`: where a packet would go from this node, and why. The query is a
/// [`TraceQuery`].
pub(super) async fn trace(
    State(node): State<Ctx>,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Result<Json<TraceAnswer>, ApiError> {
    let Query(query) = query.map_err(|err| ApiError::invalid(err.body_text()))?;
    node.trace(query).await.map(Json)
}
