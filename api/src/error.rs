//! The error of every request: a status code and Docker's `{"message": …}` body.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bollard_stubs::models::ErrorResponse;
use control::ops::OpError;

/// What the client is told. The `docker` command prints `Error response from daemon: <message>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Sent as the response's status.
    pub status: StatusCode,
    /// One sentence that names the thing.
    pub message: String,
}

impl ApiError {
    /// An error with any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400, worded as Swarm's own checks of a spec are.
    pub fn invalid_argument(message: impl std::fmt::Display) -> Self {
        Self::invalid(format!(
            "rpc error: code = InvalidArgument desc = {message}"
        ))
    }

    /// 404 for an object that does not exist.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{kind} {name} not found"))
    }

    /// 500: something failed on our side.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501 for what Docker has and swarmnet does not (yet).
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not supported by swarmnet"),
        )
    }

    /// 503: this node cannot do it in its present state.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

/// The status that Docker gives the same refusal.
impl From<OpError> for ApiError {
    fn from(err: OpError) -> Self {
        let status = match err {
            OpError::NotFound { .. } => StatusCode::NOT_FOUND,
            OpError::AlreadyExists(_) => StatusCode::CONFLICT,
            OpError::InvalidArgument(_) | OpError::FailedPrecondition(_) => StatusCode::BAD_REQUEST,
            OpError::Unimplemented(_) => StatusCode::NOT_IMPLEMENTED,
            OpError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            OpError::OutOfSequence | OpError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, err.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorResponse {
            message: self.message,
        };
        (self.status, Json(body)).into_response()
    }
}
