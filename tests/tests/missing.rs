//! What a breakout needs goes missing, by somebody else's hand: steer puts it back, and a breakout for
//! which it cannot is down until then. Times are only printed.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    thread,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions},
    scenario::flows,
    server::Site,
    steer::{Settings, Steer},
    traffic::probe_all,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
    println!("{what} after {:?}", started.elapsed());
}

fn office() -> Lab {
    Lab::start(LabOptions {
        firewall: false,
        ..LabOptions::default()
    })
    .unwrap()
}

fn all_go(lab: &Lab, site: Site) {
    families_go(lab, [site, site]);
}

/// New flows of IPv4 and of IPv6 are answered there.
fn families_go(lab: &Lab, sites: [Site; 2]) {
    for answer in probe_all(&lab.client, &flows(4, 4)).unwrap() {
        let family = usize::from(answer.flow.destination.is_ipv6());
        assert_eq!(answer.site, sites[family], "{}", answer.flow);
    }
}

#[test]
fn routes_that_somebody_flushes_come_back() {
    let lab = office();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    let captures = lab.capture().unwrap();
    for family in ["-4", "-6"] {
        let routes = || {
            let arguments = [family, "route", "show", "table", "36501"];
            lab.router.output("ip", &arguments).unwrap()
        };
        let before = routes();
        assert!(before.contains("default"), "{before}");
        for _ in 0..3 {
            let arguments = [family, "route", "flush", "table", "36501"];
            lab.router.output("ip", &arguments).unwrap();
            until("the route is back", || routes() == before);
        }
    }
    all_go(&lab, Site::Near);
    assert_eq!(captures.stop().unwrap().leaks(), []);
    steer.detach().unwrap();
}

#[test]
fn a_family_whose_route_cannot_be_put_back_is_down_until_it_can() {
    let lab = office();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    all_go(&lab, Site::Near);
    let state = || {
        let families = &steer.status().unwrap()["breakouts"][0]["families"];
        [families[0].clone(), families[1].clone()]
    };
    let are = |states: [&str; 2]| state().map(|family| family["state"].clone()) == states;
    // Somebody else's route takes the place of ours; steer does not touch it.
    let (gateway, _) = lab.breakouts()[0].gateway;
    lab.router
        .ip(&format!(
            "route replace default via {gateway} dev brk0 table 36501 proto static\n"
        ))
        .unwrap();
    until("IPv4 of the breakout is down", || are(["down", "up"]));
    let reason = state()[0]["reason"].to_string();
    assert!(reason.contains("cannot be put back"), "{reason}");
    families_go(&lab, [Site::Far, Site::Near]);
    lab.router
        .ip("route del default table 36501 proto static\n")
        .unwrap();
    until("the breakout is up", || are(["up", "up"]));
    all_go(&lab, Site::Near);
    steer.detach().unwrap();
}
