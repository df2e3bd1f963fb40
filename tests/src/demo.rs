//! `cargo xtask run`: the same conversations of a branch office before and after steer, in a table
//! for people and as JSON for programs. The wire judges both.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ContentArrangement, Table,
    modifiers::UTF8_ROUND_CORNERS,
    presets::{NOTHING, UTF8_FULL_CONDENSED},
};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    lab::Lab,
    m365::{Category, Example, examples},
    residue::Snapshot,
    scenario,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::{Answer, Fleet, Protocol, Record, probe_all},
    wire::{Path, Wires},
};

/// What the command line asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How steer takes packets to the breakout.
    pub mode: Mode,
    /// One JSON object on standard output, everything else on standard error.
    pub json: bool,
    /// Leave the office up until Ctrl-C.
    pub keep: bool,
}

impl Options {
    /// Reads the command line.
    pub fn parse() -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mode = match argument.as_str() {
                "--json" => {
                    options.json = true;
                    continue;
                }
                "--keep" => {
                    options.keep = true;
                    continue;
                }
                "--mode" => arguments.next().unwrap_or_default(),
                other => match other.strip_prefix("--mode=") {
                    Some(mode) => mode.to_owned(),
                    None => bail!("{other}: the options are --mode mark|redirect, --json, --keep"),
                },
            };
            options.mode = match mode.as_str() {
                "mark" => Mode::Mark,
                "redirect" => Mode::Redirect,
                other => bail!("--mode {other}: it is mark or redirect"),
            };
        }
        Ok(options)
    }
}

/// One conversation, before and after.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    destination: String,
    protocol: Protocol,
    port: u16,
    category: Category,
    set: Option<u16>,
    expected: Path,
    before: Leg,
    after: Leg,
}

/// The way a conversation took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Leg {
    path: Path,
    rtt_ms: f64,
    front_end: Site,
}

impl Leg {
    fn new(answer: &Answer, wires: &Wires) -> Self {
        let rtt_ms = (answer.round_trip.as_secs_f64() * 10_000.0).round() / 10.0;
        Self {
            path: wires.path_of(answer),
            rtt_ms,
            front_end: answer.site,
        }
    }
}

impl Row {
    fn is_misrouted(&self) -> bool {
        let front_end = if self.expected == Path::Backbone {
            Site::Far
        } else {
            Site::Near
        };
        self.after.path != self.expected || self.after.front_end != front_end
    }
}

/// Runs the demo and returns how many things went wrong.
pub fn run(options: &Options) -> Result<usize> {
    let interrupted = catch_interrupts()?;
    let check = || match interrupted.try_recv() {
        Ok(()) => bail!("interrupted; the office is taken down"),
        Err(_) => Ok(()),
    };
    let say = Voice {
        to_stderr: options.json,
    };
    let began = Instant::now();

    say.line(&picture(options.mode));
    let lab = Lab::start(options.mode.office())?;
    say.step(
        began,
        "the office is up: seven network namespaces, real routing and nftables",
    );
    check()?;

    let examples = examples();
    let (before, wires_before) = measure(&lab, &examples)?;
    say.step(
        began,
        &format!(
            "{} conversations without steer: all by the backbone",
            before.len()
        ),
    );
    check()?;

    let calls = Fleet::open(
        &lab.client,
        &scenario::flows(6, 2),
        Duration::from_millis(100),
    )?;
    calls.wait_for_answers(Duration::from_secs(10))?;
    let clean = Snapshot::take(&lab)?;
    let captures = lab.capture()?;
    let settings = Settings {
        mode: options.mode,
        health: String::new(),
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings)?;
    say.step(
        began,
        &format!("`steer run` took over in {} mode", options.mode.name()),
    );
    check()?;

    let (after, wires_after) = measure(&lab, &examples)?;
    say.step(began, "the same conversations, opened anew");
    let silent = calls.wait_for_silent(Duration::from_secs(10));
    let calls = calls.stop();
    let disturbed = calls
        .iter()
        .filter(|call| call.was_moved() || silent.iter().any(|other| other.local == call.local))
        .count();
    let leaks = captures.stop()?.leaks().len();
    let status = steer.status()?;

    let rows: Vec<Row> = examples
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(example, (before, after))| Row {
            name: example.name,
            destination: example.flow.destination.to_string(),
            protocol: example.flow.protocol,
            port: example.flow.port,
            category: example.category,
            set: example.set,
            expected: if example.is_steered() {
                Path::BREAKOUT
            } else {
                Path::Backbone
            },
            before: Leg::new(before, &wires_before),
            after: Leg::new(after, &wires_after),
        })
        .collect();

    say.line(&format!("\n{}", table(&rows, &say)));
    if options.keep {
        look_around(&lab, &steer, &say);
        let _ = interrupted.recv();
    }
    steer.detach()?;
    let residue = clean.difference(&Snapshot::take(&lab)?);
    say.step(began, "`steer detach`");

    let verdict = Verdict {
        rows: &rows,
        misrouted: rows.iter().filter(|row| row.is_misrouted()).count(),
        leaks,
        disturbed,
        calls: &calls,
        residue: &residue,
    };
    say.line(counters(&status).trim_end());
    say.line(&verdict.to_string());
    if options.json {
        println!("{}", verdict.json(options.mode, &status));
    }
    Ok(verdict.problems())
}

