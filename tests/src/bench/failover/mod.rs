//! How soon a running controller leads new flows elsewhere, and back: the lab's office in mark mode,
//! judged by who answers a stream of new flows.
//!
//! Probes are as they come. Only the hold is shortened where an outage follows another, because a
//! path that falls again and again would be held back for minutes: that is what the flapping link is
//! there for, with everything as it comes.

mod changes;
mod report;
mod stream;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

pub use self::report::{FailoverReport, Measure};
use self::{
    changes::Change,
    report::Bound,
    stream::{Newcomer, Stream, changes, gap, until_all_reach},
};
use super::{STOPPED, stop_cleanly};
use crate::{
    lab::{Breakout, Lab, LabOptions},
    scenario::flows,
    server::Site,
    steer::{Settings, Steer},
    traffic::Fleet,
};

/// How often to measure what.
#[derive(Clone, Copy, Debug)]
pub struct FailoverOptions {
    /// Pulled cables and black holes, each.
    pub runs: u32,
    /// Changes of an interface, in all.
    pub changes: u32,
    /// How long the link flaps, in seconds.
    pub flapping: u32,
}

/// A breakout that came back is taken at once, as often as it comes.
const NO_HOLD: &str = "hold = \"0s\"\nmax_hold = \"0s\"\nup_after = 1\n";
/// So many flows in a row say that the way is the one.
const STEADY: usize = 100;
/// Flows that live through a failback, of each protocol.
const ESTABLISHED: u16 = 20;
/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

const CARRIER_LOSS: Bound = Bound::at_p99(Duration::from_millis(50));
const BLACK_HOLE: Bound = Bound::at_p99(Duration::from_secs(1));
const CHANGED: Bound = Bound::at_most(Duration::from_millis(200));
/// Left, taken back once with its first answers, left: a link that was there and gone again has to
/// answer for a whole hold, which one that flaps never does.
const FLAPPING_CHANGES: u64 = 3;

/// Measures all of it. Needs root; leaves nothing behind.
pub fn run(options: FailoverOptions) -> Result<FailoverReport> {
    stop_cleanly()?;
    let mut report = FailoverReport::new(options);
    let lab = Lab::start(LabOptions::default())?;
    let steer = start(&lab, NO_HOLD)?;
    carrier_loss(&lab, &steer, options.runs, &mut report)?;
    black_hole(&lab, &steer, options.runs, &mut report)?;
    failback(&lab, &steer, options.runs.div_ceil(10), &mut report)?;
    steer.detach()?;
    let steer = start(&lab, "")?;
    flapping(&lab, &steer, options.flapping, &mut report)?;
    steer.detach()?;
    drop(lab);
    changed(options.changes, &mut report)?;
    Ok(report)
}

fn start<'lab>(lab: &'lab Lab, health: &str) -> Result<Steer<'lab>> {
    Steer::start(
        lab,
        &Settings {
            health: health.to_owned(),
            ..Settings::default()
        },
    )
}

/// The cable is pulled out of the breakout.
fn carrier_loss(
    lab: &Lab,
    steer: &Steer<'_>,
    runs: u32,
    report: &mut FailoverReport,
) -> Result<()> {
    let breakout = &lab.breakouts()[0];
    let mut gaps = Vec::new();
    for run in 0..runs {
        progress("carrier loss", run, runs)?;
        let newcomers = outage(lab, || lab.cable(breakout, false))?;
        gaps.push(gap(&newcomers));
        lab.cable(breakout, true)?;
        wait_until_up(steer)?;
    }
    report.times("carrier loss: gap of new flows", gaps, CARRIER_LOSS);
    Ok(())
}

/// The provider drops everything behind the gateway, and the link stays up.
fn black_hole(lab: &Lab, steer: &Steer<'_>, runs: u32, report: &mut FailoverReport) -> Result<()> {
    let breakout = &lab.breakouts()[0];
    let mut gaps = Vec::new();
    for run in 0..runs {
        progress("black hole", run, runs)?;
        // At any moment between two probes of a target.
        thread::sleep(Duration::from_secs(1) + Duration::from_millis(random(1000)));
        let newcomers = outage(lab, || dig_hole(lab, breakout))?;
        gaps.push(gap(&newcomers));
        lab.isp.nft("delete table inet hole")?;
        wait_until_up(steer)?;
    }
    report.times("black hole: gap of new flows", gaps, BLACK_HOLE);
    Ok(())
}

/// What becomes of new flows while something happens that leads them to the backbone.
fn outage(lab: &Lab, happens: impl FnOnce() -> Result<()>) -> Result<Vec<Newcomer>> {
    let stream = Stream::start(&lab.client)?;
    stream.wait_for(Site::Near, STEADY)?;
    happens()?;
    stream.wait_for(Site::Far, STEADY)?;
    stream.finish()
}

fn dig_hole(lab: &Lab, breakout: &Breakout) -> Result<()> {
    let link = breakout.isp_interface;
    lab.isp.nft(&format!(
        "table inet hole {{ chain forward {{ type filter hook forward priority 0; \
         iifname {link} drop; oifname {link} drop; }}; }}"
    ))
}

