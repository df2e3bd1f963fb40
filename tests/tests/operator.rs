//! What an operator does with a router: commands at the wrong time, a second controller, a look at
//! odd packets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    net::Ipv4Addr,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use serde_json::Value;
use steer_tests::{
    lab::{Lab, LabOptions},
    residue::Snapshot,
    server::Site,
    steer::{self, Mode, Settings, Steer, write_config},
    traffic::{Flow, inject},
};

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(30);

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn without_a_controller_status_says_off_and_nothing_can_be_reloaded() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let config = write_config(&lab, &Settings::default()).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    let command = |arguments: &[&str]| steer::command(&lab, &config, arguments).unwrap();

    let output = command(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(json(&output)["state"], "off");
    assert_eq!(json(&output)["pid"], Value::Null);
    let output = command(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).contains("steer run"), "{output:?}");

    let output = command(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output).contains("no controller answers"),
        "{output:?}"
    );

    for _ in 0..2 {
        let output = command(&["detach"]);
        assert!(output.status.success(), "{output:?}");
        assert!(
            text(&output).contains("nothing of steer was here"),
            "{output:?}"
        );
    }
    let after = Snapshot::take(&lab).unwrap();
    assert_eq!(before.difference(&after), "");
}

#[test]
fn a_second_detach_finds_nothing() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let mut steer = Steer::start(&lab, &Settings::default()).unwrap();
    let detach = |steer: &Steer<'_>| steer.command(&["detach", "--drain", "0"]).unwrap();
    // Once by the controller, once for a controller that was killed.
    for is_killed in [false, true] {
        if is_killed {
            steer.run().unwrap();
            steer.wait_until_steering(PATIENCE).unwrap();
            steer.kill().unwrap();
        }
        let output = detach(&steer);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output).contains("steer is out"), "{output:?}");
        let output = detach(&steer);
        assert!(output.status.success(), "{output:?}");
        assert!(
            text(&output).contains("nothing of steer was here"),
            "{output:?}"
        );
        // The controller that was asked ends by itself, and says why.
        let ended = steer.wait_until_ended().unwrap();
        let code = ended.map(|status| status.code());
        assert_eq!(code, (!is_killed).then_some(Some(3)));
    }
}

#[test]
fn a_second_controller_names_the_first_and_leaves_it_alone() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    let before = steer.bpf_objects().unwrap();
    let output = steer.command(&["run"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let pid = steer.pid().unwrap();
    assert!(
        text(&output).contains(&format!("(process {pid})")),
        "{output:?}"
    );
    let status = steer.status().unwrap();
    assert_eq!(
        (&status["state"], &status["pid"]),
        (&"steering".into(), &pid.into())
    );
    assert_eq!(steer.bpf_objects().unwrap(), before);
}

fn a_killed_controller_is_missed_and_replaced(mode: Mode) {
    let lab = office(mode);
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings).unwrap();
    let probe = || Flow::tcp("52.96.1.1".parse().unwrap(), 443).probe(&lab.client);
    steer.kill().unwrap();
    assert_eq!(probe().unwrap().site, Site::Near);
    let output = steer.command(&["status", "--json"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let status = json(&output);
    assert_eq!(status["state"], "unattended", "{status}");
    assert_eq!(status["pid"], Value::Null, "{status}");
    assert_eq!(status["plan"]["generation"], 1, "{status}");
    let counted = |status: &Value| -> u64 {
        let counters = status["counters"].as_array().unwrap();
        counters
            .iter()
            .map(|it| it["packets"].as_u64().unwrap())
            .sum()
    };
    assert!(counted(&status) > 0, "{status}");
    let output = steer.command(&["status"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).contains("without a controller"), "{output:?}");

    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    let output = steer.command(&["status", "--json"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let after = json(&output);
    assert_eq!(after["plan"]["generation"], 2, "{after}");
    assert!(
        counted(&after) >= counted(&status),
        "{after}\nbefore: {status}"
    );
    assert_eq!(probe().unwrap().site, Site::Near);
}

#[test]
fn a_killed_controller_of_mark_mode_is_missed_and_replaced() {
    a_killed_controller_is_missed_and_replaced(Mode::Mark);
}

#[test]
fn a_killed_controller_of_redirect_mode_is_missed_and_replaced() {
    a_killed_controller_is_missed_and_replaced(Mode::Redirect);
}

fn office(mode: Mode) -> Lab {
    Lab::start(mode.office()).unwrap()
}

/// A TCP segment to Microsoft 365 whose header says that it is longer than the packet.
fn malformed(lab: &Lab) -> Vec<u8> {
    let from = lab.lan().0.hosts().nth(9).unwrap();
    let to = Ipv4Addr::new(52, 96, 1, 1);
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.octets(), to.octets(), 64)
        .tcp(40_000, 443, 1, 1024)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    let data_offset = 20 + 12;
    packet[data_offset] = 0xf0;
    packet
}

fn malformed_packets_are_logged_on_demand(mode: Mode) {
    const LINE: &str = "a malformed packet to Microsoft 365 passes";
    for is_wanted in [true, false] {
        let lab = office(mode);
        let settings = Settings {
            mode,
            arguments: if is_wanted {
                vec!["--log-packets"]
            } else {
                vec![]
            },
            ..Settings::default()
        };
        let steer = Steer::start(&lab, &settings).unwrap();
        inject(&lab.client, &[malformed(&lab)]).unwrap();
        let wait_for = |what: &str, is_there: &dyn Fn() -> bool| {
            let deadline = Instant::now() + PATIENCE;
            while !is_there() {
                assert!(
                    Instant::now() < deadline,
                    "{what} is missing:\n{}",
                    steer.log()
                );
                thread::sleep(Duration::from_millis(10));
            }
        };
        let reasons = || steer.status().unwrap()["reasons"].clone();
        wait_for("the counter", &|| reasons()["malformed"] == 1);
        // The controller looks at the kernel programs' log before it looks at the links.
        let before = steer.whole_log().unwrap().len();
        lab.cable(&lab.breakouts()[0], false).unwrap();
        wait_for("the link", &|| {
            steer.whole_log().unwrap()[before..].contains("breakout isp-1: down")
        });
        let log = steer.whole_log().unwrap();
        assert_eq!(log.contains(LINE), is_wanted, "{log}");
        if is_wanted {
            let line = log.lines().find(|line| line.contains(LINE)).unwrap();
            assert!(line.contains("DEBUG"), "{line}");
        }
    }
}

#[test]
fn malformed_packets_of_mark_mode_are_logged_on_demand() {
    malformed_packets_are_logged_on_demand(Mode::Mark);
}

#[test]
fn malformed_packets_of_redirect_mode_are_logged_on_demand() {
    malformed_packets_are_logged_on_demand(Mode::Redirect);
}
