//! From feed and selection to claims on prefixes, and from those to tables.

use std::collections::BTreeSet;

use ipnet::IpNet;
use steer_common::{
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    rule::{Action, Rule, TCP, UDP},
};

use super::{
    Class, ClassKey, ClassLabel, ClassRegistry, Plan, PlanError, Site, Size, SourceList,
    decide::unselected, names, own_id,
};
use crate::{
    config::{OwnInclude, Selection},
    endpoints::{Category, EndpointSet, Feed, NamePattern, Ports, never_steered},
};

pub(super) fn plan(
    feed: Feed,
    select: Selection,
    site: Site,
    registry: &mut ClassRegistry,
) -> Result<Plan, PlanError> {
    let office: Vec<IpNet> = site
        .clients
        .iter()
        .flatten()
        .chain(&site.left_out)
        .copied()
        .collect();
    feed.check_against(&office, &select.exclude)?;

    let mut grown = registry.clone();
    let mut wants = wants(&feed, &select, &mut grown)?;
    // The order of precedence, as far as it does not depend on the prefix.
    wants.sort_by_key(|want| (rank(want.class.category), id(&want.class)));

    let mut claims: Vec<Claim> = wants.iter().flat_map(Want::claims).collect();
    let claimed: BTreeSet<IpNet> = claims.iter().map(|claim| claim.prefix).collect();
    // Where nothing is steered, there is nothing to leave out: counted as a pass that might have
    // been a steer, the router's own addresses would hide the real ones.
    let names = names::compile(&feed, &select, &wants)?;
    let learns = names.table.learns();
    // A learned address can be anywhere.
    let matters = |prefix: &IpNet| {
        learns
            || claimed
                .iter()
                .any(|other| other.contains(prefix) || prefix.contains(other))
    };
    let excluded = select
        .exclude
        .iter()
        .map(|prefix| (*prefix, Action::Exclude));
    let own = site
        .router
        .iter()
        .map(|address| ((*address).into(), Action::RouterLocal));
    claims.extend(
        excluded
            .chain(own)
            .filter(|(prefix, _)| matters(prefix))
            .map(|(prefix, action)| pass(prefix, action)),
    );

    if learns {
        // What a client's own prefix has is never elsewhere, whatever an answer says.
        let inside = site.clients.iter().flatten();
        claims.extend(inside.map(|prefix| pass(*prefix, Action::Exclude)));
    }

    let classes: Vec<(u16, Vec<Rule>)> = wants
        .iter()
        .filter(|want| learns && want.learns())
        .map(|want| (want.class.index, want.rules.clone()))
        .collect();
    let image = Image::build_learning(&claims, &sources(&site), &classes)
        .map_err(|source| PlanError::tables(source, &wants))?;
    let measured = Size {
        sets: wants
            .iter()
            .filter(|want| want.class.key.list != SourceList::Own)
            .count(),
        own: wants
            .iter()
            .filter(|want| want.class.key.list == SourceList::Own)
            .count(),
        prefixes_v4: claimed
            .iter()
            .filter(|prefix| prefix.addr().is_ipv4())
            .count(),
        prefixes_v6: claimed
            .iter()
            .filter(|prefix| prefix.addr().is_ipv6())
            .count(),
        entries: image.entries_used(),
        chunks: image.chunks_used(),
    };
    *registry = grown;
    let classes = wants.into_iter().map(|want| want.class).collect();
    Ok(Plan {
        feed,
        select,
        site,
        classes,
        image,
        names,
        size: measured,
    })
}

/// What one set or include wants.
pub(super) struct Want {
    pub class: Class,
    pub prefixes: Vec<IpNet>,
    rules: Vec<Rule>,
}

impl Want {
    /// Whether its destinations are known by its names alone.
    pub(super) fn learns(&self) -> bool {
        self.prefixes.is_empty()
    }

    fn claims(&self) -> impl Iterator<Item = Claim> {
        self.prefixes.iter().map(|prefix| Claim {
            prefix: *prefix,
            order: Order::new(rank(self.class.category), prefix, id(&self.class)),
            rules: self.rules.clone(),
        })
    }
}

fn wants(
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

/// Exclusions and the router's own addresses rank before everything.
fn pass(prefix: IpNet, action: Action) -> Claim {
    Claim {
        prefix,
        order: Order::new(0, &prefix, 0),
        rules: vec![Rule::pass(action)],
    }
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

fn sources(site: &Site) -> Vec<Source> {
    let clients = site
        .clients
        .iter()
        .flatten()
        .map(|prefix| (prefix, SourceKind::Client));
    let left_out = site
        .left_out
        .iter()
        .map(|prefix| (prefix, SourceKind::LeftOut));
    clients
        .chain(left_out)
        .map(|(prefix, kind)| Source {
            prefix: *prefix,
            kind,
        })
        .collect()
}
