//! Bearer secrets: what a node proves itself with until certificates carry its identity. The store
//! keeps only digests.

use model::id::base36;
use sha2::{Digest, Sha256};

/// SHA-256 of a secret.
pub(crate) type SecretDigest = [u8; 32];

/// The digest of a node that may not come back: no secret has it, short of breaking SHA-256.
pub(crate) const REVOKED: SecretDigest = [0; 32];

/// 128 random bits, written in base36.
pub(crate) fn generate() -> String {
    base36(rand::random())
}

pub(crate) fn digest(secret: &str) -> SecretDigest {
    Sha256::digest(secret).into()
}

/// Whether both are the same, compared by digest: how long it takes tells nothing of the secret.
pub(crate) fn same(a: &str, b: &str) -> bool {
    digest(a) == digest(b)
}
