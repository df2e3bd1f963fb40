//! dnsmasq: who answers for the names.

use std::net::IpAddr;

use super::{Export, export, names};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, resolvers: &[IpAddr]) -> Export {
    let (zones, notes) = names::zones(plan);
    let lines = |zone: &String| -> Vec<String> {
        resolvers
            .iter()
            .map(|resolver| format!("server=/{zone}/{resolver}\n"))
            .collect()
    };
    let body: String = zones.iter().flat_map(lines).collect();
    let usage = ["Name it with conf-file=, or put it into dnsmasq's conf-dir."];
    export(plan, "#", &usage, notes, &body)
}
