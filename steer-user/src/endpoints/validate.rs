//! From raw records to endpoint sets, or to the list of everything that is wrong with them.

use std::{collections::BTreeMap, fmt::Display};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Category, EndpointSet, FeedProblem, NamePattern, Place, Ports, ServiceArea, SetId,
    documentation, never_steered, special::overlap,
};

/// Bounds of a believable feed. The largest answer ever seen (2019) had 112 sets with 897 prefix
/// entries and 477 names in 90 KiB.
pub mod limits {
    /// Bytes of a file.
    pub const FILE_BYTES: u64 = 16 << 20;
    /// Sets in a feed.
    pub const SETS: usize = 1000;
    /// Prefix entries in all sets together.
    pub const PREFIXES: usize = 10_000;
    /// Names in all sets together.
    pub const NAMES: usize = 10_000;
    /// The widest IPv4 prefix; the widest seen is a /13.
    pub const WIDEST_V4: u8 = 10;
    /// The widest IPv6 prefix; the widest seen is a /35, Microsoft's allocations begin at /24.
    pub const WIDEST_V6: u8 = 24;
}

pub(super) const FETCH_AGAIN: &str = "fetch it again from \
     https://endpoints.office.com/endpoints/INSTANCE?ClientRequestId=GUID and save it unchanged";
const NOT_MICROSOFTS: &str =
    "Microsoft never publishes this: do not trust the file, fetch it again";

/// A record as the service writes it. Unknown fields are accepted: the service adds some without
/// notice. Absent, null and empty mean the same.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSet {
    pub service_area: Option<String>,
    pub category: Option<String>,
    pub urls: Option<Vec<String>>,
    pub ips: Option<Vec<String>>,
    pub tcp_ports: Option<String>,
    pub udp_ports: Option<String>,
    pub required: Option<bool>,
}

/// Reads and validates the service's JSON.
pub(super) fn json(bytes: &[u8]) -> Result<Vec<EndpointSet>, Vec<FeedProblem>> {
    let records = records(bytes).map_err(|problem| vec![problem])?;
    let mut checker = Checker::default();
    for (index, record) in records.into_iter().enumerate() {
        match set_id(&record) {
            Err(reason) => checker.problems.push(FeedProblem {
                place: Place::Record(index + 1),
                reason,
                remedy: FETCH_AGAIN,
            }),
            Ok(id) => match serde_json::from_value(record) {
                Ok(raw) => checker.add(id, raw),
                Err(error) => {
                    checker.problem(id, "", format!("has a wrong shape: {error}"), FETCH_AGAIN);
                }
            },
        }
    }
    checker.finish()
}

/// One set that is a part of a list; none if anything in it is wrong.
pub(super) fn part(record: &Value) -> Option<EndpointSet> {
    let mut checker = Checker::default();
    checker.add(
        set_id(record).ok()?,
        serde_json::from_value(record.clone()).ok()?,
    );
    let (_, set) = checker.sets.pop_first()?;
    checker.problems.is_empty().then_some(set)
}

/// The top-level array, or why there is none.
fn records(bytes: &[u8]) -> Result<Vec<Value>, FeedProblem> {
    let refuse = |reason: String| Err(FeedProblem::of_the_file(reason, FETCH_AGAIN));
    if bytes.len() as u64 > limits::FILE_BYTES {
        let reason = format!(
            "has {} bytes, more than the {} steer reads",
            bytes.len(),
            limits::FILE_BYTES
        );
        return refuse(reason);
    }
    // Tools on Windows put a byte order mark before UTF-8.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(FeedProblem::of_the_file("is UTF-16", "save it as UTF-8"));
    }
    let text = bytes.trim_ascii_start();
    if text.is_empty() {
        return refuse("is empty".into());
    }
    if text.starts_with(b"<") {
        return refuse("is HTML or XML, not JSON: perhaps a proxy's or a portal's page".into());
    }
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(error) if error.is_eof() => {
            return refuse(format!("ends too early, a broken download: {error}"));
        }
        Err(error) => return refuse(format!("is not JSON: {error}")),
    };
    match value {
        Value::Array(records) if records.is_empty() => refuse("has no sets".into()),
        Value::Array(records) if records.len() > limits::SETS => refuse(format!(
            "has {} sets, more than the believable {}",
            records.len(),
            limits::SETS
        )),
        Value::Array(records)
            if records
                .iter()
                .any(|record| record.get("endpointSetId").is_some()) =>
        {
            refuse("is an answer of the changes method".into())
        }
        Value::Array(records) if records.iter().any(|record| record.get("latest").is_some()) => {
            refuse("is an answer of the version method".into())
        }
        Value::Array(records) => Ok(records),
        Value::Object(object) if object.contains_key("latest") => {
            refuse("is an answer of the version method".into())
        }
        _ => refuse("is JSON, but not the list of sets that the endpoints method gives".into()),
    }
}

