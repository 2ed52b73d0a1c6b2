//! Content identity: SHA-256 digests and the meanings we give them.
//!
//! The specification spells all of these `sha256:<64 hex>`; the compiler must not let them mix.
//! Source: <https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#digests>.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Length of a SHA-256 digest, in bytes.
pub(super) const LEN_BYTES: usize = 32;

/// Identity of some bytes, exactly as stored or sent.
///
/// Two blobs with the same digest are the same blob. Comparing digests never touches the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; LEN_BYTES]);

/// Digest of a layer's tar before compression, as listed in `rootfs.diff_ids`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Identity of a stack of layers, bottom first; names a snapshot.
///
/// Source: <https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md#layer-chainid>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

/// Why a string is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseDigestError {
    /// There is no `:` between algorithm and hex.
    #[error("expected `sha256:<64 hex digits>`, found `{0}`")]
    NoAlgorithm(String),
    /// The algorithm is well formed but not one we can check.
    #[error("unsupported digest algorithm `{0}`, expected `sha256`")]
    UnsupportedAlgorithm(String),
    /// The part after `sha256:` is not 64 lowercase hex digits.
    #[error("expected 64 lowercase hex digits after `sha256:`, found `{0}`")]
    BadHex(String),
}

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps a digest that was computed elsewhere, most significant byte first.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; LEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, for use as a database key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; LEN_BYTES] {
        &self.0
    }

    /// The 64 lowercase hex digits: the only form that may become a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex_of(&self.0)
    }

    /// The first 12 hex digits, as people see ids.
    #[must_use]
    pub fn short(&self) -> String {
        hex_of(&self.0[..6])
    }
}

impl ChainId {
    /// Chain of a single bottom layer: equal to its diff id, by definition.
    #[must_use]
    pub fn bottom(layer: DiffId) -> Self {
        Self(layer.0)
    }

    /// Chain after stacking `layer` on top.
    #[must_use]
    pub fn push(self, layer: DiffId) -> Self {
        Self(Digest::of(format!("{} {}", self.0, layer.0).as_bytes()))
    }

    /// Chain of `layers`, bottom first; `None` for an empty stack.
    #[must_use]
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (bottom, above) = layers.split_first()?;
        Some(above.iter().fold(Self::bottom(*bottom), |chain, layer| chain.push(*layer)))
    }

    /// The digest that spells this chain.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

/// Hashes bytes as they pass.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Digest of all bytes taken in.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) =
            s.split_once(':').ok_or_else(|| ParseDigestError::NoAlgorithm(s.to_owned()))?;
        if algorithm != "sha256" {
            return Err(ParseDigestError::UnsupportedAlgorithm(algorithm.to_owned()));
        }
        decode_hex(hex).map(Self).ok_or_else(|| ParseDigestError::BadHex(hex.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        hex.push(DIGITS[usize::from(byte >> 4)] as char);
        hex.push(DIGITS[usize::from(byte & 15)] as char);
    }
    hex
}

fn decode_hex(hex: &str) -> Option<[u8; LEN_BYTES]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * LEN_BYTES {
        return None;
    }
    let mut bytes = [0; LEN_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None, // Uppercase too: the specification requires lowercase.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn round_trips_through_text() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn a_chain_of_one_is_its_layer_and_each_layer_changes_it() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]).map(|chain| chain.digest()), Some(a.0));
        assert_ne!(ChainId::of(&[a, b]), ChainId::of(&[b, a]));
    }

    #[test]
    fn rejects_what_the_specification_rejects() {
        for (input, message) in [
            ("e3b0", "expected `sha256:<64 hex digits>`, found `e3b0`"),
            ("md5:00", "unsupported digest algorithm `md5`, expected `sha256`"),
            ("sha256:E3", "expected 64 lowercase hex digits after `sha256:`, found `E3`"),
            ("sha256:../../x", "expected 64 lowercase hex digits after `sha256:`, found `../../x`"),
        ] {
            let error = input.parse::<Digest>().unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
