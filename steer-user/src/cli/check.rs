//! `steer check`: is this configuration right, and what would it do?

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;
use steer_common::chunk;

use super::{
    output::{self, FeedFacts},
    source::{DEFAULT_CONFIG, Source},
};
use crate::{
    config::{self, Breakout, Config, ConfigError, InterfaceName, Lan},
    controller::{self, Preview},
    endpoints::ServiceArea,
    policy::{Plan, Size},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print a commented sample that names every key, and nothing else
    #[arg(long)]
    sample: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.sample {
        output::print(config::SAMPLE)?;
        return Ok(ExitCode::SUCCESS);
    }
    match examine(&args.config) {
        Ok((config, plan)) => {
            let here = preview(&config)?;
            if args.json {
                output::print_json(&report(&config, &plan, &here))?;
            } else {
                output::print(&text(&args.config, &config, &plan))?;
                output::print(&here_text(&here))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if args.json => {
            output::print_json(&Refusal::of(&error))?;
            Ok(ExitCode::from(2))
        }
        Err(error) => Err(error),
    }
}

fn examine(path: &Path) -> anyhow::Result<(Config, Plan)> {
    let config = Config::read(path)?;
    let plan = Source::of(&config, None)?.plan()?;
    Ok((config, plan))
}

/// What `run` would put into this box, or why it would refuse: a configuration may well be checked
/// on another machine than the router.
fn preview(config: &Config) -> anyhow::Result<Result<Preview, String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime
        .block_on(controller::preview(config))
        .map_err(|error| error.to_string()))
}

fn here_text(here: &Result<Preview, String>) -> String {
    let here = match here {
        Ok(here) => here,
        Err(refusal) => return format!("\non this machine `steer run` would refuse: {refusal}\n"),
    };
    let mut lines = vec![
        String::new(),
        "`steer run` would put into this machine:".to_owned(),
    ];
    lines.extend(
        here.objects
            .iter()
            .chain(&here.programs)
            .map(|it| format!("  {it}")),
    );
    lines.extend(here.problems.iter().map(|it| format!("note: {it}")));
    lines.join("\n") + "\n"
}

/// Everything about a configuration that can be used.
fn text(path: &Path, config: &Config, plan: &Plan) -> String {
    let size = plan.size();
    let mut lines = vec![
        format!("{} is fine", path.display()),
        format!("  mode      {}", config.mode),
    ];
    lines.extend(
        config
            .lans
            .iter()
            .map(|lan| format!("  LAN       {}", lan_line(lan))),
    );
    if let Some(interface) = &config.backbone {
        lines.push(format!("  backbone  {interface}"));
    }
    lines.extend(
        config
            .breakouts
            .iter()
            .map(|it| format!("  breakout  {}", breakout_line(it))),
    );
    lines.push(format!("  feed      {}", output::feed_line(plan.feed())));
    lines.push(format!(
        "  plan      {} of {} sets and {} includes: {} IPv4 and {} IPv6 prefixes",
        size.sets,
        plan.feed().sets.len(),
        size.own,
        size.prefixes_v4,
        size.prefixes_v6,
    ));
    lines.push(format!(
        "  tables    {} of {} blocks, {} of {} port lists; {} MiB a generation",
        size.chunks,
        chunk::CHUNKS,
        size.entries,
        chunk::MAX_ENTRIES - 1,
        Size::generation_bytes() >> 20,
    ));

    let header = ["Class", "Area", "Category"];
    let mut table = output::table(&header);
    for class in plan.classes() {
        let area = class
            .service_area
            .as_ref()
            .map_or("own", ServiceArea::as_str);
        table.add_row([
            class.label.to_string(),
            area.to_owned(),
            class.category.to_string(),
        ]);
    }
    format!("{}\n\n{table}\n", lines.join("\n"))
}

