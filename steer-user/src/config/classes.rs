//! Which classes a key is about.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    checker::Checker,
    values::{Number, Text},
};
use crate::endpoints::{Category, ServiceArea, SetId};

/// Some classes; one of the four is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassSelection {
    /// Those of these categories.
    pub categories: BTreeSet<Category>,
    /// Those of these areas.
    pub service_areas: BTreeSet<ServiceArea>,
    /// These sets.
    pub sets: BTreeSet<SetId>,
    /// The services of these lists, and the includes of these names.
    pub lists: BTreeSet<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClasses {
    #[serde(default)]
    pub categories: Vec<Text>,
    #[serde(default)]
    pub service_areas: Vec<Text>,
    #[serde(default)]
    pub sets: Vec<Number>,
    #[serde(default)]
    pub lists: Vec<Text>,
}

impl RawClasses {
    /// Whether it names nothing.
    pub(super) fn is_empty(&self) -> bool {
        let words = [&self.categories, &self.service_areas, &self.lists];
        self.sets.is_empty() && words.iter().all(|words| words.is_empty())
    }
}

impl Checker<'_> {
    pub(super) fn classes(&mut self, raw: RawClasses) -> ClassSelection {
        ClassSelection {
            categories: self.words(raw.categories),
            service_areas: self.words(raw.service_areas),
            sets: self.set_ids(raw.sets),
            lists: raw.lists.into_iter().map(Text::into_inner).collect(),
        }
    }
}
