//! Collects what is wrong with a file, with its place, and checks the kinds of values that many keys
//! have.

use std::{collections::BTreeSet, net::IpAddr, ops::Range, path::PathBuf, str::FromStr};

use ipnet::IpNet;

use super::{ConfigProblem, values::Text};

/// The widest destination of an operator's own.
pub(super) const WIDEST_OWN: (u8, u8) = (8, 16);

/// Whether it can be a label of metrics and part of file names.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=32).contains(&text.len()) && text.bytes().all(allowed)
}

/// Collects problems; what it returns beside a problem is only a placeholder.
pub(super) struct Checker<'a> {
    text: &'a str,
    problems: Vec<ConfigProblem>,
}

impl<'a> Checker<'a> {
    /// Of this text.
    pub(super) fn new(text: &'a str) -> Self {
        let problems = Vec::new();
        Self { text, problems }
    }

    /// The file.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// What was checked, or everything that is wrong with it.
    pub(super) fn result<T>(self, checked: T) -> Result<T, Vec<ConfigProblem>> {
        if self.problems.is_empty() {
            Ok(checked)
        } else {
            Err(self.problems)
        }
    }

    pub(super) fn folder(&mut self, text: Option<Text>, default: &str) -> PathBuf {
        let Some(text) = text else {
            return default.into();
        };
        let path = PathBuf::from(text.get_ref());
        let odd = path.components().any(|part| part.as_os_str() == "..");
        if !path.is_absolute() || odd || path.parent().is_none() {
            self.wrong(
                text.span(),
                format!("{:?} is not an absolute path of a folder", text.get_ref()),
                format!("write one such as {default:?}"),
            );
        }
        path
    }

    pub(super) fn prefixes(&mut self, raw: Vec<Text>) -> Vec<IpNet> {
        let mut prefixes = Vec::with_capacity(raw.len());
        for text in raw {
            let span = text.span();
            match prefix(text.get_ref()) {
                Err((reason, remedy)) => self.wrong(span, reason, remedy),
                Ok(prefix) if prefixes.contains(&prefix) => {
                    self.wrong(span, format!("{prefix} is there twice"), "write it once");
                }
                Ok(prefix) => prefixes.push(prefix),
            }
        }
        prefixes
    }

    /// A name of the operator's choice: it becomes a label of metrics and part of file names.
    pub(super) fn name(&mut self, text: Text) -> String {
        let name = text.get_ref();
        if !is_name(name) {
            let reason = format!("{name:?} is no name");
            self.wrong(
                text.span(),
                reason,
                "use 1 to 32 letters, digits, '-' and '_'",
            );
        }
        text.into_inner()
    }

    /// A list of words of the endpoint service, each at most once.
    pub(super) fn words<T: FromStr<Err: std::fmt::Display> + Ord>(
        &mut self,
        list: Vec<Text>,
    ) -> BTreeSet<T> {
        let mut words = BTreeSet::new();
        for text in list {
            if let Some(word) = self.parsed(&text, "correct the spelling")
                && !words.insert(word)
            {
                self.wrong(
                    text.span(),
                    format!("{:?} is there twice", text.get_ref()),
                    "write it once",
                );
            }
        }
        words
    }

    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        text: &Text,
        remedy: &str,
    ) -> Option<T> {
        match text.get_ref().parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(text.span(), error.to_string(), remedy);
                None
            }
        }
    }

    pub(super) fn one_of<T: Copy>(
        &mut self,
        text: Option<Text>,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        let Some(text) = text else { return default };
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text.get_ref()));
        found.map_or_else(
            || {
                let known: Vec<String> = words
                    .iter()
                    .map(|(word, _)| word.to_ascii_lowercase())
                    .collect();
                let reason = format!("{:?} is not one of {}", text.get_ref(), known.join(", "));
                self.wrong(
                    text.span(),
                    reason,
                    "choose one of them, or leave the key out",
                );
                default
            },
            |(_, value)| *value,
        )
    }

    /// Something that the whole file lacks.
    pub(super) fn missing(&mut self, reason: &str, remedy: &str) {
        let problem = ConfigProblem::of_the_file(reason, remedy);
        self.problems.push(problem);
    }

    pub(super) fn wrong(
        &mut self,
        span: Range<usize>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems
            .push(ConfigProblem::at(self.text, span, reason, remedy));
    }
}

/// A prefix, or a single address; without host bits.
fn prefix(text: &str) -> Result<IpNet, (String, String)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let Ok(prefix) = text.parse::<IpNet>() else {
        let remedy = "write an address, or a prefix such as 192.168.1.0/24 or 2001:db8::/48";
        return Err((format!("{text:?} is not a prefix"), remedy.into()));
    };
    if prefix == prefix.trunc() {
        return Ok(prefix);
    }
    let reason = format!(
        "{prefix} has bits set after the first {}",
        prefix.prefix_len()
    );
    Err((
        reason,
        format!(
            "write {} for the network or {} for the host",
            prefix.trunc(),
            prefix.addr()
        ),
    ))
}
