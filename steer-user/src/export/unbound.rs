//! unbound: who answers for the names.

use std::{fmt::Write as _, net::IpAddr};

use super::{Export, canary, export, names::Zones};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, resolvers: &[IpAddr], canary: bool) -> Export {
    let zones = Zones::of(plan);
    let mut body = String::new();
    for zone in &zones.selected {
        // Writing to a String cannot fail; the same below.
        let _ = writeln!(body, "forward-zone:\n\tname: \"{zone}.\"");
        for resolver in resolvers {
            let _ = writeln!(body, "\tforward-addr: {resolver}");
        }
    }
    let mut notes = zones.notes(false);
    if canary {
        body += "server:\n";
        for name in canary::NAMES {
            let _ = writeln!(body, "\tlocal-zone: \"{name}.\" always_nxdomain");
        }
        notes.push(canary::NOTE.into());
    }
    let usage = ["Name it with include: in unbound.conf."];
    export(plan, "#", &usage, notes, &body)
}
