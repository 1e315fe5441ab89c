//! The Raft group's calls over gRPC.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use ca::{Connector, NodeTls};
use model::{
    codec,
    rpc::{Raft, RaftClient, RaftMessage},
};
use store::{
    Store,
    raft::{Member, RaftCall, RaftReply, RaftTransport, TransportError},
};
use tonic::{Request, Response, Status, transport::Channel};

/// Calls in a row that were given up before their answer came; then the connection is made anew. A
/// broken path that works again is found sooner by a new connection than by TCP's retransmissions.
const UNANSWERED_MAX: u32 = 4;

/// One connection to each other manager.
#[derive(Debug, Default)]
pub(crate) struct GrpcTransport {
    /// The founder of a cluster has none before the cluster is in the store.
    tls: OnceLock<NodeTls>,
    wires: Mutex<HashMap<SocketAddr, Wire>>,
}

#[derive(Debug)]
struct Wire {
    channel: Channel,
    /// Calls in a row.
    unanswered: u32,
}

impl GrpcTransport {
    /// As the node that has `tls`.
    pub(crate) fn secured(tls: NodeTls) -> Arc<Self> {
        let transport = Self::default();
        transport.secure(tls);
        Arc::new(transport)
    }

    /// For one that was made without.
    pub(crate) fn secure(&self, tls: NodeTls) {
        let set = self.tls.set(tls);
        set.expect("it is done once");
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Wire>> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call as unanswered until [`GrpcTransport::answered`].
    fn channel(&self, addr: SocketAddr) -> Option<Channel> {
        let connector = Connector::member(self.tls.get()?);
        let mut wires = self.lock();
        if wires
            .get(&addr)
            .is_some_and(|wire| wire.unanswered >= UNANSWERED_MAX)
        {
            wires.remove(&addr);
        }
        let wire = wires.entry(addr).or_insert_with(|| Wire {
            channel: net::dial_lazily(&connector, addr),
            unanswered: 0,
        });
        wire.unanswered += 1;
        Some(wire.channel.clone())
    }

    fn answered(&self, addr: SocketAddr) {
        if let Some(wire) = self.lock().get_mut(&addr) {
            wire.unanswered = 0;
        }
    }
}

#[tonic::async_trait]
impl RaftTransport for GrpcTransport {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        let to = call.to;
        let failed = |reason: String| TransportError {
            to,
            member: member.clone(),
            reason,
        };
        let channel = self.channel(member.addr);
        let channel =
            channel.ok_or_else(|| failed("this manager has no certificate yet".into()))?;
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
        let message = RaftMessage {
            bytes: codec::encode(&call).into(),
        };
        let answer = client.call(message).await;
        let answer = answer.map_err(|status| failed(status.message().to_owned()))?;
        self.answered(member.addr);
        codec::decode(&answer.into_inner().bytes).map_err(|error| failed(error.to_string()))
    }
}

/// Answers for the store's part of the group.
#[derive(Debug, Clone)]
pub(crate) struct RaftService {
    pub(crate) store: Store,
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn call(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let call: RaftCall = codec::decode(&request.into_inner().bytes)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let to = call.to;
        let reply = self.store.answer(call).await.ok_or_else(|| {
            Status::not_found(format!(
                "manager {to} is not here; its address passed to another one"
            ))
        })?;
        Ok(Response::new(RaftMessage {
            bytes: codec::encode(&reply).into(),
        }))
    }
}
