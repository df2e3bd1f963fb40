//! What is said of a program that is attached.

use std::fmt;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// A link at TC ingress, Linux 6.6 and newer.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
    /// XDP in the driver.
    NativeXdp,
    /// XDP in the stack.
    GenericXdp,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "TCX ingress",
            Self::Clsact => "clsact ingress",
            Self::NativeXdp => "native XDP",
            Self::GenericXdp => "generic XDP",
        })
    }
}

/// A program at its interface.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The program.
    pub program: &'static str,
    /// How it is attached.
    pub hook: Hook,
    /// Whether it took the place of a program that an earlier controller left there.
    pub adopted: bool,
    /// How many instructions the verifier looked at; none before Linux 5.16.
    pub verified_instructions: Option<u32>,
}

impl Attachment {
    /// What to add to a message about it.
    pub fn adopted_in_words(&self) -> &'static str {
        if self.adopted {
            ", in place of the one that was there"
        } else {
            ""
        }
    }
}
