//! What steer needs besides: room in the connection table, a clock, resolvers.

use std::time::Duration;

use super::{Patient, Verdict};
use crate::{
    config::Mode,
    controller::preflight::{CONNTRACK_REFUSE, CONNTRACK_WARN},
};

pub(super) fn conntrack(patient: &Patient) -> Vec<Verdict> {
    if patient.config.mode == Mode::Redirect {
        return Vec::new();
    }
    let Some(usage) = patient.conntrack else {
        return vec![Verdict::ok("connection tracking is not loaded yet")];
    };
    let text = format!("{} of {} entries in use", usage.entries, usage.max);
    let percent = usage.percent();
    vec![
        if percent > CONNTRACK_REFUSE {
            Verdict::wrong(text)
        } else if percent > CONNTRACK_WARN {
            Verdict::note(text)
        } else {
            Verdict::ok(text)
        }
        .remedy_if_needed(|| {
            let more = usage.max.max(usage.entries).saturating_mul(4);
            format!("sysctl -w net.netfilter.nf_conntrack_max={more}")
        }),
    ]
}

impl Verdict {
    fn remedy_if_needed(self, command: impl FnOnce() -> String) -> Self {
        if self.state == super::State::Ok {
            self
        } else {
            self.remedy(command())
        }
    }
}

pub(super) fn clock(patient: &Patient) -> Vec<Verdict> {
    /// Nobody runs a build that long; a clock that says so is wrong.
    const TWENTY_YEARS: Duration = Duration::from_hours(20 * 365 * 24);
    let now = humantime::format_rfc3339_seconds(patient.now);
    let Some(built) = patient.built else {
        return Vec::new();
    };
    vec![if patient.now < built {
        Verdict::wrong(format!("{now} is before this steer was made"))
    } else if patient.now > built + TWENTY_YEARS {
        Verdict::wrong(format!("{now} is decades after this steer was made"))
    } else {
        Verdict::ok(now.to_string())
    }]
}

pub(super) fn bypass(patient: &Patient) -> Vec<Verdict> {
    if !patient.config.select.names.steer {
        return Vec::new();
    }
    let Some(bypass) = &patient.bypass else {
        return vec![Verdict::ok(
            "connections are not tracked: it cannot be seen",
        )];
    };
    let asked = bypass.resolvers();
    if asked.is_empty() {
        return vec![Verdict::ok(
            "no client is seen to ask past the office's resolvers",
        )];
    }
    asked
        .iter()
        .map(|it| Verdict::note(format!("{it}")))
        .collect()
}

pub(super) fn dns(patient: &Patient) -> Vec<Verdict> {
    if patient.resolvers.is_empty() {
        return vec![Verdict::note("/etc/resolv.conf names no resolver")];
    }
    let none = patient.resolvers.iter().all(|it| !it.answered);
    patient
        .resolvers
        .iter()
        .map(|it| {
            let by = it.leaves_by.as_deref().unwrap_or("no route");
            let text = format!("{} (by {by})", it.address);
            match (it.answered, none) {
                (true, _) => Verdict::ok(format!("{text} answers")),
                (false, true) => Verdict::wrong(format!("{text} does not answer")),
                (false, false) => Verdict::note(format!("{text} does not answer; another does")),
            }
        })
        .collect()
}
