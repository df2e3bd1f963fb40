//! `steer endpoints`: a look at Microsoft's endpoint list.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use serde::Serialize;

use super::{
    Failure, feed, offline,
    output::{self, FeedFacts},
    source::{Source, SourceArgs},
};
use crate::{
    api::Action,
    config::OwnInclude,
    endpoints::{EndpointSet, Feed, Instance, NamePattern, Ports, render_snapshot},
    policy::unselected,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the sets, with what of them is steered
    List {
        #[command(flatten)]
        from: SourceArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show versions, what is held back and why, the calendar, and the journal
    Show(feed::ShowArgs),
    /// Show what moved between two lists
    Diff(feed::DiffArgs),
    /// Ask the service now
    Update(feed::OrderArgs),
    /// Hold the list in use, or an earlier one
    Pin(feed::VersionArgs),
    /// Let newer lists come again
    Unpin(feed::OrderArgs),
    /// Apply the list that is held back
    Approve(feed::VersionArgs),
    /// Go back to an earlier list, and hold it
    Rollback(feed::VersionArgs),
    /// Write a list in the compact form that is built into the binary
    #[command(hide = true)]
    Snapshot {
        /// An endpoint list in the web service's JSON
        file: PathBuf,
        /// The day of the answer, YYYY-MM-DD [default: the digits in the file's name]
        #[arg(long)]
        date: Option<String>,
        /// Where to [default: standard output]
        #[arg(long)]
        write: Option<PathBuf>,
    },
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::List { .. } | Command::Snapshot { .. } => offline(run(args)),
        Command::Show(args) => feed::show(args),
        Command::Diff(args) => feed::diff(args),
        Command::Update(args) => feed::order(Action::Update, None, args),
        Command::Pin(args) => feed::order(Action::Pin, args.version, &args.order),
        Command::Unpin(args) => feed::order(Action::Unpin, None, args),
        Command::Approve(args) => feed::order(Action::Approve, args.version, &args.order),
        Command::Rollback(args) => feed::order(Action::Rollback, args.version, &args.order),
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List { from, json } => list(&from.read()?, *json)?,
        Command::Snapshot { file, date, write } => {
            let date = date.clone().or_else(|| date_in(&file.to_string_lossy()));
            let date =
                date.context("the file's name has no date; name it with --date YYYY-MM-DD")?;
            let text = render_snapshot(&Feed::read(file, Instance::Worldwide)?, &date);
            match write {
                Some(path) => fs::write(path, text)
                    .with_context(|| format!("{} cannot be written", path.display()))?,
                None => output::print(&text)?,
            }
        }
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// `2026-05-29` from `worldwide-20260529.json`.
fn date_in(name: &str) -> Option<String> {
    let digits = name
        .split(|c: char| !c.is_ascii_digit())
        .rfind(|digits| digits.len() == 8)?;
    Some(format!(
        "{}-{}-{}",
        &digits[..4],
        &digits[4..6],
        &digits[6..]
    ))
}

#[derive(Serialize)]
struct Listing<'a> {
    feed: FeedFacts,
    sets: Vec<Listed<'a>>,
}

/// A set or an include, as JSON has it.
#[derive(Serialize)]
struct Listed<'a> {
    /// Microsoft's id; none for an include of the operator's own.
    id: Option<u16>,
    /// The name of an include.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    service_area: Option<&'a str>,
    category: &'static str,
    required: bool,
    tcp_ports: String,
    udp_ports: String,
    prefixes: Vec<String>,
    names: Vec<&'a str>,
    selected: bool,
    /// Why it is not selected.
    reason: Option<String>,
}

impl<'a> Listed<'a> {
    fn set(set: &'a EndpointSet, source: &Source) -> Self {
        let reason = unselected(&source.select, set).map(|why| why.to_string());
        Self {
            id: Some(set.id.0),
            name: None,
            service_area: Some(set.service_area.as_str()),
            category: set.category.as_str(),
            required: set.required,
            tcp_ports: set.tcp.to_string(),
            udp_ports: set.udp.to_string(),
            prefixes: set.prefixes.iter().map(ToString::to_string).collect(),
            names: set.names.iter().map(NamePattern::as_str).collect(),
            selected: reason.is_none(),
            reason,
        }
    }

    fn own(include: &'a OwnInclude) -> Self {
        Self {
            id: None,
            name: Some(&include.name),
            service_area: None,
            category: include.category.as_str(),
            required: false,
            tcp_ports: include.tcp.to_string(),
            udp_ports: include.udp.to_string(),
            prefixes: include.prefixes.iter().map(ToString::to_string).collect(),
            names: include.names.iter().map(NamePattern::as_str).collect(),
            selected: true,
            reason: None,
        }
    }

    fn is_steered(&self) -> bool {
        self.selected && !self.prefixes.is_empty()
    }

    fn row(&self) -> Vec<String> {
        let (v4, v6): (Vec<&String>, Vec<&String>) = self
            .prefixes
            .iter()
            .partition(|prefix| !prefix.contains(':'));
        let count = |prefixes: Vec<&String>| match prefixes.len() {
            0 => String::new(),
            count => count.to_string(),
        };
        let names = match self.names.as_slice() {
            [] => String::new(),
            [only] => (*only).to_owned(),
            [first, more @ ..] => format!("{first} and {} more", more.len()),
        };
        vec![
            self.id.map_or_else(
                || self.name.unwrap_or_default().to_owned(),
                |id| id.to_string(),
            ),
            self.service_area.unwrap_or("own").to_owned(),
            self.category.to_owned(),
            ports(&self.tcp_ports),
            ports(&self.udp_ports),
            count(v4),
            count(v6),
            names,
            if self.is_steered() {
                "yes".into()
            } else {
                String::new()
            },
        ]
    }
}

/// Every port in a word.
fn ports(text: &str) -> String {
    if text == Ports::all().to_string() {
        "all".into()
    } else {
        text.to_owned()
    }
}

fn list(source: &Source, json: bool) -> anyhow::Result<()> {
    let own = source.select.include.iter().map(Listed::own);
    let mut sets: Vec<Listed<'_>> = source
        .feed
        .sets
        .iter()
        .map(|set| Listed::set(set, source))
        .chain(own)
        .collect();
    if json {
        return output::print_json(&Listing {
            feed: FeedFacts::of(&source.feed),
            sets,
        });
    }
    // What is steered first; the order inside both halves stays that of the ids.
    sets.sort_by_key(|set| !set.is_steered());
    let header = [
        "Set", "Area", "Category", "TCP", "UDP", "IPv4", "IPv6", "Names", "Steered",
    ];
    let mut table = output::table(&header);
    table.add_rows(sets.iter().map(Listed::row));
    let steered = sets.iter().filter(|set| set.is_steered()).count();
    output::print(&format!(
        "{table}\n{steered} of {} are steered. A set of names alone has no addresses to steer by.\n{}\n",
        sets.len(),
        output::feed_line(&source.feed),
    ))?;
    Ok(())
}
