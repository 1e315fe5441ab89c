//! Calls between managers. Their network is behind [`RaftTransport`]: gRPC in a real manager, a
//! simulated one in tests.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize};

use super::{LogId, Member, RaftId, TypeConfig, ahead::Ahead};
use crate::{
    election::{ANSWER_TIMEOUT, Voter},
    standing::Contacts,
};

/// Between calls to a manager that is not there.
const BACKOFF: Duration = Duration::from_millis(250);

/// A request to one manager. The receiver hands it to [`Store::answer`](crate::Store::answer).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RaftCall {
    /// An address may have passed to another manager: who is not meant does not answer.
    pub to: RaftId,
    pub request: RaftRequest,
}

/// Raft's requests, opaque to whoever carries them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RaftRequest {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<RaftId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    /// Would you vote for the caller, whose log ends with this entry?
    WouldVote {
        last: Option<LogId>,
    },
}

/// The answer to the request of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum RaftReply {
    Append(Result<AppendEntriesResponse<RaftId>, RaftError<RaftId>>),
    Vote(Result<VoteResponse<RaftId>, RaftError<RaftId>>),
    Snapshot(SnapshotReply),
    WouldVote(bool),
}

type SnapshotReply =
    Result<InstallSnapshotResponse<RaftId>, RaftError<RaftId, InstallSnapshotError>>;

/// No answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manager {to} at {}: {reason}", member.addr)]
pub struct TransportError {
    pub to: RaftId,
    pub member: Member,
    pub reason: String,
}

/// Carries calls to other managers. Calls may be lost, repeated and overtake each other.
#[async_trait]
pub trait RaftTransport: fmt::Debug + Send + Sync + 'static {
    /// Dropped when it takes too long.
    ///
    /// # Errors
    /// When no answer came; it may still have been received.
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError>;
}

/// Reaches nobody: for a cluster of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTransport;

#[async_trait]
impl RaftTransport for NoTransport {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        Err(TransportError {
            to: call.to,
            member: member.clone(),
            reason: "this manager has no network".to_owned(),
        })
    }
}

/// Answers a call that has come in.
pub(crate) async fn answer(voter: &Voter, request: RaftRequest) -> RaftReply {
    let Voter { raft, .. } = voter;
    match request {
        RaftRequest::Append(request) => RaftReply::Append(raft.append_entries(request).await),
        RaftRequest::Vote(request) => RaftReply::Vote(raft.vote(request).await),
        RaftRequest::Snapshot(request) => RaftReply::Snapshot(raft.install_snapshot(request).await),
        RaftRequest::WouldVote { last } => RaftReply::WouldVote(voter.would_vote(last).await),
    }
}

/// openraft's view of a [`RaftTransport`].
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn RaftTransport>,
    pub(crate) contacts: Arc<Contacts>,
    pub(super) ahead: Arc<Ahead>,
}

/// To one manager.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) to: RaftId,
    pub(super) member: Member,
    pub(super) network: Network,
}

impl Network {
    pub(crate) fn new(transport: Arc<dyn RaftTransport>, contacts: Arc<Contacts>) -> Self {
        Self {
            transport,
            contacts,
            ahead: Arc::default(),
        }
    }

    pub(super) fn to(&self, to: RaftId, member: &Member) -> Peer {
        Peer {
            to,
            member: member.clone(),
            network: self.clone(),
        }
    }

    /// The manager's name if it would vote for this one, whose log ends with `last`.
    pub(crate) async fn would_vote(
        &self,
        to: RaftId,
        member: &Member,
        last: Option<LogId>,
    ) -> Option<RaftId> {
        let request = RaftRequest::WouldVote { last };
        let answer = self.to(to, member).call(request, ANSWER_TIMEOUT).await;
        matches!(answer, Ok(RaftReply::WouldVote(true))).then_some(to)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, to: RaftId, member: &Member) -> Peer {
        self.to(to, member)
    }
}

/// No answer came.
#[derive(Debug)]
pub(super) enum Failure {
    /// In time.
    Late(TransportError),
    /// The call could not be made, or broke.
    Broken(TransportError),
}

impl<E: std::error::Error> From<Failure> for CallError<E> {
    fn from(failure: Failure) -> Self {
        match failure {
            // The next call, which follows at once, may be answered: a busy disk is not a dead peer.
            Failure::Late(error) => NetworkError::new(&error).into(),
            Failure::Broken(error) => Unreachable::new(&error).into(),
        }
    }
}

type CallError<E> = RPCError<RaftId, Member, E>;

impl Peer {
    pub(super) async fn call(
        &self,
        request: RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, Failure> {
        let call = RaftCall {
            to: self.to,
            request,
        };
        let Network {
            transport,
            contacts,
            ..
        } = &self.network;
        let answer = transport.call(&self.member, call);
        match tokio::time::timeout(within, answer).await {
            Ok(answer) => {
                let answer = answer.map_err(Failure::Broken)?;
                contacts.answered(self.to);
                Ok(answer)
            }
            Err(_) => Err(Failure::Late(self.failure("no answer in time"))),
        }
    }

    #[expect(
        clippy::result_large_err,
        reason = "it is what openraft's trait returns"
    )]
    fn answered<T, E>(&self, answer: Option<Result<T, E>>) -> Result<T, CallError<E>>
    where
        E: std::error::Error,
    {
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(RemoteError::new(self.to, error).into()),
            None => Err(Unreachable::new(&self.failure("it answered another question")).into()),
        }
    }

    fn failure(&self, reason: &str) -> TransportError {
        TransportError {
            to: self.to,
            member: self.member.clone(),
            reason: reason.to_owned(),
        }
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, CallError<RaftError<RaftId>>> {
        let reply = match self.sent_ahead(&request).await {
            Some(reply) => reply?,
            None => {
                self.call(RaftRequest::Append(request), option.hard_ttl())
                    .await?
            }
        };
        self.heard(&reply);
        self.answered(match reply {
            RaftReply::Append(answer) => Some(answer),
            _ => None,
        })
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftId>, CallError<RaftError<RaftId, InstallSnapshotError>>>
    {
        let reply = self
            .call(RaftRequest::Snapshot(request), option.hard_ttl())
            .await?;
        self.answered(match reply {
            RaftReply::Snapshot(answer) => Some(answer),
            _ => None,
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, CallError<RaftError<RaftId>>> {
        let reply = self
            .call(RaftRequest::Vote(request), option.hard_ttl())
            .await?;
        self.answered(match reply {
            RaftReply::Vote(answer) => Some(answer),
            _ => None,
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
