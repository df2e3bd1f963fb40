//! What is measured, and what is compared with what.

use std::fmt::Write as _;

use anyhow::Result;

use super::{
    generator::Generator,
    router::{BREAKOUT_TABLE, Far, Router},
    traffic::{Kind, TTL, Traffic},
};

/// A configuration of a router, and the traffic that it gets.
pub struct Row {
    pub id: Id,
    pub name: &'static str,
    pub traffic: Kind,
    pub way: Way,
    /// The packets must arrive with the router's address on the breakout.
    pub translated: bool,
}

/// Where packets must arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nowhere: the generator drops them.
    Generator,
    /// At the router, which drops them.
    Lan,
    Wan,
    Breakout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    Generator,
    Harness,
    Plain,
    PlainMiss,
    NftMark,
    NftMarkMiss,
    NftMasquerade,
    BareRedirect,
}

/// Every row, in the order of a round. The generator alone comes first: it is subtracted.
pub const ROWS: &[Row] = &[
    row(Id::Generator, "generator alone", Kind::Hit, Way::Generator),
    row(
        Id::Harness,
        "dropped at the router's LAN interface",
        Kind::Hit,
        Way::Lan,
    ),
    row(Id::Plain, "plain forwarding", Kind::Hit, Way::Wan),
    row(
        Id::PlainMiss,
        "plain forwarding, not Microsoft 365",
        Kind::Miss,
        Way::Wan,
    ),
    row(
        Id::NftMark,
        "nftables set + mark + ip rule",
        Kind::Hit,
        Way::Breakout,
    ),
    row(
        Id::NftMarkMiss,
        "nftables set + mark + ip rule, not steered",
        Kind::Miss,
        Way::Wan,
    ),
    Row {
        translated: true,
        ..row(
            Id::NftMasquerade,
            "nftables set + mark + ct save + ip rule + masquerade",
            Kind::Hit,
            Way::Breakout,
        )
    },
    row(
        Id::BareRedirect,
        "XDP redirect without classifier",
        Kind::Hit,
        Way::Breakout,
    ),
];

/// How much faster one row must be than another.
pub struct Ratio {
    pub name: &'static str,
    pub of: Id,
    pub to: Id,
    /// Below this, the benchmark fails.
    pub gate: Option<f64>,
    pub goal: Option<f64>,
}

pub const RATIOS: &[Ratio] = &[Ratio {
    name: "XDP redirect without classifier / nftables mark",
    of: Id::BareRedirect,
    to: Id::NftMark,
    gate: None,
    goal: None,
}];

const fn row(id: Id, name: &'static str, traffic: Kind, way: Way) -> Row {
    Row {
        id,
        name,
        traffic,
        way,
        translated: false,
    }
}

/// A row that is ready to be measured. What it attached goes when it is dropped.
pub struct Prepared {
    router: Router,
}

impl Prepared {
    /// The interface to send from.
    pub fn source(&self) -> u32 {
        self.router.lan.far
    }
}

impl Row {
    /// Builds the router and configures it.
    pub fn prepare(
        &self,
        far: &Far,
        generator: &mut Generator<'_>,
        traffic: &Traffic,
    ) -> Result<Prepared> {
        let router = Router::create(far, self.id as usize)?;
        generator.attach_sinks(&router)?;
        match self.id {
            Id::Generator | Id::Plain | Id::PlainMiss => {}
            Id::Harness => generator.attach_sink_to_lan(&router)?,
            Id::NftMark | Id::NftMarkMiss => by_nftables(&router, traffic, false)?,
            Id::NftMasquerade => by_nftables(&router, traffic, true)?,
            Id::BareRedirect => generator.attach_bare_redirect(&router)?,
        }
        Ok(Prepared { router })
    }

    /// A router takes one from the TTL; the harness alone does not.
    pub fn expected_ttl(&self) -> u8 {
        if self.way == Way::Lan { TTL } else { TTL - 1 }
    }
}

/// What people do today, at its cheapest: one interval set looked up once, and no ports.
fn by_nftables(router: &Router, traffic: &Traffic, masquerade: bool) -> Result<()> {
    let mut set = String::new();
    for prefix in &traffic.prefixes {
        let _ = write!(set, "{prefix}, ");
    }
    let (restore, translate) = if masquerade {
        (
            "ct mark 0x100 meta mark set ct mark return\n\
             ct state new ip daddr @m365 meta mark set 0x100 ct mark set meta mark",
            "chain post { type nat hook postrouting priority srcnat;\n\
             oifname \"brk0\" masquerade\n}",
        )
    } else {
        ("ip daddr @m365 meta mark set 0x100", "")
    };
    let ruleset = format!(
        "table ip today {{\n\
         set m365 {{ type ipv4_addr; flags interval; elements = {{ {set} }} }}\n\
         chain pre {{ type filter hook prerouting priority mangle;\n{restore}\n}}\n\
         {translate}\n}}"
    );
    router.namespace.nft(&ruleset)?;
    router.namespace.ip(&format!(
        "rule add pref 600 fwmark 0x100 lookup {BREAKOUT_TABLE}"
    ))
}
