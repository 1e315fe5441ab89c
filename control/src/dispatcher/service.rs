//! The gRPC service: takes sessions in, and sees to it that they end with the office.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use model::{
    feed::{AgentMessage, ManagerMessage},
    rpc::Dispatcher,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::session;
use crate::{access::caller, office::Offices};

/// Messages on their way to an agent; its session waits when it is full.
const OUTBOX_MAX: usize = 16;

/// Takes sessions in where the office is.
#[derive(Clone)]
pub(crate) struct DispatcherService {
    pub(crate) offices: Offices,
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
        let office = self.offices.get()?;
        let caller = caller(&request)?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let session = session::run(Arc::clone(&office), caller, request.into_inner(), outbox);
        office.tasks.spawn(session);
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