fn lan_line(lan: &Lan) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let strings = |nets: &[ipnet::IpNet]| list(nets.iter().map(ToString::to_string).collect());
    let mut parts = vec![lan.interface.to_string()];
    if !lan.vlans.is_empty() {
        let vlans = lan.vlans.iter().map(ToString::to_string).collect();
        parts.push(format!("VLANs {}", list(vlans)));
    }
    parts.push(match lan.sources.as_slice() {
        [] => "clients of its connected prefixes".to_owned(),
        sources => format!("clients {}", strings(sources)),
    });
    if !lan.exclude_sources.is_empty() {
        parts.push(format!("without {}", strings(&lan.exclude_sources)));
    }
    if !lan.steer_queries {
        parts.push("their queries are left alone".into());
    } else if !lan.leave_queries_of.is_empty() {
        let clients = strings(&lan.leave_queries_of);
        parts.push(format!("queries of {clients} are left alone"));
    }
    parts.join("; ")
}

fn breakout_line(breakout: &Breakout) -> String {
    let Breakout {
        id,
        name,
        interface,
        gateway,
        gateway6,
        priority,
        weight,
        ..
    } = breakout;
    let gateways: Vec<String> = [
        gateway.map(|it| it.to_string()),
        gateway6.map(|it| it.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let via = if gateways.is_empty() {
        "as the kernel's routes say".into()
    } else {
        gateways.join(" and ")
    };
    format!("{id} {name}: {interface} via {via}, priority {priority}, weight {weight}")
}

/// The same for machines.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    mode: String,
    lans: Vec<&'a str>,
    backbone: Option<&'a str>,
    breakouts: Vec<ReportedBreakout<'a>>,
    feed: FeedFacts,
    plan: ReportedPlan,
    /// What `run` would put into this machine.
    here: Option<&'a Preview>,
    /// Why it would refuse.
    refused_here: Option<&'a str>,
}

#[derive(Serialize)]
struct ReportedBreakout<'a> {
    id: u8,
    name: &'a str,
    interface: &'a str,
}

#[derive(Serialize)]
struct ReportedPlan {
    sets: usize,
    includes: usize,
    prefixes_v4: usize,
    prefixes_v6: usize,
    port_lists: u32,
    blocks: usize,
    generation_bytes: usize,
    classes: Vec<ReportedClass>,
}

#[derive(Serialize)]
struct ReportedClass {
    class: String,
    category: &'static str,
    service_area: Option<String>,
}

fn report<'a>(config: &'a Config, plan: &Plan, here: &'a Result<Preview, String>) -> Report<'a> {
    let size = plan.size();
    let breakout = |it: &'a Breakout| ReportedBreakout {
        id: it.id,
        name: &it.name,
        interface: it.interface.as_str(),
    };
    Report {
        here: here.as_ref().ok(),
        refused_here: here.as_ref().err().map(String::as_str),
        ok: true,
        mode: config.mode.to_string(),
        lans: config
            .lans
            .iter()
            .map(|lan| lan.interface.as_str())
            .collect(),
        backbone: config.backbone.as_ref().map(InterfaceName::as_str),
        breakouts: config.breakouts.iter().map(breakout).collect(),
        feed: FeedFacts::of(plan.feed()),
        plan: ReportedPlan {
            sets: size.sets,
            includes: size.own,
            prefixes_v4: size.prefixes_v4,
            prefixes_v6: size.prefixes_v6,
            port_lists: size.entries,
            blocks: size.chunks,
            generation_bytes: Size::generation_bytes(),
            classes: plan
                .classes()
                .iter()
                .map(|class| ReportedClass {
                    class: class.label.to_string(),
                    category: class.category.as_str(),
                    service_area: class.service_area.as_ref().map(ToString::to_string),
                })
                .collect(),
        },
    }
}

/// Why a configuration cannot be used.
#[derive(Serialize)]
struct Refusal {
    ok: bool,
    error: String,
    /// The mistakes of the configuration file; empty when feed or plan are at fault.
    problems: Vec<RefusedKey>,
}

#[derive(Serialize)]
struct RefusedKey {
    line: usize,
    column: usize,
    key: String,
    reason: String,
    remedy: String,
}

impl Refusal {
    fn of(error: &anyhow::Error) -> Self {
        let problems = error.downcast_ref().map_or(&[][..], ConfigError::problems);
        Self {
            ok: false,
            error: format!("{error:#}"),
            problems: problems
                .iter()
                .map(|problem| RefusedKey {
                    line: problem.line,
                    column: problem.column,
                    key: problem.key.clone(),
                    reason: problem.reason.clone(),
                    remedy: problem.remedy.clone(),
                })
                .collect(),
        }
    }
}
