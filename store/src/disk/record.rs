//! The form of each value in the file. Every value passes here, on its way out and in: this is
//! where encryption at rest goes, with an AEAD's tag in place of the checksum.

use xxhash_rust::xxh3::Xxh3;

use super::{DiskError, Result};

const CHECKSUM_LEN: usize = 8;

/// The value as it is stored under `key` of `table`: followed by a checksum of all three.
pub(super) fn seal(table: &str, key: u64, mut plain: Vec<u8>) -> Vec<u8> {
    let checksum = checksum(table, key, &plain);
    plain.extend_from_slice(&checksum);
    plain
}

/// The value that [`seal`] was given.
///
/// # Errors
/// When it is another's, or not what was written.
pub(super) fn open<'a>(table: &str, key: u64, sealed: &'a [u8]) -> Result<&'a [u8]> {
    sealed
        .split_last_chunk::<CHECKSUM_LEN>()
        .filter(|(plain, found)| checksum(table, key, plain) == **found)
        .map(|(plain, _)| plain)
        .ok_or_else(|| DiskError::Damaged {
            record: format!("{table} {key}"),
            reason: "its checksum is wrong".to_owned(),
        })
}

fn checksum(table: &str, key: u64, plain: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut hash = Xxh3::new();
    hash.update(table.as_bytes());
    hash.update(&key.to_le_bytes());
    hash.update(plain);
    hash.digest().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sealed_value_opens_in_its_place_only(plain: Vec<u8>, key: u64) {
            let sealed = seal("log", key, plain.clone());
            prop_assert_eq!(open("log", key, &sealed).unwrap(), &plain);
            prop_assert!(open("log", key ^ 1, &sealed).is_err());
            prop_assert!(open("vote", key, &sealed).is_err());
        }

        #[test]
        fn any_flipped_bit_is_noticed(plain: Vec<u8>, at: prop::sample::Index, bit in 0..8u32) {
            let mut sealed = seal("log", 7, plain);
            let at = at.index(sealed.len());
            sealed[at] ^= 1u8 << bit;
            prop_assert!(open("log", 7, &sealed).is_err());
        }

        #[test]
        fn truncated_value_is_refused(plain: Vec<u8>, keep: prop::sample::Index) {
            let sealed = seal("log", 7, plain);
            prop_assert!(open("log", 7, &sealed[..keep.index(sealed.len())]).is_err());
        }
    }
}
