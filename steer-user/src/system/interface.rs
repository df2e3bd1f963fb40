//! Names of network devices.

use std::{fmt, str::FromStr};

use super::SystemError;

/// A network device's name that is safe in a path below `/proc/sys` and in nftables' text: 1 to 15
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Fails with what is wrong with the name.
    pub fn new(name: &str) -> Result<Self, SystemError> {
        name.parse().map_err(|reason| SystemError::InterfaceName {
            name: name.into(),
            reason,
        })
    }

    /// The router itself.
    pub(super) fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// A name that was found wrong, for a configuration that is refused with it.
    pub(crate) fn refused(name: String) -> Self {
        Self(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = &'static str;

    /// Refuses what the kernel refuses (`dev_valid_name`), and what nftables would read as a
    /// pattern or cannot quote.
    fn from_str(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() {
            return Err("is empty");
        }
        if name.len() > 15 {
            return Err("is longer than the 15 characters of an interface name");
        }
        if name == "." || name == ".." || name.contains(['/', ':']) {
            return Err("is no interface name: '/', ':', \".\" and \"..\" are not allowed");
        }
        if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("is no interface name: it holds a blank");
        }
        if name.contains(['*', '"', '\\']) {
            return Err("cannot be named in nftables: it holds '*', '\"' or '\\'");
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
