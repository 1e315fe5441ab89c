//! Who may call what is settled here, ahead of the services: a call that the [`Gatekeeper`] does
//! not let in, or that nobody knows, reaches none.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use ca::Peer;
use futures::future::Either;
use model::rpc::Rpc;
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

/// Decides on calls.
pub trait Gatekeeper: Send + Sync + 'static {
    /// # Errors
    /// What the caller is told.
    fn admit(&self, rpc: Rpc, peer: &Peer) -> Result<(), Status>;
}

#[derive(Clone)]
pub(crate) struct GateLayer(pub(crate) Arc<dyn Gatekeeper>);

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            keeper: Arc::clone(&self.0),
            inner,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Gate<S> {
    keeper: Arc<dyn Gatekeeper>,
    inner: S,
}

impl<S> Gate<S> {
    fn admit(&self, request: &http::Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        let rpc = Rpc::from_path(path)
            .ok_or_else(|| Status::unimplemented(format!("there is no call {path}")))?;
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
        self.keeper.admit(rpc, peer)
    }
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.admit(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
