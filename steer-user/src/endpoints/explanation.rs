//! The service's own words about a change: what its changes method says, as far as it can be read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A record of the changes method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The set.
    pub set: u64,
    /// `Change`, `Add` or `Remove`.
    pub disposition: String,
    /// Why, such as `AddedIp`; empty when the service does not say.
    #[serde(default)]
    pub impact: String,
    /// From when the added entries are used, `YYYYMMDD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<String>,
    /// Prefixes and names that came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
}

/// More are not kept: they explain, they decide nothing.
const MOST: usize = 2_000;

/// Reads an answer. It only explains, so that what cannot be read is left out.
pub(super) fn read(bytes: &[u8]) -> Vec<Explanation> {
    let Ok(Value::Array(records)) = serde_json::from_slice(bytes) else {
        return Vec::new();
    };
    let records = records.iter().take(MOST);
    records.filter_map(explanation).collect()
}

fn explanation(record: &Value) -> Option<Explanation> {
    let add = &record["add"];
    let word = |value: &Value| -> String {
        let text = value.as_str().unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(100).collect()
    };
    let entries = |key: &str| add[key].as_array().into_iter().flatten().map(word);
    let effective = word(&add["effectiveDate"]);
    let is_day = effective.len() == 8 && effective.bytes().all(|byte| byte.is_ascii_digit());
    Some(Explanation {
        set: record["endpointSetId"].as_u64()?,
        disposition: word(&record["disposition"]),
        impact: word(&record["impact"]),
        effective: is_day.then_some(effective),
        added: entries("ips").chain(entries("urls")).take(MOST).collect(),
    })
}
