//! Identifiers: 128 random bits, written as 25 base36 characters (SwarmKit's form).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Characters in a written id. 36^25 exceeds 2^128, so every id fits.
pub const ID_LEN: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: want {ID_LEN} characters of 0-9 and a-z")]
pub struct ParseIdError(pub String);

/// `raw` in base36, left-padded with zeros to [`ID_LEN`].
pub fn base36(mut raw: u128) -> String {
    let mut text = [b'0'; ID_LEN];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(raw % 36) as usize];
        raw /= 36;
    }
    String::from_utf8(text.to_vec()).expect("base36 digits are ASCII")
}

fn parse_base36(text: &str) -> Option<u128> {
    if text.len() != ID_LEN {
        return None;
    }
    text.bytes().try_fold(0u128, |raw, byte| {
        let digit = DIGITS.iter().position(|d| *d == byte)? as u128;
        raw.checked_mul(36)?.checked_add(digit)
    })
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// A new random id.
            pub fn generate() -> Self {
                Self(rand::random())
            }

            pub const fn from_raw(raw: u128) -> Self {
                Self(raw)
            }

            pub const fn raw(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&base36(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base36(self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base36(text).map(Self).ok_or_else(|| ParseIdError(text.to_owned()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&base36(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

ids! {
    /// A cluster, for its whole life.
    ClusterId,
    /// A member of the cluster. Never reused: a node that joins again is a new node.
    NodeId,
    /// An overlay network.
    NetworkId,
    /// A service.
    ServiceId,
    /// One run of one slot of a service.
    TaskId,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn written_id_reads_back(raw: u128) {
            let id = TaskId::from_raw(raw);
            prop_assert_eq!(id.to_string().len(), ID_LEN);
            prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in ".{0,40}") {
            let _ = text.parse::<NodeId>();
        }
    }

    #[test]
    fn largest_text_overflows_and_is_refused() {
        assert!("zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<NodeId>().is_err());
    }
}
