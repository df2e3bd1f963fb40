//! A box that does not stand still: controllers that are killed and come back, interfaces that are
//! made anew, rules that others delete.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    thread,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions},
    residue::Snapshot,
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::{Fleet, probe_all},
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

fn office(mode: Mode) -> Lab {
    Lab::start(LabOptions {
        firewall: false,
        ..mode.office()
    })
    .unwrap()
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        ..Settings::default()
    }
}

/// Opens flows to Microsoft 365, and asserts that all of them leave by the breakout.
fn assert_steered(lab: &Lab) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(10, 10)).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

fn a_restart_moves_no_flow(mode: Mode) {
    let lab = office(mode);
    let period = Duration::from_millis(50);
    let before = Fleet::open(&lab.client, &flows(10, 10), period).unwrap();
    before.wait_for_answers(PATIENCE).unwrap();
    let mut steer = Steer::start(&lab, &settings(mode)).unwrap();
    let during = Fleet::open(&lab.client, &flows(10, 10), period).unwrap();
    during.wait_for_answers(PATIENCE).unwrap();
    for round in 0..3 {
        // Killed, and ended by a signal: the programs steer on either way.
        if round % 2 == 0 {
            steer.kill().unwrap();
        } else {
            steer.stop().unwrap();
        }
        assert_steered(&lab);
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
        assert_steered(&lab);
    }
    for (fleet, site) in [(before, Site::Far), (during, Site::Near)] {
        fleet.wait_for_answers(PATIENCE).unwrap();
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.broken.is_none(), "{record:?}");
            assert!(
                record.sites.iter().all(|answered| *answered == site),
                "{record:?}"
            );
        }
    }
    steer.detach().unwrap();
}

#[test]
fn a_restart_in_mark_mode_moves_no_flow() {
    a_restart_moves_no_flow(Mode::Mark);
}

#[test]
fn a_restart_in_redirect_mode_moves_no_flow() {
    a_restart_moves_no_flow(Mode::Redirect);
}

fn a_lan_that_is_made_anew_is_steered_again(mode: Mode) {
    let lab = office(mode);
    let steer = Steer::start(&lab, &settings(mode)).unwrap();
    for _ in 0..5 {
        let old = lab.router.interface_index("lan0").unwrap();
        lab.renew_lan().unwrap();
        assert_ne!(lab.router.interface_index("lan0").unwrap(), old);
        let started = Instant::now();
        let flow = flows(1, 0)[0];
        while flow.probe(&lab.client).map(|answer| answer.site).ok() != Some(Site::Near) {
            assert!(started.elapsed() < PATIENCE, "{}", steer.log());
        }
        println!("steered again after {:?}", started.elapsed());
        assert_steered(&lab);
    }
    steer.detach().unwrap();
}

