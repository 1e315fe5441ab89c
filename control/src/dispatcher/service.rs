//! The gRPC service: takes sessions in, and sees to it that they end with the manager.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use model::{
    feed::{AgentMessage, ManagerMessage},
    rpc::Dispatcher,
};
use store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{hub::Hub, session, statuses::StatusSink};
use crate::{access::caller, liveness::Liveness};

/// Messages on their way to an agent; its session waits when it is full.
const OUTBOX_MAX: usize = 16;

/// What every session needs.
#[derive(Clone)]
pub(crate) struct DispatcherService {
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) statuses: StatusSink,
    /// Cancelled when the manager stops.
    pub(crate) cancel: CancellationToken,
    /// Sessions, so that the manager can wait for their end.
    pub(crate) sessions: TaskTracker,
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send + 'static>>;

    /// The answer comes before the agent's hello, so a refusal is the stream's first item.
    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.cancel.is_cancelled() {
            return Err(session::stopping());
        }
        let caller = caller(&request)?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let session = session::run(self.clone(), caller, request.into_inner(), outbox);
        self.sessions.spawn(session);
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
