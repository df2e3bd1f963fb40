//! Situations in which a careless way of steering moves running flows or leaks packets with
//! invalid sources. Each runs with any [`Steering`] and reports what the wire showed.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;

use crate::{
    lab::{Lab, LabOptions},
    server::Site,
    steering::Steering,
    traffic::{Fleet, Flow, Protocol, Record, inject, probe_all, probe_each},
    wire::{Packet, Path},
};

/// How often long-lived flows speak. More than two round trips by the backbone: most of them are
/// idle at any moment, which is when a careless way of steering takes the next segment for a new
/// connection.
const PERIOD: Duration = Duration::from_millis(250);
/// How long a flow may stay silent before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a client tries to open a connection.
const ATTEMPTS: u32 = 3;

/// What a scenario showed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Running flows that changed their way or source, were reset, or fell silent.
    pub moved: Vec<Record>,
    /// Packets that left the breakout with an invalid source.
    pub leaks: Vec<Packet>,
    /// New flows to Microsoft 365 that did not leave by the breakout though it was up.
    pub not_steered: Vec<String>,
    /// New flows that got no answer by any way.
    pub failed: Vec<String>,
    /// How many new flows were opened and answered.
    pub opened: usize,
    /// How many packets left by the breakout: a judge that saw nothing proves nothing.
    pub seen: usize,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.moved.is_empty()
            && self.leaks.is_empty()
            && self.not_steered.is_empty()
            && self.failed.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            moved,
            leaks,
            not_steered,
            failed,
            opened,
            seen,
        } = self;
        writeln!(
            f,
            "{opened} new flows answered, {seen} packets on the breakout's wire"
        )?;
        writeln!(
            f,
            "{} running flows moved, {} leaks",
            moved.len(),
            leaks.len()
        )?;
        for record in moved.iter().take(5) {
            writeln!(f, "moved: {record:?}")?;
        }
        for packet in leaks.iter().take(5) {
            writeln!(f, "leak: {packet}")?;
        }
        for text in not_steered.iter().take(5) {
            writeln!(f, "not steered: {text}")?;
        }
        for text in failed.iter().take(5) {
            writeln!(f, "failed: {text}")?;
        }
        Ok(())
    }
}

/// Flows to Microsoft 365, IPv4 and IPv6 in turn, no two alike: TCP 443, then QUIC-like UDP 443.
pub fn flows(tcp: u16, udp: u16) -> Vec<Flow> {
    let address = |number: u16| -> IpAddr {
        if number.is_multiple_of(2) {
            let [high, low] = number.to_be_bytes();
            IpAddr::from([52, 96, high, low])
        } else {
            IpAddr::from([0x2603, 0x1006, 0, 0, 0, 0, 1, number])
        }
    };
    let tcp = (1..=tcp).map(|number| Flow::tcp(address(number), 443));
    let udp = (1..=udp).map(|number| Flow::udp(address(1000 + number), 443));
    tcp.chain(udp).collect()
}

/// The first time on a box that does not use conntrack: running flows stay as they are, new ones
/// leave by the breakout.
pub fn first_enable(steering: &Steering, tcp: u16, udp: u16) -> Result<Outcome> {
    let lab = Lab::start(LabOptions {
        firewall: false,
        ..LabOptions::default()
    })?;
    let fleet = Fleet::open(&lab.client, &flows(tcp, udp), PERIOD)?;
    fleet.wait_for_answers(PATIENCE)?;
    let tracked = conntrack_count(&lab)?;
    ensure!(
        tracked == 0,
        "conntrack is in use already: {tracked} entries"
    );

    let captures = lab.capture()?;
    let mut enabled = steering.enable(&lab)?;
    let silent = fleet.wait_for_silent(PATIENCE);
    let answers = probe_all(&lab.client, &flows(10, 10))?;
    let silent = [silent, fleet.wait_for_silent(PATIENCE)].concat();
    let mut outcome = Outcome {
        opened: answers.len(),
        ..Outcome::default()
    };
    outcome.take_in(fleet.stop(), &silent);
    enabled.kill_controller()?;
    let wires = captures.stop()?;
    outcome.leaks = wires.leaks();
    outcome.seen = wires.breakout().outbound().count();
    for answer in answers {
        let path = wires.path_of(&answer);
        if path != Path::BREAKOUT || answer.site != Site::Near {
            outcome
                .not_steered
                .push(format!("{} took {path}", answer.flow));
        }
    }
    Ok(outcome)
}

