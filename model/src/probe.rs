//! What agents tell each other by single UDP packets, on port [`PORT`]: whether they are there
//! (docs/decisions/0015). All messages have one length, so that no answer is longer than its
//! question.
//!
//! ```text
//! version  key     nonce     kind  from  to    token  about     tag
//! 1 byte   4       24        1     16    16    8      16        16
//! └ authenticated ┘└─────── XChaCha20-Poly1305: sealed ─────────────┘
//! ```
//! Numbers are in network order.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vault::ProbeKey;

use crate::id::NodeId;

/// As Swarm's gossip.
pub const PORT: u16 = 7946;

const VERSION: u8 = 1;
const HEADER_LEN: usize = 1 + 4;
const PLAIN_LEN: usize = 1 + 16 + 16 + 8 + 16;
/// Bytes of a packet, as the payload of UDP.
pub const PACKET_LEN: usize = HEADER_LEN + PLAIN_LEN + ProbeKey::OVERHEAD;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub from: NodeId,
    pub to: NodeId,
    pub body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Are you there? The token comes back; nobody else can know it.
    Ask { token: u64 },
    /// The answer to the question with this token.
    Answer { token: u64 },
    /// `about` does not answer the sender; ask it yourself. Said at this time.
    Silent { about: NodeId, at: Millis },
    /// The sender's agent ends for now, its tasks and its data plane do not.
    Pausing { at: Millis },
}

/// A point of time by the sender's clock, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    pub fn now() -> Self {
        Self(Timestamp::now().as_millisecond().unsigned_abs())
    }

    pub fn distance(self, other: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.abs_diff(other.0))
    }
}

/// Why a packet is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("not {PACKET_LEN} bytes of version {VERSION}")]
    Malformed,
    #[error("sealed with a key that this node does not have")]
    UnknownKey,
    #[error("changed, or not sealed by a node of the cluster")]
    Forged,
}

/// The keys of a cluster's probes, oldest first: the one before, the one that seals, the next one.
/// All three open, so nodes that have not heard of a rotation yet, or alone have, are understood.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProbeKeys(Vec<NumberedKey>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct NumberedKey {
    number: u32,
    key: ProbeKey,
}

impl ProbeKeys {
    const COUNT: u32 = 3;
    /// Place of the one that seals.
    const SEALING: usize = 1;

    pub fn generate() -> Self {
        Self((0..Self::COUNT).map(NumberedKey::generate).collect())
    }

    /// Whether there are none: a cluster, or a manager's word, from before there were probes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The oldest key goes, the next one seals, and there is a new next one.
    pub fn rotate(&mut self) {
        let Some(last) = self.0.last() else {
            *self = Self::generate();
            return;
        };
        let next = NumberedKey::generate(last.number.wrapping_add(1));
        self.0.remove(0);
        self.0.push(next);
    }

    /// The message as a packet; `None` without keys.
    pub fn seal(&self, message: &Message) -> Option<Vec<u8>> {
        let sealing = self.0.get(Self::SEALING)?;
        let mut packet = vec![VERSION];
        packet.extend(sealing.number.to_be_bytes());
        let sealed = sealing.key.seal(&packet, &message.encode());
        packet.extend(sealed);
        Some(packet)
    }

    /// The message of a packet.
    ///
    /// # Errors
    /// Why it is none.
    pub fn open(&self, packet: &[u8]) -> Result<Message, Rejected> {
        if packet.len() != PACKET_LEN || packet[0] != VERSION {
            return Err(Rejected::Malformed);
        }
        let (header, sealed) = packet.split_at(HEADER_LEN);
        let number = header[1..].try_into().expect("four bytes");
        let number = u32::from_be_bytes(number);
        let key = self.0.iter().find(|key| key.number == number);
        let key = key.ok_or(Rejected::UnknownKey)?;
        let plain = key.key.open(header, sealed).ok_or(Rejected::Forged)?;
        Message::decode(&plain).ok_or(Rejected::Malformed)
    }
}

impl NumberedKey {
    fn generate(number: u32) -> Self {
        let key = ProbeKey::generate();
        Self { number, key }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask { .. } => f.write_str("are you there?"),
            Self::Answer { .. } => f.write_str("here"),
            Self::Silent { about, .. } => write!(f, "{about} does not answer"),
            Self::Pausing { .. } => f.write_str("back in a moment"),
        }
    }
}

const ASK: u8 = 1;
const ANSWER: u8 = 2;
const SILENT: u8 = 3;
const PAUSING: u8 = 4;

