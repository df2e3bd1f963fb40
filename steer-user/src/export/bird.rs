//! BIRD 2: prefix sets by category, and static routes in tables of their own.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{CATEGORIES, Export, NextHop, Word, coverage, export, ports_are_lost, word};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, prefix: &Word, next_hop: &NextHop) -> Export {
    let groups = coverage::groups(plan);
    let mut body = String::new();
    for category in CATEGORIES {
        let nets = coverage::prefixes(&groups, Some(category));
        for (digit, v4) in [("4", true), ("6", false)] {
            let own: Vec<String> = nets
                .iter()
                .filter(|net| matches!(net, IpNet::V4(_)) == v4)
                .map(|net| format!("\t{net}"))
                .collect();
            // BIRD has no empty set of prefixes with a type.
            if !own.is_empty() {
                // Writing to a String cannot fail; the same below.
                let _ = writeln!(
                    body,
                    "define {prefix}_{}{digit} = [\n{}\n];",
                    word(category),
                    own.join(",\n")
                );
            }
        }
    }
    let all = coverage::prefixes(&groups, None);
    let gateway4 = next_hop.gateway.map(|gateway| gateway.to_string());
    // Only a link-local gateway needs its interface, and only then BIRD takes one.
    let gateway6 = next_hop.gateway6.map(|gateway| match &next_hop.interface {
        Some(interface) if gateway.is_unicast_link_local() => format!("{gateway}%'{interface}'"),
        _ => gateway.to_string(),
    });
    for (digit, v4, gateway) in [("4", true, gateway4), ("6", false, gateway6)] {
        let Some(gateway) = gateway else { continue };
        let _ = writeln!(
            body,
            "ipv{digit} table {prefix}_table{digit};\nprotocol static {prefix}_static{digit} {{\n\tipv{digit} {{ table {prefix}_table{digit}; }};"
        );
        for net in all.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4) {
            let _ = writeln!(body, "\troute {net} via {gateway};");
        }
        body.push_str("}\n");
    }
    let usage = [
        "Name it with include in bird.conf; a pipe or a kernel protocol takes the routes from their tables.",
    ];
    export(plan, "#", &usage, ports_are_lost(plan), &body)
}
