//! Classes that prefer breakouts, leave them sooner than others, or are probed for by themselves: the
//! wire says which way their flows go, and that none of those that run is moved.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer, write_config},
    traffic::{Fleet, Flow, probe_all},
    wan::Conditions,
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
const PERIOD: Duration = Duration::from_millis(100);
/// A loaded machine delays packets: what a test is not about must not degrade its breakouts.
const TOLERANT: &str = "hold = \"1s\"\nloss_percent = 100\nlatency = \"1h\"\njitter = \"1h\"\nwhen_degraded = \"keep\"\n";

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

fn settings(mode: Mode, preferences: &str) -> Settings {
    Settings {
        mode,
        health: TOLERANT.into(),
        more: preferences.into(),
        ..Settings::default()
    }
}

/// TCP connections to hosts of these prefixes, port 443.
fn to(prefixes: [&str; 2]) -> Vec<Flow> {
    let hosts = prefixes.iter().flat_map(|prefix| {
        let prefix: IpNet = prefix.parse().unwrap();
        prefix.hosts().skip(10).take(3)
    });
    hosts.map(|host| Flow::tcp(host, 443)).collect()
}

/// Set 31, service area SharePoint.
fn files() -> Vec<Flow> {
    to(["13.107.136.0/22", "2620:1ec:8f8::/46"])
}

/// Set 12, service area Skype.
fn meetings() -> Vec<Flow> {
    to(["52.112.0.0/14", "2603:1063::/38"])
}

/// Set 1, Exchange.
fn mail() -> Vec<Flow> {
    flows(4, 4)
}

fn assert_take(lab: &Lab, flows: &[Flow], path: Path) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, flows).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), path, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

