//! The words of the endpoint service as types: instance, category, service area, set id.

use std::{fmt, str::FromStr};

/// A word that is not one of those the service defines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not one of {known}")]
pub struct UnknownWord {
    /// What was written.
    pub word: String,
    /// The words that exist, joined by commas.
    pub known: String,
}

impl UnknownWord {
    fn new(word: &str, known: &[&str]) -> Self {
        Self {
            word: word.to_owned(),
            known: known.join(", "),
        }
    }
}

/// Microsoft's category of a set. The order is the order of precedence: Optimize is the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Ordinary Internet traffic.
    Default,
    /// Wants a direct way, can stand a proxy.
    Allow,
    /// Most of the volume and the most sensitive to delay.
    Optimize,
}

impl Category {
    /// All of them, the lowest first.
    pub const ALL: [Self; 3] = [Self::Default, Self::Allow, Self::Optimize];

    /// As the service writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "Default",
            Self::Allow => "Allow",
            Self::Optimize => "Optimize",
        }
    }
}

impl FromStr for Category {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|category| category.as_str().eq_ignore_ascii_case(word))
            .ok_or_else(|| UnknownWord::new(word, &["optimize", "allow", "default"]))
    }
}

/// The service a set belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceArea {
    /// What all services share: sign-in, Office online, certificates.
    Common,
    /// Exchange Online.
    Exchange,
    /// SharePoint Online and OneDrive for Business.
    SharePoint,
    /// Teams; the service still writes "Skype".
    Skype,
    /// One that Microsoft added later. Such a set is listed, never steered: nobody selected it.
    Other(String),
}

impl ServiceArea {
    /// Those that a configuration may select.
    pub const KNOWN: [Self; 4] = [Self::Common, Self::Exchange, Self::SharePoint, Self::Skype];

    /// As the service writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Common => "Common",
            Self::Exchange => "Exchange",
            Self::SharePoint => "SharePoint",
            Self::Skype => "Skype",
            Self::Other(word) => word,
        }
    }
}

impl FromStr for ServiceArea {
    type Err = UnknownWord;

    /// One of [`ServiceArea::KNOWN`]; never `Other`.
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::KNOWN
            .into_iter()
            .find(|area| area.as_str().eq_ignore_ascii_case(word))
            .ok_or_else(|| UnknownWord::new(word, &["common", "exchange", "sharepoint", "skype"]))
    }
}

/// Which of Microsoft's clouds an endpoint list describes. Each has its own space of set ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instance {
    /// The public cloud, GCC included.
    #[default]
    Worldwide,
    /// Operated by 21Vianet.
    China,
    /// US Department of Defense.
    UsGovDod,
    /// US government, GCC High.
    UsGovGccHigh,
}

impl Instance {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Worldwide,
        Self::China,
        Self::UsGovDod,
        Self::UsGovGccHigh,
    ];

    /// As the service writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worldwide => "Worldwide",
            Self::China => "China",
            Self::UsGovDod => "USGovDoD",
            Self::UsGovGccHigh => "USGovGCCHigh",
        }
    }

    /// Sets that are off unless the operator writes `exclude_sets`: those that carry nothing but
    /// TCP 25. A site's mail server usually must keep the public address that its SPF record names.
    pub fn sets_off_by_default(self) -> &'static [SetId] {
        match self {
            Self::Worldwide => &[SetId(10)],
            Self::China => &[SetId(27)],
            Self::UsGovDod | Self::UsGovGccHigh => &[],
        }
    }
}

impl FromStr for Instance {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|it| it.as_str().eq_ignore_ascii_case(word))
            .ok_or_else(|| {
                UnknownWord::new(word, &["worldwide", "china", "usgovdod", "usgovgcchigh"])
            })
    }
}

/// Microsoft's number of a set, 1..=65535; unique inside one instance, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u16);

macro_rules! display_as_str {
    ($($name:ty),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+};
}

display_as_str!(Category, ServiceArea, Instance);

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
