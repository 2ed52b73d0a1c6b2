//! Compressed layer → plain tar, whatever its media type says: by its first bytes.
//!
//! Knows no tar.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::LayerError;
use crate::limits::TooLarge;

/// Size of the read buffer in bytes.
const BUFFER_BYTES: usize = 128 << 10;

/// Largest zstd window that is accepted, as a power of two: 128 MiB, as the `zstd` tool does.
const WINDOW_LOG_MAX: u32 = 27;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Longest of the signatures, in bytes.
const SIGNATURE_BYTES: usize = 4;

/// Decompresses by content: gzip (one or more members), zstd (frames, skippable ones included), or
/// plain. Damage and early ends show as errors while reading.
///
/// # Errors
///
/// When the first bytes cannot be read.
pub fn decompress(mut input: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut first = Vec::with_capacity(SIGNATURE_BYTES);
    input.by_ref().take(SIGNATURE_BYTES as u64).read_to_end(&mut first)?;
    let gzip = first.starts_with(GZIP);
    let zstd = first.starts_with(ZSTD) || is_skippable(&first);
    let whole = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(first).chain(input));
    if gzip {
        Ok(Box::new(MultiGzDecoder::new(whole)))
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Box::new(decoder))
    } else {
        Ok(Box::new(whole))
    }
}

/// Hands on what is decompressed up to a number of bytes; reading further is an error that says so. For what
/// comes from elsewhere: our own layers are as large as they were made.
#[must_use]
pub fn bounded(plain: Box<dyn Read + Send>, most: u64) -> Box<dyn Read + Send> {
    Box::new(Bounded { plain, most, left: most })
}

/// Whether a layer was refused because it is larger than it may be.
#[must_use]
pub fn is_too_large(error: &LayerError) -> bool {
    let LayerError::Io(error) = error else { return false };
    error.get_ref().is_some_and(|inner| inner.is::<TooLarge>())
}

struct Bounded {
    plain: Box<dyn Read + Send>,
    most: u64,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.plain.read(buffer)?;
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| io::Error::other(TooLarge { most: self.most }))?;
        Ok(count)
    }
}

/// zstd:chunked and seekable zstd files may begin with a frame of another use.
fn is_skippable(first: &[u8]) -> bool {
    matches!(first, [low, 0x2a, 0x4d, 0x18] if low & 0xf0 == 0x50)
}
