//! dnsmasq: who answers for the names.

use std::net::IpAddr;

use super::{Export, canary, export, names::Zones};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, resolvers: &[IpAddr], canary: bool) -> Export {
    let zones = Zones::of(plan);
    let lines = |zone: &String| -> Vec<String> {
        resolvers
            .iter()
            .map(|resolver| format!("server=/{zone}/{resolver}\n"))
            .collect()
    };
    let mut body: String = zones.selected.iter().flat_map(lines).collect();
    // `#`: whoever answers for everything else.
    body.extend(
        zones
            .unselected
            .iter()
            .map(|zone| format!("server=/{zone}/#\n")),
    );
    let mut notes = zones.notes(true);
    if canary {
        // Nobody is asked for them, and nothing is known here: there are none.
        body.extend(canary::NAMES.map(|name| format!("local=/{name}/\n")));
        notes.push(canary::NOTE.into());
    }
    let usage = ["Name it with conf-file=, or put it into dnsmasq's conf-dir."];
    export(plan, "#", &usage, notes, &body)
}
