//! `steer status`.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};

use super::{ControllerOptions, Failure, block_on, print_json};
use crate::{
    api::{BreakoutStatus, Client, ClientError, PathHealth, ProbeStatus, Status, SteeringState},
    controller,
    endpoints::{ListReport, Report},
};

/// Shows the state of steering, the breakouts, and what was counted.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: ControllerOptions,
}

/// Exit code 0 when steering (or watching) with every breakout up, 1 otherwise.
pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let (system, breakouts) = args.options.read_system()?;
    let status = block_on(async {
        match Client::new(&controller::socket(&system)).status().await {
            Err(ClientError::Absent { .. } | ClientError::Ending { .. }) => {
                Ok::<_, Failure>(controller::unattended(&system, &breakouts).await?)
            }
            status => Ok(status?),
        }
    })??;
    if args.options.json {
        print_json(&status)?;
    } else {
        print!("{}", text(&status)?);
    }
    let fine = matches!(
        status.state,
        SteeringState::Steering | SteeringState::Watching
    ) && status
        .breakouts
        .iter()
        .all(|breakout| breakout.state == PathHealth::Up);
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn text(status: &Status) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "steer {}: {}", status.version, headline(status))?;
    if let Some(feed) = &status.feed {
        writeln!(
            out,
            "feed      {} ({}), {} sets",
            feed.source, feed.instance, feed.sets
        )?;
    }
    if let Some(update) = status.feed.as_ref().and_then(|feed| feed.update.as_ref()) {
        out += &update_lines(update)?;
    }
    for list in &status.lists {
        out += &list_lines(list)?;
    }
    if let Some(plan) = &status.plan {
        write!(out, "plan      generation {}", plan.generation)?;
        if plan.sets > 0 {
            write!(
                out,
                ": {} sets with {} prefixes are steered",
                plan.sets, plan.prefixes
            )?;
        }
        writeln!(out)?;
    }
    for lan in &status.lan {
        writeln!(out, "LAN       {} ({})", lan.interface, lan.hook)?;
    }
    for breakout in &status.breakouts {
        let state = state_text(breakout.state, breakout.reason.as_deref());
        let gateways: Vec<&str> = [&breakout.gateway, &breakout.gateway6]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        writeln!(
            out,
            "breakout  {} on {} via {}: {state}",
            breakout.name,
            breakout.interface,
            if gateways.is_empty() {
                "-".to_owned()
            } else {
                gateways.join(" and ")
            },
        )?;
        families(&mut out, breakout)?;
        probes(&mut out, breakout)?;
    }
    preferences(&mut out, status)?;
    dead_man(&mut out, status)?;
    dns(&mut out, status)?;
    if !status.counters.is_empty() {
        writeln!(out, "\n{}", counters(status))?;
    }
    if let Some(nft) = &status.nftables {
        let granted: Vec<String> = nft
            .granted
            .iter()
            .map(|(path, flows)| format!("{flows} by {path}"))
            .collect();
        writeln!(
            out,
            "\nflows     granted: {}; packets of flows that began elsewhere and stayed: {}; stopped by the guard: {}",
            granted.join(", "),
            nft.refused,
            nft.guard
        )?;
    }
    if !status.reasons.is_empty() {
        let reasons: Vec<String> = status
            .reasons
            .iter()
            .map(|(reason, packets)| format!("{reason} {packets}"))
            .collect();
        writeln!(out, "passed    {}", reasons.join(", "))?;
    }
    for problem in &status.problems {
        writeln!(out, "note      {problem}")?;
    }
    Ok(out)
}