/// Opens every conversation as a new one, and watches the wires meanwhile.
fn measure(lab: &Lab, examples: &[Example]) -> Result<(Vec<Answer>, Wires)> {
    let captures = lab.capture()?;
    let flows: Vec<_> = examples.iter().map(|example| example.flow).collect();
    let answers = probe_all(&lab.client, &flows)?;
    Ok((answers, captures.stop()?))
}

/// Ctrl-C ends the demo in order: the office is removed on the way out.
fn catch_interrupts() -> Result<mpsc::Receiver<()>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Before the first thread starts, so that all of them inherit it.
    signals.thread_block().context("block signals")?;
    let (send, receive) = mpsc::channel();
    thread::Builder::new()
        .name("signals".into())
        .spawn(
            move || {
                while signals.wait().is_ok() && send.send(()).is_ok() {}
            },
        )?;
    Ok(receive)
}

/// Where the story for people goes.
struct Voice {
    to_stderr: bool,
}

impl Voice {
    fn line(&self, text: &str) {
        if self.to_stderr {
            eprintln!("{text}");
        } else {
            println!("{text}");
            let _ = std::io::stdout().flush();
        }
    }

    fn step(&self, began: Instant, text: &str) {
        self.line(&format!(
            "  {:>5.1} s  {text}",
            began.elapsed().as_secs_f64()
        ));
    }

    fn has_terminal(&self) -> bool {
        if self.to_stderr {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        }
    }
}

fn picture(mode: Mode) -> String {
    let way = match mode {
        Mode::Mark => "mark mode: TC marks, nftables grants and translates, the kernel routes",
        Mode::Redirect => "redirect mode: XDP takes packets past the kernel's stack",
    };
    format!(
        "\n  A branch office and its two ways to Microsoft 365\n  {way}\n\n\
         \x20                          ╭── brk0 ── Internet provider ─────────── near front door\n\
         \x20   clients ─── router ────┤                    4 ms\n\
         \x20                          ╰── bb0 ─── backbone ─── headquarters ─── far front door\n\
         \x20                                              40 ms\n\n\
         \x20 Both front doors hold the same addresses. Who answers, and what the wires\n\
         \x20 carried, tells the way a conversation took.\n"
    )
}

fn table(rows: &[Row], say: &Voice) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .apply_modifier(UTF8_ROUND_CORNERS)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(
            [
                "conversation",
                "destination",
                "port",
                "Microsoft says",
                "before",
                "after",
                "",
            ]
            .map(|title| Cell::new(title).add_attribute(Attribute::Bold)),
        );
    if !say.has_terminal() {
        table.force_no_tty();
    }
    for row in rows {
        let says = match row.set {
            Some(set) => format!("{}, set {set}", row.category),
            None => row.category.to_string(),
        };
        let (gain, colour) = match () {
            () if row.is_misrouted() => (format!("✗ not by the {}", row.expected), Color::Red),
            () if row.expected == Path::Backbone => ("as it was".into(), Color::Reset),
            () => (
                format!("{:.0}x faster", row.before.rtt_ms / row.after.rtt_ms),
                Color::Green,
            ),
        };
        table.add_row([
            Cell::new(row.name),
            Cell::new(&row.destination),
            Cell::new(format!("{} {}", row.protocol, row.port)),
            Cell::new(says),
            Cell::new(leg(row.before)).set_alignment(CellAlignment::Right),
            Cell::new(leg(row.after))
                .set_alignment(CellAlignment::Right)
                .fg(colour),
            Cell::new(gain).fg(colour),
        ]);
    }
    table
}

fn leg(leg: Leg) -> String {
    format!("{} {:>5.1} ms {:>4}", leg.path, leg.rtt_ms, leg.front_end)
}

