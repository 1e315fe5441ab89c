//! A node's key, and its request to be certified. Of a request only the public key counts, and
//! that the requester has the private one: who it belongs to is for the managers to say.

use std::fmt;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKey,
};

use crate::CaError;

/// A request of P-256 has some 300 bytes.
const REQUEST_BYTES_MAX: usize = 4096;

/// A private key on P-256.
pub struct NodeKey(pub(crate) KeyPair);

impl NodeKey {
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        Ok(Self(key))
    }

    /// # Errors
    /// Text that is not the PEM of such a key.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256);
        key.map(Self)
            .map_err(|_| CaError::Certificate("its private key does not parse"))
    }

    /// PKCS#8.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The request that this key be certified, in PEM.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self) -> Result<String, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(CaError::Sign)?;
        request.pem().map_err(CaError::Sign)
    }
}

/// Shows nothing.
impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

/// A request that was made by the holder of the key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    key: PublicKey,
    pem: String,
}

impl Request {
    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(CaError::Request("it is too long"));
        }
        let request = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|_| CaError::Request("it does not parse, or its signature is wrong"))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("its key is not on the curve P-256"));
        }
        Ok(Self {
            key: request.public_key,
            pem: pem.to_owned(),
        })
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }

    /// As it came, for who is to sign elsewhere.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_carries_the_key_and_no_name() {
        let key = NodeKey::generate().unwrap();
        let request = Request::from_pem(&key.request().unwrap()).unwrap();
        assert_eq!(
            rcgen::PublicKeyData::der_bytes(request.key()),
            key.0.public_key_raw()
        );
        let read = NodeKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(read.0.public_key_raw(), key.0.public_key_raw());
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn requests_with_another_key_or_a_foreign_signature_are_refused() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let params = CertificateParams::default();
        let pem = params.serialize_request(&other).unwrap().pem().unwrap();
        assert!(matches!(Request::from_pem(&pem), Err(CaError::Request(_))));

        let pem = NodeKey::generate().unwrap().request().unwrap();
        let mut der = ::pem::parse(&pem).unwrap().into_contents();
        // The last byte belongs to the signature.
        *der.last_mut().unwrap() ^= 1;
        let forged = ::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", der));
        assert!(Request::from_pem(&forged).is_err());
        assert!(Request::from_pem(&format!("{pem}{}", " ".repeat(5000))).is_err());
    }

    proptest! {
        /// What comes from the network is a request or an error, whatever was done to it.
        #[test]
        fn any_bytes_are_a_request_or_an_error(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            junk: Vec<u8>,
        ) {
            let pem = NodeKey::generate().unwrap().request().unwrap();
            let mut der = ::pem::parse(&pem).unwrap().into_contents();
            for (at, flip) in &flips {
                let at = at.index(der.len());
                der[at] ^= flip;
            }
            if let Some(cut) = cut {
                der.truncate(cut.index(der.len()));
            }
            for bytes in [der, junk] {
                let _ = Request::from_pem(&::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", bytes.clone())));
                let _ = Request::from_pem(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}
