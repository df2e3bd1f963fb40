//! What the breakouts are for a family now, for `steer explain`: why IPv6 takes the backbone while
//! IPv4 leaves near.

use std::{
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

/// One breakout, as one family of it fares.
#[derive(Debug, Serialize)]
pub(super) struct Way<'a> {
    family: &'static str,
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

    /// The breakouts for a family, in the order of the configuration; none where no controller
    /// watches them.
    pub(super) fn of(&self, family: Family) -> Vec<Way<'_>> {
        let Ok(status) = &self.status else {
            return Vec::new();
        };
        let ways = status.breakouts.iter().filter_map(|breakout| {
            let name = family.name();
            let it = breakout.families.iter().find(|it| it.family == name)?;
            Some(Way {
                family: name,
                breakout: &breakout.name,
                interface: &breakout.interface,
                state: it.state,
                reason: it.reason.as_deref(),
                takes_new_flows: it.takes_new_flows,
            })
        });
        ways.collect()
    }

    /// The same for people, with what steer does at all.
    pub(super) fn text(&self, families: &[Family]) -> Result<String, fmt::Error> {
        let mut out = String::new();
        let status = match &self.status {
            Ok(status) => status,
            Err(why) => {
                writeln!(out, "now: not known: {why}")?;
                return Ok(out);
            }
        };
        writeln!(out, "now: {}", headline(status))?;
        for &family in families {
            let ways = self.of(family);
            for way in &ways {
                writeln!(
                    out,
                    "  {} by {} on {}: {}{}",
                    way.family,
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
                writeln!(out, "  {}: new flows take the backbone", family.name())?;
            }
        }
        if status.state == SteeringState::Unattended {
            dead_man(&mut out, status)?;
        }
        Ok(out)
    }
}
