//! Nobody watches: the controller is killed, and then a link dies. New connections find another way,
//! and come back when the link does. Times are only printed; documented ones are in docs/dead-man.md.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use serde_json::Value;
use steer_common::deadman;
use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::{Answer, Flow, inject, probe_each},
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often a client opens a connection again that fails.
const ATTEMPTS: usize = 4;

fn office(mode: Mode, breakouts: u8) -> Lab {
    let lan = match mode {
        Mode::Mark => LanKind::Private,
        Mode::Redirect => LanKind::Public,
    };
    Lab::start(LabOptions {
        lan,
        breakouts,
        firewall: false,
        ..LabOptions::default()
    })
    .unwrap()
}

fn steer(lab: &Lab, mode: Mode) -> Steer<'_> {
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    Steer::start(lab, &settings).unwrap()
}

/// What the dead-man says of the first breakout.
fn first(steer: &Steer<'_>) -> Value {
    steer.status().unwrap()["dead_man"]["breakouts"][0].clone()
}

/// The same of its families.
fn each(steer: &Steer<'_>, key: &str) -> [Value; 2] {
    let families = &first(steer)["families"];
    [0, 1].map(|family| families[family][key].clone())
}

/// Kills the controller and waits until the dead-man has noticed.
fn kill(steer: &mut Steer<'_>) {
    assert_eq!(steer.status().unwrap()["dead_man"]["acts"], false);
    assert_eq!(first(steer)["heard"], true);
    steer.kill().unwrap();
    let started = Instant::now();
    while steer.status().unwrap()["dead_man"]["acts"] != true {
        assert!(started.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(200));
    }
}

/// New connections of both families and protocols, as often as a client would try.
fn connect(lab: &Lab) -> Vec<Answer> {
    let mut waiting = flows(4, 4);
    let mut answers = Vec::new();
    for _ in 0..ATTEMPTS {
        let results = probe_each(&lab.client, &waiting);
        let failed = waiting.iter().zip(&results).filter(|(_, it)| it.is_err());
        let failed = failed.map(|(flow, _)| *flow).collect();
        answers.extend(results.into_iter().flatten());
        waiting = failed;
    }
    assert!(waiting.is_empty(), "no way leads to {waiting:?}");
    answers
}

/// Opens connections until all of them take one way.
fn until_all_go(lab: &Lab, site: Site, what: &str) {
    until_families_go(lab, [site, site], what);
}

