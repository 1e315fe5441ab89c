//! Calls between managers. Their network is behind [`RaftTransport`]: gRPC in a real manager, a
//! simulated one in tests.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use openraft::{
    RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize};

use super::{Member, Raft, RaftId, TypeConfig};
use crate::standing::Contacts;

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
}

/// The answer to the request of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum RaftReply {
    Append(Result<AppendEntriesResponse<RaftId>, RaftError<RaftId>>),
    Vote(Result<VoteResponse<RaftId>, RaftError<RaftId>>),
    Snapshot(SnapshotReply),
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
pub(crate) async fn answer(raft: &Raft, request: RaftRequest) -> RaftReply {
    match request {
        RaftRequest::Append(request) => RaftReply::Append(raft.append_entries(request).await),
        RaftRequest::Vote(request) => RaftReply::Vote(raft.vote(request).await),
        RaftRequest::Snapshot(request) => RaftReply::Snapshot(raft.install_snapshot(request).await),
    }
}

/// openraft's view of a [`RaftTransport`].
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn RaftTransport>,
    pub(crate) contacts: Arc<Contacts>,
}

/// To one manager.
#[derive(Debug)]
pub(crate) struct Peer {
    to: RaftId,
    member: Member,
    network: Network,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, to: RaftId, member: &Member) -> Peer {
        Peer {
            to,
            member: member.clone(),
            network: self.clone(),
        }
    }
}

type CallError<E> = RPCError<RaftId, Member, E>;

impl Peer {
    async fn call(
        &self,
        request: RaftRequest,
        option: &RPCOption,
    ) -> Result<RaftReply, Unreachable> {
        let call = RaftCall {
            to: self.to,
            request,
        };
        let Network {
            transport,
            contacts,
        } = &self.network;
        let answer = transport.call(&self.member, call);
        match tokio::time::timeout(option.hard_ttl(), answer).await {
            Ok(answer) => {
                let answer = answer.map_err(|error| Unreachable::new(&error))?;
                contacts.answered(self.to);
                Ok(answer)
            }
            Err(_) => Err(Unreachable::new(&self.failure("no answer in time"))),
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
        let reply = self.call(RaftRequest::Append(request), &option).await?;
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
        let reply = self.call(RaftRequest::Snapshot(request), &option).await?;
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
        let reply = self.call(RaftRequest::Vote(request), &option).await?;
        self.answered(match reply {
            RaftReply::Vote(answer) => Some(answer),
            _ => None,
        })
    }
}
