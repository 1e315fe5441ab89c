//! Requests of the Docker API that reached a manager which does not lead: the leader answers them.

use std::{error::Error, sync::Arc, time::Duration};

use ca::{Connector, NodeTls};
use model::rpc::{Api, ApiClient, ApiRequest, ApiResponse};
use store::{
    Standing, Store,
    raft::{Member, RaftId},
};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Request, Response, Status};

/// For the managers to choose a leader, and for requests to find it.
const ELECTION_WAIT: Duration = Duration::from_secs(4);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(100);
/// For the leader to answer. It waits for its quorum itself, and when it dies another is elected, so this
/// bounds only what holds up a leader that leads on.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// For a former leader to say what became of a change: it may live, or have given up the lead by that.
const LAST_WORD: Duration = Duration::from_millis(500);

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

/// Has the leader answer, once there is one. Of several in a row the last, as long as nothing was
/// changed by one before.
pub(crate) async fn forward(store: &Store, tls: &NodeTls, request: &ApiRequest) -> Forwarded {
    let mut deadline = Instant::now() + ELECTION_WAIT;
    let mut standing = store.standing();
    loop {
        let now = standing.borrow_and_update().clone();
        match now {
            Standing::Leads { .. } => return Forwarded::Here,
            Standing::Follows { leader, member } => {
                let lost = lost(standing.clone(), leader);
                match ask(tls, &member, request, lost).await {
                    Asked::Answered(response) => return Forwarded::Answered(response),
                    Asked::InDoubt(reason) => {
                        let leader = member;
                        return Forwarded::InDoubt { leader, reason };
                    }
                    Asked::NotDone => {}
                    Asked::Lost => {
                        deadline = Instant::now() + ELECTION_WAIT;
                        continue;
                    }
                }
            }
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

/// Returns when `leader` leads no more, as far as this manager knows: it hears of an election long
/// before a connection to a machine that is gone breaks.
async fn lost(mut standing: watch::Receiver<Standing>, leader: RaftId) {
    let leads = |standing: &Standing| matches!(standing, Standing::Follows { leader: now, .. } if *now == leader);
    // An error is the end of this manager.
    let _ = standing.wait_for(|standing| !leads(standing)).await;
}

enum Asked {
    Answered(ApiResponse),
    /// Certainly.
    NotDone,
    /// As much, and another is to be asked.
    Lost,
    InDoubt(String),
}

/// A connection of its own for each request: only so is one that cannot be made told from one that
/// broke when the request may have been on it. A question may be put to another then.
async fn ask(
    tls: &NodeTls,
    leader: &Member,
    request: &ApiRequest,
    lost: impl Future<Output = ()>,
) -> Asked {
    tokio::pin!(lost);
    let connector = Connector::member(tls);
    let channel = tokio::select! {
        channel = net::dial(&connector, leader.addr) => channel,
        () = &mut lost => return Asked::Lost,
    };
    let Ok(channel) = channel else {
        return Asked::NotDone;
    };
    let mut client = ApiClient::new(channel)
        .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
    let changes_nothing = matches!(request.method.as_str(), "GET" | "HEAD");
    let given_up = async {
        lost.await;
        if !changes_nothing {
            tokio::time::sleep(LAST_WORD).await;
        }
    };
    let answer = tokio::time::timeout(ANSWER_WAIT, client.forward(request.clone()));
    let answer = tokio::select! {
        biased;
        answer = answer => answer,
        () = given_up => {
            return match changes_nothing {
                true => Asked::Lost,
                false => Asked::InDoubt("it leads no more".to_owned()),
            };
        }
    };
    match answer {
        Ok(Ok(response)) => Asked::Answered(response.into_inner()),
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => Asked::NotDone,
        Ok(Err(status)) if changes_nothing && is_broken(&status) => Asked::NotDone,
        Ok(Err(status)) => Asked::InDoubt(status.message().to_owned()),
        Err(_) => Asked::InDoubt(format!("no answer within {ANSWER_WAIT:?}")),
    }
}

/// Whether the connection failed, and not the manager at its other end: only then is there a cause.
fn is_broken(status: &Status) -> bool {
    status.source().is_some()
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
