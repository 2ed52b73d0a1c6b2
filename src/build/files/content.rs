//! What stands for the content of a file in a key: its digest, and for a large file the digest of those of its parts.
//!
//! SHA-256 goes through a file from one end to the other, on one core; parts are hashed at the same time. Where they end,
//! the size alone says. It counts beside the digest wherever one is compared: a file that holds the digests of the parts
//! of another cannot pass for that one.

use crate::oci::{Digest, Hasher};

/// Length of a part, in bytes; the last one may be shorter.
pub(super) const PART_BYTES: u64 = 8 << 20;

/// How many parts a file has; an empty one has one.
pub(super) fn part_count(size: u64) -> u64 {
    size.div_ceil(PART_BYTES).max(1)
}

/// Length of a part of a file, by its number.
pub(super) fn part_bytes(size: u64, part: u64) -> u64 {
    size.saturating_sub(part * PART_BYTES).min(PART_BYTES)
}

/// The digest of a file by those of its parts, in their order.
pub(super) fn joined(mut parts: impl ExactSizeIterator<Item = Digest>) -> Digest {
    if parts.len() == 1
        && let Some(whole) = parts.next()
    {
        return whole;
    }
    let mut hasher = Hasher::new();
    parts.for_each(|part| hasher.update(part.as_bytes()));
    hasher.finish()
}

/// Hashes a content that is read from one end to the other.
#[derive(Default)]
pub(super) struct ContentHasher {
    parts: Vec<Digest>,
    part: Hasher,
    filled: u64,
}

impl ContentHasher {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == PART_BYTES {
                self.parts.push(std::mem::take(&mut self.part).finish());
                self.filled = 0;
            }
            let room = usize::try_from(PART_BYTES - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.part.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    pub(super) fn finish(mut self) -> Digest {
        self.parts.push(self.part.finish());
        joined(self.parts.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_has_one_digest_however_it_is_read() {
        let whole = usize::try_from(PART_BYTES).unwrap();
        for size in [0, 1, whole - 1, whole, whole + 1, 2 * whole, 2 * whole + 5] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
            let parts: Vec<_> = (0..part_count(size as u64))
                .map(|part| {
                    let start = usize::try_from(part * PART_BYTES).unwrap();
                    let length = usize::try_from(part_bytes(size as u64, part)).unwrap();
                    Digest::of(&bytes[start..start + length])
                })
                .collect();
            for piece in [1000, whole - 1, whole, 3 * whole] {
                let mut hasher = ContentHasher::default();
                bytes.chunks(piece).for_each(|piece| hasher.update(piece));
                assert_eq!(
                    hasher.finish(),
                    joined(parts.iter().copied()),
                    "{size} bytes in pieces of {piece}"
                );
            }
            assert_eq!(
                joined(parts.iter().copied()) == Digest::of(&bytes),
                size <= whole,
                "{size} bytes"
            );
        }
    }
}
