//! A PAC file: browsers go direct to what is steered, and to the proxy for the rest. Old
//! JavaScript only, since some engines know no newer one.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{Export, coverage, export, names};
use crate::{endpoints::Ports, policy::Plan};

const CODE: &str = include_str!("pac.js");

pub(super) fn render(plan: &Plan, other: &str) -> Export {
    let mut sets = Vec::new();
    for group in coverage::groups(plan) {
        let patterns: Vec<String> = group
            .names
            .iter()
            .map(|name| quoted(name.as_str()))
            .collect();
        let addresses: Vec<String> = group.prefixes.iter().filter_map(range).collect();
        // A browser asks only about what goes over TCP.
        if group.tcp.is_empty() || (patterns.is_empty() && addresses.is_empty()) {
            continue;
        }
        sets.push(format!(
            "    // {}, {}\n    {{\n        ports: [{}],\n        names: [{}],\n        addresses: [{}]\n    }}",
            group.label,
            group.category,
            ports(group.tcp),
            patterns.join(", "),
            addresses.join(", "),
        ));
    }
    let exceptions: Vec<String> = names::exceptions(plan).into_iter().map(quoted).collect();
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "var steerSets = [\n{}\n];\n\n// Names of other sets: below a wildcard from above, they are not meant.\nvar steerExceptions = [{}];\n\nvar steerOther = {};\n\n{CODE}",
        sets.join(",\n"),
        exceptions.join(", "),
        quoted(other),
    );
    let notes = vec![
        "UDP and IPv6 addresses in URLs are left out: the proxy has them".to_owned(),
        "names of sets without prefixes go direct from the browser only; on the router their addresses are not known".to_owned(),
    ];
    export(plan, "//", &[], notes, &body)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn ports(ports: &Ports) -> String {
    let ranges: Vec<String> = ports
        .ranges()
        .iter()
        .map(|range| format!("[{}, {}]", range.lo(), range.hi()))
        .collect();
    ranges.join(", ")
}

fn range(prefix: &IpNet) -> Option<String> {
    let IpNet::V4(prefix) = prefix else {
        return None;
    };
    let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
    Some(format!("[{first}, {last}]"))
}
