//! A million random packets and more: the kernel programs decide as the model does.
//!
//! `STEER_SEED` and `STEER_PACKETS` (for each program) override the defaults; a failure prints both
//! and the packet.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod captures;
mod generate;
mod model;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use etherparse::SlicedPacket;
use fastrand::Rng;
use model::{Do, Line, PATHS, PREFERENCES, Plan, Tuple, Verdict, World, further};
use steer_common::{
    abi::{Choice, Count, FamilyTable, NextHop, PathTable, STEERING},
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    reason::Reason,
    rule::{Action as RuleAction, Rule},
};
use steer_tests::{
    packet::Packet,
    testrun::{Action, Bench, LONGEST, ROUTER, Ran, SHORTEST, Variant, hex_dump, real_data},
};
use steer_user::datapath::Mode;

const SEED: u64 = 0x0365_0365;
const PACKETS: u64 = 1_000_000;
/// Packets of one plan.
const PER_PLAN: u64 = 20_000;
/// Packets between two changes of the paths.
const PER_STATE: u64 = 400;
/// Connections after which the flow table is emptied, long before a bucket of it is full.
const FLOWS: usize = 3000;
/// The class and the destinations of the packets that find a client's path.
const PROBE: u16 = 15;
const PROBE4: &str = "198.18.0.1";
const PROBE6: &str = "2001:db8:aaaa::1";

/// One loaded program, and what it must do.
struct Trial {
    bench: Bench,
    world: World,
    buckets: [u8; 64],
    reasons: HashMap<Reason, u64>,
    counts: HashMap<(u16, u8), Count>,
    /// What happened how often, for the summary.
    tally: BTreeMap<String, u64>,
}

impl Trial {
    fn new(variant: &Variant, rng: &mut Rng) -> Self {
        let mut bench = Bench::load(variant).unwrap();
        let vlans = variant.vlans.iter().map(|id| {
            let [a, b, c, d] = id.to_be_bytes();
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        });
        let mut vlans: Vec<(u16, u16)> = vlans.collect();
        if vlans.is_empty() {
            vlans.push((0, 0));
        }
        if !variant.mark {
            for (path, family) in (1..=PATHS).flat_map(|path| [(path, 0), (path, 1)]) {
                let index = Self::hop_index(path, family);
                bench
                    .maps()
                    .set_next_hop(index, &Self::hop(path, family))
                    .unwrap();
                bench.maps().set_device(path, 1).unwrap();
            }
        }
        Self {
            bench,
            world: World {
                plan: Plan::default(),
                mark: variant.mark,
                bare_ip: variant.bare_ip,
                vlans,
                router: ROUTER,
                steering: true,
                up: all_up(),
                choices: std::array::from_fn(|_| all_up()),
                preferences: HashMap::new(),
                mtu: HashMap::new(),
                homes: HashMap::new(),
                flows: HashMap::new(),
            },
            buckets: std::array::from_fn(|_| rng.u8(1..=PATHS)),
            reasons: HashMap::new(),
            counts: HashMap::new(),
            tally: BTreeMap::new(),
        }
    }

    fn hop_index(path: u8, family: usize) -> u8 {
        2 * path + u8::from(family == 1)
    }

    fn hop(path: u8, family: usize) -> NextHop {
        NextHop {
            macs: [
                2,
                0xaa,
                0,
                0,
                path,
                u8::from(family == 1),
                2,
                0xbb,
                0,
                0,
                path,
                0,
            ],
            device: path.into(),
            mtu: 1500 - 100 * u32::from(path),
        }
    }

    /// Publishes a plan, with what the probes need.
    fn publish(&mut self, mut plan: Plan) {
        for (number, probe) in (0..).zip([PROBE4, PROBE6]) {
            plan.lines.push(Line {
                prefix: probe.parse::<IpAddr>().unwrap().into(),
                rank: 1,
                set: 1000 + number,
                rules: vec![(6, 443, 443, Do::Steer(PROBE))],
            });
        }
        self.bench.maps().publish(image(&plan).unwrap()).unwrap();
        self.world.plan = plan;
    }

