//! What happens to a flow, and why.

use std::net::IpAddr;

use ipnet::IpNet;
use steer_common::{
    chunk::{DST4, DST6, SRC4, SRC6, SourceKind},
    lookup,
    reason::Reason,
    rule::{Action, TCP, UDP},
};

use super::{Class, ClassKey, ClassLabel, Plan};
use crate::{
    config::Selection,
    endpoints::{Category, EndpointSet, ServiceArea, SetId, never_steered},
};

/// A flow to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where it goes.
    pub destination: IpAddr,
    /// The protocol's number in the IP header.
    pub protocol: u8,
    /// The destination port, if the protocol has ports.
    pub port: u16,
    /// Who sends it; `None`: some client.
    pub source: Option<IpAddr>,
}

/// What happens to a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It leaves by a breakout.
    Steer(Match<'a>),
    /// The kernel's own routing has it.
    Pass(Pass),
}

/// What a flow matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<'a> {
    /// The class.
    pub class: &'a Class,
    /// The prefix of it.
    pub prefix: IpNet,
}

/// Why a flow passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// The destination is of a kind that is never steered.
    NeverSteered(&'static str),
    /// No set has the destination.
    NotListed,
    /// A set has it, but is not selected.
    NotSelected {
        /// The set.
        set: SetId,
        /// What of it is not selected.
        why: Unselected,
    },
    /// Selected sets have the destination, but not with this protocol and port.
    Port(Vec<ClassLabel>),
    /// Neither TCP nor UDP.
    Protocol,
    /// The operator excludes the destination with this prefix.
    Excluded(IpNet),
    /// The destination is the router itself.
    RouterLocal,
    /// The source is no client of the LAN.
    NotLan,
    /// The operator leaves the source out with this prefix.
    SourceLeftOut(IpNet),
}

/// Why a set is not selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unselected {
    /// It is among `select.exclude_sets`.
    Set,
    /// Its category is not among `select.categories`.
    Category(Category),
    /// Its service area is not among `select.service_areas`.
    ServiceArea(ServiceArea),
}

impl Pass {
    /// The reason that the kernel programs count for it; `None` where they count nothing, since the
    /// destination is nobody's.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::NeverSteered(_) | Self::NotListed => None,
            Self::NotSelected { .. } | Self::Port(_) => Some(Reason::Port),
            Self::Protocol => Some(Reason::Protocol),
            Self::Excluded(_) => Some(Reason::Excluded),
            Self::RouterLocal => Some(Reason::RouterLocal),
            Self::NotLan => Some(Reason::NotLan),
            Self::SourceLeftOut(_) => Some(Reason::SourceExcluded),
        }
    }
}

/// Why a set is not selected; `None` when it is.
pub fn unselected(select: &Selection, set: &EndpointSet) -> Option<Unselected> {
    if select.exclude_sets.contains(&set.id) {
        Some(Unselected::Set)
    } else if !select.categories.contains(&set.category) {
        Some(Unselected::Category(set.category))
    } else if !select.service_areas.contains(&set.service_area) {
        Some(Unselected::ServiceArea(set.service_area.clone()))
    } else {
        None
    }
}

/// The steps of the kernel programs, in their order, on the same tables.
pub(super) fn verdict<'a>(plan: &'a Plan, flow: &Flow) -> Verdict<'a> {
    let entry = value(plan, DST4, DST6, flow.destination);
    if entry == 0 {
        return Verdict::Pass(not_in_the_tables(plan, flow));
    }
    if let Some(pass) = flow.source.and_then(|source| source_passes(plan, source)) {
        return Verdict::Pass(pass);
    }
    if !matches!(flow.protocol, TCP | UDP) {
        return Verdict::Pass(Pass::Protocol);
    }
    let Some(rule) = lookup::rule(&plan.image, entry, flow.protocol, flow.port) else {
        return Verdict::Pass(not_with_this_port(plan, flow));
    };
    let class = match rule.action() {
        Action::Steer => plan.class(rule.class),
        Action::Exclude => {
            let prefix = longest(&plan.select.exclude, flow.destination);
            return Verdict::Pass(prefix.map_or(Pass::NotListed, Pass::Excluded));
        }
        Action::RouterLocal => return Verdict::Pass(Pass::RouterLocal),
        Action::End => None,
    };
    let matched = class.and_then(|class| {
        longest(prefixes(plan, class), flow.destination).map(|prefix| Match { class, prefix })
    });
    matched.map_or(Verdict::Pass(Pass::NotListed), Verdict::Steer)
}

