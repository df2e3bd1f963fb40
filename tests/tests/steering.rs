//! steer in the lab, judged on the wire: what it steers, what it must not touch, and what it
//! leaves behind.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    m365::examples,
    residue::Snapshot,
    scenario::{Repair, born_while_down, everything_flushed, first_enable, flows, ruleset_flushed},
    server::Site,
    steer::{Mode, Settings, Steer},
    steering::Steering,
    traffic::probe_all,
    wire::Path,
};

fn office(mode: Mode) -> Lab {
    Lab::start(mode.office()).unwrap()
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        ..Settings::default()
    }
}

fn steers_what_the_feed_says_and_leaves_no_trace(mode: Mode) {
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let steer = Steer::start(&lab, &settings(mode)).unwrap();
    let captures = lab.capture().unwrap();
    let examples = examples();
    let wanted: Vec<_> = examples.iter().map(|example| example.flow).collect();
    let answers = probe_all(&lab.client, &wanted).unwrap();
    let wires = captures.stop().unwrap();
    for (example, answer) in examples.iter().zip(answers) {
        let (path, site) = if example.is_steered() {
            (Path::BREAKOUT, Site::Near)
        } else {
            (Path::Backbone, Site::Far)
        };
        assert_eq!(
            wires.path_of(&answer),
            path,
            "{}: {}",
            example.name,
            example.flow
        );
        assert_eq!(answer.site, site, "{}: {}", example.name, example.flow);
    }
    assert_eq!(wires.leaks(), []);

    let objects = steer.bpf_objects().unwrap();
    assert!(
        !objects.is_empty(),
        "a steering controller holds programs and maps"
    );
    steer.detach().unwrap();
    let after = Snapshot::take(&lab).unwrap();
    assert_eq!(before.difference(&after), "");
    let left: BTreeSet<_> = objects
        .into_iter()
        .filter(|object| object.exists().unwrap())
        .collect();
    assert_eq!(left, BTreeSet::new());
}

#[test]
fn mark_mode_steers_what_the_feed_says_and_leaves_no_trace() {
    steers_what_the_feed_says_and_leaves_no_trace(Mode::Mark);
}

#[test]
fn redirect_mode_steers_what_the_feed_says_and_leaves_no_trace() {
    steers_what_the_feed_says_and_leaves_no_trace(Mode::Redirect);
}

#[test]
fn a_killed_controller_leaves_steering_running() {
    let lab = office(Mode::Mark);
    let mut steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    steer.kill().unwrap();
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(10, 10)).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

#[test]
fn hosts_that_are_left_out_stay_on_the_backbone() {
    let lab = office(Mode::Mark);
    let ((host4, host6), (other4, other6)) = (lab.host(1), lab.host(2));
    let settings = Settings {
        lan: format!("exclude_sources = [\"{host4}/32\", \"{host6}/128\"]"),
        ..settings(Mode::Mark)
    };
    let _steer = Steer::start(&lab, &settings).unwrap();
    let (v6, v4) = (flows(2, 0)[0], flows(2, 0)[1]);
    let captures = lab.capture().unwrap();
    let wanted = [
        v4.from(host4),
        v6.from(host6),
        v4.from(other4),
        v6.from(other6),
    ];
    let answers = probe_all(&lab.client, &wanted).unwrap();
    let wires = captures.stop().unwrap();
    let paths: Vec<_> = answers.iter().map(|answer| wires.path_of(answer)).collect();
    assert_eq!(
        paths,
        [
            Path::Backbone,
            Path::Backbone,
            Path::BREAKOUT,
            Path::BREAKOUT
        ]
    );
}

#[test]
fn a_pulled_cable_leads_new_flows_to_the_backbone_without_a_controller() {
    let lab = office(Mode::Mark);
    let breakout = lab.breakouts()[0];
    let mut steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    steer.kill().unwrap();
    lab.cable(&breakout, false).unwrap();
    let answers = probe_all(&lab.client, &flows(4, 4)).unwrap();
    assert!(
        answers.iter().all(|answer| answer.site == Site::Far),
        "{answers:?}"
    );
    lab.cable(&breakout, true).unwrap();
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(4, 4)).unwrap();
    assert!(
        answers.iter().all(|answer| answer.site == Site::Near),
        "{answers:?}"
    );
    assert_eq!(captures.stop().unwrap().leaks(), []);
}

