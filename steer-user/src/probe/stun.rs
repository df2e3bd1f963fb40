//! STUN binding requests (RFC 8489): the answer shows that UDP to Teams' media relays passes.

use std::io;

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// A request without attributes: 20 bytes.
pub(super) struct Request([u8; 20]);

impl Request {
    pub(super) fn new() -> io::Result<Self> {
        let mut bytes = [0; 20];
        bytes[..2].copy_from_slice(&BINDING_REQUEST);
        bytes[4..8].copy_from_slice(&MAGIC_COOKIE);
        bytes[8..].copy_from_slice(&super::random::<12>()?);
        Ok(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the success of this request: the cookie and the transaction are the same.
    pub(super) fn is_answered_by(&self, message: &[u8]) -> bool {
        message.len() >= 20 && message[..2] == BINDING_SUCCESS && message[4..20] == self.0[4..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_success_of_this_request_is_an_answer() {
        let request = Request::new().unwrap();
        let mut answer = request.bytes().to_vec();
        assert!(!request.is_answered_by(&answer), "an echo");
        answer[..2].copy_from_slice(&BINDING_SUCCESS);
        assert!(request.is_answered_by(&answer));
        assert!(!request.is_answered_by(&answer[..19]), "cut");
        answer[19] ^= 1;
        assert!(!request.is_answered_by(&answer), "another transaction");
    }

    #[test]
    fn requests_differ() {
        assert_ne!(
            Request::new().unwrap().bytes(),
            Request::new().unwrap().bytes()
        );
    }
}
