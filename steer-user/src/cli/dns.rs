//! `steer dns`.

use std::{fmt::Write as _, process::ExitCode};

use serde::Serialize;
use steer_common::dns::{ANSWERED, REWRITTEN};

use super::{ControllerOptions, Failure, print_json};
use crate::{
    config::{Config, SystemConfig},
    controller::RegistryFile,
    datapath::{DnsMaps, PinDir},
    policy::{ClassKey, ClassLabel, SourceList, own_id},
};

/// Shows pending queries and learned addresses, from the kernel's own tables; no controller is
/// needed. Without an option: both.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: ControllerOptions,
    /// Queries whose answer is awaited.
    #[arg(long)]
    pending: bool,
    /// Addresses that answers taught.
    #[arg(long)]
    learned: bool,
}

#[derive(Serialize, Default)]
struct Shown {
    /// Nothing of steer's reads queries.
    #[serde(skip)]
    off: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Vec<Pending>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learned: Option<Vec<Learned>>,
}

#[derive(Serialize)]
struct Pending {
    client: String,
    /// Whom the client asked.
    server: String,
    /// Who was asked instead; the server itself if nobody was.
    resolver: String,
    rewritten: bool,
}

#[derive(Serialize)]
struct Learned {
    address: String,
    name: String,
    client: String,
    /// What it is learned for: `worldwide`, ..., or `own`; none when the number is not known any more.
    list: Option<&'static str>,
    /// The id in that list.
    set: Option<u16>,
    /// The name of an include, or of a list's service.
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<String>,
    #[serde(skip)]
    what: String,
    /// How long it lives after an answer or a packet, in seconds.
    life: u32,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let (system, _) = args.options.read_system()?;
    let shown = read(&system, args)?;
    if args.options.json {
        print_json(&shown)?;
    } else {
        print!("{}", text(&shown)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(system: &SystemConfig, args: &Args) -> anyhow::Result<Shown> {
    let both = args.pending == args.learned;
    let pins = PinDir::new(&system.pin_dir);
    let mut shown = Shown::default();
    // What may not be looked at is an error of its own.
    if matches!(pins.map("NAMES").try_exists(), Ok(false)) {
        shown.off = true;
        shown.pending = (both || args.pending).then(Vec::new);
        shown.learned = (both || args.learned).then(Vec::new);
        return Ok(shown);
    }
    let maps = DnsMaps::open(&pins)?;
    if both || args.pending {
        let awaited = maps.pending()?.into_iter();
        let awaited = awaited.filter(|it| it.value.flags & ANSWERED == 0);
        let mut pending: Vec<Pending> = awaited
            .map(|it| Pending {
                client: it.client.to_string(),
                server: it.server.to_string(),
                resolver: it.resolver.to_string(),
                rewritten: it.value.flags & REWRITTEN != 0,
            })
            .collect();
        pending.sort_by(|a, b| a.client.cmp(&b.client));
        shown.pending = Some(pending);
    }
    if both || args.learned {
        let registry = RegistryFile::open(&system.state_dir)?;
        let own = own_names(args);
        let mut learned: Vec<Learned> = maps
            .learned()?
            .into_iter()
            .map(|it| {
                let key = registry.get().key(it.value.class);
                let own = key.and_then(|key| own.iter().find(|name| is_named(key, name)));
                Learned {
                    address: it.address.to_string(),
                    name: it.name(),
                    client: dns_ip(it.value.client),
                    list: key.map(|key| key.list.as_str()),
                    set: key.map(|key| key.id),
                    own: own.cloned(),
                    what: what(key, own),
                    life: it.value.life,
                }
            })
            .collect();
        learned.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        shown.learned = Some(learned);
    }
    Ok(shown)
}

/// The names of the operator's own includes and lists; none where the configuration has mistakes.
fn own_names(args: &Args) -> Vec<String> {
    let config = Config::read(&args.options.config.config);
    let includes = config.map_or_else(|_| Vec::new(), |config| config.select.include);
    includes.into_iter().map(|include| include.name).collect()
}

fn is_named(key: ClassKey, name: &str) -> bool {
    key.list == SourceList::Own && own_id(name) == key.id
}

/// What an address is learned for, for a person.
fn what(key: Option<ClassKey>, own: Option<&String>) -> String {
    match (key, own) {
        (_, Some(name)) => ClassLabel::Own(name.clone()).to_string(),
        (Some(key), None) => format!("set {} ({})", key.id, key.list.as_str()),
        (None, None) => "a set that is not known any more".into(),
    }
}

fn dns_ip(address: steer_common::dns::Address) -> String {
    steer_common::dns::ip(address).to_string()
}

fn text(shown: &Shown) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    if shown.off {
        out += "no query is steered: steer does not run, no breakout has resolvers, or [dns] queries is \
                \"leave\"\n";
        return Ok(out);
    }
    if shown.pending.as_ref().is_some_and(Vec::is_empty) {
        writeln!(out, "pending   none")?;
    }
    if shown.learned.as_ref().is_some_and(Vec::is_empty) {
        writeln!(out, "learned   none")?;
    }
    for it in shown.pending.iter().flatten() {
        writeln!(
            out,
            "pending   {} asked {}, sent to {}",
            it.client, it.server, it.resolver
        )?;
    }
    for it in shown.learned.iter().flatten() {
        writeln!(
            out,
            "learned   {} for {} of {}, asked by {}",
            it.address, it.name, it.what, it.client
        )?;
    }
    Ok(out)
}
