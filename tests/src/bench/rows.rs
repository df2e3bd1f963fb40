//! What is measured, and what is compared with what.

use std::fmt::Write as _;

use anyhow::Result;
use steer_common::mark;
use steer_user::datapath::Mode;

use super::{
    generator::Generator,
    router::{BREAKOUT_TABLE, Far, Router},
    steer::{PATH, Steer, apply_system},
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
    RulesMiss,
    NftMark,
    NftMarkMiss,
    NftMasquerade,
    NftMasqueradeMiss,
    BareRedirect,
    Redirect,
    RedirectMiss,
    Mark,
    MarkMiss,
    MarkMode,
    MarkModeMiss,
}

/// Every row, in the order of a round. The generator alone comes first: it is subtracted.
pub const ROWS: &[Row] = &[
    hit(Id::Generator, Way::Generator, "generator alone"),
    hit(Id::Harness, Way::Lan, "dropped at the router's door"),
    hit(Id::Plain, Way::Wan, "plain forwarding"),
    miss(Id::PlainMiss, "plain forwarding, other traffic"),
    miss(
        Id::RulesMiss,
        "plain forwarding with ip rules, other traffic",
    ),
    hit(Id::NftMark, Way::Breakout, "nftables mark"),
    miss(Id::NftMarkMiss, "nftables mark, other traffic"),
    hit(
        Id::NftMasquerade,
        Way::Breakout,
        "nftables mark + masquerade",
    )
    .translated(),
    miss(
        Id::NftMasqueradeMiss,
        "nftables mark + masquerade, other traffic",
    ),
    hit(Id::BareRedirect, Way::Breakout, "bare redirect"),
    hit(Id::Redirect, Way::Breakout, "steer redirect"),
    miss(Id::RedirectMiss, "steer redirect, other traffic"),
    hit(Id::Mark, Way::Breakout, "steer mark"),
    miss(Id::MarkMiss, "steer mark, other traffic"),
    hit(
        Id::MarkMode,
        Way::Breakout,
        "steer mark mode, whole ruleset",
    )
    .translated(),
    miss(
        Id::MarkModeMiss,
        "steer mark mode, whole ruleset, other traffic",
    ),
];

const fn hit(id: Id, way: Way, name: &'static str) -> Row {
    let traffic = Kind::Hit;
    Row {
        id,
        name,
        traffic,
        way,
        translated: false,
    }
}

const fn miss(id: Id, name: &'static str) -> Row {
    let (traffic, way) = (Kind::Miss, Way::Wan);
    Row {
        id,
        name,
        traffic,
        way,
        translated: false,
    }
}

/// How much faster one row must be than another.
pub struct Ratio {
    pub of: Id,
    pub to: Id,
    /// Below this, the benchmark fails.
    pub gate: Option<f64>,
    pub goal: Option<f64>,
}

pub const RATIOS: &[Ratio] = &[
    judged([Id::Redirect, Id::NftMark], 6.0, 9.0),
    judged([Id::Redirect, Id::BareRedirect], 0.70, 0.85),
    judged([Id::Mark, Id::NftMark], 1.05, 1.15),
    judged([Id::RedirectMiss, Id::PlainMiss], 0.80, 0.95),
    // The kernel routes faster on a box that never had an `ip rule`; which is why the reference
    // of mark mode's other traffic has one (as every box with policy routing does), and why the
    // whole difference is shown below.
    judged([Id::MarkMiss, Id::RulesMiss], 0.80, 0.95),
    shown([Id::MarkMode, Id::NftMasquerade]),
    shown([Id::MarkModeMiss, Id::NftMasqueradeMiss]),
    shown([Id::Redirect, Id::Plain]),
    shown([Id::Mark, Id::Plain]),
    shown([Id::MarkMiss, Id::PlainMiss]),
    shown([Id::MarkModeMiss, Id::PlainMiss]),
    shown([Id::RulesMiss, Id::PlainMiss]),
    shown([Id::NftMark, Id::Plain]),
    shown([Id::NftMarkMiss, Id::PlainMiss]),
];

const fn judged([of, to]: [Id; 2], gate: f64, goal: f64) -> Ratio {
    let (gate, goal) = (Some(gate), Some(goal));
    Ratio { of, to, gate, goal }
}

const fn shown([of, to]: [Id; 2]) -> Ratio {
    Ratio {
        of,
        to,
        gate: None,
        goal: None,
    }
}

/// A row that is ready to be measured. What it attached goes when it is dropped.
pub struct Prepared {
    // Before its router.
    _steer: Option<Steer>,
    router: Router,
}

impl Prepared {
    /// The interface to send from.
    pub fn source(&self) -> u32 {
        self.router.lan.far
    }
}

impl Row {
    const fn translated(self) -> Self {
        Self {
            translated: true,
            ..self
        }
    }

    /// Builds the router and configures it.
    pub fn prepare(
        &self,
        far: &Far,
        generator: &mut Generator<'_>,
        traffic: &Traffic,
    ) -> Result<Prepared> {
        let router = Router::create(far, self.id as usize)?;
        generator.attach_sinks(&router)?;
        let mut steer = None;
        match self.id {
            Id::Generator | Id::Plain | Id::PlainMiss => {}
            Id::RulesMiss => router.namespace.ip(&rule_for(mark::Bits::DEFAULT.wish()))?,
            Id::Harness => generator.attach_sink_to_lan(&router)?,
            Id::NftMark | Id::NftMarkMiss => by_nftables(&router, traffic, false)?,
            Id::NftMasquerade | Id::NftMasqueradeMiss => by_nftables(&router, traffic, true)?,
            Id::BareRedirect => generator.attach_bare_redirect(&router)?,
            Id::Redirect | Id::RedirectMiss => {
                steer = Some(Steer::start(&router, Mode::Redirect, traffic.plan.image())?);
            }
            Id::Mark | Id::MarkMiss => {
                steer = Some(Steer::start(&router, Mode::Mark, traffic.plan.image())?);
                router
                    .namespace
                    .ip(&rule_for(mark::Bits::DEFAULT.with_wish(0, PATH)))?;
            }
            Id::MarkMode | Id::MarkModeMiss => {
                apply_system(&router)?;
                steer = Some(Steer::start(&router, Mode::Mark, traffic.plan.image())?);
            }
        }
        Ok(Prepared {
            _steer: steer,
            router,
        })
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

/// The rule that sends packets with a mark of steer's to the breakout.
pub fn rule_for(wish: u32) -> String {
    let mask = mark::Bits::DEFAULT.mask();
    format!("rule add pref 600 fwmark {wish:#x}/{mask:#x} lookup {BREAKOUT_TABLE}")
}
