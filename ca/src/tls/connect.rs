//! To a manager.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

use super::{
    NodeTls, finish_client, provider,
    verify::{Anyone, ManagerVerifier, manager_name},
};
use crate::{CaError, NodeCertificate, Roots};

/// Makes connections of one kind to managers. Each is made with what is known at its time.
#[derive(Debug, Clone)]
pub struct Connector(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Member(NodeTls),
    /// Without a certificate.
    Stranger(Arc<ClientConfig>),
}

impl Connector {
    /// Shows the node's certificate, and believes managers of its cluster only.
    pub fn member(tls: &NodeTls) -> Self {
        Self(Kind::Member(tls.clone()))
    }

    /// Shows no certificate, and believes managers certified by `roots`.
    ///
    /// # Errors
    /// Roots that TLS cannot use.
    pub fn joiner(roots: &Roots) -> Result<Self, CaError> {
        let verifier = Arc::new(ManagerVerifier::new(roots, None)?);
        Ok(Self(Kind::Stranger(Arc::new(stranger(verifier)?))))
    }

    /// Shows no certificate, and believes nobody: good for nothing but to be told the root, which
    /// must then be checked by its digest.
    ///
    /// # Errors
    /// Never, with a library that has TLS 1.3.
    pub fn unverified() -> Result<Self, CaError> {
        Ok(Self(Kind::Stranger(Arc::new(stranger(Arc::new(Anyone))?))))
    }

    /// Connects to the manager at `addr`, with `endpoint`'s settings; see [`Self::endpoint`].
    ///
    /// # Errors
    /// [`super::reason`] says why.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        endpoint.connect_with_connector(self.clone()).await
    }

    /// As [`Self::connect`], when the channel is first used, and again when it was lost.
    pub fn connect_lazy(&self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(self.clone())
    }

    /// The endpoint at `addr`, to be refined.
    pub fn endpoint(addr: SocketAddr) -> Endpoint {
        // TLS is below what it knows of.
        Endpoint::from_shared(format!("http://{addr}")).expect("a socket address makes a valid URI")
    }

    fn config(&self) -> Arc<ClientConfig> {
        match &self.0 {
            Kind::Member(tls) => Arc::clone(&tls.current().client),
            Kind::Stranger(config) => Arc::clone(config),
        }
    }
}

pub(super) fn member_config(certificate: &NodeCertificate) -> Result<ClientConfig, CaError> {
    let cluster = certificate.identity().cluster;
    let verifier = ManagerVerifier::new(certificate.roots(), Some(cluster))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(certificate.chain(), certificate.private_key())?;
    Ok(finish_client(config))
}

fn stranger(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
) -> Result<ClientConfig, CaError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(finish_client(config))
}

type Connecting =
    Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send + 'static>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let connector = TlsConnector::from(self.config());
        Box::pin(async move {
            let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "want ADDRESS:PORT");
            let addr = uri.authority().ok_or_else(wrong)?.as_str();
            let addr: SocketAddr = addr.parse().map_err(|_| wrong())?;
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(manager_name(), stream).await?;
            Ok(TokioIo::new(stream))
        })
    }
}
