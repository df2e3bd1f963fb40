//! Verdicts in words.

use std::fmt;

use super::{Match, Pass, Unselected, Verdict};

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steer(matched) => matched.fmt(f),
            Self::Pass(pass) => pass.fmt(f),
        }
    }
}

impl fmt::Display for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, prefix } = self;
        write!(f, "{} ({}", class.label, class.category)?;
        if let Some(area) = &class.service_area {
            write!(f, ", {area}")?;
        }
        write!(f, ") lists {prefix} with this port")
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverSteered(kind) => write!(f, "{kind} addresses are never steered"),
            Self::NotListed => f.write_str("no endpoint set lists this destination"),
            Self::NotSelected { set, why } => {
                write!(f, "set {set} lists this destination, but {why}")
            }
            Self::Port(labels) => {
                let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
                let verb = if labels.len() == 1 { "lists" } else { "list" };
                write!(
                    f,
                    "{} {verb} this destination, but not this port",
                    labels.join(" and ")
                )
            }
            Self::Protocol => f.write_str("only TCP and UDP are steered"),
            Self::Excluded(prefix) => write!(f, "select.exclude has {prefix}"),
            Self::RouterLocal => f.write_str("this is an address of the router itself"),
            Self::NotLan => f.write_str("the source is not among the clients of a LAN"),
            Self::SourceLeftOut(prefix) => write!(f, "exclude_sources of a LAN has {prefix}"),
        }
    }
}

impl fmt::Display for Unselected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set => f.write_str("it is among select.exclude_sets"),
            Self::Category(category) => {
                write!(f, "its category {category} is not among select.categories")
            }
            Self::ServiceArea(area) => {
                write!(
                    f,
                    "its service area {area} is not among select.service_areas"
                )
            }
        }
    }
}
