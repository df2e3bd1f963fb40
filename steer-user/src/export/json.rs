//! JSON: everything, by set and include.

use serde::Serialize;

use super::{Export, coverage};
use crate::{
    endpoints::{NamePattern, ServiceArea},
    policy::{ClassLabel, Plan},
};

#[derive(Serialize)]
struct Document<'a> {
    generated_by: &'static str,
    feed: Feed,
    classes: Vec<Class<'a>>,
}

#[derive(Serialize)]
struct Feed {
    source: String,
    instance: String,
    digest: String,
}

#[derive(Serialize)]
struct Class<'a> {
    /// Microsoft's id of the set; none for an include.
    set: Option<u16>,
    /// The name of an include.
    name: Option<String>,
    category: &'static str,
    service_area: Option<&'a str>,
    tcp_ports: String,
    udp_ports: String,
    /// Without what the configuration excludes.
    prefixes: Vec<String>,
    names: Vec<&'a str>,
}

pub(super) fn render(plan: &Plan) -> Export {
    let feed = plan.feed();
    let groups = coverage::groups(plan);
    let classes = groups.iter().map(|group| {
        let (set, name) = match &group.label {
            ClassLabel::Set(id) => (Some(id.0), None),
            ClassLabel::Own(name) => (None, Some(name.clone())),
        };
        Class {
            set,
            name,
            category: group.category.as_str(),
            service_area: group.service_area.map(ServiceArea::as_str),
            tcp_ports: group.tcp.to_string(),
            udp_ports: group.udp.to_string(),
            prefixes: group.prefixes.iter().map(ToString::to_string).collect(),
            names: group.names.iter().map(NamePattern::as_str).collect(),
        }
    });
    let document = Document {
        generated_by: concat!("steer export, ", env!("CARGO_PKG_VERSION")),
        feed: Feed {
            source: feed.origin.to_string(),
            instance: feed.instance.to_string(),
            digest: feed.digest.to_string(),
        },
        classes: classes.collect(),
    };
    // Texts and numbers always become JSON.
    let text = serde_json::to_string_pretty(&document).unwrap_or_default() + "\n";
    Export {
        text,
        notes: Vec::new(),
    }
}
