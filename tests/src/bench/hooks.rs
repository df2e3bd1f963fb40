//! What the programs for names cost a packet that is not DNS: one program alone, run by the kernel many
//! times in a row, against one that does nothing.
//!
//! A packet of the other rows takes a microsecond, whose noise is larger than what is measured here.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use serde::Serialize;
use steer_user::datapath::{Mode, objects::BENCH};

use super::report::quantile;
use crate::{
    dnsrun::{self, DnsBench, Program},
    packet::Packet,
    testrun::Variant,
};

/// A hook must not add more than this to a packet, in nanoseconds.
const GATE: f64 = 15.0;
/// Runs in a row.
const REPEAT: u32 = 300_000;

/// What a program adds to a packet.
#[derive(Debug, Serialize)]
pub struct HookResult {
    /// The program and the packet.
    pub name: &'static str,
    /// Median nanoseconds, without what the run itself takes.
    pub ns: f64,
    /// Lower quartile.
    pub lower: f64,
    /// Upper quartile.
    pub upper: f64,
    /// The median must not be above this.
    pub gate: f64,
    /// It is not.
    pub passed: bool,
}

struct Hook {
    name: &'static str,
    program: Program,
    packet: Vec<u8>,
    costs: Vec<f64>,
}

/// The programs, and what they cost so far.
pub struct Hooks {
    nothing: Ebpf,
    bench: DnsBench,
    all: Vec<Hook>,
}

impl Hooks {
    /// Loads them.
    pub fn new() -> Result<Self> {
        let mut nothing = Ebpf::load(BENCH).context("the benchmark's programs do not load")?;
        program(&mut nothing)?.load()?;
        let names = dnsrun::names()?;
        let bench = DnsBench::load(&Variant::new(Mode::Mark), &[], &names)?;
        let packets = [
            Packet::tcp("52.96.1.1", 443).bytes(),
            Packet::udp("52.112.1.1", 3478).bytes(),
            Packet::tcp("2603:1006::1", 443).bytes(),
        ];
        let names = [
            ("dns_query, TCP over IPv4", Program::Query),
            ("dns_query, UDP over IPv4", Program::Query),
            ("dns_query, TCP over IPv6", Program::Query),
            ("dns_answer, TCP over IPv4", Program::Answer),
            ("dns_answer, UDP over IPv4", Program::Answer),
            ("dns_answer, TCP over IPv6", Program::Answer),
        ];
        let hooks =
            names
                .into_iter()
                .zip(packets.iter().cycle())
                .map(|((name, program), packet)| Hook {
                    name,
                    program,
                    packet: packet.clone(),
                    costs: Vec::new(),
                });
        Ok(Self {
            nothing,
            bench,
            all: hooks.collect(),
        })
    }

    /// Measures each once.
    pub fn measure(&mut self) -> Result<()> {
        for hook in &mut self.all {
            let options = TestRunOptions {
                data_in: Some(&hook.packet),
                repeat: REPEAT,
                ..TestRunOptions::default()
            };
            let nothing = program(&mut self.nothing)?.test_run(options)?.duration;
            let cost = self.bench.cost(hook.program, &hook.packet, REPEAT)?;
            let ns = (cost.as_secs_f64() - nothing.as_secs_f64()) * 1e9;
            hook.costs.push(ns);
        }
        Ok(())
    }

    /// What was found.
    pub fn results(&self) -> Vec<HookResult> {
        let results = self.all.iter().map(|hook| {
            let ns = quantile(&hook.costs, 0.5);
            HookResult {
                name: hook.name,
                ns,
                lower: quantile(&hook.costs, 0.25),
                upper: quantile(&hook.costs, 0.75),
                gate: GATE,
                passed: ns <= GATE,
            }
        });
        results.collect()
    }
}

fn program(object: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program = object.program_mut("nothing").context("no program")?;
    Ok(program.try_into()?)
}
