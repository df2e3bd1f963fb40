//! Names as the feed writes them, wildcards of every seen form included.

use std::{fmt, str::FromStr};

/// A name of an endpoint set, lower case: exact (`teams.microsoft.com`) or with `*` for any
/// characters (`*.lync.com`, `*cdn.onenote.net`, `autodiscover.*.onmicrosoft.com`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NamePattern {
    type Err = &'static str;

    /// Fails with what is wrong.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.contains("://") || text.contains('/') {
            return Err("is a URL, not a name");
        }
        if text.is_empty() || text.len() > 253 {
            return Err("is not 1 to 253 characters long");
        }
        let name = text.to_ascii_lowercase();
        let labels: Vec<&str> = name.split('.').collect();
        if labels
            .iter()
            .any(|label| label.is_empty() || label.len() > 63)
        {
            return Err("has an empty or overlong label");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
        if !labels.iter().all(|label| label.bytes().all(allowed)) {
            return Err("has a character that no host name has");
        }
        // `*.com` would claim half of the Internet.
        let [.., domain, top] = labels.as_slice() else {
            return Err("has no domain");
        };
        if domain.contains('*') || top.contains('*') {
            return Err("has a wildcard in its last two labels");
        }
        if top.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("is an address, not a name");
        }
        Ok(Self(name))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
