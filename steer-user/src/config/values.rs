//! Values as they are written. They keep their place in the text, so that [`super::checker`] can point
//! at every mistake.

use serde::Deserialize;
use toml::Spanned;

pub(super) type Text = Spanned<String>;
pub(super) type Number = Spanned<i64>;

/// A VLAN is `10` or `"100.20"`, a routing table `"main"` or `100`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "neither a number nor a text")]
pub(super) enum NumberOrText {
    Number(i64),
    Text(String),
}
