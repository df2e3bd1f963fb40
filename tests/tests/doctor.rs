//! `steer doctor` and `steer init` as an operator runs them, in an office whose traffic says whether
//! they are right.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{collections::BTreeMap, fs, process::Output};

use serde_json::Value;
use steer_tests::{
    lab::{Lab, LabOptions},
    residue::Snapshot,
    server::Site,
    steer::{Settings, Steer, binary, command, write_config},
    traffic::Flow,
};

/// The worst state of each check, and everything that was found.
fn states(output: &Output) -> (BTreeMap<String, String>, Value) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "{}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut states = BTreeMap::new();
    for finding in report["findings"].as_array().unwrap() {
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        let worst: &mut String = states.entry(text("check")).or_default();
        let rank = |state: &str| {
            ["", "ok", "note", "wrong"]
                .iter()
                .position(|it| *it == state)
        };
        if rank(&text("state")) > rank(worst) {
            *worst = text("state");
        }
    }
    // The resolvers of this machine are not reached from inside the lab.
    states.remove("dns");
    (states, report)
}

fn are(states: &BTreeMap<String, String>, wanted: &str) -> Vec<String> {
    let these = states.iter().filter(|(_, state)| *state == wanted);
    these.map(|(check, _)| check.clone()).collect()
}

fn exchange() -> Flow {
    Flow::tcp("52.96.1.1".parse().unwrap(), 443)
}

#[test]
fn a_steering_office_is_well_and_what_others_remove_is_put_back() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    let mut steer = Steer::start(&lab, &Settings::default()).unwrap();
    let doctor = |steer: &Steer<'_>, fix: &[&str]| {
        let output = steer
            .command(&[&["doctor", "--json"], fix].concat())
            .unwrap();
        let (states, report) = states(&output);
        (output.status.code().unwrap(), states, report)
    };
    let (_, well, report) = doctor(&steer, &[]);
    assert_eq!(are(&well, "wrong"), [""; 0], "{report:#}");

    steer.kill().unwrap();
    let rules = "rule del pref 601\nroute del default table 36501";
    lab.router.ip(rules).unwrap();
    lab.router.nft("delete chain inet steer nat").unwrap();
    assert_eq!(
        exchange().probe(&lab.client).unwrap().site,
        Site::Far,
        "without its rule the flow takes the backbone"
    );
    let (code, ill, report) = doctor(&steer, &[]);
    assert_eq!(code, 1);
    assert_eq!(are(&ill, "wrong"), ["controller", "objects"], "{report:#}");

    let (code, mended, report) = doctor(&steer, &["--fix"]);
    assert_eq!(code, 1, "nobody runs, still");
    assert_eq!(are(&mended, "wrong"), ["controller"], "{report:#}");
    assert_eq!(report["fixed"].as_array().unwrap().len(), 3, "{report:#}");
    assert_eq!(exchange().probe(&lab.client).unwrap().site, Site::Near);

    steer.detach().unwrap();
    assert_eq!(Snapshot::take(&lab).unwrap(), before);
}

#[test]
fn a_forward_policy_is_judged_as_real_flows_are() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    let judged = || {
        let (states, _) = states(&steer.command(&["doctor", "--json"]).unwrap());
        states["forward-policy"].clone()
    };
    assert_eq!(exchange().probe(&lab.client).unwrap().site, Site::Near);
    assert_eq!(judged(), "ok");
    lab.router
        .nft(
            "table inet owner { chain forward { type filter hook forward priority 10; policy accept; \
             iifname lan0 oifname brk0 ct state new drop; }; }",
        )
        .unwrap();
    assert!(exchange().probe(&lab.client).is_err());
    assert_eq!(judged(), "wrong");
}

#[test]
fn looking_leaves_the_office_as_it_was() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let config = write_config(&lab, &Settings::default()).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    let output = command(&lab, &config, &["doctor", "--json", "--fix"]).unwrap();
    let (states, report) = states(&output);
    assert_eq!(are(&states, "wrong"), [""; 0], "{report:#}");
    assert_eq!(Snapshot::take(&lab).unwrap(), before);
}

#[test]
fn init_names_the_offices_interfaces_and_check_accepts_it() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    // As a DHCP client with a metric of its own would.
    lab.router
        .ip("route add default via 192.0.2.1 dev brk0 metric 4000 proto dhcp")
        .unwrap();
    let file = lab.directory().join("init.toml");
    let init = || {
        let mut init = lab.router.command(binary().unwrap());
        init.arg("init").arg("--output").arg(&file);
        init.output().unwrap()
    };
    let output = init();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = fs::read_to_string(&file).unwrap();
    let check = command(&lab, &file, &["check", "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(report["ok"], true, "{text}");
    assert_eq!(report["lans"], serde_json::json!(["lan0"]));
    assert_eq!(report["backbone"], "bb0");
    assert_eq!(report["breakouts"][0]["interface"], "brk0");
    assert_eq!(report["breakouts"].as_array().unwrap().len(), 1);

    // What is there is never overwritten.
    fs::write(&file, "mine").unwrap();
    assert_eq!(init().status.code(), Some(2));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn without_privileges_it_says_so_and_still_ends_well() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let config = write_config(&lab, &Settings::default()).unwrap();
    let mut doctor = lab.router.command("setpriv");
    doctor
        .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
        .arg(binary().unwrap())
        .args(["doctor", "--json", "--config"])
        .arg(&config);
    let output = doctor.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (states, report) = states(&output);
    assert_eq!(states["privileges"], "wrong", "{report:#}");
    assert_eq!(states["lan"], "ok", "{report:#}");
    let found = report["findings"][0]["found"].as_str().unwrap();
    assert_eq!(found, "missing here: CAP_NET_ADMIN");
}
