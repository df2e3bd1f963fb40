//! What each selected set and include wants: its class, its prefixes and its port rules.

use ipnet::IpNet;
use steer_common::{
    image::{Claim, Order},
    rule::{Rule, TCP, UDP},
};

use super::{
    Class, ClassKey, ClassLabel, ClassRegistry, PlanError, SourceList, decide::unselected, own_id,
};
use crate::{
    config::{OwnInclude, Selection},
    endpoints::{Category, EndpointSet, Feed, NamePattern, Ports, never_steered},
};

/// What one set or include wants.
pub(super) struct Want {
    pub class: Class,
    pub prefixes: Vec<IpNet>,
    pub rules: Vec<Rule>,
}

impl Want {
    /// Whether its destinations are known by its names alone.
    pub(super) fn learns(&self) -> bool {
        self.prefixes.is_empty()
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> {
        self.prefixes.iter().map(|prefix| Claim {
            prefix: *prefix,
            order: Order::new(rank(self.class.category), prefix, id(&self.class)),
            rules: self.rules.clone(),
        })
    }
}

pub(super) fn wants(
    feed: &Feed,
    select: &Selection,
    registry: &mut ClassRegistry,
) -> Result<Vec<Want>, PlanError> {
    let mut wants = Vec::new();
    for set in &feed.sets {
        if unselected(select, set).is_none() && reachable(select, &set.prefixes, &set.names) {
            wants.push(of_set(feed, set, registry)?);
        }
    }
    let mut names: Vec<(u16, &str)> = Vec::new();
    for include in &select.include {
        let id = own_id(&include.name);
        if let Some((_, other)) = names.iter().find(|(known, _)| *known == id) {
            return Err(PlanError::SameId((*other).to_owned(), include.name.clone()));
        }
        names.push((id, &include.name));
        if reachable(select, &include.prefixes, &include.names) {
            wants.push(of_include(include, registry)?);
        }
    }
    Ok(wants)
}

/// Without prefixes, packets are steered by what answers teach.
fn reachable(select: &Selection, prefixes: &[IpNet], names: &[NamePattern]) -> bool {
    !prefixes.is_empty() || select.names.teach() && !names.is_empty()
}

fn of_set(feed: &Feed, set: &EndpointSet, registry: &mut ClassRegistry) -> Result<Want, PlanError> {
    let key = ClassKey {
        list: feed.instance.into(),
        id: set.id.0,
    };
    let class = Class {
        index: registry.assign(key)?,
        key,
        label: ClassLabel::Set(set.id),
        category: set.category,
        service_area: Some(set.service_area.clone()),
    };
    want(class, &set.prefixes, &set.tcp, &set.udp)
}

fn of_include(include: &OwnInclude, registry: &mut ClassRegistry) -> Result<Want, PlanError> {
    let key = ClassKey {
        list: SourceList::Own,
        id: own_id(&include.name),
    };
    let class = Class {
        index: registry.assign(key)?,
        key,
        label: ClassLabel::Own(include.name.clone()),
        category: include.category,
        service_area: None,
    };
    want(class, &include.prefixes, &include.tcp, &include.udp)
}

fn want(class: Class, prefixes: &[IpNet], tcp: &Ports, udp: &Ports) -> Result<Want, PlanError> {
    // Feed and configuration are checked when they are read; a plan made otherwise is not better.
    for prefix in prefixes {
        if let Some(kind) = never_steered(prefix) {
            return Err(PlanError::NeverSteered {
                who: class.label,
                prefix: *prefix,
                kind,
            });
        }
    }
    let steer = |protocol, ports: &Ports| -> Vec<Rule> {
        let rule = |range: &crate::endpoints::PortRange| {
            Rule::steer(class.index, protocol, range.lo(), range.hi())
        };
        ports.ranges().iter().map(rule).collect()
    };
    let rules = [steer(TCP, tcp), steer(UDP, udp)].concat();
    Ok(Want {
        class,
        prefixes: prefixes.to_vec(),
        rules,
    })
}

pub(super) const fn rank(category: Category) -> u8 {
    match category {
        Category::Optimize => 1,
        Category::Allow => 2,
        Category::Default => 3,
    }
}

/// Microsoft's list first, then by the id in the list.
pub(super) fn id(class: &Class) -> u32 {
    u32::from(class.key.list == SourceList::Own) << 16 | u32::from(class.key.id)
}
