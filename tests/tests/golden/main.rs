//! Golden packets: what the kernel programs do with one packet, or with a few in a row.
//!
//! The table is in [`cases`]; this file has the world it speaks of and runs it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

// A table: one case a line.
#[rustfmt::skip]
mod cases;

use std::{collections::HashMap, fmt::Write as _};

use cases::{Case, Expect, Step, cases};
use etherparse::{
    EtherType, Ethernet2Header, Ipv6Header, SingleVlanHeader, checksum::Sum16BitWords,
};
use steer_common::{
    abi::{Count, FamilyTable, NextHop, PathTable, STEERING},
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    reason::Reason,
    rule::{self, Action as Do, Rule},
};
use steer_tests::testrun::{Action, Bench, Observed, Ran, hex_dump};

/// The classes of the plan.
const EXCHANGE: u16 = 1;
const TEAMS: u16 = 2;
const SHAREPOINT: u16 = 3;
const COMMON: u16 = 4;
const OWN: u16 = 5;

/// Two breakouts: Ethernet addresses (next hop's, ours) and MTU for IPv4 and IPv6.
const FIBER: u8 = 1;
const LTE: u8 = 2;
const HOPS: [[NextHop; 2]; 3] = [
    [hop(FIBER, 0x04, 1500), hop(FIBER, 0x06, 1480)],
    [hop(LTE, 0x04, 1400), hop(LTE, 0x06, 1280)],
    // Of a device that is not there.
    [hop(9, 0x04, 1500), hop(9, 0x06, 1500)],
];

const fn hop(path: u8, family: u8, mtu: u32) -> NextHop {
    NextHop {
        macs: [2, 0xaa, 0, 0, path, family, 2, 0xbb, 0, 0, path, 0],
        device: path as u32,
        mtu,
    }
}

/// The state of the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Paths {
    /// Both breakouts are up, every client takes the fiber.
    #[default]
    Up,
    /// The fiber is down.
    FiberDown,
    /// The fiber has no IPv6.
    Fiber4,
    /// Both are down.
    Down,
    /// Both are up, steering is off or watches.
    Off,
    /// Both are up, no next hop is known.
    Unresolved,
    /// The next hop of the fiber is known for IPv6 only.
    Only6,
    /// The fiber's next hop is known, its device is gone.
    NoDevice,
}

impl Paths {
    fn table(self) -> PathTable {
        let fiber_down = STEERING | 0b100;
        let state = match self {
            Self::Up | Self::Fiber4 | Self::Unresolved | Self::Only6 | Self::NoDevice => {
                STEERING | 0b110
            }
            Self::FiberDown => fiber_down,
            Self::Down => STEERING,
            Self::Off => 0b110,
        };
        let mut next_hops = [[0; 2]; mark::PATHS];
        if self != Self::Unresolved {
            next_hops[1] = [1, 2];
            next_hops[2] = [3, 4];
        }
        if self == Self::Only6 {
            next_hops[1][0] = 0;
        }
        if self == Self::NoDevice {
            next_hops[1] = [5, 6];
        }
        let mut families = [FamilyTable::of(state, FIBER); 2];
        if self == Self::Fiber4 {
            families[1] = FamilyTable::of(fiber_down, FIBER);
        }
        PathTable::of(families, next_hops)
    }
}

