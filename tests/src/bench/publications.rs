//! Plans are published, or programs swapped, while the generator keeps a router busy, and the sinks
//! count what arrives: which way every packet took, and whether one was lost.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ipnet::IpNet;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use steer_common::{
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    reason::Reason,
    rule::{self, Rule},
};
use steer_user::datapath::{Maps, Mode};

use super::{
    generator::Generator,
    router::{Far, Router},
    rows::{Way, rule_for},
    steer::{PATH, Steer, apply_system},
    traffic::{FLOWS, Flow},
};
use crate::lab;

/// What carries out the plan's verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The XDP program.
    Redirect,
    /// The TC program, and a routing rule that takes its wish for a grant: each packet goes where
    /// the plan says, whatever its flow did before.
    Wish,
    /// The TC program and all that mark mode puts into a box.
    MarkMode,
}

impl Carrier {
    const fn mode(self) -> Mode {
        match self {
            Self::Redirect => Mode::Redirect,
            Self::Wish | Self::MarkMode => Mode::Mark,
        }
    }

    /// Whether a flow whose packets the plans judge differently follows them. Connection tracking
    /// keeps it on the way that it began on.
    const fn follows_plans(self) -> bool {
        !matches!(self, Self::MarkMode)
    }
}

/// What was published and sent, and what became of it. The classes are those of the two plans:
///
/// | client | in plan A | in plan B |
/// |---|---|---|
/// | of both | class 1 | class 2 |
/// | of A only, to a destination of its own | class 3 | not a client |
/// | of B only, to a destination of its own | not a client | class 4 |
///
/// A packet that saw a part of each would be of another class, or of none.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Plans published, or programs swapped, while packets ran: each judged some before the next one
    /// took its place.
    pub changes: u64,
    /// The number of the last generation.
    pub generation: u64,
    /// Packets sent, of all kinds.
    pub sent: u64,
    /// Of these, packets that both plans steer.
    pub steered_by_both: u64,
    /// Of these, packets that no plan steers.
    pub steered_by_none: u64,
    /// Of these, packets that only the first plan steers.
    pub steered_by_first: u64,
    /// Packets that arrived at the breakout's far end.
    pub at_breakout: u64,
    /// Packets that arrived at the WAN's far end.
    pub at_wan: u64,
    /// Packets that the programs counted by class; the last stands for every other class.
    pub by_class: [u64; 5],
    /// Packets that were not of a client of the plan.
    pub not_clients: u64,
    /// From the first packet to the last.
    pub duration: Duration,
}

/// Of the frames of a kind, every fourth is of one sort.
const SORTS: u64 = 4;
/// Frames between two looks at the clock. They fit into a veth's ring one batch at a time.
const CHUNK: u32 = 4096;

/// What changes while packets run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Two plans in turn.
    Plan,
    /// Freshly loaded programs take the place of those that run; the first plan stays.
    Programs,
}

/// Sends without a pause until there were that many changes, at most until the time is over.
/// Needs root; leaves nothing behind.
pub fn run(carrier: Carrier, change: Change, changes: u64, at_most: Duration) -> Result<Load> {
    lab::sweep()?;
    let processors = sched_getaffinity(Pid::from_raw(0))?;
    let far = Far::create()?;
    let mut generator = Generator::new(&far, flows(carrier).into_iter())?;
    let router = Router::create(&far, carrier as usize)?;
    generator.attach_sinks(&router)?;
    let plans = [plan(true)?, plan(false)?];
    let steer = match carrier {
        Carrier::Redirect => Steer::start(&router, Mode::Redirect, &plans[1])?,
        Carrier::Wish => {
            router
                .namespace
                .ip(&rule_for(mark::Bits::DEFAULT.with_wish(0, PATH)))?;
            Steer::start(&router, Mode::Mark, &plans[1])?
        }
        Carrier::MarkMode => {
            apply_system(&router)?;
            Steer::start(&router, carrier.mode(), &plans[1])?
        }
    };
    generator.choose(0, router.lan.far)?;
    let frames = generator.sent()?;
    let (over, published) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    let sent = thread::scope(|scope| -> Result<u64> {
        let controller = scope.spawn(|| {
            // Beside the generator, where there is more than one processor.
            leave_to_generator(processors)?;
            let mut maps = steer.maps()?;
            let is_over = || over.load(Ordering::Acquire);
            for (plan, class) in plans.iter().zip(CLASS_OF_BOTH).cycle() {
                if is_over() {
                    break;
                }
                let class = match change {
                    Change::Plan => {
                        maps.publish(plan.clone())?;
                        class
                    }
                    Change::Programs => {
                        steer.swap(&router)?;
                        CLASS_OF_BOTH[1]
                    }
                };
                // A generator that keeps step with publications would only ever meet one plan.
                let before = packets_of(class, &maps)?;
                while packets_of(class, &maps)? == before && !is_over() {
                    thread::yield_now();
                }
                published.fetch_add(1, Ordering::Release);
            }
            Ok::<_, anyhow::Error>(())
        });
        let mut sent = 0;
        let mut result = Ok(());
        while result.is_ok()
            && !controller.is_finished()
            && published.load(Ordering::Acquire) < changes
            && started.elapsed() < at_most
        {
            result = generator.send(CHUNK).map(drop);
            sent += u64::from(CHUNK);
        }
        over.store(true, Ordering::Release);
        controller
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result?;
        Ok(sent)
    })?;
    let duration = started.elapsed();
    ensure!(
        frames.get(&0, 0)? == sent,
        "the generator sent {} frames of {sent}",
        frames.get(&0, 0)?
    );
    let (at_breakout, at_wan) = settled(&generator, sent)?;
    let mut load = Load {
        changes: published.into_inner(),
        sent,
        steered_by_both: sent / SORTS,
        steered_by_none: sent / SORTS,
        steered_by_first: sent / SORTS,
        at_breakout,
        at_wan,
        duration,
        ..Load::default()
    };
    if !carrier.follows_plans() {
        load.steered_by_both += sent / SORTS;
        load.steered_by_none += sent / SORTS;
        load.steered_by_first = 0;
    }
    load.count(&steer.maps()?)?;
    Ok(load)
}

