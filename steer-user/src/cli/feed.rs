//! `steer endpoints show | diff | update | pin | unpin | approve | rollback`: what is in use of
//! Microsoft's list, what moved, and what an operator has to say about it.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use super::{ConfigOption, Failure, block_on, output, print_json, read_config, source::Source};
use crate::{
    api::{Action, Answer, Client, ClientError, Order},
    config::{Config, ListSource},
    controller::{self, Lock, LockError, feed},
    endpoints::{
        Copy, Difference, Entry, Feed, FeedVersion, Journal, Keeper, Policy, Publish, Report,
        Store, Stored,
    },
    policy::{ClassRegistry, Plan},
};

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigOption,
    /// How many of the latest journal entries
    #[arg(long, value_name = "N", default_value_t = 10)]
    journal: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// `base`, `active`, `waiting`, a version such as 2026053000, or a file
    #[arg(value_name = "A")]
    old: String,
    /// The same
    #[arg(value_name = "B")]
    new: String,
    #[command(flatten)]
    config: ConfigOption,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct OrderArgs {
    #[command(flatten)]
    config: ConfigOption,
    /// Why, for the journal
    #[arg(long, value_name = "TEXT", default_value = "by command")]
    why: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct VersionArgs {
    /// The version, such as 2026053000
    pub(super) version: Option<FeedVersion>,
    #[command(flatten)]
    pub(super) order: OrderArgs,
}

#[derive(Serialize)]
struct Shown {
    feed: String,
    instance: String,
    report: Report,
    versions: Vec<Version>,
    calendar: Vec<(String, u64, Vec<String>)>,
    journal: Vec<Entry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lists: Vec<ShownList>,
}

/// A list from a URL.
#[derive(Serialize)]
struct ShownList {
    name: String,
    url: String,
    journal: Vec<Entry>,
}

#[derive(Serialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the keys of the JSON"
)]
struct Version {
    version: FeedVersion,
    digest: String,
    source: String,
    fetched: u64,
    state: &'static str,
}

pub(super) fn show(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    let (keeper, live) = look(&config)?;
    let state = keeper.store().state();
    let listed = |stored: Stored, state| Version {
        version: stored.key.version,
        digest: stored.key.digest,
        source: stored.header.source,
        fetched: stored.header.fetched,
        state,
    };
    let kept = keeper.store().versions().into_iter().map(|stored| {
        let word = if state.active.as_ref() == Some(&stored.key) {
            "in use"
        } else {
            "kept"
        };
        listed(stored, word)
    });
    let waiting = keeper
        .store()
        .waiting()
        .into_iter()
        .map(|it| listed(it, "held back"));
    let latest = |journal: Journal| {
        let mut entries = journal.entries();
        entries.drain(..entries.len().saturating_sub(args.journal));
        entries
    };
    let lists = config.lists.iter().filter_map(|list| match &list.source {
        ListSource::Url { remote, .. } => Some(ShownList {
            name: list.name.clone(),
            url: remote.url.clone(),
            journal: latest(Copy::journal(&config.system.state_dir, &list.name)),
        }),
        ListSource::BuiltIn(_) | ListSource::File(_) => None,
    });
    let shown = Shown {
        feed: keeper.current().origin.to_string(),
        instance: config.feed.instance.to_string(),
        report: live.unwrap_or_else(|| keeper.report()),
        versions: kept.chain(waiting).collect(),
        calendar: keeper.calendar(),
        journal: latest(keeper.store().journal()),
        lists: lists.collect(),
    };
    if args.json {
        print_json(&shown)?;
    } else {
        output::print(&text(&shown).map_err(anyhow::Error::from)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Shown) -> Result<String, std::fmt::Error> {
    let Shown {
        feed,
        instance,
        report,
        versions,
        calendar,
        journal,
        lists,
    } = shown;
    let mut out = String::new();
    writeln!(out, "in use    {feed} ({instance})")?;
    writeln!(out, "policy    {}", report.policy)?;
    for (word, value) in [
        ("pinned", &report.pinned),
        ("held back", &report.waiting),
        ("error", &report.error),
    ] {
        if let Some(value) = value {
            writeln!(out, "{word:9} {value}")?;
        }
    }
    for reason in &report.reasons {
        writeln!(out, "          because {reason}")?;
    }
    if report.leaving > 0 {
        writeln!(
            out,
            "leaving   {} entries are gone from the list and steered still",
            report.leaving
        )?;
    }
    for version in versions {
        let when = humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(version.fetched),
        );
        writeln!(
            out,
            "version   {} {} ({when}, {}, {})",
            version.version, version.state, version.source, version.digest
        )?;
    }
    for (day, set, added) in calendar {
        writeln!(out, "calendar  {day}: set {set}: {}", added.join(" "))?;
    }
    entries(&mut out, journal)?;
    for list in lists {
        writeln!(out, "\nlist      {} from {}", list.name, list.url)?;
        entries(&mut out, &list.journal)?;
    }
    Ok(out)
}

fn entries(out: &mut String, journal: &[Entry]) -> std::fmt::Result {
    for entry in journal {
        let when = humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(entry.time),
        );
        writeln!(
            out,
            "journal   {} {when} {:?} {} -> {} by {}: {} ({})",
            entry.number,
            entry.what,
            entry.from,
            entry.to,
            entry.who,
            entry.why,
            entry.moved.extent()
        )?;
    }
    Ok(())
}