fn open(lab: &Lab, flows: &[Flow]) -> Fleet {
    let fleet = Fleet::open(&lab.client, flows, PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    fleet
}

/// Asserts that the flows live, and that the near front door alone ever answered them.
fn assert_unmoved(fleet: Fleet) {
    fleet.wait_for_answers(PATIENCE).unwrap();
    for record in fleet.stop() {
        assert!(!record.was_moved() && record.broken.is_none(), "{record:?}");
        assert_eq!(record.sites, [Site::Near], "{record:?}");
    }
}

/// Waits until new flows of the first preference take these breakouts, in both families.
fn wait_until_taken(steer: &Steer<'_>, breakouts: &[&str]) -> Value {
    let taken = json!(breakouts);
    let status = steer.wait_for(&format!("{breakouts:?} are taken"), |status| {
        let preference = &status["preferences"][0];
        preference["ipv4"] == taken && preference["ipv6"] == taken
    });
    status.unwrap()
}

fn a_class_takes_the_breakout_that_it_prefers(mode: Mode) {
    let lab = office(mode, 2);
    let second = lab.breakouts()[1];
    let steer = Steer::start(&lab, &settings(mode, "")).unwrap();
    assert_take(&lab, &files(), Path::BREAKOUT);
    let before = [open(&lab, &files()), open(&lab, &mail())];

    let preference = "[[preference]]\nname = \"files\"\nservice_areas = [\"SharePoint\"]\n\
                      breakouts = [\"isp-2\", \"isp-1\"]\n";
    write_config(&lab, &settings(mode, preference)).unwrap();
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    let said = wait_until_taken(&steer, &["isp-2"]);
    assert!(
        said["preferences"][0]["classes"].as_u64() > Some(0),
        "{said:#}"
    );
    assert_take(&lab, &files(), Path::Breakout(2));
    assert_take(&lab, &mail(), Path::BREAKOUT);

    // The next one in its own order, and back.
    lab.black_hole(&[second]).unwrap();
    wait_until_taken(&steer, &["isp-1"]);
    assert_take(&lab, &files(), Path::BREAKOUT);
    lab.black_hole(&[]).unwrap();
    wait_until_taken(&steer, &["isp-2"]);
    assert_take(&lab, &files(), Path::Breakout(2));
    let after = open(&lab, &files());
    write_config(&lab, &settings(mode, "")).unwrap();
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    assert_take(&lab, &files(), Path::BREAKOUT);
    for fleet in before.into_iter().chain([after]) {
        assert_unmoved(fleet);
    }
    steer.detach().unwrap();
}

#[test]
fn a_class_takes_the_breakout_that_it_prefers_in_mark_mode() {
    a_class_takes_the_breakout_that_it_prefers(Mode::Mark);
}

#[test]
fn a_class_takes_the_breakout_that_it_prefers_in_redirect_mode() {
    a_class_takes_the_breakout_that_it_prefers(Mode::Redirect);
}

fn a_class_leaves_a_busy_breakout_first(mode: Mode) {
    let lab = office(mode, 1);
    let preference = "[[preference]]\nname = \"files\"\nservice_areas = [\"SharePoint\"]\n\
                      when_degraded = \"backbone\"\nlatency = \"80ms\"\n";
    let steer = Steer::start(&lab, &settings(mode, preference)).unwrap();
    wait_until_taken(&steer, &["isp-1"]);
    assert_take(&lab, &files(), Path::BREAKOUT);
    let before = open(&lab, &files());

    lab.internet
        .set(Conditions::delay(Duration::from_millis(60)));
    let said = wait_until_taken(&steer, &[]);
    let found = &said["breakouts"][0];
    assert_eq!(found["state"], "up", "{said:#}");
    let own = &found["preferences"][0];
    assert_eq!(own["state"], "degraded", "{said:#}");
    assert!(
        own["reason"]
            .as_str()
            .unwrap()
            .contains("longer than 80 ms")
    );
    assert_take(&lab, &files(), Path::Backbone);
    assert_take(&lab, &mail(), Path::BREAKOUT);

    lab.internet.set(lab.options.internet);
    wait_until_taken(&steer, &["isp-1"]);
    assert_take(&lab, &files(), Path::BREAKOUT);
    assert_unmoved(before);
    steer.detach().unwrap();
}

#[test]
fn a_class_leaves_a_busy_breakout_first_in_mark_mode() {
    a_class_leaves_a_busy_breakout_first(Mode::Mark);
}

#[test]
fn a_class_leaves_a_busy_breakout_first_in_redirect_mode() {
    a_class_leaves_a_busy_breakout_first(Mode::Redirect);
}

#[test]
fn a_service_area_that_is_dead_behind_a_breakout_leaves_it_alone() {
    let lab = office(Mode::Mark, 1);
    let preference = "[[preference]]\nname = \"meetings\"\nservice_areas = [\"Skype\"]\n\
                      targets = [{ tls = \"52.112.0.1\" }, { tls = \"52.112.0.2\" }, \
                      { tls = \"2603:1063::101\" }, { tls = \"2603:1063::102\" }]\n";
    let steer = Steer::start(&lab, &settings(Mode::Mark, preference)).unwrap();
    wait_until_taken(&steer, &["isp-1"]);
    assert_take(&lab, &meetings(), Path::BREAKOUT);

    lab.isp
        .nft(
            "table inet hole { chain forward { type filter hook forward priority 0; \
             ip daddr 52.112.0.0/14 drop; ip6 daddr 2603:1063::/38 drop; }; }",
        )
        .unwrap();
    let said = wait_until_taken(&steer, &[]);
    let found = &said["breakouts"][0];
    assert_eq!(found["state"], "up", "{said:#}");
    assert_eq!(found["preferences"][0]["state"], "down", "{said:#}");
    assert_take(&lab, &meetings(), Path::Backbone);
    assert_take(&lab, &mail(), Path::BREAKOUT);
    let explained = steer.command(&["explain", "52.112.0.9"]).unwrap();
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(
        explained.contains("IPv4 as meetings prefers by isp-1 on brk0: DOWN: 0 of 2 targets")
            && explained.contains("IPv4 as meetings prefers: new flows take the backbone"),
        "{explained}"
    );

    lab.isp.nft("delete table inet hole").unwrap();
    wait_until_taken(&steer, &["isp-1"]);
    assert_take(&lab, &meetings(), Path::BREAKOUT);
    steer.detach().unwrap();
}
