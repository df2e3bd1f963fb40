//! `[dns]` and the breakouts' resolvers.

use std::{collections::BTreeSet, net::IpAddr};

use steer_common::names::Pattern;

use super::{
    Breakout, ClassSelection, Mode, checker::Checker, defaults, schema::RawDns, values::Text,
};

/// The most resolvers of a breakout: 15 breakouts share the kernel's 63 places.
const MAX_RESOLVERS: usize = 4;
/// The word for the resolvers that a link brought along.
const LINK: &str = "link";

/// An entry of a breakout's resolvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolverChoice {
    /// This one.
    Address(IpAddr),
    /// Those that DHCP, router advertisements or PPP gave for the breakout's link.
    Link,
}

/// What becomes of queries over TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcpQueries {
    /// They go where clients send them.
    #[default]
    Pass,
    /// steer reads them, and sends those for names of the plan to the resolvers of their breakout.
    Forward,
}

/// How queries are asked, whatever the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// What becomes of queries over TCP.
    pub tcp: TcpQueries,
    /// Public resolvers near the office: the last choice of every breakout that has resolvers.
    pub public: Vec<IpAddr>,
    /// What becomes of learned addresses that other names have, too.
    pub shared: Shared,
}

/// What becomes of a learned address that a name outside the plan, or of another class, was answered
/// with, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shared {
    /// It is steered for the clients that asked for the name of the plan.
    #[default]
    Askers,
    /// It is not steered.
    Refuse,
}

/// What happens to queries for the names of the selected sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameSelection {
    /// They go to the resolvers of their breakout. Off unless a breakout has one.
    pub steer: bool,
    /// Sets without prefixes are steered by what the answers say.
    pub learn: bool,
    /// Names that are left alone.
    pub exclude: Vec<Pattern>,
    /// Classes whose names are left alone, unless another class has a more specific one.
    pub leave: ClassSelection,
}

impl Default for NameSelection {
    fn default() -> Self {
        Self {
            steer: false,
            learn: defaults::LEARN,
            exclude: Vec::new(),
            leave: ClassSelection::default(),
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
    pub(super) fn resolvers(&mut self, raw: Vec<Text>) -> Vec<ResolverChoice> {
        self.few(raw, "resolvers of one breakout", |checker, text| {
            if text.get_ref() == LINK {
                return Some(ResolverChoice::Link);
            }
            checker.resolver(text).map(ResolverChoice::Address)
        })
    }

    pub(super) fn dns(&mut self, mode: Mode, raw: &mut RawDns) -> DnsConfig {
        let tcp = raw.tcp.take();
        let span = tcp.as_ref().map(Text::span);
        let words = [("pass", TcpQueries::Pass), ("forward", TcpQueries::Forward)];
        let tcp = self.one_of(tcp, &words, TcpQueries::default());
        if let (Some(span), Mode::Redirect, TcpQueries::Forward) = (span, mode, tcp) {
            self.wrong(
                span,
                "queries over TCP are read in mark mode only: nftables hands them over",
                "write \"pass\", or leave the key out",
            );
        }
        let choices = [("askers", Shared::Askers), ("refuse", Shared::Refuse)];
        DnsConfig {
            tcp,
            public: self.few(
                std::mem::take(&mut raw.public),
                "public resolvers",
                Self::resolver,
            ),
            shared: self.one_of(raw.shared.take(), &choices, Shared::default()),
        }
    }

    /// A list of a few different things, each read by `read`.
    fn few<T: PartialEq>(
        &mut self,
        raw: Vec<Text>,
        what: &str,
        read: impl Fn(&mut Self, &Text) -> Option<T>,
    ) -> Vec<T> {
        let mut list = Vec::with_capacity(raw.len());
        for (place, text) in raw.into_iter().enumerate() {
            let Some(item) = read(self, &text) else {
                continue;
            };
            if list.contains(&item) {
                let what = format!("{} is there twice", text.get_ref());
                self.wrong(text.span(), what, "write it once");
            } else if place >= MAX_RESOLVERS {
                self.wrong(
                    text.span(),
                    format!("more than {MAX_RESOLVERS} {what}"),
                    "name the best ones and leave the others out",
                );
            } else {
                list.push(item);
            }
        }
        list
    }

    fn resolver(&mut self, text: &Text) -> Option<IpAddr> {
        let Ok(address) = text.get_ref().parse::<IpAddr>() else {
            let what = format!("{:?} is no address", text.get_ref());
            let remedy = "write one such as \"192.0.2.53\"; for a breakout's, \"link\" takes those that its link brought along";
            self.wrong(text.span(), what, remedy);
            return None;
        };
        let address = address.to_canonical();
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
        {
            self.wrong(
                text.span(),
                format!("{address} cannot be a resolver behind a breakout"),
                "write the address of the provider's resolver",
            );
            return None;
        }
        Some(address)
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
            leave: self.classes(raw.leave),
        }
    }
}
