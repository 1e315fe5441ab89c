//! Being called by other nodes.

use std::{io, net::SocketAddr, sync::Arc};

use ca::{NodeTls, tls};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{self, Server},
};

use crate::{Gatekeeper, KEEP_ALIVE, gate::GateLayer};

/// Takes `addr`; port 0 asks for a free one. Says where it came to listen.
///
/// # Errors
/// The kernel's.
pub async fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(addr).await?;
    let local_addr = listener.local_addr()?;
    Ok((listener, local_addr))
}

/// Answers the calls that `gatekeeper` lets in, until cancelled; open streams end by themselves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: NodeTls,
    gatekeeper: Arc<dyn Gatekeeper>,
    services: Routes,
    cancel: CancellationToken,
) -> Result<(), transport::Error> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .layer(GateLayer(gatekeeper))
        .add_routes(services)
        .serve_with_incoming_shutdown(tls::incoming(listener, tls), cancel.cancelled())
        .await
}