    /// Other paths are up, other next hops known.
    fn change_paths(&mut self, rng: &mut Rng) {
        self.world.steering = rng.u8(..10) != 0;
        for up in &mut self.world.up {
            *up = (1..=PATHS).filter(|_| rng.u8(..4) != 0).collect();
        }
        if rng.u8(..20) == 0 {
            self.world.up[rng.usize(..2)].clear();
        }
        for may in self.world.choices.iter_mut().flatten() {
            *may = (1..=PATHS).filter(|_| rng.u8(..4) != 0).collect();
            if rng.u8(..20) == 0 {
                may.clear();
            }
        }
        let classes = (0..PROBE).map(|class| (class, rng.usize(..PREFERENCES)));
        self.world.preferences = classes.collect();
        self.world.mtu.clear();
        for (path, family) in (1..=PATHS).flat_map(|path| [(path, 0), (path, 1)]) {
            if rng.u8(..8) != 0 {
                let mtu = Self::hop(path, family).mtu as usize;
                self.world.mtu.insert((path, family), mtu);
            }
        }
        self.set_paths();
    }

    fn set_paths(&mut self) {
        let world = &self.world;
        let families = [0, 1].map(|family: usize| {
            let bits = |paths: &[u8]| paths.iter().fold(0, |bits, path| bits | 1 << path);
            FamilyTable {
                state: bits(&world.up[family]) | if world.steering { STEERING } else { 0 },
                choices: std::array::from_fn(|preference| Choice {
                    paths: bits(&world.choices[preference][family]),
                    buckets: self.buckets.map(|home| further(home, preference)),
                }),
            }
        });
        let mut next_hops = [[0; 2]; mark::PATHS];
        for &(path, family) in world.mtu.keys() {
            next_hops[usize::from(path)][family] = Self::hop_index(path, family);
        }
        let mut table = PathTable::of(families, next_hops);
        for (&class, &preference) in &world.preferences {
            table.preferences[usize::from(class)] = u8::try_from(preference).unwrap();
        }
        self.bench.maps().set_paths(&table).unwrap();
    }

    /// Finds the path of a client while every path is up: how clients are spread over paths is the
    /// program's own affair, as long as it is always the same.
    fn learn(&mut self, client: IpAddr) {
        let (steering, up, choices, mtu) = (
            self.world.steering,
            self.world.up.clone(),
            self.world.choices.clone(),
            self.world.mtu.clone(),
        );
        self.world.steering = true;
        self.world.up = all_up();
        self.world.choices = std::array::from_fn(|_| all_up());
        for (path, family) in (1..=PATHS).flat_map(|path| [(path, 0), (path, 1)]) {
            self.world.mtu.insert((path, family), 1500);
        }
        self.set_paths();
        let probe = if client.is_ipv4() { PROBE4 } else { PROBE6 };
        let mut packet = Packet::tcp(probe, 443);
        packet.source = client;
        let (outer, inner) = self.world.vlans[0];
        packet.tags = [outer, inner]
            .into_iter()
            .filter(|&id| id != 0)
            .map(|id| (0x8100, id))
            .collect();
        let ran = self.bench.run(&packet.bytes(), 0).unwrap();
        let path = if self.world.mark {
            (ran.mark >> 24 & 0x0f) as u8
        } else {
            ran.bytes[4]
        };
        assert!(
            self.buckets.contains(&path),
            "{client} got path {path}, {ran:?}"
        );
        self.world.homes.insert(client, path);
        self.world.flows.insert(
            Tuple {
                source: client,
                destination: packet.destination,
                protocol: 6,
                ports: (packet.source_port, packet.port),
            },
            path,
        );
        let bytes = u64::try_from(packet.bytes().len() - packet.l3()).unwrap();
        self.count(PROBE, path, bytes);
        (self.world.steering, self.world.up) = (steering, up);
        (self.world.choices, self.world.mtu) = (choices, mtu);
        self.set_paths();
    }

    fn count(&mut self, class: u16, path: u8, bytes: u64) -> Count {
        let count = self.counts.entry((class, path)).or_default();
        count.packets += 1;
        count.bytes += bytes;
        *count
    }

    fn reason(&mut self, reason: Reason) -> u64 {
        let count = self.reasons.entry(reason).or_default();
        *count += 1;
        *count
    }

