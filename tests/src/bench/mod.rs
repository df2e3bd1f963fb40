//! The benchmark: what a packet costs a router with steer, without it, and with what people use
//! today, in one process and in interleaved rounds.
//!
//! A generator sends frames into a router of its own namespace, one for each row; the router's
//! next hops drop and count what arrives. Generator, router and sinks run to completion on one
//! processor, so the processor's time divided by the packets that arrived at the right sink is
//! the cost of a packet. The generator's own cost, measured in the same round, is subtracted.
//!
//! Machines are noisy, and only ratios of measurements made close together mean anything: each
//! ratio is made inside one round, and its median and quartiles over the rounds are reported.

pub mod failover;
mod generator;
mod hooks;
pub mod publications;
mod report;
mod router;
mod rows;
mod steer;
mod traffic;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use self::{
    generator::{Generator, Sample},
    hooks::Hooks,
    router::Far,
    rows::{Prepared, RATIOS, ROWS, Row},
    traffic::Traffic,
};
pub use self::{
    hooks::HookResult,
    report::{RatioResult, Report, RowResult},
};
use crate::lab;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often every row is measured.
    pub rounds: u32,
}

/// What a measurement should take, in nanoseconds of processor time.
const MEASUREMENT_NS: f64 = 200e6;
/// Enough to know roughly what a packet costs.
const FIRST_PACKETS: u32 = 20_000;
/// Fewer arrivals than this mean that a row does not do what its name says.
const LEAST_ARRIVED: f64 = 0.95;

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Measures every row in every round. Needs root; leaves nothing behind.
pub fn run(options: &Options) -> Result<Report> {
    stop_cleanly()?;
    lab::sweep()?;
    let traffic = Traffic::new()?;
    let far = Far::create()?;
    let mut generator = Generator::new(&far, traffic.hits.iter().chain(&traffic.misses).copied())?;
    let mut rows = Vec::with_capacity(ROWS.len());
    for row in ROWS {
        let prepared = row
            .prepare(&far, &mut generator, &traffic)
            .with_context(|| format!("cannot prepare \"{}\"", row.name))?;
        let first = sample(&mut generator, row, &prepared, FIRST_PACKETS)?;
        check(row, &first)?;
        rows.push((prepared, packets(first.ns())));
    }
    let mut hooks = Hooks::new()?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        eprint!("\rround {} of {}", round + 1, options.rounds);
        let mut samples = Vec::with_capacity(ROWS.len());
        for (row, (prepared, packets)) in ROWS.iter().zip(&rows) {
            let sample = sample(&mut generator, row, prepared, *packets)?;
            check(row, &sample)?;
            samples.push(sample);
        }
        rounds.push(samples);
        hooks.measure()?;
    }
    eprintln!();
    Ok(Report::new(ROWS, RATIOS, &rounds).with_hooks(hooks.results()))
}

fn sample(
    generator: &mut Generator<'_>,
    row: &Row,
    prepared: &Prepared,
    packets: u32,
) -> Result<Sample> {
    if STOPPED.load(Ordering::Relaxed) {
        bail!("stopped");
    }
    generator
        .measure(prepared.source(), row.traffic, row.way, packets)
        .with_context(|| format!("cannot measure \"{}\"", row.name))
}

/// A fast wrong answer is not a result: the packets must have gone where the row says, as a
/// router sends them.
fn check(row: &Row, sample: &Sample) -> Result<()> {
    if sample.arrived_share() < LEAST_ARRIVED {
        bail!(
            "\"{}\": only {:.1} % of the packets arrived at the {:?} ({:?})",
            row.name,
            100.0 * sample.arrived_share(),
            row.way,
            sample,
        );
    }
    let Some(last) = sample.last else {
        return Ok(());
    };
    if last.ttl != row.expected_ttl() {
        bail!(
            "\"{}\": packets arrive with a TTL of {}",
            row.name,
            last.ttl
        );
    }
    let translated = last.source == router::BREAKOUT_ADDRESS;
    if translated != row.translated {
        bail!(
            "\"{}\": packets arrive with the source {}",
            row.name,
            last.source
        );
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and clamped to what fits"
)]
fn packets(ns: f64) -> u32 {
    (MEASUREMENT_NS / ns.max(1.0)).clamp(f64::from(FIRST_PACKETS), 4e6) as u32
}

/// Ctrl-C ends the measurement, not the process: the namespaces have to go.
fn stop_cleanly() -> Result<()> {
    extern "C" fn stop(_: i32) {
        STOPPED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.context("cannot handle Ctrl-C")?;
    }
    Ok(())
}
