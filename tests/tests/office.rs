//! The lab itself: before anything steers, every flow takes the backbone, and the judge sees it.

use std::{process::Command, time::Duration};

use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    m365::examples,
    server::Site,
    traffic::{Fleet, Flow, probe_all},
    wire::Path,
};

#[test]
fn without_steer_every_flow_takes_the_backbone() {
    for lan in [LanKind::Private, LanKind::Public] {
        let lab = Lab::start(LabOptions {
            lan,
            breakouts: 2,
            ..LabOptions::default()
        })
        .unwrap();
        let captures = lab.capture().unwrap();
        let flows: Vec<_> = examples().iter().map(|example| example.flow).collect();
        let answers = probe_all(&lab.client, &flows).unwrap();
        let wires = captures.stop().unwrap();
        for answer in answers {
            assert_eq!(answer.site, Site::Far, "{}", answer.flow);
            assert_eq!(wires.path_of(&answer), Path::Backbone, "{}", answer.flow);
            assert_eq!(
                answer.seen_source, answer.local,
                "the backbone translates nothing"
            );
            assert!(answer.round_trip >= Duration::from_millis(80), "{answer:?}");
        }
        assert_eq!(wires.leaks(), []);
    }
}

#[test]
fn the_breakout_leads_to_the_near_front_end_and_back() {
    let lab = Lab::start(LabOptions {
        lan: LanKind::Public,
        ..LabOptions::default()
    })
    .unwrap();
    let breakout = lab.breakouts()[0];
    let (v4, v6) = breakout.gateway;
    lab.router
        .ip(&format!(
            "route replace default via {v4}\nroute replace default via {v6}\n"
        ))
        .unwrap();
    let captures = lab.capture().unwrap();
    let flows: Vec<_> = examples().iter().map(|example| example.flow).collect();
    let answers = probe_all(&lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
        assert!(answer.round_trip >= Duration::from_millis(8), "{answer:?}");
    }
    assert_eq!(wires.leaks(), []);
}

#[test]
fn the_judge_sees_sources_that_the_isp_would_not_accept() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    lab.expect_leaks();
    let (gateway, _) = lab.breakouts()[0].gateway;
    lab.router
        .ip(&format!("route replace default via {gateway}\n"))
        .unwrap();
    let captures = lab.capture().unwrap();
    let flow = Flow::udp("52.112.0.9".parse().unwrap(), 3478);
    let fleet = Fleet::open(&lab.client, &[flow], Duration::from_millis(10)).unwrap();
    while captures.look().leaks().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let record = fleet.stop().remove(0);
    assert_eq!(record.answered, 0, "{record:?}");
    let leak = captures.stop().unwrap().leaks()[0];
    assert_eq!(leak.source, record.local);
}

fn namespaces_of(prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn a_panic_removes_the_lab() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let lab = Lab::start(LabOptions::default()).unwrap();
        sender
            .send((lab.prefix.clone(), lab.directory().to_owned()))
            .unwrap();
        assert!(!namespaces_of(&lab.prefix).is_empty());
        panic!("as a failing test would");
    });
    let (prefix, directory) = receiver.recv().unwrap();
    assert!(test.join().is_err());
    assert_eq!(namespaces_of(&prefix), Vec::<String>::new());
    assert!(!directory.exists());
}

#[test]
fn what_a_killed_lab_left_is_swept_when_the_next_one_starts() {
    let mut gone = Command::new("true").spawn().unwrap();
    let prefix = format!("steer-{}-0", gone.id());
    gone.wait().unwrap();
    let name = format!("{prefix}-client");
    let added = Command::new("ip")
        .args(["netns", "add", &name])
        .status()
        .unwrap();
    assert!(added.success());
    assert_eq!(namespaces_of(&prefix), [name]);
    let _lab = Lab::start(LabOptions::default()).unwrap();
    assert_eq!(namespaces_of(&prefix), Vec::<String>::new());
}

#[test]
fn a_fleet_reports_who_answered_and_what_was_lost() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let (host4, host6) = lab.host(1);
    let flows = [
        Flow::tcp("52.96.1.1".parse().unwrap(), 443).from(host4),
        Flow::tcp("2603:1006::1".parse().unwrap(), 443).from(host6),
        Flow::udp("40.96.7.20".parse().unwrap(), 443),
    ];
    let fleet = Fleet::open(&lab.client, &flows, Duration::from_millis(20)).unwrap();
    fleet.wait_for_answers(Duration::from_secs(10)).unwrap();
    fleet.wait_for_answers(Duration::from_secs(10)).unwrap();
    let records = fleet.stop();
    assert!(
        records.iter().all(|record| !record.was_moved()),
        "{records:?}"
    );
    assert!(
        records
            .iter()
            .all(|record| record.sites == [Site::Far] && record.answered > 1)
    );
    assert_eq!(records[0].local.ip(), host4);
    assert_eq!(records[1].sources[0].ip(), host6);
}