impl Message {
    /// [`PLAIN_LEN`] bytes.
    fn encode(&self) -> Vec<u8> {
        let nobody = NodeId::from_raw(0);
        let (kind, token, about) = match self.body {
            Body::Ask { token } => (ASK, token, nobody),
            Body::Answer { token } => (ANSWER, token, nobody),
            Body::Silent { about, at } => (SILENT, at.0, about),
            Body::Pausing { at } => (PAUSING, at.0, nobody),
        };
        let mut plain = vec![kind];
        plain.extend(self.from.raw().to_be_bytes());
        plain.extend(self.to.raw().to_be_bytes());
        plain.extend(token.to_be_bytes());
        plain.extend(about.raw().to_be_bytes());
        plain
    }

    /// What is in a packet that was opened.
    pub fn decode(plain: &[u8]) -> Option<Self> {
        let (kind, rest) = plain.split_first()?;
        let (from, rest) = rest.split_first_chunk()?;
        let (to, rest) = rest.split_first_chunk()?;
        let (token, rest) = rest.split_first_chunk()?;
        let about: &[u8; 16] = rest.try_into().ok()?;
        let node = |bytes: &[u8; 16]| NodeId::from_raw(u128::from_be_bytes(*bytes));
        let token = u64::from_be_bytes(*token);
        let at = Millis(token);
        Some(Self {
            from: node(from),
            to: node(to),
            body: match *kind {
                ASK => Body::Ask { token },
                ANSWER => Body::Answer { token },
                SILENT => Body::Silent {
                    about: node(about),
                    at,
                },
                PAUSING => Body::Pausing { at },
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some_message() -> impl Strategy<Value = Message> {
        let node = || any::<u128>().prop_map(NodeId::from_raw);
        let body = prop_oneof![
            any::<u64>().prop_map(|token| Body::Ask { token }),
            any::<u64>().prop_map(|token| Body::Answer { token }),
            (node(), any::<u64>()).prop_map(|(about, at)| Body::Silent {
                about,
                at: Millis(at)
            }),
            any::<u64>().prop_map(|at| Body::Pausing { at: Millis(at) }),
        ];
        (node(), node(), body).prop_map(|(from, to, body)| Message { from, to, body })
    }

    proptest! {
        #[test]
        fn message_opens_as_it_was_sealed_and_not_when_changed(
            message in some_message(), at in 0..PACKET_LEN, flip in 1u8..,
        ) {
            let keys = ProbeKeys::generate();
            let packet = keys.seal(&message).unwrap();
            prop_assert_eq!(packet.len(), PACKET_LEN, "all are of one length");
            prop_assert_eq!(keys.open(&packet), Ok(message));
            prop_assert!(keys.open(&packet[..at]).is_err());
            prop_assert!(keys.open(&[&packet[..], &[0]].concat()).is_err());
            let mut changed = packet;
            changed[at] ^= flip;
            prop_assert!(keys.open(&changed).is_err());
        }

        #[test]
        fn any_bytes_are_rejected(packet in prop::collection::vec(any::<u8>(), 0..2 * PACKET_LEN)) {
            prop_assert!(ProbeKeys::generate().open(&packet).is_err());
        }
    }

    fn message() -> Message {
        Message {
            from: NodeId::from_raw(1),
            to: NodeId::from_raw(2),
            body: Body::Ask { token: 3 },
        }
    }

    /// A node that has not heard of the last rotation and one that alone has understand each other.
    #[test]
    fn neighbours_of_a_rotation_understand_each_other_and_no_one_later_does() {
        let before = ProbeKeys::generate();
        let mut after = before.clone();
        after.rotate();
        let (old, new) = (before.seal(&message()), after.seal(&message()));
        let (old, new) = (old.unwrap(), new.unwrap());
        assert_eq!(before.open(&new), Ok(message()));
        assert_eq!(after.open(&old), Ok(message()));
        after.rotate();
        assert_eq!(after.open(&old), Err(Rejected::UnknownKey));
        let stranger = ProbeKeys::generate();
        assert_eq!(stranger.open(&old), Err(Rejected::Forged));
        assert_eq!(ProbeKeys::default().seal(&message()), None);
        assert_eq!(ProbeKeys::default().open(&old), Err(Rejected::UnknownKey));
    }

    #[test]
    fn keys_are_shown_to_nobody_and_outlive_the_disk() {
        let keys = ProbeKeys::generate();
        let shown = format!("{keys:?}");
        assert!(shown.contains("ProbeKey(..)"), "{shown}");
        assert!(!shown.contains("key: ["), "{shown}");
        let bytes = crate::codec::encode(&keys);
        assert_eq!(crate::codec::decode::<ProbeKeys>(&bytes).unwrap(), keys);
    }
}
