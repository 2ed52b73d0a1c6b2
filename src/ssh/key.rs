//! Private keys as files hold them: OpenSSH's own form, PKCS#8, and RSA's PKCS#1, all without a passphrase.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    rsa::{KeyPairComponents, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
    },
};
use thiserror::Error;

use crate::ssh::wire::{Fields, put_big, put_string};

/// First bytes of OpenSSH's own form (`PROTOCOL.key`).
const OPENSSH_MAGIC: &[u8] = b"openssh-key-v1\0";

/// Lengths of a modulus: 2048 to 4096 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// A private key and what the world knows of it.
pub(super) struct Key {
    /// The public half as SSH writes it.
    pub(super) blob: Vec<u8>,
    /// What a list of keys calls it.
    pub(super) comment: String,
    pub(super) pair: Pair,
}

/// The private half.
pub(super) enum Pair {
    Ed25519(Ed25519KeyPair),
    /// With the name of its kind.
    Ecdsa(&'static str, EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// Why some bytes are no key for us.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum KeyError {
    #[error(
        "the key has a passphrase: `ssh-add FILE` gives it to your agent, and `--ssh ID` gives that to the build"
    )]
    Encrypted,
    #[error("no private key: expected one that ssh-keygen wrote")]
    NotOne,
    #[error(
        "a key of the kind {0} is not supported: ed25519, rsa (2048 to 4096 bits) and ecdsa (nistp256, nistp384) are; \
         `ssh-add FILE` and `--ssh ID` let your agent sign with it"
    )]
    Kind(String),
    #[error("the key is damaged")]
    Damaged,
}

impl Key {
    /// Reads a key file; `name` is its comment when it has none of its own.
    pub(super) fn parse(file: &[u8], name: &str) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(file).map_err(|_| KeyError::NotOne)?;
        let (label, der) = unarmored(text)?;
        let (pair, comment) = match label.as_str() {
            "OPENSSH PRIVATE KEY" => openssh(&der)?,
            "RSA PRIVATE KEY" => (rsa_der(&der)?, String::new()),
            "PRIVATE KEY" => (pkcs8(&der)?, String::new()),
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            other => return Err(KeyError::Kind(format!("`{other}`"))),
        };
        let comment = if comment.is_empty() { name.to_owned() } else { comment };
        Ok(Self { blob: pair.blob(), comment, pair })
    }
}

/// Label and bytes of the first PEM block.
fn unarmored(text: &str) -> Result<(String, Vec<u8>), KeyError> {
    let (_, rest) = text.split_once("-----BEGIN ").ok_or(KeyError::NotOne)?;
    let (label, rest) = rest.split_once("-----").ok_or(KeyError::NotOne)?;
    let (body, _) = rest.split_once("-----END ").ok_or(KeyError::NotOne)?;
    if body.contains("ENCRYPTED") {
        return Err(KeyError::Encrypted);
    }
    let letters: String = body.split_whitespace().collect();
    let bytes = STANDARD.decode(letters).map_err(|_| KeyError::Damaged)?;
    Ok((label.to_owned(), bytes))
}

fn openssh(bytes: &[u8]) -> Result<(Pair, String), KeyError> {
    let mut fields = Fields(bytes.strip_prefix(OPENSSH_MAGIC).ok_or(KeyError::Damaged)?);
    let cipher = fields.string().ok_or(KeyError::Damaged)?;
    if cipher != b"none" {
        return Err(KeyError::Encrypted);
    }
    openssh_fields(&mut fields).unwrap_or(Err(KeyError::Damaged))
}