/// What steer itself counted, from its status.
fn counters(status: &Value) -> String {
    let word = |value: &Value| match value {
        Value::Null => String::from("-"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_header(["set", "category", "service", "path", "packets", "bytes"]);
    table.force_no_tty();
    for column in [0, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let keys = [
        "set",
        "category",
        "service_area",
        "path",
        "packets",
        "bytes",
    ];
    for counter in status["counters"].as_array().into_iter().flatten() {
        // As `steer status` says it.
        table.add_row(keys.map(|key| match (key, &counter[key]) {
            ("path", Value::Null) => String::from("none up"),
            (_, value) => word(value),
        }));
    }
    let mut text = String::from("\n  What steer counted meanwhile:\n");
    for line in table.to_string().lines() {
        text.push_str("   ");
        text.push_str(line);
        text.push('\n');
    }
    if let Value::Object(nftables) = &status["nftables"] {
        let words = nftables.iter().flat_map(|(name, value)| match value {
            Value::Object(paths) => paths
                .iter()
                .map(|(path, count)| format!("{name} {count} by {path}"))
                .collect(),
            value => vec![format!("{name} {value}")],
        });
        text.push_str("    nftables: ");
        text.push_str(&words.collect::<Vec<_>>().join(", "));
        text.push('\n');
    }
    text
}

fn look_around(lab: &Lab, steer: &Steer<'_>, say: &Voice) {
    let enter = |namespace: &crate::namespace::Namespace| {
        format!("sudo nsenter --net={}", namespace.path().display())
    };
    let binary =
        crate::steer::binary().map_or_else(|_| "steer".into(), |p| p.display().to_string());
    let config = steer.config().display();
    say.line(&format!(
        "\n  The office stays up until Ctrl-C. Look around from another terminal:\n\n\
         \x20   {router} {binary} status --config {config}\n\
         \x20   {router} {binary} explain --config {config} 52.96.1.1 --protocol tcp --port 443\n\
         \x20   {router} nft list table inet steer\n\
         \x20   {router} ip rule\n\
         \x20   {router} conntrack -L\n\
         \x20   {isp} tcpdump -ni wan0\n\
         \x20   {client} bash -c 'exec 3<>/dev/tcp/52.96.1.1/443; echo hi \\#1 >&3; head -1 <&3'\n\n\
         \x20 Namespaces: client, router, backbone, hq, isp, near, far, as /run/netns/{prefix}-…\n",
        router = enter(&lab.router),
        isp = enter(&lab.isp),
        client = enter(&lab.client),
        prefix = lab.prefix,
    ));
}

struct Verdict<'a> {
    rows: &'a [Row],
    misrouted: usize,
    leaks: usize,
    disturbed: usize,
    calls: &'a [Record],
    residue: &'a str,
}

impl Verdict<'_> {
    fn problems(&self) -> usize {
        self.misrouted + self.leaks + self.disturbed + self.residue.lines().count()
    }

    fn json(&self, mode: Mode, status: &Value) -> Value {
        json!({
            "feed": status.get("feed").unwrap_or(&Value::Null),
            "flows": self.rows,
            "misrouted": self.misrouted,
            "leaks": self.leaks,
            "running_flows": { "opened_before": self.calls.len(), "disturbed": self.disturbed },
            "residue": self.residue.lines().collect::<Vec<_>>(),
            "counters": status.get("counters").unwrap_or(&Value::Null),
            "mode": mode.name(),
        })
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            misrouted,
            leaks,
            disturbed,
            calls,
            residue,
        } = self;
        let steered = || rows.iter().filter(|row| row.expected == Path::BREAKOUT);
        let before = median(steered().map(|row| row.before.rtt_ms));
        let after = median(steered().map(|row| row.after.rtt_ms));
        writeln!(f)?;
        writeln!(
            f,
            "  Microsoft 365 is {after:.0} ms away instead of {before:.0} ms (median)."
        )?;
        writeln!(
            f,
            "  {disturbed} of {} conversations that ran meanwhile were disturbed.",
            calls.len()
        )?;
        writeln!(
            f,
            "  {leaks} packets left by the breakout with a source that is not valid there."
        )?;
        if residue.is_empty() {
            writeln!(f, "  `steer detach` left no trace in the router.")?;
        } else {
            writeln!(f, "  `steer detach` left a trace in the router:\n{residue}")?;
        }
        let sign = if self.problems() == 0 { "✓" } else { "✗" };
        write!(
            f,
            "\n  {sign} {misrouted} of {} conversations misrouted",
            rows.len()
        )
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
