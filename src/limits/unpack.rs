//! How large something compressed may become when it is opened: against archives that are small until then.
//!
//! Knows no compression and no archive.

use thiserror::Error;

/// Most bytes that one layer or archive may have when nobody says otherwise.
const BYTES_DEFAULT: u64 = 64 << 30;

/// Most bytes for each byte that it has compressed; only zeros come near, gzip cannot go beyond 1032.
const RATIO_DEFAULT: u64 = 1000;

/// Up to this many bytes the ratio says nothing: a file of zeros is no attack.
const FREE_BYTES: u64 = 1 << 30;

/// What opening a layer or an archive may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    bytes: u64,
    ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: BYTES_DEFAULT, ratio: RATIO_DEFAULT }
    }
}

impl UnpackLimits {
    /// Up to a number of bytes, however small it was: what somebody asks for who trusts it.
    #[must_use]
    pub const fn up_to(bytes: u64) -> Self {
        Self { bytes, ratio: u64::MAX }
    }

    /// Most bytes of what takes `packed_bytes` compressed.
    #[must_use]
    pub fn most(self, packed_bytes: u64) -> u64 {
        packed_bytes.saturating_mul(self.ratio).max(FREE_BYTES).min(self.bytes)
    }
}

/// Something became larger than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "unpacks to more than {most} bytes, the limit for its size; if it is to be trusted, allow more with \
     IDPBUILDER_MAX_LAYER_SIZE, such as 200g"
)]
pub struct TooLarge {
    /// What it may have, in bytes.
    pub most: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l09_small_files_are_free_and_large_ones_are_held_to_what_they_were() {
        let (limits, gib) = (UnpackLimits::default(), 1 << 30);
        for (packed, most) in [(0, gib), (1 << 20, gib), (2 << 20, 1000 << 21), (gib, 64 << 30)] {
            assert_eq!(limits.most(packed), most, "{packed}");
        }
        assert_eq!(limits.most(u64::MAX), 64 << 30);
        assert_eq!(UnpackLimits::up_to(200 << 30).most(1), 200 << 30);
        assert_eq!(UnpackLimits::up_to(5).most(1 << 40), 5);
    }
}
