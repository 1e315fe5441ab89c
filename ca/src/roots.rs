//! The roots that a node trusts: one, or, while the root is being replaced, the old one and the
//! new one.

use std::{fmt, sync::Arc};

use model::token::JoinToken;
use rustls::{RootCertStore, pki_types::CertificateDer};
use sha2::{Digest, Sha256};
use x509_parser::{
    error::X509Error,
    prelude::{FromDer, X509Certificate},
};

use crate::{CaError, KeyId, certificates};

/// A manager names one or two; no more are read.
const ROOTS_MAX: usize = 4;

/// At least one root certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    der: Vec<CertificateDer<'static>>,
    pem: String,
}

impl Roots {
    /// # Errors
    /// Text that is not the PEM of self-signed certificates of authorities.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let der = certificates(pem).ok_or(CaError::Root("it does not parse as PEM"))?;
        if der.is_empty() || der.len() > ROOTS_MAX {
            return Err(CaError::Root("want one certificate, or two at most"));
        }
        for root in &der {
            check_root(root)?;
        }
        let pem = pem.to_owned();
        Ok(Self { der, pem })
    }

    /// The only root in `pem`, if its digest is the one named in `token`: nothing that follows it is
    /// trusted.
    ///
    /// # Errors
    /// As [`Self::from_pem`]; another root.
    pub fn named_by(token: &JoinToken, pem: &str) -> Result<Self, CaError> {
        let roots = Self::from_pem(pem)?;
        if roots.der.len() != 1 || !token.is_for_root(&roots.sha256()) {
            return Err(CaError::Root("it is another than the token was made for"));
        }
        Ok(roots)
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the first one's DER: what a join token names it by.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der[0]).into()
    }

    /// Whose certificates are accepted.
    pub fn issuers(&self) -> Vec<KeyId> {
        let ids = self.der.iter().map(|der| {
            let (_, root) = X509Certificate::from_der(der).expect("it was parsed before");
            KeyId::of_subject(&root).expect("it was checked before")
        });
        ids.collect()
    }

    pub(crate) fn store(&self) -> Result<Arc<RootCertStore>, CaError> {
        let mut store = RootCertStore::empty();
        for root in &self.der {
            store.add(root.clone())?;
        }
        Ok(Arc::new(store))
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.issuers()).finish()
    }
}

fn check_root(der: &CertificateDer<'_>) -> Result<(), CaError> {
    let (rest, root) =
        X509Certificate::from_der(der).map_err(|_| CaError::Root("it does not parse"))?;
    if !rest.is_empty() {
        return Err(CaError::Root("something follows it"));
    }
    if !root.is_ca() {
        return Err(CaError::Root("it may not sign certificates"));
    }
    root.verify_signature(None).map_err(|error| {
        CaError::Root(match error {
            X509Error::SignatureUnsupportedAlgorithm => {
                "its signature is of a kind that is not known here: want ECDSA on P-256 or P-384, or RSA"
            }
            _ => "it is not signed by itself",
        })
    })?;
    KeyId::of_subject(&root).ok_or(CaError::Root("it does not name its key"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::new_root;

    #[test]
    fn token_names_the_root_by_the_digest_of_its_der() {
        let ca = new_root(Timestamp::now()).unwrap();
        let roots = Roots::from_pem(&ca.certificate_pem).unwrap();
        let token = JoinToken::generate(&roots.sha256());
        let (ca, other) = (ca.certificate_pem, new_root(Timestamp::now()).unwrap());
        let named = Roots::named_by(&token, &ca).unwrap();
        assert_eq!(named, roots);
        let other = other.certificate_pem;
        let more = format!("{ca}{other}");
        for wrong in [&other, &more, "", "text"] {
            assert!(Roots::named_by(&token, wrong).is_err());
        }
        let other = Roots::from_pem(&other).unwrap();
        assert_ne!(roots.issuers(), other.issuers());
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let ca = new_root(Timestamp::now()).unwrap();
        assert!(Roots::from_pem("").is_err());
        assert!(Roots::from_pem("text").is_err());
        assert!(Roots::from_pem(&ca.key_pem.unwrap()).is_err());
        assert!(Roots::from_pem(&ca.certificate_pem.repeat(5)).is_err());
        assert!(Roots::from_pem(&ca.certificate_pem.repeat(2)).is_ok());
    }
}
