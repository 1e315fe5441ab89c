//! What a client checks of the manager that it reaches.

use std::sync::Arc;

use model::{ClusterId, spec::NodeRole};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::provider;
use crate::{CaError, Identity, Roots, identity::unit};

/// The name under which managers are asked for: their role.
pub(super) fn manager_name() -> ServerName<'static> {
    role_name(NodeRole::Manager)
}

pub(super) fn role_name(role: NodeRole) -> ServerName<'static> {
    unit(role).try_into().expect("it is a DNS name")
}

/// Checks that chains lead to one of `roots`.
pub(super) fn chain_verifier(roots: &Roots) -> Result<Arc<WebPkiServerVerifier>, CaError> {
    let chain = WebPkiServerVerifier::builder_with_provider(roots.store()?, provider());
    chain
        .build()
        .map_err(|_| CaError::Root("TLS cannot use it"))
}

/// A certificate for another cluster.
#[derive(Debug, thiserror::Error)]
#[error("it is a manager of swarm {0}")]
pub(super) struct OtherCluster(ClusterId);

/// Accepts managers of one cluster.
#[derive(Debug)]
pub(super) struct ManagerVerifier {
    chain: Arc<WebPkiServerVerifier>,
    /// Not known to who joins.
    cluster: Option<ClusterId>,
}

impl ManagerVerifier {
    pub(super) fn new(roots: &Roots, cluster: Option<ClusterId>) -> Result<Self, CaError> {
        let chain = chain_verifier(roots)?;
        Ok(Self { chain, cluster })
    }
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = &self.chain;
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let identity = Identity::from_der(end_entity).map_err(other)?;
        match self.cluster {
            Some(cluster) if cluster != identity.cluster => {
                Err(other(OtherCluster(identity.cluster)))
            }
            _ => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Accepts whoever answers: to learn the root, which is then checked against the token's digest.
/// Nothing secret may be sent over such a connection, and nothing else that comes be believed.
#[derive(Debug)]
pub(super) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
