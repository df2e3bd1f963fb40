//! `[dns]` and the breakouts' resolvers.

use std::{collections::BTreeSet, net::IpAddr};

use steer_common::names::Pattern;

use super::{
    Breakout, defaults,
    schema::{RawDns, Text},
    validate::Checker,
};

/// The most resolvers of a breakout: 15 breakouts share the kernel's 63 places.
const MAX_RESOLVERS: usize = 4;

/// What happens to queries for the names of the selected sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameSelection {
    /// They go to the resolvers of their breakout. Off unless a breakout has one.
    pub steer: bool,
    /// Sets without prefixes are steered by what the answers say.
    pub learn: bool,
    /// Names that are left alone.
    pub exclude: Vec<Pattern>,
}

impl Default for NameSelection {
    fn default() -> Self {
        Self {
            steer: false,
            learn: defaults::LEARN,
            exclude: Vec::new(),
        }
    }
}

impl NameSelection {
    /// Whether answers teach addresses.
    pub fn teach(&self) -> bool {
        self.steer && self.learn
    }
}

impl Checker<'_> {
    pub(super) fn resolvers(&mut self, raw: Vec<Text>) -> Vec<IpAddr> {
        let mut resolvers = Vec::with_capacity(raw.len());
        for (place, text) in raw.into_iter().enumerate() {
            let Ok(address) = text.get_ref().parse::<IpAddr>() else {
                let what = format!("{:?} is no address", text.get_ref());
                self.wrong(text.span(), what, "write one such as \"192.0.2.53\"");
                continue;
            };
            let address = address.to_canonical();
            let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || link_local
            {
                self.wrong(
                    text.span(),
                    format!("{address} cannot be a resolver behind a breakout"),
                    "write the address of the provider's resolver",
                );
            } else if resolvers.contains(&address) {
                self.wrong(
                    text.span(),
                    format!("{address} is there twice"),
                    "write it once",
                );
            } else if place >= MAX_RESOLVERS {
                self.wrong(
                    text.span(),
                    format!("more than {MAX_RESOLVERS} resolvers of one breakout"),
                    "name the best ones and leave the others out",
                );
            } else {
                resolvers.push(address);
            }
        }
        resolvers
    }

    pub(super) fn names(&mut self, raw: RawDns, breakouts: &[Breakout]) -> NameSelection {
        let wanted = self.one_of(raw.queries, &[("steer", true), ("leave", false)], true);
        let mut known = BTreeSet::new();
        for text in raw.exclude {
            match text.get_ref().parse::<Pattern>() {
                Err(error) => self.wrong(
                    text.span(),
                    error.to_string(),
                    "write a name such as \"mail.example.com\" or \"*.corp.example.com\"",
                ),
                Ok(pattern) => {
                    let what = format!("{pattern} is there twice");
                    if !known.insert(pattern) {
                        self.wrong(text.span(), what, "write it once");
                    }
                }
            }
        }
        NameSelection {
            steer: wanted && breakouts.iter().any(|it| !it.resolvers.is_empty()),
            learn: raw.learn.unwrap_or(defaults::LEARN),
            exclude: known.into_iter().collect(),
        }
    }
}
