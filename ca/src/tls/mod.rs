//! TLS 1.3 between nodes, each side with its node certificate.
//!
//! * [`connect`]: to a manager, as a member, as a joiner, or to learn the root.
//! * [`accept`]: the managers' side; who has no certificate may still ask to join.
//! * [`failure`]: why a connection failed, in words.
//!
//! Sessions are not resumed: each handshake checks certificates anew.

pub mod accept;
pub mod connect;
pub mod failure;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use jiff::Timestamp;
use model::spec::NodeRole;
use rustls::{
    CertificateError, ClientConfig, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::{Notify, watch};

use crate::{CaError, NodeCertificate, Roots};

pub use accept::{Connection, Peer, incoming};
pub use connect::Connector;
pub use failure::reason;

/// The protocol above TLS: gRPC.
const ALPN: &[u8] = b"h2";

/// What a node proves itself with and whom it trusts, while connections come and go. A clone is
/// the same one.
#[derive(Debug, Clone)]
pub struct NodeTls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: watch::Sender<Arc<Current>>,
    /// Somebody wants another certificate.
    wanted: Notify,
}

#[derive(Debug)]
struct Current {
    certificate: NodeCertificate,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl NodeTls {
    /// # Errors
    /// A certificate that TLS cannot use.
    pub fn new(certificate: NodeCertificate) -> Result<Self, CaError> {
        let current = Arc::new(Current::new(certificate)?);
        Ok(Self(Arc::new(Shared {
            current: watch::Sender::new(current),
            wanted: Notify::new(),
        })))
    }

    /// Takes a new certificate for all connections from now on. Open ones go on as they are.
    ///
    /// # Errors
    /// A certificate that TLS cannot use; the old one stays.
    pub fn replace(&self, certificate: NodeCertificate) -> Result<(), CaError> {
        self.0
            .current
            .send_replace(Arc::new(Current::new(certificate)?));
        Ok(())
    }

    /// Runs `f` on the certificate in use.
    pub fn with<T>(&self, f: impl FnOnce(&NodeCertificate) -> T) -> T {
        f(&self.current().certificate)
    }

    /// Ready when the certificate is replaced after this call. Cancel-safe.
    pub fn replaced(&self) -> impl Future<Output = ()> + Send + use<> {
        let (own, mut changes) = (self.clone(), self.0.current.subscribe());
        async move {
            // The sender is kept: it cannot go meanwhile.
            let _ = changes.changed().await;
            drop(own);
        }
    }

    /// Asks whoever renews the certificate to do so now: it is the wrong one, though valid.
    pub fn want_renewal(&self) {
        self.0.wanted.notify_one();
    }

    /// Returns when a renewal is asked for, or was since the last call. Cancel-safe.
    pub async fn renewal_wanted(&self) {
        self.0.wanted.notified().await;
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.0.current.borrow())
    }
}

impl Current {
    fn new(certificate: NodeCertificate) -> Result<Self, CaError> {
        Ok(Self {
            server: Arc::new(server_config(&certificate)?),
            client: Arc::new(connect::member_config(&certificate)?),
            certificate,
        })
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_config(certificate: &NodeCertificate) -> Result<ServerConfig, CaError> {
    let verifier = client_verifier(certificate.roots())?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate.chain(), certificate.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Certificates are checked when there are any: who joins has none.
fn client_verifier(roots: &Roots) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    WebPkiClientVerifier::builder_with_provider(roots.store()?, provider())
        .allow_unauthenticated()
        // What it would tell anybody who asks is the same for every swarm.
        .clear_root_hint_subjects()
        .build()
        .map_err(|_| CaError::Root("TLS cannot use it"))
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Whether the key is the certificate's, and the chain leads to a root. Whether it is valid at the
/// moment is not looked at.
pub(crate) fn check(certificate: &NodeCertificate) -> Result<(), CaError> {
    let key = provider()
        .key_provider
        .load_private_key(certificate.private_key())?;
    let chain = certificate.chain();
    CertifiedKey::new(chain.clone(), key)
        .keys_match()
        .map_err(|_| CaError::Certificate("it is for another key"))?;
    let (leaf, rest) = chain.split_first().expect("it was parsed before");
    check_client(&Vouched {
        leaf,
        rest,
        roots: certificate.roots(),
        at: certificate.identity().issued_at,
    })
}

/// A chain that is to lead to one of the roots.
pub(crate) struct Vouched<'a> {
    pub(crate) leaf: &'a CertificateDer<'a>,
    pub(crate) rest: &'a [CertificateDer<'a>],
    pub(crate) roots: &'a Roots,
    pub(crate) at: Timestamp,
}

/// Whether it does for a client.
pub(crate) fn check_client(chain: &Vouched<'_>) -> Result<(), CaError> {
    let verifier = client_verifier(chain.roots)?;
    let verified = verifier.verify_client_cert(chain.leaf, chain.rest, unix(chain.at));
    verified.map(drop).map_err(|error| not_vouched(&error))
}

/// Whether it does for a server that is asked for as `role`.
pub(crate) fn check_server(chain: &Vouched<'_>, role: NodeRole) -> Result<(), CaError> {
    let verified = verify::chain_verifier(chain.roots)?.verify_server_cert(
        chain.leaf,
        chain.rest,
        &verify::role_name(role),
        &[],
        unix(chain.at),
    );
    verified.map(drop).map_err(|error| not_vouched(&error))
}

fn not_vouched(error: &rustls::Error) -> CaError {
    use CertificateError as Wrong;
    CaError::Certificate(match error {
        rustls::Error::InvalidCertificate(
            Wrong::NotValidYet
            | Wrong::NotValidYetContext { .. }
            | Wrong::Expired
            | Wrong::ExpiredContext { .. },
        ) => "it is not valid at the time; compare the clocks",
        rustls::Error::InvalidCertificate(
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. },
        ) => "it lacks the name of its role",
        rustls::Error::InvalidCertificate(
            Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. },
        ) => "it is not for both clients and servers",
        _ => "it was not issued by a root that is trusted",
    })
}

fn unix(time: Timestamp) -> UnixTime {
    let second = u64::try_from(time.as_second()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(second))
}