    /// Whether the kernel takes the packet for a test run at all: TC programs get no Ethernet
    /// header alone and no IP packet without its header (net/bpf/test_run.c).
    fn can_run(&self, frame: &[u8]) -> bool {
        let after = match frame.get(12..14) {
            Some([0x08, 0x00]) => 20,
            Some([0x86, 0xdd]) => 40,
            _ => 1,
        };
        let least = if self.world.mark {
            14 + after
        } else {
            SHORTEST
        };
        (least..=LONGEST).contains(&frame.len())
    }

    /// Puts a packet through the program and the model. What differs, if anything.
    fn check(&mut self, frame: &[u8], mark: u32) -> Result<(), String> {
        let world = &self.world;
        if world.flows.len() > FLOWS {
            self.bench.forget_flows().unwrap();
            self.world.flows.clear();
        }
        if !self.world.bare_ip
            && let Some(client) = self.world.client(frame)
            && !self.world.homes.contains_key(&client)
        {
            self.learn(client);
        }
        let verdict = self.world.decide(frame, mark);
        let pass = if self.world.mark {
            Action::Next
        } else {
            Action::Pass
        };
        let mut expected = Ran {
            action: pass,
            mark,
            bytes: frame.to_vec(),
        };
        let (mut reason, mut counted) = (None, None);
        let name = match verdict {
            Verdict::Untouched => "untouched".to_owned(),
            Verdict::Pass(why) => {
                reason = Some(why);
                why.name().to_owned()
            }
            Verdict::Wish {
                class,
                path,
                length,
            } => {
                expected.mark = mark & 0xc0ff_ffff | 0x1000_0000 | u32::from(path) << 24;
                counted = Some((class, path, length));
                reason = (path == 0).then_some(Reason::NoPath);
                format!("wish for path {path}")
            }
            Verdict::Redirect {
                class,
                path,
                length,
                family,
                l3,
            } => {
                expected.action = Action::Redirect;
                expected.bytes = forwarded(frame, path, family, l3);
                counted = Some((class, path, length));
                format!("redirect to path {path}")
            }
        };
        if !self.world.mark {
            expected.mark = 0;
        }
        let found = self
            .bench
            .run(frame, mark)
            .map_err(|error| format!("{error:#}\n{}", hex_dump(frame)))?;
        let fail = |what: &str| {
            Err(format!(
                "{what}\nthe model says {verdict:?}, mark {:#010x} -> {:#010x}\nthe program {:?}, mark {:#010x}\nin:\n{}expected out:\n{}found out:\n{}",
                mark,
                expected.mark,
                found.action,
                found.mark,
                hex_dump(frame),
                hex_dump(&expected.bytes),
                hex_dump(&found.bytes)
            ))
        };
        if found != expected {
            return fail("the program does not do what the model says");
        }
        if counted.is_some() && !is_well_formed(frame, self.world.mark) {
            return fail("a malformed packet is steered");
        }
        if let Some(reason) = reason {
            let count = self.reason(reason);
            if self.bench.reason(reason).unwrap() != count {
                return fail("another reason was counted");
            }
        }
        if let Some((class, path, length)) = counted {
            let count = self.count(class, path, length as u64);
            if self.bench.count(class, path).unwrap() != count {
                return fail("another class was counted");
            }
        }
        *self.tally.entry(name).or_default() += 1;
        Ok(())
    }

    /// Nothing was counted beyond what the packets account for.
    fn check_counters(&self) {
        for &reason in Reason::ALL {
            let expected = self.reasons.get(&reason).copied().unwrap_or_default();
            assert_eq!(self.bench.reason(reason).unwrap(), expected, "{reason:?}");
        }
        for (class, path) in (0..16).flat_map(|class| (0..16).map(move |path| (class, path))) {
            let expected = self.counts.get(&(class, path)).copied().unwrap_or_default();
            assert_eq!(
                self.bench.count(class, path).unwrap(),
                expected,
                "class {class} path {path}"
            );
        }
    }
}

