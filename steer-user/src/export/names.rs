//! Names for forwarders, which know zones and not patterns.

use std::collections::BTreeSet;

use super::coverage;
use crate::policy::Plan;

/// The zones of the selected names, and what they lose or gain against the names.
pub(super) fn zones(plan: &Plan) -> (BTreeSet<String>, Vec<String>) {
    let mut zones = BTreeSet::new();
    let mut left_out = BTreeSet::new();
    for name in coverage::groups(plan).iter().flat_map(|group| group.names) {
        let zone = name.as_str().strip_prefix("*.").unwrap_or(name.as_str());
        if zone.contains('*') {
            left_out.insert(name.as_str().to_owned());
        } else {
            zones.insert(zone.to_owned());
        }
    }
    let mut notes = vec![
        "a forwarder knows no ports, and a zone is a name with everything below it".to_owned(),
    ];
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.into_iter().collect();
        notes.push(format!("left out, no zone says it: {}", names.join(", ")));
    }
    (zones, notes)
}