/// `None` where the bytes end too soon.
fn openssh_fields(fields: &mut Fields<'_>) -> Option<Result<(Pair, String), KeyError>> {
    let (_kdf, _options, count) = (fields.string()?, fields.string()?, fields.number()?);
    let _public = fields.string()?;
    let mut private = Fields(fields.string()?);
    // Twice the same number: a wrong passphrase would show here.
    if count != 1 || private.number()? != private.number()? {
        return Some(Err(KeyError::Damaged));
    }
    let kind = String::from_utf8_lossy(private.string()?).into_owned();
    let pair = match kind.as_str() {
        "ssh-ed25519" => {
            let (public, secret) = (private.string()?, private.string()?);
            let pair = Ed25519KeyPair::from_seed_and_public_key(secret.get(..32)?, public);
            pair.map(Pair::Ed25519).map_err(|_| KeyError::Damaged)
        }
        "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" => {
            let (_curve, point, secret) = (private.string()?, private.string()?, private.big()?);
            ecdsa(&kind, point, secret)
        }
        "ssh-rsa" => rsa(&mut private)?,
        other => Err(KeyError::Kind(other.to_owned())),
    };
    let comment = String::from_utf8_lossy(private.string().unwrap_or_default()).into_owned();
    Some(pair.map(|pair| (pair, comment)))
}

fn curve(kind: &str) -> (&'static str, &'static EcdsaSigningAlgorithm, usize) {
    match kind {
        "ecdsa-sha2-nistp384" => ("ecdsa-sha2-nistp384", &ECDSA_P384_SHA384_FIXED_SIGNING, 48),
        _ => ("ecdsa-sha2-nistp256", &ECDSA_P256_SHA256_FIXED_SIGNING, 32),
    }
}

fn ecdsa(kind: &str, point: &[u8], secret: &[u8]) -> Result<Pair, KeyError> {
    let (name, algorithm, len) = curve(kind);
    let zeros = len.checked_sub(secret.len()).ok_or(KeyError::Damaged)?;
    let mut padded = vec![0; zeros];
    padded.extend_from_slice(secret);
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &padded, point, &random);
    pair.map(|pair| Pair::Ecdsa(name, pair)).map_err(|_| KeyError::Damaged)
}

/// The fields of an RSA key behind its name; `None` where the bytes end too soon.
fn rsa(fields: &mut Fields<'_>) -> Option<Result<Pair, KeyError>> {
    let (n, e, d) = (fields.big()?, fields.big()?, fields.big()?);
    let (q_inverse, p, q) = (fields.big()?, fields.big()?, fields.big()?);
    // What is divided below is no longer than the modulus, and that no longer than can be used.
    if !RSA_BYTES.contains(&n.len()) || [d, p, q].iter().any(|part| part.len() > n.len()) {
        return Some(Err(unusable_rsa(n)));
    }
    let (dp, dq) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: dp.as_slice(),
        dQ: dq.as_slice(),
        qInv: q_inverse,
    };
    Some(RsaKeyPair::from_components(&components).map(Pair::Rsa).map_err(|_| unusable_rsa(n)))
}

fn unusable_rsa(modulus: &[u8]) -> KeyError {
    match RSA_BYTES.contains(&modulus.len()) {
        true => KeyError::Damaged,
        false => KeyError::Kind(format!("ssh-rsa with {} bits", modulus.len() * 8)),
    }
}

fn rsa_der(der: &[u8]) -> Result<Pair, KeyError> {
    RsaKeyPair::from_der(der).map(Pair::Rsa).map_err(|_| KeyError::Damaged)
}

/// PKCS#8 says of which kind the key is; each reader refuses the kinds of the others.
fn pkcs8(der: &[u8]) -> Result<Pair, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(Pair::Ed25519(pair));
    }
    let random = SystemRandom::new();
    for kind in ["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384"] {
        let (name, algorithm, _) = curve(kind);
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, der, &random) {
            return Ok(Pair::Ecdsa(name, pair));
        }
    }
    let pair = RsaKeyPair::from_pkcs8(der).map(Pair::Rsa);
    pair.map_err(|_| KeyError::Kind("that this PKCS#8 file holds".to_owned()))
}

impl Pair {
    fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        match self {
            Self::Ed25519(pair) => {
                put_string(&mut blob, b"ssh-ed25519");
                put_string(&mut blob, pair.public_key().as_ref());
            }
            Self::Ecdsa(name, pair) => {
                put_string(&mut blob, name.as_bytes());
                put_string(&mut blob, name.trim_start_matches("ecdsa-sha2-").as_bytes());
                put_string(&mut blob, pair.public_key().as_ref());
            }
            Self::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                put_string(&mut blob, b"ssh-rsa");
                put_big(&mut blob, &public.e);
                put_big(&mut blob, &public.n);
            }
        }
        blob
    }
}

