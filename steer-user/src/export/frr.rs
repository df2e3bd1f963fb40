//! FRR: prefix lists by category, and static routes.

use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;

use super::{CATEGORIES, Export, NextHop, Word, coverage, export, ports_are_lost, word};
use crate::policy::Plan;

pub(super) fn render(plan: &Plan, prefix: &Word, next_hop: &NextHop, table: Option<u32>) -> Export {
    let groups = coverage::groups(plan);
    let mut body = String::new();
    for category in CATEGORIES {
        let name = format!("{prefix}_{}", word(category));
        let nets = coverage::prefixes(&groups, Some(category));
        for (family, v4) in [("ip", true), ("ipv6", false)] {
            let own = nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4);
            for (position, net) in (1_usize..).zip(own) {
                // Writing to a String cannot fail; the same below.
                let _ = writeln!(
                    body,
                    "{family} prefix-list {name} seq {} permit {net}",
                    position * 5
                );
            }
        }
    }
    let table = table.map_or_else(String::new, |table| format!(" table {table}"));
    let interface = next_hop
        .interface
        .as_ref()
        .map_or_else(String::new, |interface| format!(" {interface}"));
    for net in coverage::prefixes(&groups, None) {
        let (family, gateway) = match net {
            IpNet::V4(_) => ("ip", next_hop.gateway.map(IpAddr::V4)),
            IpNet::V6(_) => ("ipv6", next_hop.gateway6.map(IpAddr::V6)),
        };
        if let Some(gateway) = gateway {
            let _ = writeln!(body, "{family} route {net} {gateway}{interface}{table}");
        }
    }
    let usage = [
        "Read it with `vtysh -f`. It adds: take away what an older export had, or use frr-reload.py.",
    ];
    export(plan, "!", &usage, ports_are_lost(plan), &body)
}