/// Packets that the programs counted for a class.
fn packets_of(class: u16, maps: &Maps) -> Result<u64> {
    let counts = maps.counts()?;
    let of_class = counts.iter().filter(|count| count.class == class);
    Ok(of_class.map(|count| count.packets).sum())
}

impl Load {
    fn count(&mut self, maps: &Maps) -> Result<()> {
        self.generation = maps.generation_number()?.unwrap_or(0);
        for count in maps.counts()? {
            let place = usize::from(count.class).wrapping_sub(1);
            let place = place.min(self.by_class.len() - 1);
            self.by_class[place] += count.packets;
        }
        let reasons = maps.reasons()?;
        let mut not_clients = reasons.iter().filter(|it| it.reason == Reason::NotLan);
        self.not_clients = not_clients.next().map_or(0, |it| it.packets);
        Ok(())
    }
}

/// What arrived by either way, when all did or nothing comes any more.
fn settled(generator: &Generator<'_>, sent: u64) -> Result<(u64, u64)> {
    const QUIET: Duration = Duration::from_secs(1);
    let look = || -> Result<_> {
        let (breakout, _) = generator.arrived(Way::Breakout)?;
        let (wan, _) = generator.arrived(Way::Wan)?;
        Ok((breakout, wan))
    };
    let (mut seen, mut since) = (look()?, Instant::now());
    while seen.0 + seen.1 < sent && since.elapsed() < QUIET {
        thread::yield_now();
        let now = look()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(seen)
}

/// Moves this thread off the processor that the generator uses, the last one.
fn leave_to_generator(mut processors: CpuSet) -> Result<()> {
    let mut all = (0..CpuSet::count()).filter(|cpu| processors.is_set(*cpu).unwrap_or(false));
    if let (Some(_), Some(last)) = (all.next(), all.next_back()) {
        processors.unset(last)?;
        sched_setaffinity(Pid::from_raw(0), &processors)?;
    }
    Ok(())
}

/// Client and destination of both plans, of plan A alone, of plan B alone.
const BOTH: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 20, 1, 0), Ipv4Addr::new(52, 96, 0, 0));
const ONLY_A: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 20, 2, 0), Ipv4Addr::new(52, 112, 1, 0));
const ONLY_B: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 20, 3, 7), Ipv4Addr::new(52, 120, 1, 1));
/// What packets of [`BOTH`] are in plan B and in plan A.
const CLASS_OF_BOTH: [u16; 2] = [2, 1];
/// A destination that is in no plan, though its neighbours are.
const FOREIGN: Ipv4Addr = Ipv4Addr::new(52, 100, 0, 0);
const PORT: u16 = 3478;

/// The four sorts of packets in turn.
fn flows(carrier: Carrier) -> Vec<Flow> {
    let numbers = (0_u16..).take(FLOWS);
    let flow = |number: u16| {
        let host = u32::from(number >> 8);
        let ((client, destination), spread) = match (number % 4, carrier.follows_plans()) {
            (0, _) | (2, false) => (BOTH, true),
            (1, _) | (3, false) => ((BOTH.0, FOREIGN), true),
            (2, _) => (ONLY_A, true),
            _ => (ONLY_B, false),
        };
        let moved = |address: Ipv4Addr| {
            if spread {
                Ipv4Addr::from_bits(address.to_bits() + host)
            } else {
                address
            }
        };
        Flow {
            source: moved(client),
            source_port: 0x8000 + number,
            destination: moved(destination),
            port: PORT,
        }
    };
    numbers.map(flow).collect()
}

/// One of two plans that have every destination and rule in common places of the tables, with
/// other contents.
fn plan(second: bool) -> Result<Image> {
    let claim = |prefix: String, class: u16| -> Result<Claim> {
        let prefix: IpNet = prefix.parse()?;
        Ok(Claim {
            prefix,
            order: Order::new(1, &prefix, u32::from(class)),
            rules: vec![Rule::steer(class, rule::UDP, PORT, PORT)],
        })
    };
    let mut claims = Vec::new();
    // Decoys before the others, so that entries, blocks and segments have other numbers in the
    // other plan. Nobody goes there: their classes are 5 and up.
    let (decoys, classes) = if second { (40_u16, 6) } else { (20, 3) };
    for decoy in 0..decoys {
        let (block, class) = (decoy % (decoys / 2), 5 + decoy % classes);
        claims.push(claim(format!("13.{block}.7.{decoy}/32"), class)?);
    }
    let [second_both, first_both] = CLASS_OF_BOTH;
    let (both, own_a, own_b) = if second {
        (second_both, 11, 4)
    } else {
        (first_both, 3, 12)
    };
    claims.push(claim(format!("{}/14", BOTH.1), both)?);
    claims.push(claim(format!("{}/25", ONLY_A.1), own_a)?);
    claims.push(claim(format!("{}/32", ONLY_B.1), own_b)?);
    let own = if second {
        format!("{}/32", ONLY_B.0)
    } else {
        format!("{}/24", ONLY_A.0)
    };
    let mut sources = Vec::new();
    for prefix in [format!("{}/24", BOTH.0), own] {
        sources.push(Source {
            prefix: prefix.parse()?,
            kind: SourceKind::Client,
        });
    }
    Ok(Image::build(&claims, &sources)?)
}
