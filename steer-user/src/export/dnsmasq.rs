//! dnsmasq: who answers for the names.

use std::net::IpAddr;

use super::{Export, export, names::Zones};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, resolvers: &[IpAddr]) -> Export {
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
    let usage = ["Name it with conf-file=, or put it into dnsmasq's conf-dir."];
    export(plan, "#", &usage, zones.notes(true), &body)
}
