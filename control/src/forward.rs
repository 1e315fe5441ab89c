//! Requests of the Docker API that reached a manager which does not lead: the leader answers them.

use std::{sync::Arc, time::Duration};

use ca::{Connector, NodeTls};
use model::rpc::{Api, ApiClient, ApiRequest, ApiResponse};
use store::{Standing, Store, raft::Member};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Request, Response, Status};

/// For the managers to choose a leader, and for requests to find it.
const ELECTION_WAIT: Duration = Duration::from_secs(4);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(100);
/// For the leader to answer. It waits for its quorum itself, so this bounds only its death.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// Answers the Docker API's requests on this node.
#[tonic::async_trait]
pub trait ApiHandler: Send + Sync + 'static {
    /// Never forwards: who asks holds this manager for the leader.
    async fn answer(&self, request: ApiRequest) -> ApiResponse;
}

/// What became of a request that was to go to the leader.
#[derive(Debug)]
pub enum Forwarded {
    /// This manager leads: the request is its own to answer.
    Here,
    Answered(ApiResponse),
    /// Nobody leads. These managers do not answer.
    NoLeader {
        missing: Vec<Member>,
    },
    /// The leader may have done it, and has not said so.
    InDoubt {
        leader: Member,
        reason: String,
    },
}

/// Has the leader answer, once there is one.
pub(crate) async fn forward(store: &Store, tls: &NodeTls, request: &ApiRequest) -> Forwarded {
    let deadline = Instant::now() + ELECTION_WAIT;
    let mut standing = store.standing();
    loop {
        let now = standing.borrow_and_update().clone();
        match now {
            Standing::Leads { .. } => return Forwarded::Here,
            Standing::Follows { member, .. } => match ask(tls, &member, request).await {
                Asked::Answered(response) => return Forwarded::Answered(response),
                Asked::InDoubt(reason) => {
                    let leader = member;
                    return Forwarded::InDoubt { leader, reason };
                }
                Asked::NotDone => {}
            },
            Standing::Vacant => {}
        }
        if Instant::now() >= deadline {
            let missing = store.unreachable();
            return Forwarded::NoLeader { missing };
        }
        news(&mut standing).await;
    }
}

async fn news(standing: &mut watch::Receiver<Standing>) {
    // Whichever: a leader that is not one yet, or cannot be reached, is asked again.
    let _ = tokio::time::timeout(RETRY, standing.changed()).await;
}

enum Asked {
    Answered(ApiResponse),
    /// Certainly.
    NotDone,
    InDoubt(String),
}

/// A connection of its own for each request: only so is one that cannot be made told from one that
/// broke when the request may have been on it.
async fn ask(tls: &NodeTls, leader: &Member, request: &ApiRequest) -> Asked {
    let Ok(channel) = net::dial(&Connector::member(tls), leader.addr).await else {
        return Asked::NotDone;
    };
    let mut client = ApiClient::new(channel)
        .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
    match tokio::time::timeout(ANSWER_WAIT, client.forward(request.clone())).await {
        Ok(Ok(response)) => Asked::Answered(response.into_inner()),
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => Asked::NotDone,
        Ok(Err(status)) => Asked::InDoubt(status.message().to_owned()),
        Err(_) => Asked::InDoubt(format!("no answer within {ANSWER_WAIT:?}")),
    }
}

/// Answers what other managers forward.
#[derive(Clone)]
pub(crate) struct ApiService {
    pub(crate) store: Store,
    pub(crate) handler: Arc<dyn ApiHandler>,
}

#[tonic::async_trait]
impl Api for ApiService {
    async fn forward(&self, request: Request<ApiRequest>) -> Result<Response<ApiResponse>, Status> {
        if !self.store.standing().borrow().leads() {
            return Err(Status::failed_precondition("this manager does not lead"));
        }
        let response = self.handler.answer(request.into_inner()).await;
        Ok(Response::new(response))
    }
}
