//! What a plan covers, as boxes of prefix, protocol and ports that do not overlap.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    endpoints::{Category, NamePattern, Ports, ServiceArea},
    policy::{ClassLabel, Plan, unselected},
};

/// A selected set or include, without what is excluded.
pub(super) struct Group<'a> {
    pub label: ClassLabel,
    pub category: Category,
    pub service_area: Option<&'a ServiceArea>,
    pub prefixes: Vec<IpNet>,
    pub names: &'a [NamePattern],
    pub tcp: &'a Ports,
    pub udp: &'a Ports,
}

impl Group<'_> {
    /// `TCP 80,443 UDP 443`.
    pub(super) fn ports(&self) -> String {
        [("TCP", self.tcp), ("UDP", self.udp)]
            .into_iter()
            .filter(|(_, ports)| !ports.is_empty())
            .map(|(protocol, ports)| format!("{protocol} {ports}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// The selected sets in the order of their ids, then the includes in the order of the file.
pub(super) fn groups(plan: &Plan) -> Vec<Group<'_>> {
    let select = plan.selection();
    let without = |prefixes: &[IpNet]| {
        prefixes
            .iter()
            .flat_map(|prefix| without(*prefix, &select.exclude))
            .collect()
    };
    let sets = plan
        .feed()
        .sets
        .iter()
        .filter(|set| unselected(select, set).is_none())
        .map(|set| Group {
            label: ClassLabel::Set(set.id),
            category: set.category,
            service_area: Some(&set.service_area),
            prefixes: without(&set.prefixes),
            names: &set.names,
            tcp: &set.tcp,
            udp: &set.udp,
        });
    let own = select.include.iter().map(|include| Group {
        label: ClassLabel::Own(include.name.clone()),
        category: include.category,
        service_area: None,
        prefixes: without(&include.prefixes),
        names: &include.names,
        tcp: &include.tcp,
        udp: &include.udp,
    });
    sets.chain(own).collect()
}

/// What is left of a prefix, as few prefixes in ascending order.
fn without(prefix: IpNet, excluded: &[IpNet]) -> Vec<IpNet> {
    if excluded.iter().any(|other| other.contains(&prefix)) {
        return Vec::new();
    }
    if !excluded.iter().any(|other| prefix.contains(other)) {
        return vec![prefix];
    }
    let halves = prefix.subnets(prefix.prefix_len() + 1);
    halves
        .into_iter()
        .flatten()
        .flat_map(|half| without(half, excluded))
        .collect()
}

/// The transport protocols that are steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A prefix, a protocol, and ports from `lo` to `hi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub prefix: IpNet,
    pub protocol: Protocol,
    pub lo: u16,
    pub hi: u16,
}

impl Cell {
    /// `443` or `3478-3481`.
    pub(super) fn ports(&self) -> String {
        if self.lo == self.hi {
            self.lo.to_string()
        } else {
            format!("{}-{}", self.lo, self.hi)
        }
    }
}

/// What a category covers, in ascending order; no two cells have a flow in common.
pub(super) fn cells(groups: &[Group<'_>], category: Category) -> Vec<Cell> {
    let groups: Vec<&Group<'_>> = groups
        .iter()
        .filter(|group| group.category == category)
        .collect();
    let mut cells: Vec<Cell> = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .flat_map(|protocol| of_protocol(&groups, protocol))
        .collect();
    cells.sort_unstable();
    cells
}

fn of_protocol(groups: &[&Group<'_>], protocol: Protocol) -> Vec<Cell> {
    let ports = |group: &Group<'_>| match protocol {
        Protocol::Tcp => group.tcp.ranges().to_vec(),
        Protocol::Udp => group.udp.ranges().to_vec(),
    };
    // Between two cuts, every port is in the same groups.
    let cuts: BTreeSet<u32> = groups
        .iter()
        .flat_map(|group| ports(group))
        .flat_map(|range| [u32::from(range.lo()), u32::from(range.hi()) + 1])
        .collect();
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let mut open: BTreeMap<IpNet, Cell> = BTreeMap::new();
    let mut done = Vec::new();
    for pair in cuts.windows(2) {
        let (Ok(lo), Ok(hi)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else {
            continue;
        };
        let there: Vec<IpNet> = groups
            .iter()
            .filter(|group| {
                ports(group)
                    .iter()
                    .any(|range| range.lo() <= lo && hi <= range.hi())
            })
            .flat_map(|group| group.prefixes.iter().copied())
            .collect();
        let mut next = BTreeMap::new();
        for prefix in IpNet::aggregate(&there) {
            let lo = open.remove(&prefix).map_or(lo, |cell| cell.lo);
            next.insert(
                prefix,
                Cell {
                    prefix,
                    protocol,
                    lo,
                    hi,
                },
            );
        }
        done.extend(open.into_values());
        open = next;
    }
    done.extend(open.into_values());
    done
}

/// Every prefix of a category, aggregated; ports do not count.
pub(super) fn prefixes(groups: &[Group<'_>], category: Option<Category>) -> Vec<IpNet> {
    let all: Vec<IpNet> = groups
        .iter()
        .filter(|group| category.is_none_or(|wanted| group.category == wanted))
        .filter(|group| !(group.tcp.is_empty() && group.udp.is_empty()))
        .flat_map(|group| group.prefixes.iter().copied())
        .collect();
    let mut all = IpNet::aggregate(&all);
    all.sort_unstable();
    all
}