fn image(plan: &Plan) -> Result<Image, steer_common::image::ImageError> {
    let rule = |&(protocol, first, last, what): &(u8, u16, u16, Do)| match what {
        Do::Steer(class) => Rule::steer(class, protocol, first, last),
        Do::Exclude => Rule::pass(RuleAction::Exclude),
        Do::RouterLocal => Rule::pass(RuleAction::RouterLocal),
    };
    let claims = plan.lines.iter().map(|line| Claim {
        prefix: line.prefix,
        order: Order::new(line.rank, &line.prefix, line.set),
        rules: line.rules.iter().map(rule).collect(),
    });
    let sources = plan.sources.iter().map(|&(prefix, client)| Source {
        prefix,
        // Whose queries are left alone is a client like any other.
        kind: match (client, prefix.prefix_len() % 2) {
            (true, 0) => SourceKind::Client,
            (true, _) => SourceKind::QueriesLeft,
            (false, _) => SourceKind::LeftOut,
        },
    });
    Image::build(&claims.collect::<Vec<_>>(), &sources.collect::<Vec<_>>())
}

/// The frame as it leaves: the next hop's Ethernet header, no tags, one hop less, and the checksum
/// by RFC 1624, equation 3.
fn forwarded(frame: &[u8], path: u8, family: usize, l3: usize) -> Vec<u8> {
    let mut ip = frame[l3..].to_vec();
    let hops = [8, 7][family];
    let word = |ip: &[u8], at: usize| u32::from(ip[at]) << 8 | u32::from(ip[at + 1]);
    let old = word(&ip, 8);
    ip[hops] -= 1;
    if family == 0 {
        let mut sum = (!word(&ip, 10) & 0xffff) + (!old & 0xffff) + word(&ip, 8);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let [.., high, low] = (!sum).to_be_bytes();
        ip[10..12].copy_from_slice(&[high, low]);
    }
    let ether_type = [[0x08, 0x00], [0x86, 0xdd]][family];
    [&Trial::hop(path, family).macs[..], &ether_type, &ip].concat()
}

/// Whether a third party's parser finds a whole packet, or in mark mode a whole first fragment.
fn is_well_formed(frame: &[u8], mark: bool) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let fragment = packet.is_ip_payload_fragmented();
    packet.net.is_some() && (packet.transport.is_some() || (fragment && mark))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn variants(mode: Mode) -> Vec<Variant> {
    let tagged = Variant::new(mode).vlans(&[(0, 0), (10, 0), (100, 20)]);
    let mut variants = vec![
        Variant::new(mode),
        tagged.clone(),
        Variant::new(mode),
        tagged,
    ];
    if mode == Mode::Mark {
        variants.push(Variant {
            bare_ip: true,
            ..Variant::new(mode)
        });
    }
    variants
}

/// Puts random packets of random plans through a program.
fn random_packets_agree(mode: Mode) {
    let (seed, packets) = (
        setting("STEER_SEED", SEED),
        setting("STEER_PACKETS", PACKETS),
    );
    println!("{mode:?}: STEER_SEED={seed} STEER_PACKETS={packets}");
    let mut rng = Rng::with_seed(seed ^ mode as u64);
    let variants = variants(mode);
    let mut trials: HashMap<Variant, Trial> = HashMap::new();
    let mut done = 0;
    for variant in variants.iter().cycle() {
        if done >= packets {
            break;
        }
        let trial = trials
            .entry(variant.clone())
            .or_insert_with(|| Trial::new(variant, &mut rng));
        // A random plan may have too many rules at one address: then another one.
        let plan = loop {
            let plan = generate::plan(&mut rng);
            if image(&plan).is_ok() {
                break plan;
            }
        };
        trial.publish(plan);
        for number in 0..PER_PLAN.min(packets - done) {
            if number % PER_STATE == 0 {
                trial.change_paths(&mut rng);
            }
            let frame = loop {
                let frame = generate::packet(
                    &mut rng,
                    &trial.world.plan,
                    &trial.world.vlans,
                    variant.bare_ip,
                );
                if trial.can_run(&frame) {
                    break frame;
                }
            };
            let mark = match rng.u8(..8) {
                0 if mode == Mode::Mark => rng.u32(..),
                1 if mode == Mode::Mark => rng.u32(..) & !0x3f00_0000,
                _ => 0,
            };
            if let Err(error) = trial.check(&frame, mark) {
                panic!(
                    "packet {} of STEER_SEED={seed}, {variant:?}: {error}",
                    done + number
                );
            }
        }
        trial.check_counters();
        done += PER_PLAN.min(packets - done);
    }
    let mut tally: BTreeMap<String, u64> = BTreeMap::new();
    for (what, times) in trials.values().flat_map(|trial| &trial.tally) {
        *tally.entry(what.clone()).or_default() += times;
    }
    println!("{mode:?}: {done} random packets agree with the model: {tally:?}");
    // A generator that does not get everywhere proves nothing.
    let elsewhere: &[Reason] = match mode {
        Mode::Mark => &[
            Reason::Mtu,
            Reason::NextHop,
            Reason::FlowPinned,
            Reason::NoPath,
            Reason::FlowTable,
        ],
        Mode::Redirect => &[Reason::ForeignMark, Reason::FlowTable],
    };
    for reason in Reason::ALL
        .iter()
        .filter(|reason| !elsewhere.contains(reason))
    {
        let times = tally.get(reason.name()).copied().unwrap_or_default();
        assert!(
            times >= packets / 10_000,
            "{reason:?} came up only {times} times"
        );
    }
    let steered = tally.iter().filter(|(what, _)| what.contains("path "));
    let steered: u64 = steered.map(|(_, times)| times).sum();
    assert!(
        steered >= packets / 10,
        "only {steered} packets were steered"
    );
}

