//! Files that begin with the SHA-256 of the rest and are replaced whole, so that a crash or a bad disk
//! shows.

use std::{
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::system::file;

const SEAL: &str = "steer feed 1 sha256 ";

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// Puts a sealed text in place of a file's.
pub(super) fn replace(path: &Path, rest: &[u8]) -> Result<(), StoreError> {
    let mut text = format!("{SEAL}{}\n", digest(rest)).into_bytes();
    text.extend_from_slice(rest);
    file::replace(path, &text).map_err(|error| failed(path, &error))
}

/// What the seal at a file's beginning vouches for.
pub(super) fn unseal(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(SEAL.as_bytes())?;
    let (written, rest) = rest.split_at_checked(64)?;
    let rest = rest.strip_prefix(b"\n")?;
    (written == digest(rest).as_bytes()).then_some(rest)
}

/// The SHA-256 in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

pub(super) fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
