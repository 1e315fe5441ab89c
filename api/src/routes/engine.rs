//! What clients ask of an engine with containers. A node runs tasks as processes and has no
//! containers, images or volumes; saying so keeps `docker info`, `ps` and `inspect` working.

use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    routing::{any, get},
};
use serde_json::{Value, json};

use super::Ctx;
use crate::error::ApiError;

pub(super) fn routes() -> Router<Ctx> {
    Router::new()
        .route("/containers/json", get(empty))
        .route(
            "/containers/{*rest}",
            get(no_container).fallback(unsupported_containers),
        )
        .route("/images/json", get(empty))
        .route(
            "/images/{*rest}",
            get(no_image).fallback(unsupported_images),
        )
        .route("/volumes", get(no_volumes))
        .route(
            "/volumes/{*rest}",
            get(no_volume).fallback(unsupported_volumes),
        )
        .route("/plugins", get(empty))
        .route("/plugins/{*rest}", get(no_plugin))
        .route("/secrets", get(empty))
        .route(
            "/secrets/{*rest}",
            get(no_secret).fallback(unsupported_secrets),
        )
        .route("/configs", get(empty))
        .route(
            "/configs/{*rest}",
            get(no_config).fallback(unsupported_configs),
        )
        .route("/services/{reference}/logs", any(unsupported_logs))
        .route("/tasks/{reference}/logs", any(unsupported_logs))
}

async fn empty() -> Json<[(); 0]> {
    Json([])
}

async fn no_volumes() -> Json<Value> {
    Json(json!({"Volumes": [], "Warnings": null}))
}

/// The thing's name: the path behind the collection, less a final verb such as `/json`.
fn name(rest: &str) -> &str {
    rest.rsplit_once('/').map_or(rest, |(name, _)| name)
}

async fn no_container(Path(rest): Path<String>) -> ApiError {
    not_found(format!("No such container: {}", name(&rest)))
}

async fn no_image(Path(rest): Path<String>) -> ApiError {
    not_found(format!("No such image: {}", name(&rest)))
}

async fn no_volume(Path(rest): Path<String>) -> ApiError {
    not_found(format!("get {rest}: no such volume"))
}

async fn no_plugin(Path(rest): Path<String>) -> ApiError {
    not_found(format!("plugin {:?} not found", name(&rest)))
}

async fn no_secret(Path(rest): Path<String>) -> ApiError {
    ApiError::not_found("secret", &rest)
}

async fn no_config(Path(rest): Path<String>) -> ApiError {
    ApiError::not_found("config", &rest)
}

fn not_found(message: String) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, message)
}

async fn unsupported_containers() -> ApiError {
    ApiError::unsupported("running containers beside services")
}

async fn unsupported_images() -> ApiError {
    ApiError::unsupported("managing images")
}

async fn unsupported_volumes() -> ApiError {
    ApiError::unsupported("managing volumes")
}

async fn unsupported_secrets() -> ApiError {
    ApiError::unsupported("managing secrets")
}

async fn unsupported_configs() -> ApiError {
    ApiError::unsupported("managing configs")
}

async fn unsupported_logs() -> ApiError {
    ApiError::unsupported("reading logs through the API")
}