/// Flows that begin while the breakout is down stay on the backbone when it comes back.
pub fn born_while_down(steering: &Steering, tcp: u16, udp: u16) -> Result<Outcome> {
    let lab = Lab::start(LabOptions::default())?;
    let breakout = lab.breakouts()[0];
    let enabled = steering.enable(&lab)?;
    lab.link_down(&breakout)?;
    let fleet = Fleet::open(&lab.client, &flows(tcp, udp), PERIOD)?;
    fleet
        .wait_for_answers(PATIENCE)
        .context("while the breakout is down")?;

    let captures = lab.capture()?;
    lab.link_up(&breakout)?;
    enabled.restore_routes(&breakout)?;
    let mut outcome = Outcome::default();
    // The link is back when new flows of both families use it.
    let deadline = Instant::now() + 3 * PATIENCE;
    for flow in [flows(2, 0)[0], flows(2, 0)[1]] {
        loop {
            let answer = flow.probe(&lab.client)?;
            outcome.opened += 1;
            if answer.site == Site::Near {
                break;
            }
            if Instant::now() > deadline {
                outcome
                    .not_steered
                    .push(format!("{flow} after the link came back"));
                break;
            }
        }
    }
    let silent = fleet.wait_for_silent(PATIENCE);
    outcome.take_in(fleet.stop(), &silent);
    let wires = captures.stop()?;
    outcome.leaks = wires.leaks();
    outcome.seen = wires.breakout().outbound().count();
    Ok(outcome)
}

/// Who repairs what `nft flush ruleset` destroys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nobody: the controller was killed before.
    Nobody,
    /// The controller was killed before; a script loads the rules that it had saved, right after
    /// each flush.
    Script,
    /// The running controller.
    Controller,
}

/// Somebody flushes all nftables rules again and again, while clients open flows and send
/// segments outside of any window, segments of no connection, and one-way datagrams.
pub fn ruleset_flushed(
    steering: &Steering,
    repair: Repair,
    every: Duration,
    duration: Duration,
) -> Result<Outcome> {
    flushed(steering, repair, every, duration, &|lab| {
        lab.router.nft("flush ruleset")
    })
}

/// What somebody else's tool does to the router.
type Flush<'a> = dyn Fn(&Lab) -> Result<()> + Sync + 'a;

/// Somebody flushes nftables, the rules of policy routing and steer's routes again and again, in every
/// order, against a running controller.
pub fn everything_flushed(
    steering: &Steering,
    every: Duration,
    duration: Duration,
) -> Result<Outcome> {
    let turn = AtomicUsize::new(0);
    let nftables = |lab: &Lab| lab.router.nft("flush ruleset");
    let of_families = |lab: &Lab, commands: &str| {
        ["-4", "-6"].iter().try_for_each(|family| {
            // A table that is empty already is no error to whoever flushes it.
            let arguments = [family, "-force", "-batch", "-"];
            drop(lab.router.feed("ip", &arguments, commands));
            Ok(())
        })
    };
    // The kernel's own rule is put back in the same breath: without it the box routes nothing.
    let rules = |lab: &Lab| of_families(lab, "rule flush\nrule add pref 32766 lookup main\n");
    let routes = |lab: &Lab| of_families(lab, "route flush table 36501\n");
    let flushes: [&Flush<'_>; 3] = [&nftables, &rules, &routes];
    flushed(steering, Repair::Controller, every, duration, &|lab| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        // All of them, each time from another one on, in the one direction and the other.
        (0..flushes.len()).try_for_each(|step| {
            let step = if turn.is_multiple_of(2) {
                step
            } else {
                2 * step
            };
            flushes[(turn + step) % flushes.len()](lab)
        })
    })
}