/// One less than an odd number.
fn less_one(odd: &[u8]) -> Vec<u8> {
    let mut even = odd.to_vec();
    if let Some(last) = even.last_mut() {
        *last &= !1;
    }
    even
}

/// `number` modulo `modulus`, both big-endian: bit by bit, which for a key is a moment.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    // One byte in front, since twice what is less than the modulus may be longer.
    let mut rest = vec![0u8; modulus.len() + 1];
    let mut wide = vec![0u8];
    wide.extend_from_slice(modulus);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= wide {
            subtract(&mut rest, &wide);
        }
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    rest.split_off(zeros)
}

fn subtract(from: &mut [u8], what: &[u8]) {
    let mut borrow = false;
    for (byte, less) in from.iter_mut().rev().zip(what.iter().rev()) {
        let (one, first) = byte.overflowing_sub(*less);
        let (two, second) = one.overflowing_sub(u8::from(borrow));
        (*byte, borrow) = (two, first || second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_those_of_arithmetic() {
        for (number, modulus) in
            [(1_000_003_u64, 97_u64), (5, 9), (u64::MAX, 0xffff_fffe), (1 << 40, 1 << 20), (0, 3)]
        {
            let found = remainder(&number.to_be_bytes(), &modulus.to_be_bytes()[..]);
            let value = found.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            assert_eq!(value, number % modulus, "{number} mod {modulus}");
        }
    }

    /// What this thread has taken so far: how long others took does not matter.
    fn processor_seconds() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let (user_and_system, ticks_per_second) = (fields.split(' ').skip(11).take(2), 100);
        let ticks: u64 = user_and_system.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        ticks / ticks_per_second
    }

    /// Dividing what a file may hold takes minutes.
    #[test]
    fn numbers_that_no_key_has_are_not_computed_with() {
        let rsa_key = |n: usize, d: usize, p: usize| {
            let mut private = [7_u32.to_be_bytes(), 7_u32.to_be_bytes()].concat();
            put_string(&mut private, b"ssh-rsa");
            for len in [n, 1, d, 1, p, p] {
                put_big(&mut private, &vec![0x55; len]);
            }
            let mut file = OPENSSH_MAGIC.to_vec();
            for text in ["none", "none", ""] {
                put_string(&mut file, text.as_bytes());
            }
            file.extend_from_slice(&1_u32.to_be_bytes());
            put_string(&mut file, b"");
            put_string(&mut file, &private);
            openssh(&file).err().unwrap()
        };
        let begun = processor_seconds();
        assert_eq!(rsa_key(16, 20_000, 10_000), KeyError::Kind("ssh-rsa with 128 bits".to_owned()));
        assert_eq!(rsa_key(256, 20_000, 10_000), KeyError::Damaged);
        assert_eq!(rsa_key(256, 256, 10_000), KeyError::Damaged);
        assert_eq!(
            rsa_key(20_000, 10_000, 5_000),
            KeyError::Kind("ssh-rsa with 160000 bits".to_owned())
        );
        assert!(processor_seconds() - begun < 5);
        assert_eq!(rsa_key(512, 512, 256), KeyError::Damaged, "of a size that is computed with");
    }

    #[test]
    fn what_is_no_key_says_so() {
        let armored = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let kind = |text: String| Key::parse(text.as_bytes(), "id").err().unwrap();
        assert_eq!(kind(String::new()), KeyError::NotOne);
        assert_eq!(kind("ssh-ed25519 AAAA me@here\n".to_owned()), KeyError::NotOne);
        let old = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        assert_eq!(kind(armored("RSA PRIVATE KEY", old)), KeyError::Encrypted);
        assert_eq!(kind(armored("OPENSSH PRIVATE KEY", "AAAA")), KeyError::Damaged);
        assert_eq!(kind(armored("OPENSSH PRIVATE KEY", "?")), KeyError::Damaged);
        assert!(matches!(kind(armored("DSA PRIVATE KEY", "AAAA")), KeyError::Kind(_)));
    }
}
