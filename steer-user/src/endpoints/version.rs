//! Microsoft's number of a version of a list.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A version of a list: `YYYYMMDDNN`, ten digits, the greater the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeedVersion(u64);

/// What is written is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of ten digits such as 2026053000")]
pub struct NoVersion(String);

impl FeedVersion {
    /// The version of the day `YYYY-MM-DD`, with the running number 0.
    pub(super) fn of_day(day: &str) -> Option<Self> {
        format!("{}00", day.replace('-', "")).parse().ok()
    }
}

impl FromStr for FeedVersion {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let digits = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit());
        let no_version = || NoVersion(text.chars().take(40).collect());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.map(Self).ok_or_else(no_version)
    }
}

impl TryFrom<String> for FeedVersion {
    type Error = NoVersion;

    fn try_from(text: String) -> Result<Self, NoVersion> {
        text.parse()
    }
}

impl From<FeedVersion> for String {
    fn from(version: FeedVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for FeedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:010}", self.0))
    }
}