fn dns(out: &mut String, status: &Status) -> std::fmt::Result {
    let Some(dns) = &status.dns else {
        return Ok(());
    };
    writeln!(
        out,
        "dns       {} names, {} learned addresses",
        dns.names, dns.learned
    )?;
    for it in &dns.resolvers {
        let state = match (it.active, it.dead) {
            (_, true) => "DOES NOT ANSWER",
            (true, false) => "in use",
            (false, false) => "in reserve",
        };
        write!(
            out,
            "  resolver {} by {} ({}): {state}; {} queries, {} answers",
            it.address, it.breakout, it.origin, it.queries, it.answers
        )?;
        if let Some(mean) = it.mean_us {
            write!(out, " in {}.{} ms", mean / 1000, mean / 100 % 10)?;
        }
        writeln!(
            out,
            ", {} failures, {} unanswered since",
            it.failures, it.unanswered
        )?;
    }
    for it in dns.bypass.iter().flat_map(|it| &it.resolvers) {
        let operator = it.operator.as_deref().map(|it| format!(" ({it})"));
        writeln!(
            out,
            "  bypassed over {} to {}{} by {}",
            it.over,
            it.address,
            operator.unwrap_or_default(),
            it.clients.join(", ")
        )?;
    }
    if let Some(tcp) = &dns.tcp {
        writeln!(
            out,
            "  over TCP: {} connections; {} queries answered near, {} fell back, {} messages passed; {} addresses learned",
            tcp.connections, tcp.near, tcp.fell_back, tcp.passed, tcp.learned
        )?;
    }
    Ok(())
}

/// What the kernel finds out by itself; with a controller, only what is amiss.
pub(super) fn dead_man(out: &mut String, status: &Status) -> std::fmt::Result {
    let Some(dead_man) = &status.dead_man else {
        return Ok(());
    };
    for it in &dead_man.breakouts {
        let name = &it.breakout;
        if !it.heard {
            writeln!(
                out,
                "dead-man  {name}: cannot be judged: nothing hears its answers"
            )?;
            continue;
        }
        let down = it.families.iter().filter(|family| family.down);
        let down: Vec<&str> = down.map(|family| family.family.as_str()).collect();
        match (dead_man.acts, down.is_empty()) {
            (true, false) => writeln!(
                out,
                "dead-man  {name}: {} taken for DOWN, tried again every {} s",
                down.join(" and "),
                steer_common::deadman::RETRY / 1_000_000_000
            )?,
            (true, true) => writeln!(out, "dead-man  {name}: no sign that it is dead")?,
            (false, _) => {}
        }
    }
    Ok(())
}

/// How a breakout is, and why.
pub(super) fn state_text(state: PathHealth, reason: Option<&str>) -> String {
    let word = match state {
        PathHealth::Up => return "up".into(),
        PathHealth::Degraded => "DEGRADED",
        PathHealth::Down => "DOWN",
    };
    match reason {
        Some(reason) => format!("{word}: {reason}"),
        None => word.into(),
    }
}

/// Where the two families fare differently, a line for each.
fn families(out: &mut String, breakout: &BreakoutStatus) -> std::fmt::Result {
    let states = breakout.families.iter().map(|it| it.state);
    if states.clone().all(|state| state == breakout.state) {
        return Ok(());
    }
    for it in &breakout.families {
        let state = state_text(it.state, it.reason.as_deref());
        writeln!(out, "  {}    {state}", it.family)?;
    }
    Ok(())
}

/// Where the new flows of classes with a preference go, a line for each preference.
fn preferences(out: &mut String, status: &Status) -> std::fmt::Result {
    let way = |breakouts: &[String]| match breakouts {
        [] => "the backbone".to_owned(),
        some => some.join(" and "),
    };
    for it in &status.preferences {
        write!(out, "prefer    {} ({} classes): ", it.name, it.classes)?;
        match (way(&it.ipv4), way(&it.ipv6)) {
            (v4, v6) if v4 == v6 => writeln!(out, "new flows by {v4}")?,
            (v4, v6) => writeln!(out, "new IPv4 flows by {v4}, IPv6 by {v6}")?,
        }
    }
    Ok(())
}