fn set_id(record: &Value) -> Result<SetId, String> {
    let Value::Object(fields) = record else {
        return Err("is not an object".into());
    };
    let Some(id) = fields.get("id") else {
        return Err("has no id".into());
    };
    match id.as_u64().and_then(|id| u16::try_from(id).ok()) {
        Some(id) if id != 0 => Ok(SetId(id)),
        _ => Err(format!(
            "has the id {id}, which is not a number of 1 to 65535"
        )),
    }
}

/// Prefixes of the feed that overlap networks of the office outside of `exclude`.
pub(super) fn overlaps(
    sets: &[EndpointSet],
    office: &[IpNet],
    exclude: &[IpNet],
) -> Vec<FeedProblem> {
    let dangerous = |prefix: &IpNet, lan: &IpNet| {
        let common = if lan.contains(prefix) { prefix } else { lan };
        overlap(lan, prefix) && !exclude.iter().any(|excluded| excluded.contains(common))
    };
    let mut problems = Vec::new();
    for set in sets {
        for prefix in &set.prefixes {
            if let Some(lan) = office.iter().find(|lan| dangerous(prefix, lan)) {
                problems.push(FeedProblem {
                    place: Place::Set(set.id, format!("ips \"{prefix}\"")),
                    reason: format!("overlaps {lan}, a network of this office"),
                    remedy: "correct `sources` of the LAN; or, if the office really uses that \
                             network, write it into select.exclude",
                });
            }
        }
    }
    problems
}

/// Collects sets and problems over all records of a feed.
#[derive(Default)]
pub(super) struct Checker {
    sets: BTreeMap<SetId, EndpointSet>,
    problems: Vec<FeedProblem>,
    prefixes: usize,
    names: usize,
}

impl Checker {
    pub(super) fn add(&mut self, id: SetId, raw: RawSet) {
        let urls = raw.urls.unwrap_or_default();
        let ips = raw.ips.unwrap_or_default();
        self.names += urls.len();
        self.prefixes += ips.len();
        // Beyond the bound, entries are only counted: finish() refuses the feed.
        if self.names > limits::NAMES || self.prefixes > limits::PREFIXES {
            return;
        }
        let set = EndpointSet {
            id,
            category: self.category(id, raw.category.as_deref()),
            service_area: self.service_area(id, raw.service_area.as_deref()),
            names: self.names(id, &urls),
            prefixes: self.prefixes(id, &ips),
            tcp: self.ports(id, "tcpPorts", raw.tcp_ports.as_deref()),
            udp: self.ports(id, "udpPorts", raw.udp_ports.as_deref()),
            required: raw.required.unwrap_or(false),
        };
        if urls.is_empty() && ips.is_empty() {
            self.problem(id, "", "has neither names nor prefixes", FETCH_AGAIN);
        }
        if self.sets.insert(id, set).is_some() {
            self.problem(
                id,
                "",
                "is there twice",
                "one id means one set: fetch the file again",
            );
        }
    }

