//! What an agent of our own keys answers. One message in, one message out.

use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair},
};

use crate::ssh::{
    key::{Key, Pair},
    wire::{
        FAILURE, Fields, IDENTITIES_ANSWER, REQUEST_IDENTITIES, SIGN_REQUEST, SIGN_RESPONSE,
        put_big, put_string,
    },
};

/// `SSH_AGENT_RSA_SHA2_256`.
const RSA_SHA2_256: u32 = 2;
/// `SSH_AGENT_RSA_SHA2_512`.
const RSA_SHA2_512: u32 = 4;

/// The answer to a message, both without their length.
pub(super) fn answer(keys: &[Key], message: &[u8]) -> Vec<u8> {
    let answer = match message.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => Some(identities(keys)),
        Some((&SIGN_REQUEST, request)) => signature(keys, request),
        _ => None,
    };
    answer.unwrap_or_else(|| vec![FAILURE])
}

fn identities(keys: &[Key]) -> Vec<u8> {
    let mut answer = vec![IDENTITIES_ANSWER];
    let count = u32::try_from(keys.len()).expect("fewer keys than that");
    answer.extend_from_slice(&count.to_be_bytes());
    for key in keys {
        put_string(&mut answer, &key.blob);
        put_string(&mut answer, key.comment.as_bytes());
    }
    answer
}

fn signature(keys: &[Key], request: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Fields(request);
    let (blob, data, flags) = (fields.string()?, fields.string()?, fields.number()?);
    let key = keys.iter().find(|key| key.blob == blob)?;
    let (name, bytes) = match &key.pair {
        Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
        Pair::Ecdsa(name, pair) => {
            let signed = pair.sign(&SystemRandom::new(), data).ok()?;
            let (r, s) = signed.as_ref().split_at(signed.as_ref().len() / 2);
            let mut both = Vec::new();
            put_big(&mut both, r);
            put_big(&mut both, s);
            (*name, both)
        }
        Pair::Rsa(pair) => sign_rsa(pair, data, flags)?,
    };
    let mut signature = Vec::new();
    put_string(&mut signature, name.as_bytes());
    put_string(&mut signature, &bytes);
    let mut answer = vec![SIGN_RESPONSE];
    put_string(&mut answer, &signature);
    Some(answer)
}

/// With SHA-2 only: servers of today take no signature over SHA-1.
fn sign_rsa(pair: &RsaKeyPair, data: &[u8], flags: u32) -> Option<(&'static str, Vec<u8>)> {
    let random = SystemRandom::new();
    let mut bytes = vec![0; pair.public().modulus_len()];
    let name = if flags & RSA_SHA2_512 != 0 {
        pair.sign(&RSA_PKCS1_SHA512, &random, data, &mut bytes).ok()?;
        "rsa-sha2-512"
    } else if flags & RSA_SHA2_256 != 0 {
        pair.sign(&RSA_PKCS1_SHA256, &random, data, &mut bytes).ok()?;
        "rsa-sha2-256"
    } else {
        return None;
    };
    Some((name, bytes))
}