/// The class of this plan that a flow to a learned address belongs to; none with another port, from
/// no client, or when the class is gone.
pub(super) fn learned<'a>(plan: &'a Plan, key: ClassKey, flow: &Flow) -> Option<&'a Class> {
    let class = plan.classes.iter().find(|class| class.key == key)?;
    let from_client = flow
        .source
        .is_none_or(|it| source_passes(plan, it).is_none());
    let entry = lookup::class(&plan.image, class.index);
    let rule = lookup::rule(&plan.image, entry, flow.protocol, flow.port)?;
    (entry != 0 && from_client && rule.action() == Action::Steer).then_some(class)
}

/// Whether an address is a destination of the plan, or a client's.
pub(super) fn is_known(plan: &Plan, address: IpAddr) -> bool {
    value(plan, DST4, DST6, address) | value(plan, SRC4, SRC6, address) != 0
}

fn value(plan: &Plan, v4: u32, v6: u32, address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(address) => lookup::v4(&plan.image, v4, address.into()),
        IpAddr::V6(address) => {
            let [high, low] = [0, 4].map(|half| {
                let segments = &address.segments()[half..half + 4];
                segments
                    .iter()
                    .fold(0, |bits, part| bits << 16 | u64::from(*part))
            });
            lookup::v6(&plan.image, v6, high, low)
        }
    }
}

/// What the tables say of a source: a [`SourceKind`], or 0.
pub(super) fn source_kind(plan: &Plan, source: IpAddr) -> u16 {
    value(plan, SRC4, SRC6, source)
}

/// Why nothing of a source is steered, if that is so.
pub(super) fn source_passes(plan: &Plan, source: IpAddr) -> Option<Pass> {
    let kind = source_kind(plan, source);
    if kind == SourceKind::LeftOut as u16 {
        return longest(&plan.site.left_out, source).map(Pass::SourceLeftOut);
    }
    let client = SourceKind::is_client(kind) || plan.site.clients.is_none();
    (!client).then_some(Pass::NotLan)
}

/// Why there is nothing at this destination.
fn not_in_the_tables(plan: &Plan, flow: &Flow) -> Pass {
    if let Some(kind) = never_steered(&flow.destination.into()) {
        return Pass::NeverSteered(kind);
    }
    not_selected(plan, flow, false).unwrap_or(Pass::NotListed)
}

/// Why there is nothing with this port at a destination that is in the tables.
fn not_with_this_port(plan: &Plan, flow: &Flow) -> Pass {
    not_selected(plan, flow, true).unwrap_or_else(|| {
        let there = |class: &&Class| longest(prefixes(plan, class), flow.destination).is_some();
        Pass::Port(
            plan.classes
                .iter()
                .filter(there)
                .map(|class| class.label.clone())
                .collect(),
        )
    })
}

/// A set that would have matched, had it been selected; the one that would have won.
fn not_selected(plan: &Plan, flow: &Flow, with_port: bool) -> Option<Pass> {
    let covers = |set: &EndpointSet| {
        let port = set
            .ports(flow.protocol)
            .is_some_and(|ports| ports.contains(flow.port));
        let prefix = longest(&set.prefixes, flow.destination)?;
        let why = unselected(&plan.select, set)?;
        (port || !with_port).then_some((port, set.category, prefix.prefix_len(), why))
    };
    let candidates = plan
        .feed
        .sets
        .iter()
        .filter_map(|set| covers(set).map(|it| (set.id, it)));
    candidates
        .max_by_key(|(id, (port, category, length, _))| {
            (*port, *category, *length, std::cmp::Reverse(*id))
        })
        .map(|(set, (_, _, _, why))| Pass::NotSelected { set, why })
}

/// The prefixes of a class.
fn prefixes<'a>(plan: &'a Plan, class: &Class) -> &'a [IpNet] {
    match &class.label {
        ClassLabel::Set(id) => plan.feed.set(*id).map_or(&[], |set| &set.prefixes),
        ClassLabel::Own(name) => {
            let include = plan
                .select
                .include
                .iter()
                .find(|include| include.name == *name);
            include.map_or(&[], |include| &include.prefixes)
        }
    }
}

pub(super) fn longest(prefixes: &[IpNet], address: IpAddr) -> Option<IpNet> {
    let covering = prefixes.iter().filter(|prefix| prefix.contains(&address));
    covering.max_by_key(|prefix| prefix.prefix_len()).copied()
}