    pub(super) fn finish(mut self) -> Result<Vec<EndpointSet>, Vec<FeedProblem>> {
        let too_many = [
            (self.prefixes, limits::PREFIXES, "prefixes"),
            (self.names, limits::NAMES, "names"),
        ];
        for (count, limit, what) in too_many {
            if count > limit {
                let reason = format!("has {count} {what}, more than the believable {limit}");
                self.problems
                    .insert(0, FeedProblem::of_the_file(reason, NOT_MICROSOFTS));
            }
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        if self.sets.values().all(|set| set.prefixes.is_empty()) {
            let reason = "has no prefix in any set: nothing could be steered";
            return Err(vec![FeedProblem::of_the_file(reason, FETCH_AGAIN)]);
        }
        Ok(self.sets.into_values().collect())
    }

    fn problem(
        &mut self,
        id: SetId,
        entry: impl Into<String>,
        reason: impl Into<String>,
        remedy: &'static str,
    ) {
        self.problems.push(FeedProblem {
            place: Place::Set(id, entry.into()),
            reason: reason.into(),
            remedy,
        });
    }

    fn category(&mut self, id: SetId, word: Option<&str>) -> Category {
        let remedy =
            "this version of steer does not know how to rank it: update steer, or fetch again";
        match word.unwrap_or_default().parse() {
            Ok(category) => category,
            Err(error) => {
                self.problem(id, "category", error.to_string(), remedy);
                Category::Default
            }
        }
    }

    fn service_area(&mut self, id: SetId, word: Option<&str>) -> ServiceArea {
        let word = word.unwrap_or_default();
        let plausible =
            (1..=32).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plausible {
            self.problem(
                id,
                "serviceArea",
                format!("{word:?} is not a word"),
                FETCH_AGAIN,
            );
        }
        word.parse()
            .unwrap_or_else(|_| ServiceArea::Other(word.to_owned()))
    }

    fn names(&mut self, id: SetId, urls: &[String]) -> Vec<NamePattern> {
        let mut names = Vec::with_capacity(urls.len());
        for url in urls {
            match url.parse() {
                Ok(name) => names.push(name),
                Err(reason) => self.problem(id, entry("urls", url), reason, FETCH_AGAIN),
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    fn ports(&mut self, id: SetId, field: &str, text: Option<&str>) -> Ports {
        text.unwrap_or_default().parse().unwrap_or_else(|error| {
            self.problem(id, field, format!("has a bad port: {error}"), FETCH_AGAIN);
            Ports::default()
        })
    }

    fn prefixes(&mut self, id: SetId, ips: &[String]) -> Vec<IpNet> {
        let mut prefixes = Vec::with_capacity(ips.len());
        for text in ips {
            match prefix(text) {
                Ok(prefix) => prefixes.push(prefix),
                Err((reason, remedy)) => self.problem(id, entry("ips", text), reason, remedy),
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }
}

/// The field and the entry, cut to a length that leaves the message readable.
fn entry(field: &str, text: impl Display) -> String {
    let text: String = text.to_string().chars().take(80).collect();
    format!("{field} {text:?}")
}

/// A prefix that a feed may hold, or what is wrong and what to do.
fn prefix(text: &str) -> Result<IpNet, (String, &'static str)> {
    let Ok(prefix) = text.parse::<IpNet>() else {
        return Err(("is not a prefix such as 52.96.0.0/14".into(), FETCH_AGAIN));
    };
    if prefix != prefix.trunc() {
        let reason = format!(
            "has bits set after the first {}; the network is {}",
            prefix.prefix_len(),
            prefix.trunc()
        );
        return Err((reason, FETCH_AGAIN));
    }
    if let Some(kind) = never_steered(&prefix).filter(|_| prefix.prefix_len() > 0) {
        return Err((format!("holds {kind} addresses"), NOT_MICROSOFTS));
    }
    if let Some(kind) = documentation(&prefix).filter(|_| prefix.prefix_len() > 0) {
        return Err((format!("holds {kind} addresses"), NOT_MICROSOFTS));
    }
    let widest = match prefix {
        IpNet::V4(_) => limits::WIDEST_V4,
        IpNet::V6(_) => limits::WIDEST_V6,
    };
    if prefix.prefix_len() < widest {
        let reason =
            format!("is wider than /{widest}: it would take far more than Microsoft 365 along");
        return Err((reason, NOT_MICROSOFTS));
    }
    Ok(prefix)
}