fn flushed(
    steering: &Steering,
    repair: Repair,
    every: Duration,
    duration: Duration,
    flush: &Flush<'_>,
) -> Result<Outcome> {
    let lab = Lab::start(LabOptions::default())?;
    let mut enabled = steering.enable(&lab)?;
    let fleet = Fleet::open(&lab.client, &flows(10, 10), PERIOD)?;
    fleet.wait_for_answers(PATIENCE)?;
    let strays = strays(&lab, &fleet.records())?;
    if repair != Repair::Controller {
        enabled.kill_controller()?;
    }
    let saved = lab.router.output("nft", &["-s", "list", "ruleset"])?;

    let captures = lab.capture()?;
    let mut outcome = Outcome::default();
    let over = AtomicBool::new(false);
    let (lab, saved, over) = (&lab, saved.as_str(), &over);
    thread::scope(|scope| -> Result<()> {
        let until_over = move |work: &dyn Fn() -> Result<()>| -> Result<()> {
            let mut result = Ok(());
            while result.is_ok() && !over.load(Ordering::Relaxed) {
                result = work();
            }
            result
        };
        let flusher = scope.spawn(move || {
            until_over(&|| {
                flush(lab)?;
                if repair == Repair::Script {
                    lab.router.nft(saved)?;
                }
                thread::sleep(every);
                Ok(())
            })
        });
        let injector = scope.spawn(move || {
            until_over(&|| {
                inject(&lab.client, &strays)?;
                thread::sleep(Duration::from_millis(20));
                Ok(())
            })
        });
        let deadline = Instant::now() + duration;
        let mut number = 0_u16;
        while Instant::now() < deadline && !flusher.is_finished() && !injector.is_finished() {
            number = number.wrapping_add(16);
            let batch: Vec<_> = flows(8, 8)
                .into_iter()
                .map(|flow| Flow {
                    destination: shifted(flow.destination, number),
                    ..flow
                })
                .collect();
            let tried = batch.len();
            // A flush may hit a connection on the breakout in the middle: an application would
            // try again.
            let mut waiting = batch;
            for attempt in 1..=ATTEMPTS {
                let answers = probe_each(&lab.client, &waiting);
                let failed = waiting
                    .into_iter()
                    .zip(answers)
                    .filter_map(|(flow, answer)| {
                        let error = answer.err()?;
                        if attempt == ATTEMPTS {
                            outcome.failed.push(format!("{error:#}"));
                        }
                        Some(flow)
                    });
                waiting = failed.collect();
            }
            outcome.opened += tried - waiting.len();
        }
        over.store(true, Ordering::Relaxed);
        for helper in [flusher, injector] {
            helper
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    drop(fleet);
    let wires = captures.stop()?;
    outcome.leaks = wires.leaks();
    outcome.seen = wires.breakout().outbound().count();
    Ok(outcome)
}

impl Outcome {
    fn take_in(&mut self, records: Vec<Record>, silent: &[Record]) {
        let is_silent = |record: &Record| silent.iter().any(|other| other.local == record.local);
        self.moved = records
            .into_iter()
            .filter(|record| record.was_moved() || is_silent(record))
            .collect();
    }
}

/// Another address of the same prefix.
fn shifted(address: IpAddr, by: u16) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + u32::from(by)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(by)).into()),
    }
}

fn conntrack_count(lab: &Lab) -> Result<u64> {
    // The file is missing while no namespace uses conntrack.
    let count = lab.router.read_sysctl("net.netfilter.nf_conntrack_count");
    Ok(count.unwrap_or_else(|_| "0".into()).parse()?)
}

/// Packets of running connections far outside of their windows, packets of no connection that
/// conntrack calls invalid, and datagrams that nobody answers.
fn strays(lab: &Lab, records: &[Record]) -> Result<Vec<Vec<u8>>> {
    let mut packets = vec![];
    for record in records {
        let (from, to) = (
            record.local,
            SocketAddr::new(record.flow.destination, record.flow.port),
        );
        match record.flow.protocol {
            Protocol::Tcp => {
                for sequence in [1, 0x7fff_0000] {
                    packets.push(segment(from, to, sequence, |tcp| tcp.ack(7).psh())?);
                    packets.push(segment(from, to, sequence, |tcp| tcp.ack(7).fin())?);
                }
            }
            Protocol::Udp => {
                let from = SocketAddr::new(from.ip(), 40_000);
                packets.push(datagram(from, to, b"one way")?);
            }
        }
    }
    let (host4, host6) = lab.host(0);
    for flow in flows(8, 0) {
        let host = if flow.destination.is_ipv4() {
            host4
        } else {
            host6
        };
        let to = SocketAddr::new(flow.destination, flow.port);
        for port in [41_000, 41_001] {
            let from = SocketAddr::new(host, port);
            packets.push(segment(from, to, 1, |tcp| tcp.fin().ack(1))?);
            packets.push(segment(from, to, 1, |tcp| tcp.syn().fin())?);
            packets.push(segment(from, to, 1, |tcp| tcp.syn().ack(1))?);
            packets.push(segment(from, to, 1, |tcp| tcp)?);
        }
    }
    Ok(packets)
}

type Tcp = etherparse::PacketBuilderStep<etherparse::TcpHeader>;

fn segment(
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    flags: impl Fn(Tcp) -> Tcp,
) -> Result<Vec<u8>> {
    let step = network(from.ip(), to.ip())?.tcp(from.port(), to.port(), sequence, 1024);
    let mut packet = vec![];
    flags(step).write(&mut packet, b"stray")?;
    Ok(packet)
}

fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = vec![];
    network(from.ip(), to.ip())?
        .udp(from.port(), to.port())
        .write(&mut packet, payload)?;
    Ok(packet)
}

fn network(
    from: IpAddr,
    to: IpAddr,
) -> Result<etherparse::PacketBuilderStep<etherparse::IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ok(PacketBuilder::ipv4(from.octets(), to.octets(), 64))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(PacketBuilder::ipv6(from.octets(), to.octets(), 64))
        }
        _ => None.context("a packet cannot be of two families"),
    }
}
