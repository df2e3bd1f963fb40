//! `[[list]]`: destinations besides Microsoft 365's, from lists that come with steer and from the
//! operator's own files. Each service of a list becomes an include, so that it takes the road that
//! includes take: plan, counters, explanation, export.
//!
//! A list is believed whole or not at all.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{
    ConfigError, ConfigProblem, OwnInclude,
    checker::{Checker, WIDEST_OWN, is_name},
    defaults,
    values::Text,
};
use crate::endpoints::{COPY_BYTES, Copy, NamePattern, Ports, Remote, Signer, never_steered};

/// A list of services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// The operator's name for it, unique.
    pub name: String,
    /// Where it is.
    pub source: ListSource,
}

/// Where a list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListSource {
    /// In the binary.
    BuiltIn(BuiltIn),
    /// In a file, TOML or (`.json`) JSON. A relative path in the configuration is relative to the
    /// configuration file.
    File(PathBuf),
    /// Behind a URL, TOML or JSON; the last good answer is on disk.
    Url {
        /// Where.
        remote: Remote,
        /// How often it is asked for.
        interval: Duration,
    },
}

/// A list that comes with steer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltIn {
    /// Windows Update, Delivery Optimization and the Office CDN.
    MicrosoftUpdates,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawList {
    name: Text,
    builtin: Option<Text>,
    file: Option<Text>,
    url: Option<Text>,
    interval: Option<Text>,
    public_key: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServices {
    service: Vec<RawService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: String,
    category: Option<String>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    tcp: Option<String>,
    udp: Option<String>,
}

/// How often a list is asked for.
const INTERVAL: Duration = Duration::from_hours(1);
const BUILT_IN: &[(&str, BuiltIn)] = &[("microsoft-updates", BuiltIn::MicrosoftUpdates)];
const FILE_BYTES: u64 = COPY_BYTES as u64;

impl BuiltIn {
    const fn text(self) -> &'static str {
        match self {
            Self::MicrosoftUpdates => include_str!("lists/microsoft-updates.toml"),
        }
    }
}

impl List {
    /// The services as includes that are called `LIST/SERVICE`.
    ///
    /// Fails with everything that is wrong in the list.
    /// Those of a list from a URL are what its copy in `state_dir` has; none before the first.
    pub(super) fn services(&self, state_dir: &Path) -> Result<Vec<OwnInclude>, ConfigError> {
        match &self.source {
            ListSource::Url { remote, .. } => {
                let copy = Copy::read(state_dir, &self.name, &remote.url);
                // Another version of steer took it. What this one does not understand is fetched anew.
                let services = copy.and_then(|it| self.read_answer(&remote.url, &it.list).ok());
                Ok(services.unwrap_or_default())
            }
            ListSource::BuiltIn(list) => self.parse("a built-in list", list.text(), false),
            ListSource::File(path) => {
                let name = path.display().to_string();
                let text = read(path).map_err(|reason| {
                    let remedy = "correct the path in [[list]], and let steer read it";
                    let problem = ConfigProblem::of_the_file(reason, remedy);
                    ConfigError::new(&name, vec![problem])
                })?;
                let is_json = path.extension().is_some_and(|it| it == "json");
                self.parse(&name, &text, is_json)
            }
        }
    }