/// What else is known of a breakout, a line for each thing.
fn probes(out: &mut String, breakout: &BreakoutStatus) -> std::fmt::Result {
    for prefix in &breakout.delegated {
        writeln!(
            out,
            "          {prefix} is delegated and leaves untranslated"
        )?;
    }
    for note in &breakout.notes {
        writeln!(out, "          {note}")?;
    }
    if breakout.flows_reset > 0 {
        writeln!(out, "          {} flows were reset", breakout.flows_reset)?;
    }
    for probe in &breakout.probes {
        probe_line(out, probe)?;
    }
    for it in &breakout.preferences {
        let state = state_text(it.state, it.reason.as_deref());
        writeln!(out, "  for {}: {state}", it.preference)?;
        for probe in &it.probes {
            probe_line(out, probe)?;
        }
    }
    Ok(())
}

fn probe_line(out: &mut String, probe: &ProbeStatus) -> std::fmt::Result {
    write!(out, "  probe   {} {}: ", probe.kind, probe.target)?;
    match (probe.rtt_ms, probe.jitter_ms) {
        (Some(rtt), Some(jitter)) => write!(out, "{rtt:.1} ms, give or take {jitter:.1}")?,
        _ if probe.lost == 0 => write!(out, "not answered yet")?,
        _ => write!(out, "never answered")?,
    }
    write!(out, "; loss {:.0} %", probe.loss * 100.0)?;
    match &probe.trouble {
        Some(trouble) => writeln!(out, "; last: {trouble}"),
        None => writeln!(out),
    }
}

/// How the list is kept current, and what is wrong with that.
fn update_lines(update: &Report) -> Result<String, std::fmt::Error> {
    let ago = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds / 60 * 60));
    let mut out = format!("updates   {}", update.policy);
    if let Some(age) = update.age {
        write!(out, ", fetched {} ago", ago(age))?;
    }
    if update.leaving > 0 {
        write!(
            out,
            ", {} removed entries are steered still",
            update.leaving
        )?;
    }
    out.push('\n');
    if let Some(pinned) = &update.pinned {
        writeln!(out, "pinned    by {pinned}")?;
    }
    if let Some(version) = &update.waiting {
        writeln!(
            out,
            "held back version {version}: {}",
            update.reasons.join("; ")
        )?;
    }
    if let Some(error) = &update.error {
        writeln!(
            out,
            "note      {} looks in a row failed: {error}",
            update.failures
        )?;
    }
    Ok(out)
}

fn list_lines(list: &ListReport) -> Result<String, std::fmt::Error> {
    let mut out = format!("list      {} from {}: ", list.name, list.url);
    match list.age {
        Some(age) => {
            let ago = humantime::format_duration(Duration::from_secs(age / 60 * 60));
            let (services, entries) = (list.services, list.entries);
            writeln!(
                out,
                "{services} services with {entries} entries, fetched {ago} ago"
            )?;
        }
        None => writeln!(out, "not fetched yet")?,
    }
    if let Some(error) = &list.error {
        writeln!(
            out,
            "note      {} looks in a row failed: {error}",
            list.failures
        )?;
    }
    Ok(out)
}

pub(super) fn headline(status: &Status) -> String {
    let mode = status.mode.as_deref().unwrap_or("?");
    match status.state {
        SteeringState::Off => {
            "off: nothing of it is in the kernel. Start it with `steer run`".into()
        }
        SteeringState::Watching => format!(
            "watching flows that began before, for {} s more ({mode} mode)",
            status.watching_for.unwrap_or(0)
        ),
        SteeringState::Steering => format!("steering ({mode} mode)"),
        SteeringState::Draining => "draining: no new flows are steered".into(),
        SteeringState::Unattended => format!("steering without a controller ({mode} mode)"),
    }
}

fn counters(status: &Status) -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["set", "category", "service", "path", "packets", "bytes"]);
    for count in &status.counters {
        table.add_row([
            if count.list == "own" {
                format!("own {}", count.set)
            } else {
                count.set.to_string()
            },
            count.category.clone().unwrap_or_else(|| "-".into()),
            count.service_area.clone().unwrap_or_else(|| "-".into()),
            count.path.clone().unwrap_or_else(|| "none up".into()),
            count.packets.to_string(),
            count.bytes.to_string(),
        ]);
    }
    for column in [4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
