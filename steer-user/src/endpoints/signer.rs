//! Whose lists are believed, whoever brings them: signatures as minisign writes them.

use std::str::FromStr;

use minisign_verify::{PublicKey, Signature};

/// A signature has some 300 bytes.
pub(super) const SIGNATURE_BYTES: usize = 4 << 10;

/// The public key of whoever signs lists (Ed25519, as minisign writes it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer(PublicKey);

impl FromStr for Signer {
    type Err = String;

    /// Of the second line of a `.pub` file. Fails with what is wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        let no_key = |error| format!("{text:?} is no minisign public key: {error}");
        PublicKey::from_base64(text).map(Self).map_err(no_key)
    }
}

impl Signer {
    /// What the signer says of this list: the trusted comment. Fails with what is wrong.
    pub(super) fn word(&self, list: &[u8], signature: &[u8]) -> Result<String, String> {
        let text = std::str::from_utf8(signature).map_err(|error| error.to_string())?;
        let signature = Signature::decode(text).map_err(|error| error.to_string())?;
        self.0
            .verify(list, &signature, false)
            .map_err(|error| error.to_string())?;
        Ok(signature.trusted_comment().to_owned())
    }

    /// Whether the signer says `wanted` of this list: a list that was signed for another version is a
    /// replay. Fails with what is wrong.
    pub(super) fn check(&self, list: &[u8], signature: &[u8], wanted: &str) -> Result<(), String> {
        let said = self.word(list, signature)?;
        if said == wanted {
            return Ok(());
        }
        Err(format!("it was signed as {said:?}, not as {wanted:?}"))
    }
}
