//! Join tokens: `SWMTKN-1-<digest of the root certificate>-<secret>`, in base36. The digest lets a
//! joiner check the cluster it talks to; the secret proves to the cluster that it may join, and
//! in which role.

use std::{fmt, str::FromStr};

use crate::id::base36;

/// Characters of a written digest. 36^50 exceeds 2^256, so every SHA-256 fits.
const DIGEST_LEN: usize = 50;
/// Characters of a written secret of 128 bits.
const SECRET_LEN: usize = 25;
const PREFIX: &str = "SWMTKN-1-";

/// Text that is not a join token. Says nothing of the text: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token")]
pub struct ParseTokenError;

/// A join token whose form is right; whether its secret is, only the cluster knows.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: String,
    secret: String,
}

impl JoinToken {
    /// A token with 128 fresh random bits for the cluster whose root certificate, in DER, has this
    /// SHA-256.
    pub fn generate(root_sha256: &[u8; 32]) -> Self {
        Self {
            digest: digest_base36(root_sha256),
            secret: base36(rand::random()),
        }
    }

    /// Whether the token was made for the cluster with this root: SHA-256 of the certificate's DER.
    pub fn is_for_root(&self, root_sha256: &[u8; 32]) -> bool {
        self.digest == digest_base36(root_sha256)
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let (digest, secret) = text
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .ok_or(ParseTokenError)?;
        let is_base36 = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        };
        let well_formed = digest.len() == DIGEST_LEN
            && secret.len() == SECRET_LEN
            && is_base36(digest)
            && is_base36(secret);
        well_formed
            .then(|| Self {
                digest: digest.to_owned(),
                secret: secret.to_owned(),
            })
            .ok_or(ParseTokenError)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest, self.secret)
    }
}

/// Shows no secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-..", self.digest)
    }
}

/// 256 bits, big endian, in base36, left-padded with zeros to [`DIGEST_LEN`].
fn digest_base36(digest: &[u8; 32]) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number = *digest;
    let mut text = [b'0'; DIGEST_LEN];
    for place in text.iter_mut().rev() {
        // Long division of the whole number by 36; the remainder is the next digit.
        let remainder = number.iter_mut().fold(0u32, |carry, byte| {
            let part = carry << 8 | u32::from(*byte);
            *byte = u8::try_from(part / 36).expect("carry < 36, so the quotient is < 256");
            part % 36
        });
        *place = DIGITS[remainder as usize];
    }
    String::from_utf8(text.to_vec()).expect("base36 digits are ASCII")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn written_token_reads_back(root: [u8; 32]) {
            let token = JoinToken::generate(&root);
            let text = token.to_string();
            prop_assert_eq!(text.len(), 9 + 50 + 1 + 25);
            let read: JoinToken = text.parse().unwrap();
            prop_assert!(read.is_for_root(&root));
            prop_assert_eq!(read, token);
        }

        #[test]
        fn any_text_is_a_token_or_an_error(text in "(SWMTKN-1-)?.{0,90}") {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn digest_is_the_number_in_base_36() {
        let mut digest = [0; 32];
        (digest[30], digest[31]) = (1, 0);
        assert_eq!(digest_base36(&digest), format!("{:0>50}", "74"));
        // 2^256 - 1.
        assert_eq!(
            digest_base36(&[0xff; 32]),
            "6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof"
        );
    }

    #[test]
    fn foreign_roots_and_malformed_tokens_are_refused() {
        let token = JoinToken::generate(&[7; 32]);
        assert!(!token.is_for_root(&[8; 32]));
        let text = token.to_string();
        for bad in [
            "",
            "SWMTKN-1-",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace("SWMTKN-1", "SWMTKN-2"),
            &text.to_uppercase(),
            &format!("{text}0"),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(ParseTokenError), "{bad}");
        }
    }
}
