//! Identities of nodes: the cluster's certificate authority, the certificates that it issues, and
//! TLS between nodes with them.
//!
//! * [`authority`]: the root, and what it signs.
//! * [`request`]: a node's private key, which never leaves it, and its requests to be certified.
//! * [`identity`]: who a certificate says its holder is.
//! * [`roots`]: what a node trusts; the digest by which a join token names a root.
//! * [`certificate`]: all that a node needs to prove itself: key, chain and roots.
//! * [`external`]: has an authority outside of the cluster sign in place of the root's key.
//! * [`clock`]: waits by the time that certificates go by.
//! * [`tls`]: connections between nodes, TLS 1.3 only, with all of the above.
//!
//! The form of certificates is SwarmKit's: the node's id is the common name, its role the
//! organizational unit (`swarm-manager`, `swarm-worker`), the cluster's id the organization.

pub mod authority;
pub mod certificate;
pub mod clock;
pub mod external;
#[cfg(test)]
mod fixture;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod identity;
pub mod request;
pub mod roots;
pub mod tls;

pub use authority::{Authority, BACKDATE, ROOT_CN, Subject, new_root};
pub use certificate::NodeCertificate;
pub use identity::{Identity, KeyId};
pub use request::{NodeKey, Request};
pub use roots::Roots;
pub use tls::{Connector, NodeTls, Peer};

/// What a node whose certificate expired is to be told.
pub fn expired(at: jiff::Timestamp) -> String {
    format!(
        "the certificate of this node expired at {at}: if the clock is right, leave with `swarmnet \
         leave --force` and join again"
    )
}

/// What is wrong with a key, a request or a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot make or sign a certificate: {0}")]
    Sign(#[source] rcgen::Error),
    #[error("not a request for a certificate: {0}")]
    Request(&'static str),
    #[error("not a node's certificate: {0}")]
    Certificate(&'static str),
    #[error("not a root certificate: {0}")]
    Root(&'static str),
    #[error("the certificate does not fit: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Endpoint(#[from] external::EndpointError),
    #[error(transparent)]
    External(#[from] external::ExternalError),
}

/// Certificates of a PEM text, in DER.
fn certificates(pem: &str) -> Option<Vec<rustls::pki_types::CertificateDer<'static>>> {
    let blocks = pem::parse_many(pem).ok()?;
    let certificates = blocks.into_iter().map(|block| {
        let is_certificate = block.tag() == "CERTIFICATE";
        is_certificate.then(|| block.into_contents().into())
    });
    certificates.collect()
}
