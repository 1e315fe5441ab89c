//! What concerns the cluster is the leader's to answer: another manager has it do so, and says when
//! there is none. Reads are then answered from what this manager last knew, with a warning; nothing
//! is changed.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use control::{ApiHandler, Forwarded, Manager};
use model::{
    NodeId, Version,
    inspect::NodeRow,
    rpc::{ApiRequest, ApiResponse},
};
use store::raft::Member;
use tower::ServiceExt;

use super::{Ctx, router, warning};
use crate::error::ApiError;

/// Of requests that are forwarded and of answers. Docker's own bound is for specs: 4 MiB.
const BODY_BYTES_MAX: usize = 32 << 20;

/// For a follower to get what the leader has.
const CATCH_UP: Duration = Duration::from_secs(5);

/// On requests that another manager forwarded: they are answered here or not at all.
#[derive(Debug, Clone, Copy)]
struct ForwardedHere;

/// Middleware around the routes that concern the cluster.
pub(super) async fn lead(State(node): State<Ctx>, request: Request, next: Next) -> Response {
    // Handlers say why there is no manager.
    let Some(manager) = node.manager() else {
        return next.run(request).await;
    };
    let leads = manager.store().standing().borrow().leads();
    if leads || request.extensions().get::<ForwardedHere>().is_some() {
        return answer(&manager, request, next).await;
    }
    let reads = is_read(request.method());
    let (parts, body) = match take(request).await {
        Ok(taken) => taken,
        Err(err) => return err.into_response(),
    };
    match manager.forward(&forwardable(&node, &parts, &body)).await {
        Forwarded::Here => {
            let request = Request::from_parts(parts, Body::from(body));
            answer(&manager, request, next).await
        }
        Forwarded::Answered(answer) => from_leader(answer),
        Forwarded::NoLeader { missing } if reads => {
            let request = Request::from_parts(parts, Body::from(body));
            stale(next.run(request).await, &missing)
        }
        Forwarded::NoLeader { missing } => no_quorum(missing).into_response(),
        Forwarded::InDoubt { leader, reason } => ApiError::unavailable(format!(
            "manager {}, which led, has not answered ({reason}): what was asked for may have been done \
             or not; see whether it took effect, and try again if not",
            leader.addr
        ))
        .into_response(),
    }
}

/// Of the leader: a read sees every change that was acknowledged before it.
async fn answer(manager: &Manager, request: Request, next: Next) -> Response {
    if !is_read(request.method()) {
        return next.run(request).await;
    }
    match manager.store().read().await {
        Ok(_) => next.run(request).await,
        Err(err) => stale(next.run(request).await, &err.missing),
    }
}

/// Waits until this manager has every change that was acknowledged before the call.
///
/// # Errors
/// The managers that are missing, when no leader tells in time.
pub(super) async fn catch_up(manager: &Manager) -> Result<(), Vec<Member>> {
    let store = manager.store();
    let request = get("/swarmnet/inspect/nodes");
    let newest = match manager.forward(&request).await {
        Forwarded::Here => return store.read().await.map(drop).map_err(|err| err.missing),
        Forwarded::Answered(answer) => newest_version(&answer.body),
        Forwarded::NoLeader { missing } => return Err(missing),
        Forwarded::InDoubt { leader, .. } => return Err(vec![leader]),
    };
    let newest = newest.ok_or_else(|| store.unreachable())?;
    let mut states = store.watch();
    let has_it = states.wait_for(|state| state.version() >= newest);
    match tokio::time::timeout(CATCH_UP, has_it).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(store.unreachable()),
    }
}

/// A question for the leader.
pub(super) fn get(uri: &str) -> ApiRequest {
    ApiRequest {
        method: Method::GET.to_string(),
        uri: uri.to_owned(),
        content_type: None,
        body: Bytes::new(),
    }
}

/// The leader's, in its answer to `inspect nodes`.
fn newest_version(body: &[u8]) -> Option<Version> {
    let rows: Vec<NodeRow> = serde_json::from_slice(body).ok()?;
    rows.first().map(|row| Version(row.current))
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

async fn take(request: Request) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|err| ApiError::invalid(format!("cannot read the request: {err}")))?;
    Ok((parts, body))
}

fn forwardable(node: &Ctx, parts: &Parts, body: &Bytes) -> ApiRequest {
    ApiRequest {
        method: parts.method.to_string(),
        uri: uri_for_another(node.status().node, &parts.uri),
        content_type: text(&parts.headers, header::CONTENT_TYPE),
        body: body.clone(),
    }
}

