//! The bytes that SSH speaks in: length-prefixed strings and numbers (RFC 4251, section 5), and the messages of its
//! agents (draft-ietf-sshm-ssh-agent). Pure.

/// `SSH_AGENT_FAILURE`, the answer to all that is not understood or not allowed.
pub(super) const FAILURE: u8 = 5;
/// `SSH_AGENTC_REQUEST_IDENTITIES`.
pub(super) const REQUEST_IDENTITIES: u8 = 11;
/// `SSH_AGENT_IDENTITIES_ANSWER`.
pub(super) const IDENTITIES_ANSWER: u8 = 12;
/// `SSH_AGENTC_SIGN_REQUEST`.
pub(super) const SIGN_REQUEST: u8 = 13;
/// `SSH_AGENT_SIGN_RESPONSE`.
pub(super) const SIGN_RESPONSE: u8 = 14;

/// Longest message, in bytes: `AGENT_MAX_LEN` of OpenSSH.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Reads fields off the front of some bytes.
pub(super) struct Fields<'b>(pub(super) &'b [u8]);

impl<'b> Fields<'b> {
    /// A number of four bytes.
    pub(super) fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A string of any bytes.
    pub(super) fn string(&mut self) -> Option<&'b [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A positive number of any size, without leading zeros.
    pub(super) fn big(&mut self) -> Option<&'b [u8]> {
        let bytes = self.string()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(&bytes[zeros..])
    }
}

/// Appends a string.
pub(super) fn put_string(to: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("strings of keys and signatures are short");
    to.extend_from_slice(&len.to_be_bytes());
    to.extend_from_slice(bytes);
}

/// Appends a positive number of any size.
pub(super) fn put_big(to: &mut Vec<u8>, bytes: &[u8]) {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut number = bytes[zeros..].to_vec();
    if number.first().is_some_and(|first| first & 0x80 != 0) {
        number.insert(0, 0);
    }
    put_string(to, &number);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_back_and_cut_bytes_are_nothing() {
        let mut bytes = Vec::new();
        put_string(&mut bytes, b"ssh-rsa");
        put_big(&mut bytes, &[0, 0, 0x80, 1]);
        let mut fields = Fields(&bytes);
        assert_eq!(fields.string(), Some(&b"ssh-rsa"[..]));
        assert_eq!(fields.big(), Some(&[0x80, 1][..]));
        assert_eq!(fields.number(), None);
        for len in 0..bytes.len() {
            let mut fields = Fields(&bytes[..len]);
            assert!(fields.string().is_none() || fields.big().is_none());
        }
    }
}
