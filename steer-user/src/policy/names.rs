//! The names of a plan: which queries go to a breakout's resolver, and whose answers teach.
//!
//! A name that several sets have belongs to the most specific pattern, then to the higher category,
//! then to the lower id. Names that the operator excludes are left alone whatever else matches.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use steer_common::names::{Aim, EXCLUDED, LEARN, NameClaim, NameTable, Pattern, REWRITE};

use super::{
    Class, ClassLabel, Pass, Plan, PlanError, decide,
    want::{Want, id, rank},
};
use crate::{
    config::Selection,
    endpoints::{Feed, NamePattern},
};

/// The compiled names, and what they were compiled from.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    steer: bool,
    pub table: NameTable,
    claims: Vec<NameClaim>,
    pub left_out: Vec<String>,
}

/// What happens to a query for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameVerdict<'a> {
    /// It goes to the resolver of its class's path.
    Steer(NameMatch<'a>),
    /// The operator excludes it by this pattern.
    Excluded(&'a str),
    /// It is of a class whose queries the operator leaves alone.
    Left(NameMatch<'a>),
    /// The client's queries are left alone, because of this prefix.
    ClientLeft(IpNet),
    /// The client is none of the LAN's, or left out.
    NoClient(Pass),
    /// No selected set or list has it.
    NotListed,
    /// No query is touched at all.
    Off,
}

/// What a name matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameMatch<'a> {
    /// The class.
    pub class: &'a Class,
    /// The pattern of it.
    pub pattern: &'a str,
    /// Whether the addresses of the answer are learned.
    pub learns: bool,
}

pub(super) fn compile(feed: &Feed, select: &Selection, wants: &[Want]) -> Result<Names, PlanError> {
    let mut names = Names {
        steer: select.names.steer,
        ..Names::default()
    };
    if !names.steer {
        return Ok(names);
    }
    let exclude = |pattern: &Pattern| NameClaim {
        pattern: pattern.clone(),
        aim: Aim::Exclude,
        rank: 0,
        id: 0,
    };
    names
        .claims
        .extend(select.names.exclude.iter().map(exclude));
    for want in wants {
        let left = want.class.is_among(&select.names.leave);
        for name in listed(feed, select, &want.class.label) {
            let Ok(pattern) = name.as_str().parse() else {
                names.left_out.push(name.as_str().to_owned());
                continue;
            };
            names.claims.push(NameClaim {
                pattern,
                aim: Aim::Steer {
                    class: want.class.index,
                    rewrite: !left,
                    learn: want.learns() && !left,
                },
                rank: rank(want.class.category),
                id: id(&want.class),
            });
        }
    }
    names.table = NameTable::build(&names.claims)?;
    Ok(names)
}

/// The names of a class.
fn listed<'a>(feed: &'a Feed, select: &'a Selection, label: &ClassLabel) -> &'a [NamePattern] {
    match label {
        ClassLabel::Set(id) => feed.set(*id).map_or(&[], |set| &set.names),
        ClassLabel::Own(name) => {
            let mut includes = select.include.iter();
            includes
                .find(|include| include.name == *name)
                .map_or(&[], |include| &include.names)
        }
    }
}

/// By the kernel's own table.
pub(super) fn verdict<'a>(plan: &'a Plan, name: &str, client: Option<IpAddr>) -> NameVerdict<'a> {
    if !plan.names.steer {
        return NameVerdict::Off;
    }
    if let Some(pass) = client.and_then(|it| decide::source_passes(plan, it)) {
        return NameVerdict::NoClient(pass);
    }
    let left = client.and_then(|it| decide::longest(&plan.site.queries_left, it));
    if let Some(prefix) = left {
        return NameVerdict::ClientLeft(prefix);
    }
    let Some(action) = plan.names.table.find(name) else {
        return NameVerdict::NotListed;
    };
    let Some(claim) = plan.names.claims.get(action.claim as usize) else {
        return NameVerdict::NotListed;
    };
    let pattern = claim.pattern.as_str();
    if action.flags & EXCLUDED != 0 {
        return NameVerdict::Excluded(pattern);
    }
    let Some(class) = plan.class(action.class) else {
        return NameVerdict::NotListed;
    };
    let matched = NameMatch {
        class,
        pattern,
        learns: action.flags & LEARN != 0,
    };
    if action.flags & (REWRITE | LEARN) == 0 {
        NameVerdict::Left(matched)
    } else {
        NameVerdict::Steer(matched)
    }
}

impl fmt::Display for NameVerdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded(pattern) => write!(f, "dns.exclude has {pattern}"),
            Self::Left(matched) => {
                let class = matched.class;
                write!(
                    f,
                    "{} ({}) lists {}, and [dns] leave has it",
                    class.label, class.category, matched.pattern
                )
            }
            Self::ClientLeft(prefix) => write!(f, "leave_queries_of of a LAN has {prefix}"),
            Self::NoClient(pass) => pass.fmt(f),
            Self::NotListed => f.write_str("no selected endpoint set or list has this name"),
            Self::Off => f.write_str(
                "no query is touched: no breakout has resolvers, or [dns] queries is \"leave\"",
            ),
            Self::Steer(matched) => {
                let class = matched.class;
                write!(
                    f,
                    "{} ({}) lists {}",
                    class.label, class.category, matched.pattern
                )?;
                if matched.learns {
                    f.write_str("; the addresses of the answer are steered, too")?;
                }
                Ok(())
            }
        }
    }
}