/// A LAN that is gone must not keep steer from seeing what happens to the breakouts.
#[test]
fn breakouts_are_followed_while_a_lan_is_gone() {
    let lab = office(Mode::Mark);
    let steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    let wait = |what: &dyn Fn(&serde_json::Value) -> bool| {
        let started = Instant::now();
        loop {
            // A breakout that is down makes an exit code of 1 of it.
            let output = steer.command(&["status", "--json"]).unwrap();
            let status = serde_json::from_slice(&output.stdout).unwrap();
            if what(&status) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{status}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let is = |state: &'static str| {
        move |status: &serde_json::Value| status["breakouts"][0]["state"] == state
    };
    wait(&is("up"));
    lab.router.ip("link del lan0\n").unwrap();
    wait(&|status| {
        status["problems"]
            .to_string()
            .contains("lan0 does not exist")
    });
    lab.link_down(&lab.breakouts()[0]).unwrap();
    wait(&is("down"));
    lab.link_up(&lab.breakouts()[0]).unwrap();
    wait(&is("up"));
    steer.detach().unwrap();
}

#[test]
fn a_lan_that_is_made_anew_is_steered_again_in_mark_mode() {
    a_lan_that_is_made_anew_is_steered_again(Mode::Mark);
}

#[test]
fn a_lan_that_is_made_anew_is_steered_again_in_redirect_mode() {
    a_lan_that_is_made_anew_is_steered_again(Mode::Redirect);
}

#[test]
fn a_rule_that_somebody_deletes_comes_back() {
    let lab = office(Mode::Mark);
    let steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    let rules = || lab.router.output("ip", &["rule"]).unwrap();
    let before = rules();
    lab.router
        .ip("rule del pref 601\nrule del pref 600\n")
        .unwrap();
    let started = Instant::now();
    while rules() != before {
        assert!(started.elapsed() < PATIENCE, "{}\n{}", rules(), steer.log());
    }
    println!("back after {:?}", started.elapsed());
    assert_steered(&lab);
}

fn detaching_ends_when_the_steered_flows_do(mode: Mode) {
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let steer = Steer::start(&lab, &settings(mode)).unwrap();
    let fleet = Fleet::open(&lab.client, &flows(5, 5), Duration::from_millis(50)).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    let said = thread::scope(|scope| {
        let detach = scope.spawn(|| steer.command(&["detach", "--drain", "120"]).unwrap());
        let started = Instant::now();
        while steer.status().unwrap()["state"] != "draining" {
            assert!(started.elapsed() < PATIENCE, "{}", steer.log());
        }
        for answer in probe_all(&lab.client, &flows(5, 5)).unwrap() {
            assert_eq!(answer.site, Site::Far, "a new flow: {}", answer.flow);
        }
        fleet.wait_for_answers(PATIENCE).unwrap();
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.broken.is_none(), "{record:?}");
            assert!(
                record.sites.iter().all(|site| *site == Site::Near),
                "{record:?}"
            );
        }
        detach.join().unwrap()
    });
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && !text.contains("cut"), "{text}");
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

#[test]
fn detaching_from_mark_mode_ends_when_the_steered_flows_do() {
    detaching_ends_when_the_steered_flows_do(Mode::Mark);
}

#[test]
fn detaching_from_redirect_mode_ends_when_the_steered_flows_do() {
    detaching_ends_when_the_steered_flows_do(Mode::Redirect);
}

#[test]
fn generic_xdp_steers_as_native_does() {
    let lab = office(Mode::Redirect);
    let settings = Settings {
        more: "[redirect]\nxdp = \"generic\"\n".into(),
        ..settings(Mode::Redirect)
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    assert_eq!(steer.status().unwrap()["lan"][0]["hook"], "generic XDP");
    assert_steered(&lab);
    steer.detach().unwrap();
}

#[test]
fn a_flushed_ruleset_comes_back() {
    let lab = office(Mode::Mark);
    let steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    let table = || {
        lab.router
            .output("nft", &["list", "table", "inet", "steer"])
    };
    for _ in 0..5 {
        lab.router.nft("flush ruleset").unwrap();
        let started = Instant::now();
        while table().is_err() {
            assert!(started.elapsed() < PATIENCE, "{}", steer.log());
        }
        println!("back after {:?}", started.elapsed());
    }
    assert_steered(&lab);
}

#[test]
fn another_mode_is_refused_while_the_programs_of_the_first_steer() {
    let lab = Lab::start(Mode::Redirect.office()).unwrap();
    let mut steer = Steer::start(&lab, &settings(Mode::Mark)).unwrap();
    steer.stop().unwrap();
    let config = std::fs::read_to_string(steer.config()).unwrap();
    std::fs::write(steer.config(), config.replace("\"mark\"", "\"redirect\"")).unwrap();
    let refused = steer.command(&["run"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("steer detach"), "{said}");
    assert_steered(&lab);
    let detached = steer.command(&["detach", "--drain", "0"]).unwrap();
    assert!(detached.status.success());
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_eq!(steer.status().unwrap()["mode"], "redirect");
    assert_steered(&lab);
    steer.detach().unwrap();
}
