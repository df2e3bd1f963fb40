//! Plans are published while packets run: every packet is decided by one whole plan.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use steer_common::{
    abi::{FamilyTable, NextHop, PathTable, STEERING},
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    reason::Reason,
    rule::{self, Rule},
};
use steer_tests::{
    packet::Packet,
    testrun::{Action, Bench, Variant},
};
use steer_user::datapath::Mode;

const PUBLICATIONS: u64 = 1_000;

/// One of two plans that have every destination and rule in common places of the tables, with
/// other contents. A packet that saw the sources of one and the destinations of the other, or the
/// cell of one and the rules of the other, would be of a class that no whole plan gives it.
///
/// | client | in plan A | in plan B |
/// |---|---|---|
/// | of both | class 1 | class 2 |
/// | of A only, to a destination of its own | class 3 | not a client |
/// | of B only, to a destination of its own | not a client | class 4 |
fn plan(second: bool) -> Image {
    let claim = |prefix: &str, class| {
        let prefix: IpNet = prefix.parse().unwrap();
        Claim {
            prefix,
            order: Order::new(1, &prefix, u32::from(class)),
            rules: vec![Rule::steer(class, rule::TCP, 443, 443)],
        }
    };
    let source = |prefix: &str| Source {
        prefix: prefix.parse().unwrap(),
        kind: SourceKind::Client,
    };
    let mut claims = Vec::new();
    let mut sources = vec![source("10.0.0.0/16"), source("2001:db8:0::/48")];
    // Decoys before the others, so that entries, blocks and segments have other numbers in the other
    // plan. Nobody goes there: their classes are 5 and up.
    let (decoys, classes) = if second { (40_u16, 6) } else { (20, 3) };
    for decoy in 0..decoys {
        let (block, class) = (decoy % (decoys / 2), 5 + decoy % classes);
        claims.push(claim(&format!("13.{block}.7.{decoy}/32"), class));
        claims.push(claim(&format!("2400:{block:x}::{decoy:x}/128"), class));
    }
    let (shared, own_a, own_b) = if second { (2, 11, 4) } else { (1, 3, 12) };
    for (prefixes, class) in [
        (["52.96.0.0/14", "2603:1006::/40"], shared),
        (["52.112.1.0/25", "2603:1016::/64"], own_a),
        (["52.120.1.1/32", "2603:1026::1/128"], own_b),
    ] {
        claims.extend(prefixes.map(|prefix| claim(prefix, class)));
    }
    // Of the clients of one plan, single addresses inside of bigger blocks.
    if second {
        sources.extend([source("10.2.0.7/32"), source("2001:db8:2::7/128")]);
    } else {
        sources.extend([source("10.1.0.0/16"), source("2001:db8:1::/48")]);
    }
    Image::build(&claims, &sources).unwrap()
}

fn packets() -> Vec<(Vec<u8>, bool)> {
    let packet = |source, destination, always| {
        let packet = Packet::tcp(destination, 443).from(source);
        (packet.bytes(), always)
    };
    vec![
        packet("10.0.0.7", "52.96.1.1", true),
        packet("2001:db8::7", "2603:1006::1", true),
        packet("10.1.0.7", "52.112.1.1", false),
        packet("2001:db8:1::7", "2603:1016::1", false),
        packet("10.2.0.7", "52.120.1.1", false),
        packet("2001:db8:2::7", "2603:1026::1", false),
    ]
}

fn every_packet_sees_one_plan(mode: Mode) {
    let mut bench = Bench::load(&Variant::new(mode)).unwrap();
    if mode == Mode::Redirect {
        let hop = NextHop {
            macs: [2; 12],
            device: 1,
            mtu: 1500,
        };
        bench.maps().set_next_hop(1, &hop).unwrap();
        bench.maps().set_device(1, 1).unwrap();
    }
    let paths = PathTable::of(
        [FamilyTable::of(STEERING | 0b10, 1); 2],
        [[1; 2]; mark::PATHS],
    );
    bench.maps().set_paths(&paths).unwrap();
    bench.maps().publish(plan(false)).unwrap();

    let mut publisher = bench.second_maps().unwrap();
    let plans = [plan(true), plan(false)];
    let done = AtomicBool::new(false);
    let mut runs = 0_u64;
    let mut steered = [0_u64; 6];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Also when publishing fails: the other thread must end.
            struct Done<'a>(&'a AtomicBool);
            impl Drop for Done<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Release);
                }
            }
            let _done = Done(&done);
            for (_, plan) in (0..PUBLICATIONS).zip(plans.iter().cycle()) {
                publisher.publish(plan.clone()).unwrap();
            }
        });
        let packets = packets();
        while !done.load(Ordering::Acquire) {
            for ((packet, always), steered) in packets.iter().zip(&mut steered) {
                let ran = bench.run(packet, 0).unwrap();
                let is_steered = match mode {
                    Mode::Mark => ran.mark == 0x1100_0000,
                    Mode::Redirect => ran.action == Action::Redirect,
                };
                assert!(is_steered || !always, "a packet of both plans passed");
                *steered += u64::from(is_steered);
            }
            runs += 1;
        }
    });

    let counted = |class| bench.count(class, 1).unwrap().packets;
    println!(
        "{mode:?}: {PUBLICATIONS} publications, {} packets: class 1: {}, 2: {}, 3: {}, 4: {}",
        runs * 6,
        counted(1),
        counted(2),
        counted(3),
        counted(4)
    );
    for class in 5..16 {
        assert_eq!(
            counted(class),
            0,
            "class {class}: a packet saw parts of two plans"
        );
    }
    assert_eq!(
        counted(1) + counted(2),
        2 * runs,
        "packets of both plans were lost"
    );
    assert_eq!(
        counted(3),
        steered[2] + steered[3],
        "clients of plan A alone"
    );
    assert_eq!(
        counted(4),
        steered[4] + steered[5],
        "clients of plan B alone"
    );
    let total: u64 = steered.iter().sum();
    assert_eq!(bench.reason(Reason::NotLan).unwrap(), 6 * runs - total);
    for class in 1..5 {
        assert!(
            counted(class) > 0,
            "class {class} never came up: the plans did not alternate"
        );
    }
    let last = bench.maps().generation_number().unwrap();
    assert_eq!(last, Some(PUBLICATIONS + 1));
}

#[test]
fn every_packet_of_mark_mode_sees_one_plan() {
    every_packet_sees_one_plan(Mode::Mark);
}

#[test]
fn every_packet_of_redirect_mode_sees_one_plan() {
    every_packet_sees_one_plan(Mode::Redirect);
}