/// The same for IPv4 and IPv6.
fn until_families_go(lab: &Lab, sites: [Site; 2], what: &str) {
    let started = Instant::now();
    loop {
        let answers = connect(lab);
        let goes = |answer: &Answer| {
            let family = usize::from(answer.flow.destination.is_ipv6());
            answer.site == sites[family]
        };
        if answers.iter().all(goes) {
            println!("{what}: {:?}", started.elapsed());
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: {answers:?}");
    }
}

/// Another owner's choice of reverse path filter, for all interfaces.
fn filter_reverse_path(lab: &Lab, strictness: u32) {
    for interface in ["all", "default", "lan0", "bb0", "brk0"] {
        let key = format!("net.ipv4.conf.{interface}.rp_filter");
        lab.router.sysctl(&key, strictness).unwrap();
    }
}

/// Issue by issue what may happen while nobody watches.
fn outages_without_a_controller(strictness: u32) {
    let lab = office(Mode::Mark, 1);
    let breakout = lab.breakouts()[0];
    let mut steer = steer(&lab, Mode::Mark);
    kill(&mut steer);
    filter_reverse_path(&lab, strictness);
    let captures = lab.capture().unwrap();
    until_all_go(&lab, Site::Near, "before");

    lab.cable(&breakout, false).unwrap();
    until_all_go(&lab, Site::Far, "cable out");
    lab.cable(&breakout, true).unwrap();
    until_all_go(&lab, Site::Near, "cable in");

    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    until_all_go(&lab, Site::Far, "black hole");
    assert_eq!(each(&steer, "down"), [true, true]);
    lab.black_hole(&[]).unwrap();
    until_all_go(&lab, Site::Near, "black hole over");
    assert_eq!(each(&steer, "down"), [false, false]);
    assert!(each(&steer, "openings").iter().all(|count| *count != 0));

    lab.router
        .ip("route del default\nroute del default via fd99::1\n")
        .unwrap();
    until_all_go(&lab, Site::Near, "no backbone");
    assert_eq!(captures.stop().unwrap().leaks(), []);
    steer.detach().unwrap();
}

#[test]
fn outages_without_a_controller_and_without_reverse_path_filter() {
    outages_without_a_controller(0);
}

#[test]
fn outages_without_a_controller_and_with_a_strict_reverse_path_filter() {
    outages_without_a_controller(1);
}

#[test]
fn outages_without_a_controller_and_with_a_loose_reverse_path_filter() {
    outages_without_a_controller(2);
}

#[test]
fn a_silent_gateway_is_left_and_taken_again() {
    let lab = office(Mode::Mark, 1);
    let mut steer = steer(&lab, Mode::Mark);
    kill(&mut steer);
    // ARP and neighbour discovery, too, as a box that has crashed.
    let text = "table netdev crash { chain in { type filter hook ingress device wan0 priority 0; \
                drop\n}\n}";
    lab.isp.nft(text).unwrap();
    lab.router.ip("neigh flush dev brk0\n").unwrap();
    until_all_go(&lab, Site::Far, "gateway silent");
    lab.isp.nft("delete table netdev crash").unwrap();
    until_all_go(&lab, Site::Near, "gateway answers");
    steer.detach().unwrap();
}

#[test]
fn the_next_breakout_is_taken_before_the_backbone() {
    let lab = office(Mode::Mark, 2);
    let mut steer = steer(&lab, Mode::Mark);
    kill(&mut steer);
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    let all_go_by = |path| {
        let started = Instant::now();
        loop {
            let captures = lab.capture().unwrap();
            let answers = connect(&lab);
            let wires = captures.stop().unwrap();
            assert_eq!(wires.leaks(), []);
            // A connection that was caught on its way has left packets on both.
            if answers.iter().all(|answer| wires.path_of(answer) == path) {
                println!("{path}: {:?}", started.elapsed());
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{path}");
        }
    };
    all_go_by(Path::Breakout(2));
    lab.black_hole(&[]).unwrap();
    all_go_by(Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn a_black_hole_is_left_in_redirect_mode_too() {
    let lab = office(Mode::Redirect, 1);
    let mut steer = steer(&lab, Mode::Redirect);
    kill(&mut steer);
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    until_all_go(&lab, Site::Far, "black hole");
    lab.black_hole(&[]).unwrap();
    until_all_go(&lab, Site::Near, "black hole over");
    steer.detach().unwrap();
}

/// The provider drops everything of one family.
fn a_dead_family(mode: Mode) {
    let lab = office(mode, 1);
    let mut steer = steer(&lab, mode);
    kill(&mut steer);
    for (protocol, sites, down) in [
        ("ipv6", [Site::Near, Site::Far], [false, true]),
        ("ipv4", [Site::Far, Site::Near], [true, false]),
    ] {
        lab.isp
            .nft(&format!(
                "table inet hole {{ chain forward {{ type filter hook forward priority 0; \
                 meta nfproto {protocol} drop\n}}\n}}"
            ))
            .unwrap();
        until_families_go(&lab, sites, &format!("{protocol} dead"));
        assert_eq!(each(&steer, "down"), down);
        lab.isp.nft("delete table inet hole").unwrap();
        until_all_go(&lab, Site::Near, &format!("{protocol} back"));
    }
    steer.detach().unwrap();
}

#[test]
fn a_family_that_dies_alone_is_left_alone_in_mark_mode() {
    a_dead_family(Mode::Mark);
}

#[test]
fn a_family_that_dies_alone_is_left_alone_in_redirect_mode() {
    a_dead_family(Mode::Redirect);
}

#[test]
fn a_new_controller_takes_over_from_the_dead_man() {
    let lab = office(Mode::Mark, 1);
    let mut steer = steer(&lab, Mode::Mark);
    kill(&mut steer);
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    until_all_go(&lab, Site::Far, "black hole");
    lab.black_hole(&[]).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_eq!(steer.status().unwrap()["dead_man"]["acts"], false);
    until_all_go(&lab, Site::Near, "controller back");
    steer.detach().unwrap();
}

/// First packets that wait for an answer, as raw ones: no socket sends them again.
fn first_packets(lab: &Lab, destinations: &[IpAddr], count: u16) -> Vec<Vec<u8>> {
    let to = destinations.iter().cycle().take(count.into());
    to.zip(20_000_u16..)
        .map(|(to, port)| {
            let (v4, v6) = lab.host(0);
            let step = match (to, v4, v6) {
                (IpAddr::V4(to), IpAddr::V4(from), _) => {
                    PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                }
                (IpAddr::V6(to), _, IpAddr::V6(from)) => {
                    PacketBuilder::ipv6(from.octets(), to.octets(), 64)
                }
                _ => unreachable!("the first is IPv4, the second IPv6"),
            };
            let mut packet = Vec::new();
            if port % 2 == 0 {
                let step = step.tcp(port, 443, 1, 1024).syn();
                step.write(&mut packet, &[]).unwrap();
            } else {
                // QUIC's Initial.
                step.udp(port, 443)
                    .write(&mut packet, &[0xc3; 1200])
                    .unwrap();
            }
            packet
        })
        .collect()
}

/// Longer than a path may stay silent.
fn a_silence() {
    thread::sleep(Duration::from_nanos(deadman::SILENCE) + Duration::from_millis(100));
}

#[test]
fn what_is_no_outage_provokes_nothing() {
    let lab = office(Mode::Mark, 1);
    let mut steer = steer(&lab, Mode::Mark);
    let dead: [IpAddr; 2] = ["52.96.0.77".parse().unwrap(), "52.97.0.78".parse().unwrap()];
    lab.isp
        .nft(&format!(
            "table inet dead {{ chain forward {{ type filter hook forward priority 0; \
             ip daddr {{ {}, {} }} drop\n}}\n}}",
            dead[0], dead[1]
        ))
        .unwrap();
    let alive = Flow::tcp("52.98.0.1".parse().unwrap(), 443);
    let never_opened = |steer: &Steer<'_>, what: &str| {
        assert_eq!(each(steer, "openings"), [0, 0], "{what}");
    };
    let send = |packets: &[Vec<u8>]| inject(&lab.client, packets).unwrap();

    send(&first_packets(&lab, &dead, 24));
    a_silence();
    send(&first_packets(&lab, &dead, 24));
    never_opened(&steer, "while the controller runs");

    kill(&mut steer);
    for _ in 0..2 {
        send(&first_packets(&lab, &dead[..1], 80));
        a_silence();
    }
    send(&first_packets(&lab, &dead[..1], 80));
    never_opened(&steer, "one dead address");

    let (host, _) = lab.host(0);
    let one_way: Vec<Vec<u8>> = (0..200)
        .map(|number| {
            let to = SocketAddr::from(([52, 96, 1, number], 3479));
            let (IpAddr::V4(from), IpAddr::V4(to)) = (host, to.ip()) else {
                unreachable!("both are IPv4")
            };
            let mut packet = Vec::new();
            PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                .udp(50_000, 3479)
                .write(&mut packet, &[0x80; 100])
                .unwrap();
            packet
        })
        .collect();
    for _ in 0..2 {
        send(&one_way);
        a_silence();
    }
    never_opened(&steer, "one-way UDP");

    // Fewer than would open it between two exchanges of somebody else.
    let few = u16::try_from(deadman::PACKETS).unwrap() - 3;
    for _ in 0..6 {
        assert_eq!(alive.probe(&lab.client).unwrap().site, Site::Near);
        send(&first_packets(&lab, &dead, few));
        thread::sleep(Duration::from_millis(700));
    }
    never_opened(&steer, "two dead addresses beside others that answer");
    assert_eq!(alive.probe(&lab.client).unwrap().site, Site::Near);
    steer.detach().unwrap();
}