/// `/nodes/self` is this node, not the leader's.
fn uri_for_another(own: Option<NodeId>, uri: &Uri) -> String {
    let uri = uri.to_string();
    match (uri.strip_prefix("/nodes/self"), own) {
        (Some(rest), Some(own)) if rest.is_empty() || rest.starts_with(['/', '?']) => {
            format!("/nodes/{own}{rest}")
        }
        _ => uri,
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    value.to_str().ok().map(str::to_owned)
}

fn from_leader(answer: ApiResponse) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    let fields = [
        (header::CONTENT_TYPE, answer.content_type),
        (header::WARNING, answer.warning),
    ];
    for (name, value) in fields {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    }
    response
}

pub(super) fn stale(mut response: Response, missing: &[Member]) -> Response {
    let text = no_quorum(missing.to_vec()).message;
    let text = text.replace("so nothing can be changed", "so this may be stale");
    if let Some(value) = warning::field(warning::STALE, &text) {
        response.headers_mut().insert(header::WARNING, value);
    }
    response
}

/// The sentence for what cannot be done without a leader.
pub(super) fn no_quorum(missing: Vec<Member>) -> ApiError {
    let error = store::WriteError::<std::convert::Infallible>::NoQuorum { missing };
    ApiError::unavailable(error.to_string())
}

/// Answers what other managers forward, for [`control::ManagerConfig::api`].
pub struct Answers(axum::Router);

impl Answers {
    pub fn new(node: Ctx) -> Self {
        Self(router(node))
    }
}

#[async_trait::async_trait]
impl ApiHandler for Answers {
    async fn answer(&self, request: ApiRequest) -> ApiResponse {
        let mut built = Request::builder()
            .method(request.method.as_str())
            .uri(request.uri)
            .extension(ForwardedHere);
        if let Some(content_type) = request.content_type {
            built = built.header(header::CONTENT_TYPE, content_type);
        }
        let response = match built.body(Body::from(request.body)) {
            Ok(request) => {
                let Ok(response) = self.0.clone().oneshot(request).await;
                response
            }
            Err(err) => ApiError::invalid(format!("not a request: {err}")).into_response(),
        };
        let (parts, body) = response.into_parts();
        match to_bytes(body, BODY_BYTES_MAX).await {
            Ok(body) => ApiResponse {
                status: parts.status.as_u16(),
                content_type: text(&parts.headers, header::CONTENT_TYPE),
                warning: text(&parts.headers, header::WARNING),
                body,
            },
            Err(_) => ApiResponse {
                status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
                content_type: None,
                warning: None,
                body: Bytes::from_static(b"the answer is too long to be forwarded"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, routing::get};

    use super::*;

    #[test]
    fn self_is_the_node_that_was_asked() {
        let own = NodeId::from_raw(7);
        let forwarded = |uri: &'static str| uri_for_another(Some(own), &Uri::from_static(uri));
        assert_eq!(forwarded("/nodes/self"), format!("/nodes/{own}"));
        assert_eq!(
            forwarded("/nodes/self/update?version=3"),
            format!("/nodes/{own}/update?version=3")
        );
        assert_eq!(forwarded("/nodes/selfish"), "/nodes/selfish");
        assert_eq!(
            forwarded("/services?x=/nodes/self"),
            "/services?x=/nodes/self"
        );
    }

    #[test]
    fn stale_answer_says_so_and_who_is_missing() {
        let missing = [Member {
            addr: "192.0.2.2:2377".parse().unwrap(),
        }];
        let response = stale(StatusCode::OK.into_response(), &missing);
        let warning = response.headers()[header::WARNING].to_str().unwrap();
        assert_eq!(
            warning,
            "110 swarmnet \"the managers have no quorum, so this may be stale: manager \
             192.0.2.2:2377 cannot be reached\""
        );
        let refused = no_quorum(missing.into());
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            refused.message.contains("nothing can be changed"),
            "{refused}"
        );
    }

    /// Of a leader that has just lost its quorum, a read through another manager says so as well.
    #[tokio::test]
    async fn the_leaders_answer_is_passed_on_as_it_is() {
        let missing = [Member {
            addr: "192.0.2.2:2377".parse().unwrap(),
        }];
        let read = async move || stale((StatusCode::CONFLICT, Json(())).into_response(), &missing);
        let leader = Answers(axum::Router::new().route("/services", get(read)));
        let request = ApiRequest {
            method: "GET".to_owned(),
            uri: "/services".to_owned(),
            content_type: None,
            body: Bytes::new(),
        };
        let response = from_leader(leader.answer(request).await);
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let warning = response.headers()[header::WARNING].to_str().unwrap();
        assert!(warning.contains("may be stale"), "{warning}");
    }
}