fn plan() -> Image {
    let both = |class, first, last| {
        vec![
            Rule::steer(class, rule::TCP, first, last),
            Rule::steer(class, rule::UDP, first, last),
        ]
    };
    let tcp = |class, first, last| Rule::steer(class, rule::TCP, first, last);
    let udp = |class, first, last| Rule::steer(class, rule::UDP, first, last);
    let web = |class| vec![tcp(class, 80, 80), tcp(class, 443, 443)];
    let pass = |action| vec![Rule::pass(action)];
    // (prefix, rank: 0 before everything, 1 Optimize, 2 Allow; set; rules)
    let claims = [
        ("52.96.0.0/14", 1, 1, web(EXCHANGE)),
        ("52.96.0.0/14", 1, 1, vec![udp(EXCHANGE, 443, 443)]),
        ("13.107.6.152/31", 1, 1, web(EXCHANGE)),
        ("13.107.6.152/31", 2, 46, both(COMMON, 0, 65_535)),
        ("52.112.0.0/14", 1, 11, vec![udp(TEAMS, 3478, 3481)]),
        ("52.112.0.0/14", 2, 12, both(COMMON, 443, 443)),
        ("52.120.0.0/14", 1, 11, vec![udp(TEAMS, 3478, 3481)]),
        // An Allow inside an Optimize that speaks of the same port, and the other way round.
        ("52.122.1.0/24", 2, 12, vec![udp(COMMON, 3478, 3500)]),
        ("104.146.128.0/17", 2, 31, web(SHAREPOINT)),
        ("104.146.200.0/24", 1, 32, vec![tcp(OWN, 443, 443)]),
        ("198.51.100.7/32", 1, 900, both(OWN, 1000, 2000)),
        ("52.96.7.0/24", 0, 0, pass(Do::Exclude)),
        ("52.98.1.1/32", 0, 0, pass(Do::RouterLocal)),
        ("2603:1006::/40", 1, 1, web(EXCHANGE)),
        ("2603:1006:1:2::3/128", 2, 46, both(COMMON, 0, 65_535)),
        ("2620:1ec:40::/42", 1, 11, vec![udp(TEAMS, 3478, 3481)]),
        ("2620:1ec:40::/42", 2, 12, both(COMMON, 443, 443)),
        ("2603:1006:7::/48", 0, 0, pass(Do::Exclude)),
        ("2603:1006:8::1/128", 0, 0, pass(Do::RouterLocal)),
        ("2001:db8:ffff::/127", 1, 900, both(OWN, 1000, 2000)),
    ];
    let claims = claims.map(|(prefix, rank, id, rules)| {
        let prefix = prefix.parse().unwrap();
        Claim {
            prefix,
            order: Order::new(rank, &prefix, id),
            rules,
        }
    });
    let sources = [
        ("10.1.0.0/16", SourceKind::Client),
        ("10.1.99.0/24", SourceKind::LeftOut),
        ("10.1.99.7/32", SourceKind::Client),
        ("2001:db8:1::/48", SourceKind::Client),
        ("2001:db8:1:99::/64", SourceKind::LeftOut),
        ("2001:db8:1:99::7/128", SourceKind::Client),
    ];
    let sources = sources.map(|(prefix, kind)| Source {
        prefix: prefix.parse().unwrap(),
        kind,
    });
    Image::build(&claims, &sources).unwrap()
}

/// A program with the plan and the next hops.
fn bench(variant: &steer_tests::testrun::Variant) -> Bench {
    /// The loopback device stands for both breakouts: a test run sends nothing.
    const LOOPBACK: u32 = 1;
    let mut bench = Bench::load(variant).unwrap();
    bench.maps().publish(plan()).unwrap();
    if !variant.mark {
        for (index, hop) in (1..).zip(HOPS.as_flattened()) {
            bench.maps().set_next_hop(index, hop).unwrap();
        }
        for path in [FIBER, LTE] {
            bench.maps().set_device(path, LOOPBACK).unwrap();
        }
    }
    bench
}

/// What a step should come to: the packet after it, and the counters.
fn expected(step: &Step, is_mark: bool) -> (Ran, Observed) {
    let input = step.packet.bytes();
    let length = |class, path| {
        let ip = &input[step.packet.l3()..];
        let bytes = if ip[0] >> 4 == 4 {
            u64::from(u16::from_be_bytes([ip[2], ip[3]]))
        } else {
            40 + u64::from(u16::from_be_bytes([ip[4], ip[5]]))
        };
        vec![(class, path, Count { packets: 1, bytes })]
    };
    let wish = |path: u8| (step.mark & 0xc0ff_ffff) | 0x1000_0000 | u32::from(path) << 24;
    let mut observed = Observed::default();
    let mut ran = Ran {
        action: if is_mark { Action::Next } else { Action::Pass },
        mark: step.mark,
        bytes: input.clone(),
    };
    match step.expect {
        Expect::Untouched => {}
        Expect::Passes(reason) => observed.reasons.push((reason, 1)),
        Expect::WishForNone { class } => {
            observed.reasons.push((Reason::NoPath, 1));
            observed.counts = length(class, 0);
            ran.mark = wish(0);
        }
        Expect::Steered { class, path } => {
            observed.counts = length(class, path);
            if is_mark {
                ran.mark = wish(path);
            } else {
                ran.action = Action::Redirect;
                ran.bytes = forwarded(&input, path);
            }
        }
    }
    if let Some(bytes) = &step.bytes {
        ran.bytes.clone_from(bytes);
    }
    (ran, observed)
}

