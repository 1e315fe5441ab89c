//! What Docker does not have.

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use model::inspect::{Table, TraceAnswer, TraceQuery};
use serde_json::Value;

use super::Ctx;
use crate::error::ApiError;

/// `GET /swarmnet/inspect/{table}`: the rows of a table as a JSON array. `nodes` is the
/// managers', the others are of this node's data plane.
pub(super) async fn inspect(
    State(node): State<Ctx>,
    Path(table): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let table = serde_json::from_value(Value::String(table.clone())).map_err(|_| {
        ApiError::invalid(format!(
            "no table `{table}`: want vips, dns, services, endpoints, backends, flows, drops or nodes"
        ))
    })?;
    if table != Table::Nodes {
        return node.inspect(table).await.map(Json);
    }
    super::store(&node)?;
    let rows = node
        .manager()
        .map(|manager| manager.node_rows())
        .unwrap_or_default();
    let rows = serde_json::to_value(rows)
        .map_err(|err| ApiError::internal(format!("cannot encode the rows: {err}")))?;
    Ok(Json(rows))
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