/// Flows that began while the breakout was down, when it is taken back; and after that those of the
/// breakout itself.
fn failback(lab: &Lab, steer: &Steer<'_>, runs: u32, report: &mut FailoverReport) -> Result<()> {
    let breakout = &lab.breakouts()[0];
    if runs == 0 {
        return Ok(());
    }
    let (mut flows_seen, mut moved) = (0, 0);
    for run in 0..runs {
        progress("failback", run, runs)?;
        let stream = Stream::start(&lab.client)?;
        stream.wait_for(Site::Near, STEADY)?;
        lab.cable(breakout, false)?;
        stream.wait_for(Site::Far, STEADY)?;
        let fleet = Fleet::open(
            &lab.client,
            &flows(ESTABLISHED, ESTABLISHED),
            Duration::from_millis(50),
        )?;
        fleet.wait_for_answers(PATIENCE)?;
        lab.cable(breakout, true)?;
        stream.wait_for(Site::Near, STEADY)?;
        stream.finish()?;
        let silent = fleet.wait_for_silent(PATIENCE).len();
        let records = fleet.stop();
        flows_seen += records.len();
        moved += silent;
        moved += records
            .iter()
            .filter(|it| it.was_moved() || it.sites != [Site::Far])
            .count();
        wait_until_up(steer)?;
    }
    let what = format!("failback: flows moved, of {flows_seen}");
    report.count(what, moved as u64, 0);
    Ok(())
}

/// A cable that is out and in again every second.
fn flapping(lab: &Lab, steer: &Steer<'_>, seconds: u32, report: &mut FailoverReport) -> Result<()> {
    if seconds == 0 {
        return Ok(());
    }
    let breakout = &lab.breakouts()[0];
    let stream = Stream::start(&lab.client)?;
    stream.wait_for(Site::Near, STEADY)?;
    let before = steer.whole_log()?.len();
    let begin = Instant::now();
    for half in 0..2 * seconds {
        progress("flapping", half / 2, seconds)?;
        lab.cable(breakout, half % 2 == 1)?;
        let next = begin + Duration::from_millis(500) * (half + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let changed = changes_told(steer.whole_log()?.get(before..).unwrap_or_default());
    let newcomers = stream.finish()?;
    let text = format!("{seconds} s of flapping at 1 Hz");
    report.count(
        format!("{text}: changes of the path"),
        changed as u64,
        FLAPPING_CHANGES,
    );
    report.count(
        format!("{text}: changes of new flows' way"),
        changes(&newcomers) as u64,
        FLAPPING_CHANGES,
    );
    Ok(())
}

/// How often a path that was up came to be something else, by what steer says: a path that is down for
/// another reason than before has not changed.
fn changes_told(log: &str) -> usize {
    let states = log.lines().filter_map(|line| {
        let (_, said) = line.split_once("breakout isp-1: ")?;
        Some(!said.starts_with("down"))
    });
    let mut up = true;
    states
        .filter(|now| std::mem::replace(&mut up, *now) != *now)
        .count()
}

/// Interfaces that are made anew, and what else of a breakout may change.
fn changed(count: u32, report: &mut FailoverReport) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default())?;
    let mut link = changes::Link::new(&lab)?;
    let steer = link.steer(NO_HOLD)?;
    let mut backs: Vec<(Change, Vec<Duration>)> =
        Change::ALL.iter().map(|it| (*it, Vec::new())).collect();
    let kinds = backs.len();
    for run in 0..count {
        progress("changes of the interface", run, count)?;
        let (change, backs) = &mut backs[run as usize % kinds];
        let stream = Stream::start(&lab.client)?;
        stream.wait_for(Site::Near, STEADY)?;
        link.change(*change)?;
        let done = Instant::now();
        // A change that steer answers late must have begun to hurt.
        thread::sleep(Duration::from_millis(300));
        stream
            .wait_for(Site::Near, 2 * STEADY)
            .with_context(|| format!("{change}:\n{}", steer.log()))?;
        backs.push(until_all_reach(&stream.finish()?, Site::Near, done));
        wait_until_up(&steer)?;
    }
    let all = backs.iter().flat_map(|(_, backs)| backs).copied().collect();
    report.times("any change: steered again after", all, CHANGED);
    for (change, backs) in backs {
        report.times(&format!("{change}: steered again after"), backs, CHANGED);
    }
    steer.detach()
}

fn wait_until_up(steer: &Steer<'_>) -> Result<()> {
    let status = steer.wait_for("the breakout is up", |status| {
        status["breakouts"][0]["state"] != "down"
    })?;
    ensure!(status["state"] == "steering", "{status:#}");
    Ok(())
}

fn progress(what: &str, run: u32, runs: u32) -> Result<()> {
    if STOPPED.load(Ordering::Relaxed) {
        bail!("stopped");
    }
    eprint!("\r\x1b[K{what}: {} of {runs}", run + 1);
    if run + 1 == runs {
        eprintln!();
    }
    Ok(())
}

/// A number below `end`, another in every run.
fn random(end: u64) -> u64 {
    RandomState::new().build_hasher().finish() % end
}
