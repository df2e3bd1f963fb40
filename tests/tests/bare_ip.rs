//! Mark mode on a device without Ethernet headers: a TUN device in a namespace, with real packets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use steer_common::{
    abi::{Count, FamilyTable, PathTable, STEERING},
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    reason::Reason,
    rule::{self, Rule},
};
use steer_tests::{
    namespace::Namespace,
    packet::Packet,
    testrun::{Observed, Pins},
    wan::open_tun,
};
use steer_user::datapath::{ClassCount, Datapath, LogLevel, Mode, Port, ReasonCount, XdpChoice};

fn plan() -> Image {
    let claim = |prefix: &str, class, protocol, port| {
        let prefix = prefix.parse().unwrap();
        Claim {
            prefix,
            order: Order::new(1, &prefix, u32::from(class)),
            rules: vec![Rule::steer(class, protocol, port, port)],
        }
    };
    let source = |prefix: &str| Source {
        prefix: prefix.parse().unwrap(),
        kind: SourceKind::Client,
    };
    Image::build(
        &[
            claim("52.96.0.0/14", 1, rule::TCP, 443),
            claim("2620:1ec:40::/42", 2, rule::UDP, 3478),
        ],
        &[source("10.1.0.0/16"), source("2001:db8:1::/48")],
    )
    .unwrap()
}

/// What the counters show once so many packets were counted.
fn counted(datapath: &Datapath, packets: u64) -> Observed {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let counts = datapath.maps().counts().unwrap();
        let reasons = datapath.maps().reasons().unwrap();
        let steered: u64 = counts.iter().map(|count| count.packets).sum();
        let passed: u64 = reasons.iter().map(|count| count.packets).sum();
        let observed = Observed {
            reasons: reasons
                .iter()
                .map(|&ReasonCount { reason, packets }| (reason, packets))
                .collect(),
            counts: counts
                .iter()
                .map(
                    |&ClassCount {
                         class,
                         path,
                         packets,
                         bytes,
                     }| { (class, path, Count { packets, bytes }) },
                )
                .collect(),
        };
        assert!(
            Instant::now() < deadline,
            "{packets} packets were sent, counted are {observed:?}"
        );
        if steered + passed >= packets {
            return observed;
        }
    }
}

#[test]
fn packets_of_a_tunnel_device_get_their_wish() {
    let namespace = Namespace::create(&format!("steer-{}-bare", std::process::id())).unwrap();
    let mut tunnel = open_tun(&namespace, "tun0").unwrap();
    let port = Port {
        interface: "tun0".to_owned(),
        ifindex: namespace.interface_index("tun0").unwrap(),
        mac: None,
        vlans: Vec::new(),
        marks: mark::Bits::DEFAULT,
        order: steer_user::datapath::Order::Last,
    };
    let pins = Pins::unique();
    let mut datapath =
        Datapath::load(Mode::Mark, pins.dir().clone(), vec![port], 1, LogLevel::Off).unwrap();
    datapath.maps_mut().publish(plan()).unwrap();
    let paths = PathTable::of(
        [FamilyTable::of(STEERING | 0b10, 1); 2],
        [[0; 2]; mark::PATHS],
    );
    datapath.maps_mut().set_paths(&paths).unwrap();
    namespace
        .run(|| Ok(datapath.attach(XdpChoice::Auto)?))
        .unwrap();

    // The kernel's own packets on the device (router solicitations) are not of the plan.
    let send = [
        Packet::tcp("52.96.1.1", 443),
        Packet::udp("2620:1ec:40::1", 3478),
        Packet::tcp("8.8.8.8", 443),
        Packet::tcp("52.96.1.1", 25),
        Packet::tcp("52.96.1.1", 443).hops(1),
        Packet::tcp("52.96.1.1", 443).from("192.0.2.1"),
    ];
    for packet in send {
        tunnel.write_all(&packet.bare().bytes()).unwrap();
    }
    let one = |bytes| Count { packets: 1, bytes };
    assert_eq!(
        counted(&datapath, 5),
        Observed {
            reasons: vec![(Reason::Port, 1), (Reason::NotLan, 1), (Reason::Ttl, 1)],
            counts: vec![(1, 1, one(72)), (2, 1, one(80))],
        }
    );
}
