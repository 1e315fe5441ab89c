//! All that a node needs to prove itself and to recognise others.

use std::fmt;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{CaError, Identity, NodeKey, Roots, certificates};

/// A chain has the node's certificate, and one more while the root is being replaced.
pub(crate) const CHAIN_MAX: usize = 4;

/// A node's key, its certificate with what leads to the root, and the roots it trusts.
pub struct NodeCertificate {
    key: NodeKey,
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    roots: Roots,
    identity: Identity,
}

impl NodeCertificate {
    /// # Errors
    /// A chain that does not parse, is for another key, or does not lead to one of the roots.
    pub fn new(key: NodeKey, chain_pem: &str, roots: Roots) -> Result<Self, CaError> {
        let chain =
            certificates(chain_pem).ok_or(CaError::Certificate("it does not parse as PEM"))?;
        let leaf = chain.first().filter(|_| chain.len() <= CHAIN_MAX);
        let leaf = leaf.ok_or(CaError::Certificate("want one, or two at most"))?;
        let identity = Identity::from_der(leaf)?;
        let certificate = Self {
            key,
            chain_pem: chain_pem.to_owned(),
            roots,
            identity,
            chain,
        };
        crate::tls::check(&certificate)?;
        Ok(certificate)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.0.serialize_der().into())
    }
}

/// Without the key.
impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate")
            .field("identity", &self.identity)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
