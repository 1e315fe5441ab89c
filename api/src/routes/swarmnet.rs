//! What Docker does not have.

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::header::{CONTENT_LENGTH, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use model::inspect::{DoubtRow, NodeRow, Table, TraceAnswer, TraceQuery};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::{Ctx, leader};
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
    let mut rows = rows.unwrap_or_default();
    for doubted in doubts(&node).await? {
        let row = rows.iter_mut().find(|row| row.id == doubted.node);
        row.into_iter()
            .for_each(|row| row.doubt = Some(doubted.doubt.clone()));
    }
    Ok(Json(rows))
}

/// Of whom this node's own agent is not sure.
async fn doubts(node: &Ctx) -> Result<Vec<DoubtRow>, ApiError> {
    let rows = node.inspect(Table::Nodes).await?;
    serde_json::from_value(rows)
        .map_err(|err| ApiError::internal(format!("the agent's answer is not read: {err}")))
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

/// `GET /swarmnet/backup`: a tar archive to restore this manager's state directory from, with every
/// change that was acknowledged before. When no leader tells what these are, it has what this manager
/// has, and a warning.
pub(super) async fn backup(State(node): State<Ctx>) -> Result<Response, ApiError> {
    let manager = super::manager(&node)?;
    let caught_up = leader::catch_up(&manager).await;
    let file = node.backup().await?;
    let len = file.metadata();
    let len = len.map_err(|err| ApiError::internal(format!("cannot read the backup: {err}")))?;
    let headers = [
        (CONTENT_TYPE, "application/x-tar".to_owned()),
        // Who reads it notices an early end.
        (CONTENT_LENGTH, len.len().to_string()),
    ];
    let body = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(file)));
    let response = (headers, body).into_response();
    Ok(match caught_up {
        Ok(()) => response,
        Err(missing) => leader::stale(response, &missing),
    })
}
