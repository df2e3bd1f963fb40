//! Classes: what a packet turns out to be, and the numbers the kernel knows them by.

use std::fmt;

use serde::{Deserialize, Serialize};
use steer_common::abi;

use crate::{
    config::{ClassSelection, Preference},
    endpoints::{Category, Instance, ServiceArea, SetId, fnv1a},
};

/// The list that a set comes from. Ids mean something only inside their list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u16)]
pub enum SourceList {
    /// Microsoft's, Worldwide.
    Worldwide = 1,
    /// The operator's own includes.
    Own = 2,
    /// Microsoft's, China.
    China = 3,
    /// Microsoft's, US Department of Defense.
    UsGovDod = 4,
    /// Microsoft's, US government GCC High.
    UsGovGccHigh = 5,
}

impl SourceList {
    /// As JSON and metrics write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worldwide => "worldwide",
            Self::Own => "own",
            Self::China => "china",
            Self::UsGovDod => "usgovdod",
            Self::UsGovGccHigh => "usgovgcchigh",
        }
    }
}

impl From<Instance> for SourceList {
    fn from(instance: Instance) -> Self {
        match instance {
            Instance::Worldwide => Self::Worldwide,
            Instance::China => Self::China,
            Instance::UsGovDod => Self::UsGovDod,
            Instance::UsGovGccHigh => Self::UsGovGccHigh,
        }
    }
}

/// What identifies a class for ever: a feed that renumbers, drops or adds sets changes no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassKey {
    /// The list.
    pub list: SourceList,
    /// The id in it: Microsoft's set id, or [`own_id`] of the include's name.
    pub id: u16,
}

/// The id of an include of the operator's own: a hash of its name, so that it stays when others are
/// added or removed before it. Never 0.
pub fn own_id(name: &str) -> u16 {
    let hash = fnv1a(name.as_bytes());
    let folded = hash ^ hash >> 32;
    ((folded ^ folded >> 16) & 0xffff)
        .try_into()
        .unwrap_or(1)
        .max(1)
}

/// A class of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its number in the kernel, given by the registry: 1..=511.
    pub index: u16,
    /// Its identity.
    pub key: ClassKey,
    /// What a person calls it.
    pub label: ClassLabel,
    /// The category it ranks with.
    pub category: Category,
    /// Microsoft's service area; none for the operator's own.
    pub service_area: Option<ServiceArea>,
}

impl Class {
    /// Which preference is its: the first one that names it.
    pub fn preference(&self, preferences: &[Preference]) -> Option<usize> {
        preferences.iter().position(|it| self.is_among(&it.classes))
    }

    /// Whether a selection has it.
    pub fn is_among(&self, selection: &ClassSelection) -> bool {
        let by_label = match &self.label {
            ClassLabel::Set(id) => selection.sets.contains(id),
            ClassLabel::Own(name) => {
                let list = name.split_once('/').map_or(name.as_str(), |(list, _)| list);
                selection.lists.contains(list)
            }
        };
        let area = self.service_area.as_ref();
        by_label
            || selection.categories.contains(&self.category)
            || area.is_some_and(|area| selection.service_areas.contains(area))
    }
}

/// What a person calls a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassLabel {
    /// Microsoft's set.
    Set(SetId),
    /// The name of an include, or of a list's service.
    Own(String),
}

impl fmt::Display for ClassLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(id) => write!(f, "set {id}"),
            // A service of a list is called LIST/SERVICE, an include of its own has no slash.
            Self::Own(name) if name.contains('/') => write!(f, "service {name:?}"),
            Self::Own(name) => write!(f, "include {name:?}"),
        }
    }
}

/// Which number the kernel knows each class by. Numbers are only ever added, so that counters and
/// learned addresses mean the same in every generation and after every restart. It serializes as
/// the list of keys; a key's number is its position, from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ClassKey>", into = "Vec<ClassKey>")]
pub struct ClassRegistry {
    keys: Vec<ClassKey>,
}

/// There is no number left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the registry knows {MAX_CLASSES} classes already, and no more fit")]
pub struct RegistryFull;

/// Index 0 means "no class".
const MAX_CLASSES: usize = abi::CLASSES as usize - 1;

impl ClassRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a class, if it has one.
    pub fn index(&self, key: ClassKey) -> Option<u16> {
        self.keys.iter().position(|known| *known == key).map(number)
    }

    /// The class with this number.
    pub fn key(&self, index: u16) -> Option<ClassKey> {
        self.keys.get(usize::from(index).checked_sub(1)?).copied()
    }

    /// The number of a class; a new one if it has none.
    pub fn assign(&mut self, key: ClassKey) -> Result<u16, RegistryFull> {
        if let Some(index) = self.index(key) {
            return Ok(index);
        }
        if self.keys.len() == MAX_CLASSES {
            return Err(RegistryFull);
        }
        self.keys.push(key);
        Ok(number(self.keys.len() - 1))
    }

    /// How many classes have a number.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no class has a number.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

fn number(position: usize) -> u16 {
    // Positions are below MAX_CLASSES.
    u16::try_from(position + 1).unwrap_or(0)
}

impl From<ClassRegistry> for Vec<ClassKey> {
    fn from(registry: ClassRegistry) -> Self {
        registry.keys
    }
}

impl TryFrom<Vec<ClassKey>> for ClassRegistry {
    type Error = String;

    fn try_from(keys: Vec<ClassKey>) -> Result<Self, String> {
        if keys.len() > MAX_CLASSES {
            return Err(format!("{} classes, {MAX_CLASSES} fit", keys.len()));
        }
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a class is there twice".into());
        }
        Ok(Self { keys })
    }
}
