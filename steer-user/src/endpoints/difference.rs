//! What moved between two lists, set by set.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::EndpointSet;

/// What moved between two lists; empty when they say the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The sets that differ, in ascending order of their ids.
    pub sets: Vec<SetDifference>,
}

/// What moved in one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDifference {
    /// Microsoft's id; 0 for a service of another list.
    pub id: u16,
    /// The name of such a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What became of the set.
    pub kind: Kind,
    /// Prefixes that came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_prefixes: Vec<IpNet>,
    /// Prefixes that went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_prefixes: Vec<IpNet>,
    /// Names that came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_names: Vec<String>,
    /// Names that went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_names: Vec<String>,
    /// What else says something new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Changed>,
}

/// What became of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Both lists have it.
    Changed,
}

/// A field with another value than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// As the service calls it: `category`, `serviceArea`, `tcpPorts`, `udpPorts`, `required`.
    pub field: String,
    /// The value before.
    pub from: String,
    /// The value now.
    pub to: String,
}

/// How much moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Prefix entries that came, over all sets.
    pub added_prefixes: usize,
    /// Prefix entries that went.
    pub removed_prefixes: usize,
    /// Names that came.
    pub added_names: usize,
    /// Names that went.
    pub removed_names: usize,
    /// Fields with another value.
    pub changed: usize,
}

impl Difference {
    /// From `old` to `new`, both in ascending order of their ids.
    pub fn between(old: &[EndpointSet], new: &[EndpointSet]) -> Self {
        let ids: BTreeSet<_> = old.iter().chain(new).map(|set| set.id).collect();
        let find = |sets: &[EndpointSet], id| {
            let place = sets.binary_search_by_key(&id, |set| set.id).ok()?;
            Some(Parts::of_set(&sets[place]))
        };
        let sets = ids
            .into_iter()
            .filter_map(|id| parts_difference(find(old, id), find(new, id)))
            .collect();
        Self { sets }
    }

    /// From `old` to `new`, the services of another list than Microsoft's.
    pub fn between_services(old: &[ServiceParts], new: &[ServiceParts]) -> Self {
        let names: BTreeSet<_> = old.iter().chain(new).map(|it| &it.name).collect();
        let find = |services: &[ServiceParts], name: &str| {
            let mut services = services.iter();
            services.find(|it| it.name == name).map(Parts::of_service)
        };
        let sets = names
            .into_iter()
            .filter_map(|name| parts_difference(find(old, name), find(new, name)))
            .collect();
        Self { sets }
    }

    /// Whether nothing moved.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// How much moved.
    pub fn extent(&self) -> Extent {
        let mut extent = Extent::default();
        for set in &self.sets {
            extent.added_prefixes += set.added_prefixes.len();
            extent.removed_prefixes += set.removed_prefixes.len();
            extent.added_names += set.added_names.len();
            extent.removed_names += set.removed_names.len();
            extent.changed += set.changed.len();
        }
        extent
    }
}

/// A service of another list than Microsoft's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceParts {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub prefixes: Vec<IpNet>,
    /// By which names.
    pub names: Vec<String>,
    /// What else it says: a field, and its value.
    pub fields: Vec<(&'static str, String)>,
}

/// What is compared.
struct Parts {
    id: u16,
    name: Option<String>,
    prefixes: BTreeSet<IpNet>,
    names: BTreeSet<String>,
    fields: Vec<(&'static str, String)>,
}

impl Parts {
    fn of_set(set: &EndpointSet) -> Self {
        Self {
            id: set.id.0,
            name: None,
            prefixes: set.prefixes.iter().copied().collect(),
            names: set.names.iter().map(|it| it.as_str().to_owned()).collect(),
            fields: vec![
                ("category", set.category.to_string()),
                ("serviceArea", set.service_area.to_string()),
                ("tcpPorts", set.tcp.to_string()),
                ("udpPorts", set.udp.to_string()),
                ("required", set.required.to_string()),
            ],
        }
    }

    fn of_service(service: &ServiceParts) -> Self {
        Self {
            id: 0,
            name: Some(service.name.clone()),
            prefixes: service.prefixes.iter().copied().collect(),
            names: service.names.iter().cloned().collect(),
            fields: service.fields.clone(),
        }
    }
}

fn parts_difference(old: Option<Parts>, new: Option<Parts>) -> Option<SetDifference> {
    let (kind, either) = match (&old, &new) {
        (None, None) => return None,
        (None, Some(new)) => (Kind::Added, new),
        (Some(old), None) => (Kind::Removed, old),
        (Some(_), Some(new)) => (Kind::Changed, new),
    };
    let (id, name) = (either.id, either.name.clone());
    let changed = match (&old, &new) {
        (Some(old), Some(new)) => changed(old, new),
        _ => Vec::new(),
    };
    let parts = |it: Option<Parts>| it.map_or_else(Default::default, |it| (it.prefixes, it.names));
    let (old_prefixes, old_names) = parts(old);
    let (new_prefixes, new_names) = parts(new);
    let difference = SetDifference {
        id,
        name,
        kind,
        added_prefixes: new_prefixes.difference(&old_prefixes).copied().collect(),
        removed_prefixes: old_prefixes.difference(&new_prefixes).copied().collect(),
        added_names: new_names.difference(&old_names).cloned().collect(),
        removed_names: old_names.difference(&new_names).cloned().collect(),
        changed,
    };
    let same = difference.kind == Kind::Changed && difference.is_nothing();
    (!same).then_some(difference)
}

fn changed(old: &Parts, new: &Parts) -> Vec<Changed> {
    let pairs = old.fields.iter().zip(&new.fields);
    pairs
        .filter(|((_, from), (_, to))| from != to)
        .map(|((field, from), (_, to))| Changed {
            field: (*field).to_owned(),
            from: from.clone(),
            to: to.clone(),
        })
        .collect()
}

impl SetDifference {
    fn is_nothing(&self) -> bool {
        let prefixes = [&self.added_prefixes, &self.removed_prefixes];
        let names = [&self.added_names, &self.removed_names];
        self.changed.is_empty()
            && prefixes.iter().all(|it| it.is_empty())
            && names.iter().all(|it| it.is_empty())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for set in &self.sets {
            let word = match set.kind {
                Kind::Added => " is new",
                Kind::Removed => " is gone",
                Kind::Changed => "",
            };
            match &set.name {
                Some(name) => writeln!(f, "service {name}{word}")?,
                None => writeln!(f, "set {}{word}", set.id)?,
            }
            for changed in &set.changed {
                let Changed { field, from, to } = changed;
                writeln!(f, "  ~ {field} {from:?} -> {to:?}")?;
            }
            for prefix in &set.added_prefixes {
                writeln!(f, "  + {prefix}")?;
            }
            for prefix in &set.removed_prefixes {
                writeln!(f, "  - {prefix}")?;
            }
            for name in &set.added_names {
                writeln!(f, "  + {name}")?;
            }
            for name in &set.removed_names {
                writeln!(f, "  - {name}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "prefixes +{} -{}, names +{} -{}, fields changed {}",
            self.added_prefixes,
            self.removed_prefixes,
            self.added_names,
            self.removed_names,
            self.changed
        )
    }
}