/// What is on disk, and what the controller says of it if one runs.
fn look(config: &Config) -> Result<(Keeper, Option<Report>), Failure> {
    let base = controller::read_feed(config).map_err(anyhow::Error::from)?;
    let store = Store::look(&config.system.state_dir, config.feed.instance);
    let keeper = Keeper::new(store, config.feed.rules.clone(), base);
    let status = block_on(Client::new(&controller::socket(&config.system)).status())?;
    let live = status.ok().and_then(|status| status.feed?.update);
    Ok((keeper, live))
}

pub(super) fn diff(args: &DiffArgs) -> Result<ExitCode, Failure> {
    let config = match Config::read(&args.config.config) {
        Ok(config) => Some(config),
        // Two files are compared wherever one is.
        Err(_) if !args.config.config.exists() => None,
        Err(error) => return Err(Failure::Usage(error.into())),
    };
    let read = |name: &str| named(name, config.as_ref()).map_err(Failure::Usage);
    let difference = Difference::between(&read(&args.old)?.sets, &read(&args.new)?.sets);
    if args.json {
        print_json(&difference)?;
    } else {
        output::print(&format!("{difference}{}\n", difference.extent()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The list that a word of `diff` names.
fn named(name: &str, config: Option<&Config>) -> anyhow::Result<Feed> {
    if Path::new(name).is_file() {
        let instance = config
            .map(|config| config.feed.instance)
            .unwrap_or_default();
        return Ok(Feed::read(Path::new(name), instance)?);
    }
    let Some(config) = config else {
        return match name {
            "base" => Ok(Feed::builtin()?),
            _ => Err(anyhow!(
                "{name} is no file, and there is no configuration that says where versions are kept (--config)"
            )),
        };
    };
    let base = controller::read_feed(config)?;
    let store = Store::look(&config.system.state_dir, config.feed.instance);
    match name {
        "base" => Ok(base),
        "active" => Ok(store.active().map_or(base, |stored| stored.feed)),
        "waiting" => Ok(store.waiting().context("no list is held back")?.feed),
        version => {
            let version: FeedVersion = version.parse().map_err(|_| {
                anyhow!("{name:?} is no file, no version, and none of base, active, waiting")
            })?;
            let all = store.versions().into_iter().chain(store.waiting());
            let by_version: BTreeMap<_, _> = all.map(|it| (it.key.version, it.feed)).collect();
            let known: Vec<String> = by_version.keys().map(ToString::to_string).collect();
            by_version.get(&version).cloned().with_context(|| {
                format!(
                    "version {version} is not kept here; these are: {}",
                    known.join(", ")
                )
            })
        }
    }
}

/// Has an order carried out: by the controller if one runs, else here, under its lock.
pub(super) fn order(
    action: Action,
    version: Option<FeedVersion>,
    args: &OrderArgs,
) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    if config.feed.rules.policy == Policy::Off {
        return Err(Failure::Usage(anyhow!(
            "{}: [feed] update is \"off\": write \"automatic\", \"approve\" or \"pinned\"",
            args.config.config.display()
        )));
    }
    let order = Order {
        action,
        version,
        who: user(),
        why: args.why.clone(),
    };
    let answer = block_on(async {
        let client = Client::new(&controller::socket(&config.system));
        match client.endpoints(&order).await {
            Err(ClientError::Absent { .. }) => {}
            answer => return answer.map_err(Failure::from),
        }
        let _lock = Lock::take(&config.system.run_dir).map_err(|error| match error {
            LockError::Held { .. } => {
                anyhow!("{error}: it is starting or ending. Try again in a moment")
            }
            error @ LockError::File { .. } => error.into(),
        })?;
        let (_, keeper) = feed::open(&config)?;
        let mut keeper = keeper.context("[feed] update is off")?;
        let changing = crate::cut::operation("feed");
        let result = feed::carry_out(&order, &mut keeper, &config.feed, &mut Here(&config)).await;
        drop(changing);
        Ok(feed::answer(&result))
    })??;
    print(&answer, args.json)
}

fn print(answer: &Answer, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(answer)?;
    } else {
        println!("{}", answer.message);
    }
    Ok(ExitCode::from(u8::from(!answer.done)))
}

/// Who asks: the user behind sudo, or the one that runs this.
fn user() -> String {
    let name = ["SUDO_USER", "LOGNAME", "USER"]
        .into_iter()
        .find_map(|it| std::env::var(it).ok());
    name.unwrap_or_else(|| format!("user {}", nix::unistd::getuid()))
}

/// Without a controller a list only has to make a plan; the next start publishes it.
struct Here<'a>(&'a Config);

impl Publish for Here<'_> {
    async fn publish(&mut self, feed: Feed) -> Result<Option<u64>, String> {
        let config = self.0;
        let source = Source::with(config, feed);
        Plan::compile(
            source.feed,
            source.select,
            source.site,
            &mut ClassRegistry::new(),
        )
        .map(|_| None)
        .map_err(|error| error.to_string())
    }
}
