//! The Raft group's calls over gRPC.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
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

#[derive(Debug, Clone)]
struct Wire {
    channel: Channel,
    /// Calls in a row.
    unanswered: Arc<AtomicU32>,
}

impl Wire {
    fn is_broken(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= UNANSWERED_MAX
    }

    /// Counts as unanswered when it ends before [`Asked::answered`], however it ends: who asks drops it
    /// when it takes too long. Calls that are under way do not count.
    fn ask(&self) -> Asked {
        Asked {
            unanswered: Arc::clone(&self.unanswered),
            is_answered: false,
        }
    }
}

/// A call under way.
#[must_use]
struct Asked {
    unanswered: Arc<AtomicU32>,
    is_answered: bool,
}

impl Asked {
    fn answered(mut self) {
        self.is_answered = true;
        self.unanswered.store(0, Ordering::Relaxed);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_answered {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }
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

    fn wire(&self, addr: SocketAddr) -> Option<Wire> {
        let connector = Connector::member(self.tls.get()?);
        let mut wires = self.lock();
        if wires.get(&addr).is_some_and(Wire::is_broken) {
            wires.remove(&addr);
        }
        let wire = wires.entry(addr).or_insert_with(|| Wire {
            channel: net::dial_lazily(&connector, addr),
            unanswered: Arc::default(),
        });
        Some(wire.clone())
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
        let wire = self.wire(member.addr);
        let wire = wire.ok_or_else(|| failed("this manager has no certificate yet".into()))?;
        let asked = wire.ask();
        let mut client = RaftClient::new(wire.channel)
            .max_decoding_message_size(net::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(net::MESSAGE_BYTES_MAX);
        let message = RaftMessage {
            bytes: codec::encode(&call).into(),
        };
        let answer = client.call(message).await;
        let answer = answer.map_err(|status| failed(status.message().to_owned()))?;
        asked.answered();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_given_up_in_a_row_break_a_wire_and_calls_under_way_do_not() {
        let wire = Wire {
            channel: tonic::transport::Endpoint::from_static("http://192.0.2.1:2377")
                .connect_lazy(),
            unanswered: Arc::default(),
        };
        let under_way: Vec<_> = (0..2 * UNANSWERED_MAX).map(|_| wire.ask()).collect();
        assert!(!wire.is_broken());
        drop(under_way);
        assert!(wire.is_broken());
        wire.ask().answered();
        assert!(!wire.is_broken());
    }
}
