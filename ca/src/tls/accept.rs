//! The managers' side.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::NodeTls;
use crate::Identity;

/// For a handshake: whoever is slower wants to keep us busy.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// Connections made and not yet taken.
const BACKLOG: usize = 16;
/// After the system refused a connection: for lack of descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub addr: SocketAddr,
    /// From a certificate that one of our roots issued; `None` when it showed none.
    pub identity: Option<Arc<Identity>>,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connection {
    async fn new(stream: TcpStream, addr: SocketAddr, tls: &NodeTls) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.current().server));
        let stream = acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        let identity = shown.map(Identity::from_der).transpose();
        let identity = identity.map_err(io::Error::other)?.map(Arc::new);
        let peer = Peer { addr, identity };
        Ok(Self { stream, peer })
    }
}

/// Connections to `listener`, until the stream is dropped. Those that fail in the handshake are
/// named in the log and closed.
pub fn incoming(
    listener: TcpListener,
    tls: NodeTls,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let (made, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(accept(listener, tls, made));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, tls: NodeTls, made: mpsc::Sender<io::Result<Connection>>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned();
        let permit = permit.await.expect("nobody closes it");
        let accepted = tokio::select! {
            biased;
            () = made.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, made) = (tls.clone(), made.clone());
        tokio::spawn(async move {
            let connection = Connection::new(stream, addr, &tls);
            let connection = tokio::time::timeout(HANDSHAKE_WAIT, connection).await;
            drop(permit);
            match connection {
                Ok(Ok(connection)) => {
                    // Fails when the server has ended.
                    let _ = made.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    debug!(peer.addr = %addr, %error, "connection refused in its handshake");
                }
                Err(_) => debug!(peer.addr = %addr, "no handshake came in time"),
            }
        });
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
