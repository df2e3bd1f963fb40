//! From feed and selection to claims on prefixes, and from those to tables.

use std::collections::BTreeSet;

use ipnet::IpNet;
use steer_common::{
    chunk::{RULES_PER_ENTRY, SourceKind},
    image::{Claim, Image, ImageError, MAX_CLAIMS, Order, Source},
    rule::{Action, Rule},
};

use super::{
    ClassRegistry, Plan, PlanError, Site, Size, SourceList, names,
    want::{Want, id, rank, wants},
};
use crate::{config::Selection, endpoints::Feed};

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
        .map_err(|source| beyond(source, &wants))?;
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

/// Exclusions and the router's own addresses rank before everything.
fn pass(prefix: IpNet, action: Action) -> Claim {
    Claim {
        prefix,
        order: Order::new(0, &prefix, 0),
        rules: vec![Rule::pass(action)],
    }
}

fn sources(site: &Site) -> Vec<Source> {
    let clients = site.clients.iter().flatten();
    let clients = clients.map(|prefix| {
        let left = site.queries_left.iter().any(|it| it.contains(prefix));
        let kind = if left {
            SourceKind::QueriesLeft
        } else {
            SourceKind::Client
        };
        (prefix, kind)
    });
    // Wider than the clients it says something of, a prefix would make clients of the others in it.
    let queries_left = site.queries_left.iter();
    let queries_left = queries_left.filter(|prefix| site.has_clients_around(prefix));
    let queries_left = queries_left.map(|prefix| (prefix, SourceKind::QueriesLeft));
    let left_out = site.left_out.iter();
    let left_out = left_out.map(|prefix| (prefix, SourceKind::LeftOut));
    clients
        .chain(queries_left)
        .chain(left_out)
        .map(|(prefix, kind)| Source {
            prefix: *prefix,
            kind,
        })
        .collect()
}

/// Which limit the plan is beyond, who takes most, and what to do.
fn beyond(source: ImageError, wants: &[Want]) -> PlanError {
    let hint = match &source {
        ImageError::Rules { address, .. } => {
            let there: Vec<String> = wants
                .iter()
                .filter(|want| want.prefixes.iter().any(|prefix| prefix.contains(address)))
                .map(|want| want.class.label.to_string())
                .collect();
            format!(
                "there are {}: name fewer port ranges in an include, or exclude sets until {RULES_PER_ENTRY} are left",
                there.join(", ")
            )
        }
        ImageError::Claims { .. }
        | ImageError::Entries
        | ImageError::Segments
        | ImageError::Boundaries
        | ImageError::Chunks => largest(wants),
    };
    PlanError::Tables { source, hint }
}

fn largest(wants: &[Want]) -> String {
    let total: usize = wants.iter().map(|want| want.prefixes.len()).sum();
    let largest = wants.iter().max_by_key(|want| want.prefixes.len());
    let who = largest.map_or_else(String::new, |want| {
        format!(
            ", most of them ({}) in {}",
            want.prefixes.len(),
            want.class.label
        )
    });
    format!(
        "there are {total} prefixes (of at most {MAX_CLAIMS}){who}: select fewer sets or prefixes"
    )
}