#[test]
fn random_packets_of_mark_mode_agree_with_the_model() {
    random_packets_agree(Mode::Mark);
}

#[test]
fn random_packets_of_redirect_mode_agree_with_the_model() {
    random_packets_agree(Mode::Redirect);
}

/// Points a captured frame at this router, from a client to something in the plan.
fn aim(rng: &mut Rng, plan: &Plan, frame: &mut [u8]) {
    let Some(at) = (12..frame.len().saturating_sub(1))
        .step_by(4)
        .take(3)
        .find(|&at| [[0x08, 0x00], [0x86, 0xdd]].contains(&[frame[at], frame[at + 1]]))
    else {
        return;
    };
    frame[..6].copy_from_slice(&ROUTER);
    let ip = &mut frame[at + 2..];
    loop {
        match generate::addresses(rng, plan) {
            (IpAddr::V4(source), IpAddr::V4(destination)) if ip.len() >= 20 && ip[0] >> 4 == 4 => {
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                return;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) if ip.len() >= 40 && ip[0] >> 4 == 6 => {
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
                return;
            }
            _ if ip.len() < 40 || !matches!(ip[0] >> 4, 4 | 6) => return,
            _ => {}
        }
    }
}

#[test]
fn captured_packets_agree_with_the_model() {
    let Some(folder) = real_data("pcaps") else {
        return;
    };
    let seed = setting("STEER_SEED", SEED);
    let mut rng = Rng::with_seed(seed);
    let mut plan = generate::plan(&mut rng);
    // Every port, so that the captures' own ones hit.
    for line in plan.lines.iter_mut().filter(|line| line.rank != 0) {
        line.rules = vec![
            (6, 0, u16::MAX, Do::Steer(1)),
            (17, 0, u16::MAX, Do::Steer(2)),
        ];
    }
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "pcap" || kind == "pcapng")
        })
        .collect();
    files.sort();
    for mode in [Mode::Mark, Mode::Redirect] {
        let mut trial = Trial::new(&variants(mode)[1], &mut rng);
        trial.publish(plan.clone());
        trial.change_paths(&mut rng);
        let mut frames = 0;
        for file in &files {
            for original in captures::frames(file) {
                let mut aimed = original.clone();
                aim(&mut rng, &plan, &mut aimed);
                for mut frame in [original, aimed] {
                    frame.truncate(LONGEST);
                    if !trial.can_run(&frame) {
                        continue;
                    }
                    frames += 1;
                    if let Err(error) = trial.check(&frame, 0) {
                        panic!("{mode:?}, {}: {error}", file.display());
                    }
                }
            }
        }
        trial.check_counters();
        println!(
            "{mode:?}: {frames} packets of {} captures agree: {:?}",
            files.len(),
            trial.tally
        );
        assert!(frames > files.len(), "the captures were not read");
    }
}

/// In both families.
fn all_up() -> [Vec<u8>; 2] {
    [(1..=PATHS).collect(), (1..=PATHS).collect()]
}
