//! unbound: who answers for the names.

use std::{fmt::Write as _, net::IpAddr};

use super::{Export, export, names::Zones};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, resolvers: &[IpAddr]) -> Export {
    let zones = Zones::of(plan);
    let mut body = String::new();
    for zone in &zones.selected {
        // Writing to a String cannot fail; the same below.
        let _ = writeln!(body, "forward-zone:\n\tname: \"{zone}.\"");
        for resolver in resolvers {
            let _ = writeln!(body, "\tforward-addr: {resolver}");
        }
    }
    let usage = ["Name it with include: in unbound.conf."];
    export(plan, "#", &usage, zones.notes(false), &body)
}
