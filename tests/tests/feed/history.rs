//! Versions through time, as the service gives them: real answers where they are there, and a
//! history of our own.

use std::time::Duration;

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    traffic::{Fleet, Flow, probe_all},
};

use super::{PATIENCE, edited, entries, list, moved, office, serve};

#[test]
fn versions_through_time_are_steered_within_a_poll_and_move_new_flows_only() {
    const VERSIONS: u32 = 12;
    let rounds = std::env::var("STEER_FEED_CHANGES")
        .ok()
        .and_then(|it| it.parse().ok());
    let rounds: u32 = rounds.unwrap_or(VERSIONS);
    let lab = Lab::start(LabOptions::default()).unwrap();
    let office = office(
        &lab,
        "update = \"automatic\"\nremoval_delay = \"0s\"\ninterval = \"100ms\"",
    );
    let (a, b) = ("150.171.64.0/22", "150.171.72.0/22");
    let flow = |host: &str| Flow::tcp(host.parse().unwrap(), 443);
    let captures = lab.capture().unwrap();
    let period = Duration::from_millis(100);
    let near = Fleet::open(&lab.client, &[flow("52.96.1.1"), flow("40.96.1.1")], period).unwrap();
    let far = Fleet::open(
        &lab.client,
        &[flow("150.171.64.1"), flow("150.171.72.1")],
        period,
    )
    .unwrap();
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    let mut old = Value::from(list());
    for round in 0..rounds {
        let (come, go) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let version = 2_027_010_100 + round;
        let new = edited(&[come], &[]);
        serve(&office.service, &version.to_string(), new.clone());
        let deadline = std::time::Instant::now() + PATIENCE;
        while office.steer.status().unwrap()["feed"]["version"] != json!(version.to_string()) {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                office.steer.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let host = |prefix: &str| prefix.replace("0/22", &format!("{}", 2 + round % 250));
        let answers = probe_all(&lab.client, &[flow(&host(come)), flow(&host(go))]).unwrap();
        assert_eq!(answers[0].site, Site::Near, "{version}");
        assert_eq!(answers[1].site, Site::Far, "{version}");
        let output = office
            .steer
            .command(&["endpoints", "show", "--json"])
            .unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let last = shown["journal"].as_array().unwrap().last().unwrap().clone();
        let (before, after) = (entries(&old), entries(&new));
        assert_eq!(last["to"], json!(version.to_string()));
        assert_eq!(last["who"], "steer");
        assert_eq!(moved(&last["moved"]), [&after - &before, &before - &after]);
        old = new;
    }
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    for (fleet, site) in [(near, Site::Near), (far, Site::Far)] {
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.sites == [site], "{record:?}");
        }
    }
    assert_eq!(captures.stop().unwrap().leaks(), []);
}
