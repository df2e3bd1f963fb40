//! nftables: named sets of address . protocol . port, for rules of the operator's own.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{CATEGORIES, Export, Word, coverage, export, word};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, table: &Word) -> Export {
    let groups = coverage::groups(plan);
    let mut sets = format!("table inet {table} {{\n");
    let mut elements = String::new();
    for category in CATEGORIES {
        let cells = coverage::cells(&groups, category);
        for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
            let set = format!("{}{family}", word(category));
            // Writing to a String cannot fail; the same below.
            let _ = writeln!(
                sets,
                "\tset {set} {{\n\t\ttype {kind} . inet_proto . inet_service\n\t\tflags interval\n\t}}"
            );
            let _ = writeln!(elements, "flush set inet {table} {set}");
            let own: Vec<String> = cells
                .iter()
                .filter(|cell| matches!(cell.prefix, IpNet::V4(_)) == (family == "4"))
                .map(|cell| {
                    let protocol = cell.protocol.as_str();
                    format!("\t{} . {protocol} . {}", cell.prefix, cell.ports())
                })
                .collect();
            if !own.is_empty() {
                let _ = writeln!(
                    elements,
                    "add element inet {table} {set} {{\n{}\n}}",
                    own.join(",\n")
                );
            }
        }
    }
    let usage = [
        "Load it with `nft -f`; loading it again replaces the elements in one transaction.",
        "A rule asks: ip daddr . meta l4proto . th dport @optimize4",
    ];
    export(
        plan,
        "#",
        &usage,
        Vec::new(),
        &format!("{sets}}}\n{elements}"),
    )
}
