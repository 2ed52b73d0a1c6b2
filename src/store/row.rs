//! Rows with a binary form: digests of files, and notes. `schema/store.md` has the bytes.
//!
//! Values and bytes only; knows nothing of LMDB.

use crate::{
    oci::{Digest, Hasher},
    store::{
        FileStamp,
        sums::{with_sum, without_sum},
    },
};

/// A row of the file table: `size`, `mtime`, `ctime`, digest.
pub(super) struct FileRow;

const FILE_ROW_BYTES: usize = 8 + 16 + 16 + 32;

impl FileRow {
    pub(super) fn key(stamp: &FileStamp) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&stamp.device.to_be_bytes());
        key[8..].copy_from_slice(&stamp.inode.to_be_bytes());
        key
    }

    pub(super) fn write(stamp: &FileStamp, digest: Digest) -> Vec<u8> {
        let mut row = Self::state(stamp).to_vec();
        row.extend_from_slice(digest.as_bytes());
        row
    }

    /// The digest, when the file still has the stamp of the row.
    pub(super) fn digest(row: &[u8], stamp: &FileStamp) -> Option<Digest> {
        let row: &[u8; FILE_ROW_BYTES] = row.try_into().ok()?;
        let (state, digest) = row.split_at(FILE_ROW_BYTES - 32);
        (state == Self::state(stamp))
            .then(|| Digest::from_bytes(digest.try_into().expect("32 bytes are left")))
    }

    fn state(stamp: &FileStamp) -> [u8; FILE_ROW_BYTES - 32] {
        let mut state = [0; FILE_ROW_BYTES - 32];
        state[..8].copy_from_slice(&stamp.size.to_le_bytes());
        state[8..24].copy_from_slice(&stamp.mtime_ns.to_le_bytes());
        state[24..].copy_from_slice(&stamp.ctime_ns.to_le_bytes());
        state
    }
}

/// A small named value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Unix seconds.
    pub(super) made_at: i64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) value: Vec<u8>,
}

impl Note {
    /// The row's key: the digest of namespace and name.
    pub(super) fn key(namespace: &str, name: &str) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(&(namespace.len() as u64).to_le_bytes());
        hasher.update(namespace.as_bytes());
        hasher.update(name.as_bytes());
        hasher.finish()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let key = Self::key(&self.namespace, &self.name);
        let mut row = self.made_at.to_le_bytes().to_vec();
        for text in [&self.namespace, &self.name] {
            row.extend_from_slice(&(text.len() as u64).to_le_bytes());
            row.extend_from_slice(text.as_bytes());
        }
        row.extend_from_slice(&self.value);
        with_sum(key.as_bytes(), &row)
    }

    /// The note of a key; a row that says another is none.
    pub(super) fn parse(key: &[u8], row: &[u8]) -> Option<Self> {
        let (made_at, rest) = without_sum(key, row)?.split_first_chunk()?;
        let (namespace, rest) = text(rest)?;
        let (name, value) = text(rest)?;
        let is_its_own = Self::key(&namespace, &name).as_bytes()[..] == *key;
        let made_at = i64::from_le_bytes(*made_at);
        is_its_own.then(|| Self { made_at, namespace, name, value: value.to_vec() })
    }
}

fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_note_is_read_as_it_was_written(
            made_at: i64, namespace: String, name: String, value: Vec<u8>, garbage: Vec<u8>
        ) {
            let note = Note { made_at, namespace, name, value };
            let key = Note::key(&note.namespace, &note.name);
            prop_assert_eq!(Note::parse(key.as_bytes(), &note.write()), Some(note));
            Note::parse(key.as_bytes(), &garbage);
        }

        #[test]
        fn a_file_row_answers_to_its_own_stamp_alone(size: u64, mtime_ns: i128, other: u64) {
            let stamp = FileStamp { device: 1, inode: 2, size, mtime_ns, ctime_ns: 5 };
            let row = FileRow::write(&stamp, Digest::of(b"x"));
            prop_assert_eq!(FileRow::digest(&row, &stamp), Some(Digest::of(b"x")));
            prop_assume!(other != size);
            prop_assert_eq!(FileRow::digest(&row, &FileStamp { size: other, ..stamp }), None);
        }
    }
}