    /// The services of an answer, TOML or JSON.
    ///
    /// Fails with everything that is wrong in it.
    pub fn read_answer(&self, name: &str, bytes: &[u8]) -> Result<Vec<OwnInclude>, ConfigError> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            let problem =
                ConfigProblem::of_the_file("is no text", "correct it; docs/feed.md has an example");
            return Err(ConfigError::new(name, vec![problem]));
        };
        self.parse(name, text, text.trim_start().starts_with('{'))
    }

    /// Which of these includes are services of this list.
    pub fn services_in<'a>(&self, all: &'a [OwnInclude]) -> impl Iterator<Item = &'a OwnInclude> {
        all.iter().filter(|it| is_of(&it.name, &self.name))
    }

    fn parse(&self, name: &str, text: &str, is_json: bool) -> Result<Vec<OwnInclude>, ConfigError> {
        let raw: Result<RawServices, ConfigProblem> = if is_json {
            serde_json::from_str(text).map_err(|error| {
                ConfigProblem::of_the_file(
                    error.to_string(),
                    "correct it; docs/feed.md has an example",
                )
            })
        } else {
            toml::from_str(text).map_err(|error| ConfigProblem::of_the_syntax(text, &error))
        };
        let raw = raw.map_err(|problem| ConfigError::new(name, vec![problem]))?;
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        let mut services = Vec::new();
        if raw.service.is_empty() {
            problems.push(ConfigProblem::of_the_file(
                "has no service",
                "name at least one",
            ));
        }
        for service in raw.service {
            let known = service.name.clone();
            let mut object = |(reason, remedy): (String, &str)| {
                let reason = format!("service {known:?}: {reason}");
                problems.push(ConfigProblem::of_the_file(reason, remedy));
            };
            if !names.insert(service.name.clone()) {
                object(("is there twice".into(), "give each its own name"));
            }
            services.push(self.include(service, &mut object));
        }
        if problems.is_empty() {
            Ok(services)
        } else {
            Err(ConfigError::new(name, problems))
        }
    }

    /// What `object` hears makes the include a placeholder.
    fn include(
        &self,
        raw: RawService,
        object: &mut impl FnMut((String, &'static str)),
    ) -> OwnInclude {
        if !is_name(&raw.name) {
            object((
                "is no name".into(),
                "write 1 to 32 letters, digits, - and _",
            ));
        }
        if raw.prefixes.is_empty() && raw.names.is_empty() {
            let remedy = "name at least one, or remove the service";
            object(("has neither prefixes nor names".into(), remedy));
        }
        let mut prefixes: Vec<IpNet> = Vec::new();
        for text in &raw.prefixes {
            match prefix(text) {
                Ok(prefix) => prefixes.push(prefix),
                Err((reason, remedy)) => object((format!("{text:?} {reason}"), remedy)),
            }
        }
        let mut names: Vec<NamePattern> = Vec::new();
        for text in &raw.names {
            match text.parse() {
                Ok(name) => names.push(name),
                Err(reason) => object((
                    format!("{text:?} {reason}"),
                    "write a name such as \"crm.example.com\" or \"*.example.com\"",
                )),
            }
        }
        let everything = raw.tcp.is_none() && raw.udp.is_none();
        let mut ports = |text: Option<String>| match text {
            None if everything => Ports::all(),
            None => Ports::default(),
            Some(text) => text.parse().unwrap_or_else(|error| {
                let remedy = "write ports such as \"443\", \"80,443\" or \"3478-3481\"";
                object((format!("{error}"), remedy));
                Ports::default()
            }),
        };
        let (tcp, udp) = (ports(raw.tcp), ports(raw.udp));
        if tcp.is_empty() && udp.is_empty() {
            object(("has no port".into(), "leave tcp and udp out for all"));
        }
        let category = raw
            .category
            .map_or(Ok(defaults::OWN_CATEGORY), |it| it.parse());
        prefixes.sort_unstable();
        prefixes.dedup();
        names.sort_unstable();
        names.dedup();
        OwnInclude {
            name: format!("{}/{}", self.name, raw.name),
            prefixes,
            names,
            tcp,
            udp,
            category: category.unwrap_or_else(|error| {
                object((error.to_string(), "write optimize, allow or default"));
                defaults::OWN_CATEGORY
            }),
        }
    }
}

/// Whether an include is a service of that list.
pub(super) fn is_of(include: &str, list: &str) -> bool {
    include
        .strip_prefix(list)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The text of a list's file, or why there is none.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    fs::File::open(path)
        .map_err(unreadable)?
        .take(FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(format!(
            "has more than the {FILE_BYTES} bytes that steer reads"
        ));
    }
    Ok(text)
}

/// A prefix that a list may hold, or what is wrong and what to do.
fn prefix(text: &str) -> Result<IpNet, (String, &'static str)> {
    let Ok(prefix) = text.parse::<IpNet>() else {
        let remedy = "write one such as \"203.0.113.0/24\"";
        return Err(("is not a prefix".into(), remedy));
    };
    if prefix != prefix.trunc() {
        let reason = format!("has bits set after the first {}", prefix.prefix_len());
        return Err((reason, "write the network's address"));
    }
    let widest = match prefix {
        IpNet::V4(_) => WIDEST_OWN.0,
        IpNet::V6(_) => WIDEST_OWN.1,
    };
    if prefix.prefix_len() < widest {
        let remedy = "name narrower prefixes; for everything else use a default route";
        return Err((format!("is wider than /{widest}"), remedy));
    }
    if let Some(kind) = never_steered(&prefix) {
        let reason = format!("holds {kind} addresses, which are never steered");
        return Err((reason, "name public destinations"));
    }
    Ok(prefix)
}

impl Checker<'_> {
    pub(super) fn lists(&mut self, raw: Vec<RawList>) -> Vec<List> {
        let mut names = BTreeSet::new();
        let mut lists = Vec::new();
        for raw in raw {
            let span = raw.name.span();
            let name = self.name(raw.name);
            if !names.insert(name.clone()) {
                let reason = format!("{name:?} names two lists");
                self.wrong(span.clone(), reason, "give each its own name");
            }
            if raw.url.is_none()
                && let Some(key) = raw.interval.as_ref().or(raw.public_key.as_ref())
            {
                self.wrong(key.span(), "stands without `url`", "leave it out");
            }
            let source = match (raw.builtin, raw.file, raw.url) {
                (None, None, Some(url)) => {
                    let signer = raw.public_key.and_then(|text| {
                        self.parsed::<Signer>(&text, "copy the second line of the .pub file")
                    });
                    let interval = raw.interval.map_or(INTERVAL, |text| {
                        self.period(&text, Duration::from_millis(10), INTERVAL)
                    });
                    let url = self.url(&url, "https").to_string();
                    let remote = Remote { url, signer };
                    ListSource::Url { remote, interval }
                }
                (Some(word), None, None) => ListSource::BuiltIn(self.one_of(
                    Some(word),
                    BUILT_IN,
                    BuiltIn::MicrosoftUpdates,
                )),
                (None, Some(file), None) => {
                    if file.get_ref().is_empty() {
                        self.wrong(file.span(), "is empty", "name a file");
                    }
                    ListSource::File(file.into_inner().into())
                }
                (None, None, None) => {
                    self.wrong(span, "has no source", "add `file`, `url` or `builtin`");
                    continue;
                }
                (Some(word), Some(_), _) => {
                    let span = Spanned::span(&word);
                    self.wrong(span, "stands beside `file`", "keep one of the two");
                    continue;
                }
                (Some(word), None, Some(_)) | (None, Some(word), Some(_)) => {
                    let span = Spanned::span(&word);
                    self.wrong(span, "stands beside `url`", "keep one of the two");
                    continue;
                }
            };
            lists.push(List { name, source });
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> List {
        List {
            name: "saas".into(),
            source: ListSource::BuiltIn(BuiltIn::MicrosoftUpdates),
        }
    }

    #[test]
    fn the_built_in_lists_are_good() {
        let services = list().services(Path::new("/nonexistent")).unwrap();
        let names: Vec<&str> = services.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "saas/windows-update",
                "saas/delivery-optimization",
                "saas/office-cdn"
            ]
        );
        assert!(
            services
                .iter()
                .all(|it| !it.names.is_empty() && it.tcp.contains(443))
        );
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = r#"
            [[service]]
            name = "crm"
            category = "optimize"
            prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
            names = ["*.CRM.example"]
            tcp = "443,8000-8100"
            [[service]]
            name = "all"
            prefixes = ["198.51.100.7/32"]
        "#;
        let json = r#"{"service": [
            {"name": "crm", "category": "optimize", "prefixes": ["2001:db8:7::/48", "203.0.113.0/24"],
             "names": ["*.crm.example"], "tcp": "443,8000-8100"},
            {"name": "all", "prefixes": ["198.51.100.7/32"]}]}"#;
        let services = list().parse("a.toml", toml, false).unwrap();
        assert_eq!(services, list().parse("a.json", json, true).unwrap());
        assert_eq!(services[0].name, "saas/crm");
        assert!(services[0].tcp.contains(8050) && services[0].udp.is_empty());
        assert!(services[1].udp.contains(7));
    }

    #[test]
    fn a_list_is_refused_whole_with_everything_that_is_wrong() {
        let service = |fields: &str| format!("[[service]]\nname = \"a\"\n{fields}\n");
        for (text, wanted) in [
            (String::new(), "missing field `service`"),
            ("service = []".into(), "has no service"),
            (service("colour = 1"), "unknown field `colour`"),
            (service(""), "neither prefixes nor names"),
            (
                service("prefixes = [\"10.0.0.0/24\"]"),
                "private addresses, which are never steered",
            ),
            (
                service("prefixes = [\"203.0.113.7/24\"]"),
                "bits set after the first 24",
            ),
            (service("prefixes = [\"0.0.0.0/1\"]"), "wider than /8"),
            (service("prefixes = [\"2600::/12\"]"), "wider than /16"),
            (service("prefixes = [\"crm.example\"]"), "is not a prefix"),
            (
                service("names = [\"*.com\"]"),
                "wildcard in its last two labels",
            ),
            (service("names = [\"https://a.example/\"]"), "is a URL"),
            (
                service("names = [\"a.example\"]\ntcp = \"0\""),
                "is not a port",
            ),
            (
                service("names = [\"a.example\"]\ntcp = \"\""),
                "has no port",
            ),
            (
                service("names = [\"a.example\"]\ncategory = \"vip\""),
                "\"vip\" is not one of",
            ),
            (
                service("names = [\"a.example\"]").repeat(2),
                "is there twice",
            ),
            (
                service("names = [\"a.example\"]").replace("\"a\"", "\"a/b\""),
                "is no name",
            ),
        ] {
            let error = list()
                .parse("saas.toml", &text, false)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(wanted) && error.contains("saas.toml"),
                "{text}: {error}"
            );
        }
        let error = list()
            .parse("saas.json", "{\"service\": [", true)
            .unwrap_err();
        assert!(error.to_string().contains("line 1 column 13"), "{error}");
    }
}
