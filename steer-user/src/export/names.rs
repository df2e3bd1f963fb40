//! Names for forwarders, which know zones and not patterns.

use std::collections::BTreeSet;

use super::coverage;
use crate::{
    endpoints::NamePattern,
    policy::{Plan, unselected},
};

/// The zones that say the selected names, and where they do not say the same.
pub(super) struct Zones {
    /// The zones of the selected names.
    pub selected: BTreeSet<String>,
    /// Zones of unselected names below those.
    pub unselected: BTreeSet<String>,
    /// Unselected names that no zone of their own can take out of those.
    along: BTreeSet<String>,
    /// Selected names that no zone says.
    left_out: BTreeSet<String>,
}

impl Zones {
    pub(super) fn of(plan: &Plan) -> Self {
        let selected = selected(plan);
        let zones = selected.iter().filter_map(|name| zone(name));
        let mut this = Self {
            selected: zones.map(ToOwned::to_owned).collect(),
            unselected: BTreeSet::new(),
            along: BTreeSet::new(),
            left_out: selected
                .iter()
                .filter(|name| zone(name).is_none())
                .map(ToString::to_string)
                .collect(),
        };
        for name in others(plan, &selected) {
            let inside = |zone: &str| {
                this.selected
                    .iter()
                    .any(|wide| covers(&format!("*.{wide}"), zone))
            };
            match zone(name) {
                // A selected name below it has a zone that is more specific again.
                Some(zone) if !this.selected.contains(zone) => {
                    if inside(zone) {
                        this.unselected.insert(zone.to_owned());
                    }
                }
                Some(_) => {
                    this.along.insert(name.to_string());
                }
                None => {
                    if inside(name.as_str()) {
                        this.along.insert(name.to_string());
                    }
                }
            }
        }
        this
    }

    /// What the zones lose or gain against the names; `holes`: whether [`Zones::unselected`] is
    /// written, too.
    pub(super) fn notes(&self, holes: bool) -> Vec<String> {
        let mut notes = vec![
            "a forwarder knows no ports, and a zone is a name with everything below it".to_owned(),
        ];
        let holes = self.unselected.iter().filter(|_| !holes);
        let along: Vec<&str> = self.along.iter().chain(holes).map(String::as_str).collect();
        if !along.is_empty() {
            notes.push(format!(
                "not selected, but inside a selected zone, and forwarded with it: {}",
                along.join(", ")
            ));
        }
        if !self.left_out.is_empty() {
            let names: Vec<&str> = self.left_out.iter().map(String::as_str).collect();
            notes.push(format!("left out, no zone says it: {}", names.join(", ")));
        }
        notes
    }
}

/// The zone of a name; none when it has a wildcard that is not a whole first label.
fn zone(name: &NamePattern) -> Option<&str> {
    let zone = name.as_str().strip_prefix("*.").unwrap_or(name.as_str());
    (!zone.contains('*')).then_some(zone)
}

/// The names of unselected sets to which a selected wildcard applies as well.
pub(super) fn exceptions(plan: &Plan) -> BTreeSet<&str> {
    let selected = selected(plan);
    others(plan, &selected)
        .map(NamePattern::as_str)
        .filter(|name| selected.iter().any(|wide| covers(wide.as_str(), name)))
        .collect()
}

fn selected(plan: &Plan) -> BTreeSet<&NamePattern> {
    let groups = coverage::groups(plan);
    groups.iter().flat_map(|group| group.names).collect()
}

/// The names that only unselected sets have.
fn others<'a>(
    plan: &'a Plan,
    selected: &BTreeSet<&NamePattern>,
) -> impl Iterator<Item = &'a NamePattern> {
    plan.feed()
        .sets
        .iter()
        .filter(|set| unselected(plan.selection(), set).is_some())
        .flat_map(|set| &set.names)
        .filter(|name| !selected.contains(name))
}

/// Whether all that `name` stands for is in what `pattern` stands for.
fn covers(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}
