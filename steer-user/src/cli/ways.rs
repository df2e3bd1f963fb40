//! What the breakouts are for a family now, for `steer explain`: why IPv6 takes the backbone while
//! IPv4 leaves near.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    io,
};

use serde::Serialize;

use super::{
    block_on,
    status::{dead_man, headline, state_text},
};
use crate::{
    api::{Client, ClientError, PathHealth, Status, SteeringState},
    config::Config,
    controller,
    system::Family,
};

/// What runs here now.
pub(super) struct Ways {
    /// Or why it is not known.
    status: Result<Status, String>,
}

/// New flows that go the same ways.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flows {
    pub(super) family: Family,
    /// The preference of their class.
    pub(super) preference: Option<String>,
}

/// One breakout, as some flows see it.
#[derive(Debug, Serialize)]
pub(super) struct Way<'a> {
    family: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    preference: Option<&'a str>,
    breakout: &'a str,
    interface: &'a str,
    state: PathHealth,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Whether new flows leave by it, all or some of them.
    takes_new_flows: bool,
}

impl Ways {
    /// Asks the controller, or the kernel where none runs.
    pub(super) fn look(config: &Config) -> Self {
        let status = block_on(async {
            match Client::new(&controller::socket(&config.system))
                .status()
                .await
            {
                Err(ClientError::Absent { source, .. })
                    if source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    Err("only root may ask the controller".to_owned())
                }
                Err(ClientError::Absent { .. } | ClientError::Ending { .. }) => {
                    controller::unattended(&config.system, &config.breakouts)
                        .await
                        .map_err(|error| error.to_string())
                }
                status => status.map_err(|error| error.to_string()),
            }
        });
        Self {
            status: status.unwrap_or_else(|_| Err("this process cannot ask".into())),
        }
    }

    /// The breakouts for some flows, in the order of the configuration; none where no controller
    /// watches them.
    pub(super) fn of<'a>(&'a self, flows: &'a Flows) -> Vec<Way<'a>> {
        let Ok(status) = &self.status else {
            return Vec::new();
        };
        let preference = flows.preference.as_deref();
        // One that the controller does not know yet holds from the next reload on.
        let preferred = status
            .preferences
            .iter()
            .find(|it| Some(it.name.as_str()) == preference);
        let ways = status.breakouts.iter().filter_map(|breakout| {
            let name = flows.family.name();
            let it = breakout.families.iter().find(|it| it.family == name)?;
            let own = breakout.preferences.iter();
            let own = own.filter(|it| Some(it.preference.as_str()) == preference);
            let (state, reason) = own
                .map(|it| (it.state, it.reason.as_deref()))
                .find(|(state, _)| *state != PathHealth::Up && it.state == PathHealth::Up)
                .unwrap_or((it.state, it.reason.as_deref()));
            let takes_new_flows = preferred.map_or(it.takes_new_flows, |preferred| {
                let taken = match flows.family {
                    Family::V4 => &preferred.ipv4,
                    Family::V6 => &preferred.ipv6,
                };
                taken.contains(&breakout.name)
            });
            Some(Way {
                family: name,
                preference,
                breakout: &breakout.name,
                interface: &breakout.interface,
                state,
                reason,
                takes_new_flows,
            })
        });
        ways.collect()
    }

    /// The same for people, with what steer does at all.
    pub(super) fn text(&self, all: &BTreeSet<Flows>) -> Result<String, fmt::Error> {
        let mut out = String::new();
        let status = match &self.status {
            Ok(status) => status,
            Err(why) => {
                writeln!(out, "now: not known: {why}")?;
                return Ok(out);
            }
        };
        writeln!(out, "now: {}", headline(status))?;
        for flows in all {
            let ways = self.of(flows);
            let whose = match &flows.preference {
                Some(preference) => format!("{} as {preference} prefers", flows.family.name()),
                None => flows.family.name().to_owned(),
            };
            for way in &ways {
                writeln!(
                    out,
                    "  {whose} by {} on {}: {}{}",
                    way.breakout,
                    way.interface,
                    state_text(way.state, way.reason),
                    if way.takes_new_flows {
                        "; takes new flows"
                    } else {
                        ""
                    },
                )?;
            }
            if !ways.is_empty() && !ways.iter().any(|it| it.takes_new_flows) {
                writeln!(out, "  {whose}: new flows take the backbone")?;
            }
        }
        if status.state == SteeringState::Unattended {
            dead_man(&mut out, status)?;
        }
        Ok(out)
    }
}
