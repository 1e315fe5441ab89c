//! The key of a cluster's probes.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize, de::Error};

use crate::key::{DataKey, KEY_LEN};

/// Seals the packets by which the nodes of a cluster ask each other whether they are there. All of
/// them have it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProbeKey([u8; KEY_LEN]);

impl ProbeKey {
    /// Bytes that a sealed packet is longer than what is in it.
    pub const OVERHEAD: usize = DataKey::OVERHEAD;

    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// `plain`, with a nonce and with a tag of both and of `header`, which travels beside.
    pub fn seal(&self, header: &[u8], plain: &[u8]) -> Vec<u8> {
        DataKey::new(self.0).seal(header, plain)
    }

    /// What [`Self::seal`] was given; `None` when it was sealed with another key or beside another
    /// header, or changed since.
    pub fn open(&self, header: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        DataKey::new(self.0).open(header, sealed)
    }
}

/// Shows nothing.
impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey(..)")
    }
}

/// 32 bytes in base64.
impl Serialize for ProbeKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for ProbeKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(text).ok();
        let key = bytes.and_then(|bytes| bytes.try_into().ok());
        key.map(Self)
            .ok_or_else(|| D::Error::custom("no key of probes: want 32 bytes in base64"))
    }
}
