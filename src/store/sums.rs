//! Sums in rows: a row with a changed bit is told from a sound one.
//!
//! A JSON record ends in a member `sum`, a note's row begins with one; both count the key. Rows without are from before
//! there were any, and are read as they are. Knows nothing of what rows mean.

use serde::{Serialize, de::DeserializeOwned};

use crate::oci::{Digest, Hasher};

/// What stands between a record and its sum.
const LEAD: &[u8] = b",\"sum\":\"";
/// What stands behind the sum.
const END: &[u8] = b"\"}";
/// Hex digits of a sum in a record: bits enough for chance, since nobody attacks his own store.
const DIGITS: usize = 16;
/// Beginning of a row with a sum.
const MARK: &[u8; 8] = b"summed.1";
/// Bytes of a sum in a row.
const SUM_BYTES: usize = 8;

/// The record of a key as bytes.
pub(super) fn json(key: &[u8], record: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(record).expect("records hold only JSON values");
    let closed = text.pop();
    debug_assert_eq!(closed, Some(b'}'), "records are objects with members");
    let sum = digits(key, &text);
    text.extend_from_slice(LEAD);
    text.extend_from_slice(sum.as_bytes());
    text.extend_from_slice(END);
    text
}

/// The record of a key from bytes; one whose sum is another is none.
pub(super) fn parse<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Option<T> {
    if let Some((text, sum)) = split(bytes)
        && digits(key, text).as_bytes() != sum
    {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_suffix(END)?;
    let (rest, sum) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    Some((rest.strip_suffix(LEAD)?, sum))
}

fn digits(key: &[u8], text: &[u8]) -> String {
    sum(key, text).hex().chars().take(DIGITS).collect()
}

fn sum(key: &[u8], row: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(key);
    hasher.update(row);
    hasher.finish()
}

/// A row with its sum in front.
pub(super) fn with_sum(key: &[u8], row: &[u8]) -> Vec<u8> {
    [MARK, &sum(key, row).as_bytes()[..SUM_BYTES], row].concat()
}

/// A row without its sum; one whose sum is another is none.
pub(super) fn without_sum<'a>(key: &[u8], row: &'a [u8]) -> Option<&'a [u8]> {
    let Some(rest) = row.strip_prefix(MARK) else { return Some(row) };
    let (found, row) = rest.split_at_checked(SUM_BYTES)?;
    (sum(key, row).as_bytes()[..SUM_BYTES] == *found).then_some(row)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_changed_bit_is_seen_or_changes_nothing() {
        let record = BTreeMap::from([("name".to_owned(), "value".to_owned())]);
        let row = json(b"k", &record);
        let known = |bytes: &[u8]| {
            let found: Option<BTreeMap<String, String>> = parse(b"k", bytes);
            found.map(|found| found.get("name").cloned())
        };
        assert_eq!(known(&row), Some(Some("value".to_owned())));
        assert_eq!(known(br#"{"name":"old"}"#), Some(Some("old".to_owned())));
        let note = with_sum(b"k", b"some row");
        for bit in 0..row.len() * 8 {
            let mut changed = row.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(
                known(&changed).is_none_or(|name| name == Some("value".to_owned())),
                "bit {bit}"
            );
        }
        for bit in MARK.len() * 8..note.len() * 8 {
            let mut changed = note.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(without_sum(b"k", &changed), None, "bit {bit}");
        }
        assert_eq!(without_sum(b"l", &note), None, "the row of another key");
        assert_eq!(without_sum(b"k", &note), Some(&b"some row"[..]));
        assert_eq!(without_sum(b"k", b"older"), Some(&b"older"[..]));
    }
}
