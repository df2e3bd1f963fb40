//! ipset: sets of the type hash:net,port, for iptables.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{CATEGORIES, Export, Word, coverage, export, word};
use crate::policy::Plan;

/// The kernel keeps an element for each port: longer ranges would fill the set.
const LONGEST_RANGE: u32 = 1024;

/// The most elements of a set; it costs nothing before they are there. The same for ever: a set
/// cannot be swapped for one that was made with another.
const MOST_ELEMENTS: u32 = 1 << 20;

pub(super) fn render(plan: &Plan, prefix: &Word) -> Export {
    let groups = coverage::groups(plan);
    let mut notes = Vec::new();
    let mut body = String::new();
    for category in CATEGORIES {
        let cells = coverage::cells(&groups, category);
        for (digit, family) in [("4", "inet"), ("6", "inet6")] {
            let set = format!("{prefix}_{}{digit}", word(category));
            let mut adds = String::new();
            for cell in &cells {
                if matches!(cell.prefix, IpNet::V4(_)) != (digit == "4") {
                    continue;
                }
                let (protocol, ports) = (cell.protocol.as_str(), cell.ports());
                let length = u32::from(cell.hi) - u32::from(cell.lo) + 1;
                if length > LONGEST_RANGE {
                    notes.push(format!(
                        "{} {protocol} {ports} is left out: a set would need an element for each port; name fewer ports, or use the nftables export",
                        cell.prefix
                    ));
                    continue;
                }
                // Writing to a String cannot fail; the same below.
                let _ = writeln!(adds, "add {set}_new {},{protocol}:{ports}", cell.prefix);
            }
            for name in [set.clone(), format!("{set}_new")] {
                let _ = writeln!(
                    body,
                    "create {name} hash:net,port family {family} maxelem {MOST_ELEMENTS} -exist"
                );
            }
            let _ = write!(
                body,
                "flush {set}_new\n{adds}swap {set}_new {set}\ndestroy {set}_new\n"
            );
        }
    }
    let usage = [
        "Load it with `ipset restore -f FILE`; loading it again swaps each set for its new one.",
        "A rule asks: -m set --match-set SET dst,dst",
    ];
    export(plan, "#", &usage, notes, &body)
}
