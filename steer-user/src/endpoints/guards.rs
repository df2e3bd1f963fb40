//! What holds an answer back although it is well-formed: it would take too much away, bring too
//! much, or touch what it must not.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{EndpointSet, SetId, special::overlap};

/// The bounds of a change that is made without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guards {
    /// Sets that every list must have, with at least one prefix or name.
    pub required: BTreeSet<SetId>,
    /// The most that may go at once, in percent of the entries in use.
    pub shrink: u16,
    /// The most that may come at once, in percent of the entries in use.
    pub growth: u16,
    /// The widest IPv4 prefix, 10 to 32.
    pub widest_v4: u8,
    /// The widest IPv6 prefix, 24 to 128.
    pub widest_v6: u8,
    /// What no prefix of a list may touch.
    pub deny: Vec<IpNet>,
}

/// Why a list is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// In words.
    pub reason: String,
    /// Whether an operator may apply the list nevertheless.
    pub can_be_approved: bool,
}

/// Below this, percentages mean nothing.
const FEW: usize = 20;

impl Guards {
    /// What speaks against using `new` in place of `old`.
    pub fn objections(&self, old: &[EndpointSet], new: &[EndpointSet]) -> Vec<Objection> {
        let mut objections = Vec::new();
        let mut object = |can_be_approved, reason| {
            objections.push(Objection {
                reason,
                can_be_approved,
            });
        };
        for id in &self.required {
            if !new.iter().any(|set| set.id == *id) {
                object(true, format!("set {id}, which is required, is missing"));
            }
        }
        let entries = |sets: &[EndpointSet]| -> [BTreeSet<String>; 2] {
            let prefixes = sets.iter().flat_map(|set| &set.prefixes);
            let names = sets.iter().flat_map(|set| &set.names);
            [
                prefixes.map(ToString::to_string).collect(),
                names.map(ToString::to_string).collect(),
            ]
        };
        for reason in self.extent(&entries(old), &entries(new)) {
            object(true, reason);
        }
        for set in new {
            for prefix in &set.prefixes {
                if let Some(reason) = self.denied(prefix) {
                    object(false, format!("set {}: {reason}", set.id));
                }
                let widest = match prefix {
                    IpNet::V4(_) => self.widest_v4,
                    IpNet::V6(_) => self.widest_v6,
                };
                if prefix.prefix_len() < widest {
                    let reason = format!(
                        "set {}: {prefix} is wider than /{widest}, the widest allowed",
                        set.id
                    );
                    object(false, reason);
                }
            }
        }
        objections
    }

    /// Whether too many entries, prefixes and names, would go or come at once.
    pub fn extent(&self, old: &[BTreeSet<String>; 2], new: &[BTreeSet<String>; 2]) -> Vec<String> {
        let mut reasons = Vec::new();
        for ((old, new), what) in old.iter().zip(new).zip(["prefixes", "names"]) {
            let (gone, come) = (old.difference(new).count(), new.difference(old).count());
            for (count, limit, verb) in [(gone, self.shrink, "go"), (come, self.growth, "come")] {
                // A list of one entry may change it.
                let few = FEW.min(old.len().max(2)) / 2;
                if count > few && count * 100 > old.len() * usize::from(limit) {
                    let reason = format!(
                        "{count} {what} would {verb}, {} % of the {} in use; at most {limit} % may at once",
                        count * 100 / old.len().max(1),
                        old.len(),
                    );
                    reasons.push(reason);
                }
            }
        }
        reasons
    }

    /// Why no list may have this prefix, if it touches what is denied.
    pub fn denied(&self, prefix: &IpNet) -> Option<String> {
        let deny = self.deny.iter().find(|deny| overlap(deny, prefix))?;
        Some(format!("{prefix} touches {deny} of the denylist"))
    }
}