#[test]
fn the_second_breakout_takes_over_when_the_first_is_down() {
    let lab = Lab::start(LabOptions {
        breakouts: 2,
        ..LabOptions::default()
    })
    .unwrap();
    let _steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    let paths = |expected: Path| {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let captures = lab.capture().unwrap();
            let answers = probe_all(&lab.client, &flows(4, 4)).unwrap();
            let wires = captures.stop().unwrap();
            assert_eq!(wires.leaks(), []);
            let paths: Vec<_> = answers.iter().map(|answer| wires.path_of(answer)).collect();
            if paths.iter().all(|path| *path == expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{expected} expected: {paths:?}");
        }
    };
    paths(Path::Breakout(1));
    lab.link_down(&lab.breakouts()[0]).unwrap();
    paths(Path::Breakout(2));
    lab.link_up(&lab.breakouts()[0]).unwrap();
    paths(Path::Breakout(1));
}

#[test]
fn a_start_that_fails_changes_nothing() {
    let cases = [
        (
            "lan7",
            office(Mode::Mark),
            Settings {
                more: "[[lan]]\ninterface = \"lan7\"\n".into(),
                ..settings(Mode::Mark)
            },
        ),
        (
            "translat",
            Lab::start(LabOptions {
                firewall: false,
                ..LabOptions::default()
            })
            .unwrap(),
            settings(Mode::Redirect),
        ),
        (
            "office_firewall",
            Lab::start(LabOptions {
                lan: LanKind::Public,
                ..LabOptions::default()
            })
            .unwrap(),
            settings(Mode::Redirect),
        ),
    ];
    // Fails last, when everything else is in the router: a veth takes native XDP only while its
    // packets fit into a page.
    let late = office(Mode::Redirect);
    for (namespace, interface) in [(&late.router, "lan0"), (&late.client, "eth0")] {
        namespace
            .ip(&format!("link set {interface} mtu 9000"))
            .unwrap();
    }
    let native = Settings {
        more: "[redirect]\nxdp = \"native\"\n".into(),
        ..settings(Mode::Redirect)
    };
    for (reason, lab, settings) in cases.into_iter().chain([("lan0", late, native)]) {
        let before = Snapshot::take(&lab).unwrap();
        let error = Steer::start(&lab, &settings).unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error:#}");
        let after = Snapshot::take(&lab).unwrap();
        assert_eq!(before.difference(&after), "", "{reason}");
    }
}

#[test]
fn the_first_enable_moves_no_running_flow() {
    let outcome = first_enable(&Steering::Steer(settings(Mode::Mark)), 50, 20).unwrap();
    println!("{outcome}");
    assert!(outcome.is_clean(), "{outcome}");
    assert!(outcome.seen > 0, "the new flows left by the breakout");
}

#[test]
fn flows_that_began_while_the_breakout_was_down_stay_where_they_are() {
    let outcome = born_while_down(&Steering::Steer(settings(Mode::Mark)), 10, 10).unwrap();
    println!("{outcome}");
    assert!(outcome.is_clean(), "{outcome}");
    assert!(outcome.seen > 0, "a new flow left by the breakout");
}

#[test]
fn flushing_nftables_with_the_controller_killed_leaks_nothing() {
    let (every, duration) = (Duration::from_millis(50), Duration::from_mins(1));
    let steering = Steering::Steer(settings(Mode::Mark));
    let outcome = ruleset_flushed(&steering, Repair::Nobody, every, duration).unwrap();
    println!("{outcome}");
    assert!(outcome.is_clean(), "{outcome}");
    assert!(outcome.opened > 0, "connections succeed by either path");
}

/// Connections break here, as each flush takes the grants of running ones away; what counts is
/// what the ISP sees.
fn flushing_and_loading_leaks_nothing(repair: Repair) {
    let (every, duration) = (Duration::from_millis(50), Duration::from_secs(20));
    let steering = Steering::Steer(settings(Mode::Mark));
    let outcome = ruleset_flushed(&steering, repair, every, duration).unwrap();
    println!("{outcome}");
    assert_eq!(outcome.leaks, [], "{outcome}");
    assert!(outcome.opened > 0, "connections succeed by either path");
    assert!(outcome.seen > 0, "flows still left by the breakout");
}

#[test]
fn flushing_nftables_against_a_running_controller_leaks_nothing() {
    flushing_and_loading_leaks_nothing(Repair::Controller);
}

#[test]
fn flushing_and_loading_saved_rules_with_the_controller_killed_leaks_nothing() {
    flushing_and_loading_leaks_nothing(Repair::Script);
}

/// Rules that are flushed take connections with them; what counts is what the ISP sees.
#[test]
fn flushing_nftables_rules_and_routes_against_a_running_controller_leaks_nothing() {
    let (every, duration) = (Duration::from_millis(50), Duration::from_secs(20));
    let steering = Steering::Steer(settings(Mode::Mark));
    let outcome = everything_flushed(&steering, every, duration).unwrap();
    println!("{outcome}");
    assert_eq!(outcome.leaks, [], "{outcome}");
    assert!(outcome.opened > 0, "connections succeed by either path");
    assert!(outcome.seen > 0, "flows still left by the breakout");
}
