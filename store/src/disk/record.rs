//! The form of each value in the file: sealed with the manager's data key, and bound to its place.
//! Every value passes here, on its way out and in. What is not hidden is how many there are, how
//! long they are, and the numbers of log entries.

use vault::DataKey;

use super::{DiskError, Result};

/// The value as it is stored under `key` of `table`.
pub(super) fn seal(vault: &DataKey, table: &str, key: u64, plain: &[u8]) -> Vec<u8> {
    vault.seal(&place(table, key), plain)
}

/// The value that [`seal`] was given.
///
/// # Errors
/// When it is another's, or not what was written.
pub(super) fn open(vault: &DataKey, table: &str, key: u64, sealed: &[u8]) -> Result<Vec<u8>> {
    let plain = vault.open(&place(table, key), sealed);
    plain.ok_or_else(|| DiskError::Damaged {
        record: format!("{table} {key}"),
        reason: "it was not written there by this manager, or changed since".to_owned(),
    })
}

/// Key first: it has a fixed length, so that no two places are written alike.
fn place(table: &str, key: u64) -> Vec<u8> {
    [&key.to_le_bytes(), table.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sealed_value_opens_in_its_place_only(plain: Vec<u8>, key: u64) {
            let vault = DataKey::generate();
            let sealed = seal(&vault, "log", key, &plain);
            prop_assert_eq!(open(&vault, "log", key, &sealed).unwrap(), plain);
            prop_assert!(open(&vault, "log", key ^ 1, &sealed).is_err());
            prop_assert!(open(&vault, "vote", key, &sealed).is_err());
        }

        #[test]
        fn any_flipped_bit_is_noticed(plain: Vec<u8>, at: prop::sample::Index, bit in 0..8u32) {
            let vault = DataKey::generate();
            let mut sealed = seal(&vault, "log", 7, &plain);
            let at = at.index(sealed.len());
            sealed[at] ^= 1u8 << bit;
            prop_assert!(open(&vault, "log", 7, &sealed).is_err());
        }
    }
}