/// The frame that a router makes of another: hops, checksum and Ethernet header anew, no tags.
fn forwarded(frame: &[u8], path: u8) -> Vec<u8> {
    let (ethernet, mut rest) = Ethernet2Header::from_slice(frame).unwrap();
    let mut ether_type = ethernet.ether_type;
    while let EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING = ether_type {
        let (tag, behind) = SingleVlanHeader::from_slice(rest).unwrap();
        (ether_type, rest) = (tag.ether_type, behind);
    }
    let (ip, rest, hop) = if ether_type == EtherType::IPV4 {
        let (header, rest) = rest.split_at(20);
        let mut header = header.to_vec();
        header[8] -= 1;
        header[10..12].fill(0);
        let sum = Sum16BitWords::new().add_slice(&header).ones_complement();
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
        (header, rest, HOPS[path as usize - 1][0])
    } else {
        let (mut header, rest) = Ipv6Header::from_slice(rest).unwrap();
        header.hop_limit -= 1;
        (header.to_bytes().to_vec(), rest, HOPS[path as usize - 1][1])
    };
    let ethernet = Ethernet2Header {
        destination: hop.macs[..6].try_into().unwrap(),
        source: hop.macs[6..].try_into().unwrap(),
        ether_type,
    };
    [&ethernet.to_bytes()[..], &ip, rest].concat()
}

/// Runs a case; what went wrong, if anything.
fn run(bench: &mut Bench, case: &Case) -> Result<(), String> {
    for (number, step) in case.steps.iter().enumerate() {
        bench.maps().set_paths(&step.paths.table()).unwrap();
        if step.silent > 0 {
            bench.age_flows(step.silent).unwrap();
        }
        let input = step.packet.bytes();
        bench.observe().unwrap();
        let ran = bench
            .run(&input, step.mark)
            .map_err(|error| format!("{}: {error:#}\n{}", case.what, hex_dump(&input)))?;
        let observed = bench.observe().unwrap();
        let (expected, counted) = expected(step, case.variant.mark);
        if (&ran, &observed) == (&expected, &counted) {
            continue;
        }
        let mut report = format!(
            "{} {}: {}\n packet {} of {}, expected {:?}\n",
            if case.variant.mark {
                "mark"
            } else {
                "redirect"
            },
            if case.variant.bare_ip {
                "(bare IP)"
            } else {
                ""
            },
            case.what,
            number + 1,
            case.steps.len(),
            step.expect
        );
        let _ = writeln!(
            report,
            " expected {:?} mark {:#010x} {counted:?}\n found    {:?} mark {:#010x} {observed:?}\n in:\n{}",
            expected.action,
            expected.mark,
            ran.action,
            ran.mark,
            hex_dump(&input)
        );
        if ran.bytes != expected.bytes {
            let _ = writeln!(
                report,
                " expected out:\n{} found out:\n{}",
                hex_dump(&expected.bytes),
                hex_dump(&ran.bytes)
            );
        }
        return Err(report);
    }
    Ok(())
}

#[test]
fn every_golden_packet_takes_the_way_it_should() {
    let mut cases = cases();
    // Every case gets connections of its own.
    for (number, case) in (0..).zip(&mut cases) {
        for step in case.steps.iter_mut().filter(|step| step.bytes.is_none()) {
            step.packet.source_port += 16 * number;
        }
    }
    let mut benches = HashMap::new();
    let mut failures = Vec::new();
    for case in &cases {
        let bench = benches
            .entry(case.variant.clone())
            .or_insert_with(|| bench(&case.variant));
        failures.extend(run(bench, case).err());
    }
    let (mark, redirect): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.variant.mark);
    println!(
        "{} golden cases: {} of mark, {} of redirect, in {} variants of the programs",
        cases.len(),
        mark.len(),
        redirect.len(),
        benches.len()
    );
    assert!(cases.len() >= 100, "the table shrank to {}", cases.len());
    assert!(
        failures.is_empty(),
        "{} of {} golden cases failed:\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn descriptions_are_unique_per_program() {
    let mut seen = HashMap::new();
    for case in cases() {
        let times = seen.entry((case.variant.mark, case.what)).or_insert(0);
        *times += 1;
        assert_eq!(*times, 1, "{}", case.what);
    }
}
