//! The file as it is written: names and types of the keys.

use serde::Deserialize;
use toml::Spanned;

use super::{
    classes::RawClasses,
    feed::RawFeed,
    health::RawHealth,
    list::RawList,
    preference::RawPreference,
    values::{Number, NumberOrText, Text},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub mode: Option<Text>,
    pub reload_on_change: Option<bool>,
    #[serde(default)]
    pub feed: RawFeed,
    #[serde(default)]
    pub select: RawSelect,
    #[serde(default)]
    pub list: Vec<RawList>,
    #[serde(default)]
    pub lan: Vec<RawLan>,
    pub backbone: Option<RawBackbone>,
    #[serde(default)]
    pub breakout: Vec<RawBreakout>,
    #[serde(default)]
    pub preference: Vec<RawPreference>,
    #[serde(default)]
    pub mark: RawMark,
    #[serde(default)]
    pub redirect: RawRedirect,
    #[serde(default)]
    pub health: RawHealth,
    #[serde(default)]
    pub dns: RawDns,
    #[serde(default)]
    pub metrics: RawMetrics,
    #[serde(default)]
    pub system: RawSystem,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSelect {
    pub categories: Option<Spanned<Vec<Text>>>,
    pub service_areas: Option<Spanned<Vec<Text>>>,
    pub exclude_sets: Option<Vec<Number>>,
    #[serde(default)]
    pub include: Vec<RawInclude>,
    #[serde(default)]
    pub exclude: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInclude {
    pub name: Text,
    pub prefixes: Spanned<Vec<Text>>,
    pub protocol: Option<Text>,
    pub ports: Option<Text>,
    pub category: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLan {
    pub interface: Text,
    #[serde(default)]
    pub vlans: Vec<Spanned<NumberOrText>>,
    #[serde(default)]
    pub sources: Vec<Text>,
    #[serde(default)]
    pub exclude_sources: Vec<Text>,
    pub queries: Option<Text>,
    #[serde(default)]
    pub leave_queries_of: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackbone {
    pub interface: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBreakout {
    pub name: Text,
    pub interface: Text,
    pub id: Option<Number>,
    pub gateway: Option<Text>,
    pub gateway6: Option<Text>,
    #[serde(default)]
    pub valid_sources: Vec<Text>,
    pub delegated: Option<Text>,
    pub delegated_from: Option<Spanned<Vec<Text>>>,
    pub priority: Option<Number>,
    pub weight: Option<Number>,
    pub when_down: Option<Text>,
    pub probe_interval: Option<Text>,
    #[serde(default)]
    pub resolvers: Vec<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMark {
    pub mask: Option<Number>,
    pub order: Option<Text>,
    pub watch_period: Option<Text>,
    pub routes: Option<Text>,
    pub nat: Option<Text>,
    pub route_tables: Option<Spanned<Vec<Spanned<NumberOrText>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRedirect {
    pub xdp: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDns {
    pub queries: Option<Text>,
    pub learn: Option<bool>,
    #[serde(default)]
    pub exclude: Vec<Text>,
    pub tcp: Option<Text>,
    #[serde(default)]
    pub public: Vec<Text>,
    pub shared: Option<Text>,
    #[serde(default)]
    pub leave: RawClasses,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    pub listen: Option<Text>,
    pub allow_remote: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the keys of the file"
)]
pub(super) struct RawSystem {
    pub pin_dir: Option<Text>,
    pub state_dir: Option<Text>,
    pub run_dir: Option<Text>,
}
