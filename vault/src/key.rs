//! Keys, and what is sealed with them: XChaCha20-Poly1305, whose nonces are long enough to be
//! drawn at random for as many values as there will ever be.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{AeadInPlace, Payload},
};
use serde::{Deserialize, Serialize};

pub(crate) const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
/// As Swarm's.
const PREFIX: &str = "SWMKEY-1-";
/// What an unlock key seals, so that nothing else that it may seal one day passes for it.
const DATA_KEY: &[u8] = b"swarmnet data key";

/// Seals what one manager keeps.
#[derive(Clone)]
pub struct DataKey(XChaCha20Poly1305, [u8; KEY_LEN]);

impl DataKey {
    /// Bytes that a sealed value is longer than the value.
    pub(crate) const OVERHEAD: usize = NONCE_LEN + TAG_LEN;

    pub fn generate() -> Self {
        Self::new(rand::random())
    }

    pub(crate) fn new(raw: [u8; KEY_LEN]) -> Self {
        Self(XChaCha20Poly1305::new(&raw.into()), raw)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.1
    }

    /// `plain` as it is kept at `place`: a nonce, the encrypted bytes, and a tag of both and of
    /// the place.
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_LEN);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let nonce = XNonce::from(nonce);
        let tag = self
            .0
            .encrypt_in_place_detached(&nonce, place, &mut sealed[NONCE_LEN..])
            .expect("no value is as long as 256 GiB");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// What [`Self::seal`] was given; `None` when it was sealed with another key, for another
    /// place, or changed since.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let payload = Payload {
            msg: rest,
            aad: place,
        };
        chacha20poly1305::aead::Aead::decrypt(&self.0, &XNonce::from(*nonce), payload).ok()
    }
}

/// Shows nothing.
impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// Text that is not an unlock key. Says nothing of the text: it may be almost one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid unlock key: want {PREFIX} and 43 characters, as `swarmnet unlock-key` shows it")]
pub struct ParseUnlockKeyError;

/// Unlocks the managers of a cluster: `SWMKEY-1-<32 bytes in base64>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnlockKey([u8; KEY_LEN]);

impl UnlockKey {
    pub fn generate() -> Self {
        Self(rand::random())
    }

    pub(crate) fn seal(&self, key: &DataKey) -> Vec<u8> {
        DataKey::new(self.0).seal(DATA_KEY, key.bytes())
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Option<DataKey> {
        let bytes = DataKey::new(self.0).open(DATA_KEY, sealed)?;
        DataKey::from_bytes(&bytes)
    }
}

impl FromStr for UnlockKey {
    type Err = ParseUnlockKeyError;

    fn from_str(text: &str) -> Result<Self, ParseUnlockKeyError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(ParseUnlockKeyError)?;
        let bytes = STANDARD_NO_PAD.decode(encoded);
        let bytes = bytes.map_err(|_| ParseUnlockKeyError)?;
        bytes.try_into().map(Self).map_err(|_| ParseUnlockKeyError)
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

/// Shows nothing.
impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

impl TryFrom<String> for UnlockKey {
    type Error = ParseUnlockKeyError;

    fn try_from(text: String) -> Result<Self, ParseUnlockKeyError> {
        text.parse()
    }
}

impl From<UnlockKey> for String {
    fn from(key: UnlockKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sealed_value_opens_in_its_place_with_its_key_only(plain: Vec<u8>, place: Vec<u8>) {
            let key = DataKey::generate();
            let sealed = key.seal(&place, &plain);
            prop_assert_eq!(key.open(&place, &sealed), Some(plain.clone()));
            prop_assert_ne!(&sealed, &key.seal(&place, &plain), "no nonce comes twice");
            let elsewhere = [&place[..], b"x"].concat();
            prop_assert_eq!(key.open(&elsewhere, &sealed), None);
            prop_assert_eq!(DataKey::generate().open(&place, &sealed), None);
        }

        #[test]
        fn changed_and_shortened_values_do_not_open(
            plain: Vec<u8>, at: prop::sample::Index, flip in 1u8..,
        ) {
            let key = DataKey::generate();
            let mut sealed = key.seal(b"here", &plain);
            let at = at.index(sealed.len());
            prop_assert_eq!(key.open(b"here", &sealed[..at]), None);
            sealed[at] ^= flip;
            prop_assert_eq!(key.open(b"here", &sealed), None);
        }

        #[test]
        fn any_text_is_an_unlock_key_or_an_error(text in "(SWMKEY-1-)?.{0,50}") {
            let _ = text.parse::<UnlockKey>();
        }
    }

    #[test]
    fn unlock_key_is_written_as_swarm_writes_it_and_shown_to_nobody() {
        let key = UnlockKey([0xff; 32]);
        let text = key.to_string();
        assert_eq!(text, format!("SWMKEY-1-{}8", "/".repeat(42)));
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "UnlockKey(..)");
        assert_eq!(format!("{:?}", DataKey::generate()), "DataKey(..)");
        for wrong in [
            "",
            "SWMKEY-1-",
            &text[1..],
            &text[..text.len() - 1],
            &(text.clone() + "A"),
        ] {
            assert_eq!(
                wrong.parse::<UnlockKey>(),
                Err(ParseUnlockKeyError),
                "{wrong}"
            );
        }
    }
}
