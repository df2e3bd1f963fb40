//! Breakouts that fail: black holes, loss, slow lines, dead targets, portals, flapping links. What
//! clients get is judged by who answers them and by the wire.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use steer_tests::{
    lab::{Breakout, Lab, LabOptions},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::{Fleet, Flow, Protocol, probe_all},
    wan::Conditions,
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
const PERIOD: Duration = Duration::from_millis(100);
/// A hold that a test can wait for.
const SHORT_HOLD: &str = "hold = \"1s\"\n";
/// A hold that no test outlives.
const LONG_HOLD: &str = "hold = \"5m\"\n";

fn office(breakouts: u8) -> Lab {
    Lab::start(LabOptions {
        breakouts,
        ..LabOptions::default()
    })
    .unwrap()
}

/// A loaded machine delays packets: what a test is not about must not degrade its breakouts.
fn rules(health: &str) -> String {
    let tolerant = [
        "loss_percent = 100\n",
        "latency = \"1h\"\n",
        "jitter = \"1h\"\n",
    ];
    let key = |line: &str| line.split(' ').next().map(str::to_owned);
    let missing = tolerant
        .iter()
        .filter(|line| !health.lines().any(|own| key(own) == key(line)));
    missing.copied().chain([health]).collect()
}

fn start<'lab>(lab: &'lab Lab, health: &str) -> Steer<'lab> {
    let settings = Settings {
        health: rules(health),
        ..Settings::default()
    };
    Steer::start(lab, &settings).unwrap()
}

/// The provider drops everything of one family on this link: `ip` or `ip6`.
fn black_hole_of(lab: &Lab, breakout: &Breakout, family: &str) {
    let link = breakout.isp_interface;
    let family = if family == "ip" { "ipv4" } else { "ipv6" };
    lab.isp
        .nft(&format!(
            "table inet hole {{ chain forward {{ type filter hook forward priority 0; \
             meta nfproto {family} iifname {link} drop; meta nfproto {family} oifname {link} drop; \
             }}; }}"
        ))
        .unwrap();
}

/// Waits until the breakout of this index is in this state in both families, and returns what is said
/// of it.
fn wait_for(steer: &Steer<'_>, index: usize, state: &str) -> Value {
    let what = format!("breakout {index} is {state}");
    wait_for_families(steer, &what, index, [state, state])
}

/// The same for IPv4 and IPv6.
fn wait_for_families(steer: &Steer<'_>, what: &str, index: usize, states: [&str; 2]) -> Value {
    let are = |status: &Value| {
        let families = &status["breakouts"][index]["families"];
        (0..2).all(|family| families[family]["state"] == states[family])
    };
    steer.wait_for(what, are).unwrap()["breakouts"][index].clone()
}

/// Asserts that new flows to Microsoft 365 take this way, and nothing leaves a breakout untranslated.
fn assert_new_flows_take(lab: &Lab, path: Path) {
    assert_families_take(lab, path, path);
}

/// The same of new flows of IPv4 and of IPv6.
fn assert_families_take(lab: &Lab, v4: Path, v6: Path) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(5, 5)).unwrap();
    let wires = captures.stop().unwrap();
    let mut seen = [0, 0];
    for answer in answers {
        let family = usize::from(answer.flow.destination.is_ipv6());
        seen[family] += 1;
        assert_eq!(wires.path_of(&answer), [v4, v6][family], "{}", answer.flow);
    }
    assert!(seen.iter().all(|flows| *flows > 0), "{seen:?}");
    assert_eq!(wires.leaks(), []);
}

fn assert_unmoved(fleet: Fleet) {
    for record in fleet.stop() {
        assert!(!record.was_moved(), "{record:?}");
        assert_eq!(record.sites, [Site::Near], "{record:?}");
    }
}

#[test]
fn a_black_hole_sends_new_flows_the_next_way_and_its_return_moves_none_back() {
    let lab = office(2);
    let [first, _] = lab.breakouts() else {
        panic!("two breakouts")
    };
    let steer = start(&lab, SHORT_HOLD);
    assert_new_flows_take(&lab, Path::BREAKOUT);
    let before = Fleet::open(&lab.client, &flows(4, 4), PERIOD).unwrap();
    before.wait_for_answers(PATIENCE).unwrap();

    lab.black_hole(&[*first]).unwrap();
    let said = wait_for(&steer, 0, "down");
    let reason = said["reason"].as_str().unwrap();
    assert!(
        reason.contains("of 4 targets answer probes, 2 must"),
        "{said:#}"
    );
    assert_new_flows_take(&lab, Path::Breakout(2));
    let during = Fleet::open(&lab.client, &flows(4, 4), PERIOD).unwrap();
    during.wait_for_answers(PATIENCE).unwrap();

    lab.black_hole(&[]).unwrap();
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    // Those of the dead path lived through it, and those that began elsewhere stay there.
    for fleet in [before, during] {
        fleet.wait_for_answers(PATIENCE).unwrap();
        assert_unmoved(fleet);
    }
    assert_eq!(steer.status().unwrap()["breakouts"][0]["flows_reset"], 0);
    steer.detach().unwrap();
}

#[test]
fn with_reset_exactly_the_flows_of_the_dead_path_end_and_are_counted() {
    let lab = office(1);
    let steer = start(&lab, "on_path_loss = \"reset\"\n");
    let steered = Fleet::open(&lab.client, &flows(6, 4), PERIOD).unwrap();
    let others = [
        Flow::tcp("93.184.216.34".parse().unwrap(), 443),
        Flow::udp("2606:4700::1111".parse().unwrap(), 443),
    ];
    let others = Fleet::open(&lab.client, &others, PERIOD).unwrap();
    for fleet in [&steered, &others] {
        fleet.wait_for_answers(PATIENCE).unwrap();
    }

    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    let said = wait_for(&steer, 0, "down");
    assert_eq!(said["flows_reset"], 10, "{said:#}");
    let log = steer.whole_log().unwrap();
    let resets = log.matches("flows were reset").count();
    assert_eq!(resets, 2, "one for each family: {log}");
    // TCP hears of it from the far front door, UDP is answered by it.
    let deadline = Instant::now() + PATIENCE;
    let has_ended = |record: &steer_tests::traffic::Record| match record.flow.protocol {
        Protocol::Tcp => record.broken.is_some(),
        Protocol::Udp => record.sites == [Site::Near, Site::Far],
    };
    while !steered.records().iter().all(has_ended) {
        assert!(Instant::now() < deadline, "{:?}", steered.records());
        thread::sleep(Duration::from_millis(20));
    }
    others.wait_for_answers(PATIENCE).unwrap();
    for record in others.stop() {
        assert!(!record.was_moved(), "{record:?}");
    }
    assert_new_flows_take(&lab, Path::Backbone);
    steer.detach().unwrap();
}

#[test]
fn one_dead_target_does_not_take_the_path_down() {
    let lab = office(1);
    let steer = start(&lab, "");
    let probes = steer.status().unwrap()["breakouts"][0]["probes"].clone();
    let target = probes[1]["target"].as_str().unwrap().to_owned();
    let address = target.strip_suffix(":443").unwrap();
    lab.isp
        .nft(&format!(
            "table inet hole {{ chain forward {{ type filter hook forward priority 0; \
             ip daddr {address} drop; }}; }}"
        ))
        .unwrap();
    let count = |status: &Value, index: usize, key: &str| {
        status["breakouts"][0]["probes"][index][key]
            .as_u64()
            .unwrap_or(0)
    };
    let status = steer
        .wait_for("the target is lost", |status| count(status, 1, "lost") >= 5)
        .unwrap();
    assert_eq!(status["breakouts"][0]["state"], "up", "{status:#}");
    assert!(status["breakouts"][0]["probes"][1]["trouble"].is_string());
    assert!(count(&status, 0, "answered") > count(&status, 1, "answered"));
    // The one of the start, before any target had answered.
    let log = steer.whole_log().unwrap();
    assert_eq!(log.matches("isp-1: down").count(), 1, "{log}");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn a_slow_line_is_degraded_and_left_to_the_flows_it_has() {
    let lab = office(1);
    let slow = format!("{SHORT_HOLD}latency = \"80ms\"\nwhen_degraded = \"backbone\"\n");
    let steer = start(&lab, &slow);
    let fleet = Fleet::open(&lab.client, &flows(3, 3), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();

    lab.internet
        .set(Conditions::delay(Duration::from_millis(60)));
    let said = wait_for(&steer, 0, "degraded");
    assert!(
        said["reason"]
            .as_str()
            .unwrap()
            .contains("longer than 80 ms"),
        "{said:#}"
    );
    assert_new_flows_take(&lab, Path::Backbone);
    fleet.wait_for_answers(PATIENCE).unwrap();

    lab.internet.set(lab.options.internet);
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    assert_unmoved(fleet);
    steer.detach().unwrap();
}

#[test]
fn a_lossy_line_is_degraded_and_kept_where_there_is_no_better_one() {
    let lab = office(1);
    let lossy = format!("{LONG_HOLD}loss_percent = 5\n");
    let steer = start(&lab, &lossy);
    lab.internet.set(Conditions {
        loss: 0.1,
        ..lab.options.internet
    });
    let said = wait_for(&steer, 0, "degraded");
    assert!(
        said["reason"].as_str().unwrap().contains("% of the probes"),
        "{said:#}"
    );
    lab.internet.set(lab.options.internet);
    assert_new_flows_take(&lab, Path::BREAKOUT);
    assert_eq!(steer.status().unwrap()["breakouts"][0]["state"], "degraded");
    steer.detach().unwrap();
}

#[test]
fn who_answers_with_a_foreign_certificate_is_no_front_door() {
    let lab = office(1);
    let mut steer = start(&lab, "");
    steer.kill().unwrap();
    // The lab's authority is not trusted any more: its front doors are as good as a portal.
    let config = fs::read_to_string(steer.config()).unwrap();
    let trust = format!("trust = \"{}\"\n", lab.authority().display());
    assert!(config.contains(&trust));
    fs::write(steer.config(), config.replace(&trust, "")).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    let said = wait_for(&steer, 0, "down");
    let probes = said["probes"].as_array().unwrap();
    let troubles: Vec<&str> = probes
        .iter()
        .filter_map(|it| it["trouble"].as_str())
        .collect();
    assert!(
        troubles
            .iter()
            .any(|why| why.contains("by nobody this box trusts")),
        "{said:#}"
    );
    assert_new_flows_take(&lab, Path::Backbone);

    // Who does not care says so.
    let any = config.replace(&trust, "identity = \"any\"\n");
    fs::write(steer.config(), any).unwrap();
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn a_link_that_flaps_is_taken_back_once_and_then_held_back() {
    let lab = office(1);
    let link = &lab.breakouts()[0];
    let steer = start(&lab, LONG_HOLD);
    // A cable that was pulled once is no reason to wait.
    lab.cable(link, false).unwrap();
    wait_for(&steer, 0, "down");
    lab.cable(link, true).unwrap();
    wait_for(&steer, 0, "up");
    for _ in 0..4 {
        lab.cable(link, false).unwrap();
        let no_carrier = |status: &Value| {
            let reason = status["breakouts"][0]["reason"].as_str();
            reason.is_some_and(|reason| reason.contains("no carrier"))
        };
        steer.wait_for("the cable is out", no_carrier).unwrap();
        lab.cable(link, true).unwrap();
        let status = steer
            .wait_for("it answers again", |status| {
                status["breakouts"][0]["notes"][0].is_string()
            })
            .unwrap();
        let said = &status["breakouts"][0];
        assert_eq!(said["state"], "down", "{said:#}");
        let note = said["notes"][0].as_str().unwrap();
        assert!(note.contains("answers again"), "{said:#}");
    }
    // It has answered often enough; the hold alone is between it and new flows.
    let held = |status: &Value| {
        let note = status["breakouts"][0]["notes"][0].as_str();
        note.is_some_and(|note| note.contains("after 0 more good rounds"))
    };
    let status = steer.wait_for("only the hold is left", held).unwrap();
    assert_eq!(status["breakouts"][0]["state"], "down", "{status:#}");
    assert_new_flows_take(&lab, Path::Backbone);
    let ups = steer
        .whole_log()
        .unwrap()
        .matches("breakout isp-1: up")
        .count();
    assert_eq!(ups, 2, "{}", steer.whole_log().unwrap());
    steer.detach().unwrap();
}

#[test]
fn a_restarted_controller_takes_the_path_as_it_was() {
    let lab = office(1);
    let mut steer = start(&lab, "");
    let fleet = Fleet::open(&lab.client, &flows(3, 3), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    steer.kill().unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_new_flows_take(&lab, Path::BREAKOUT);
    let log = steer.whole_log().unwrap();
    // The one of the first start, before any target had answered.
    assert_eq!(log.matches("isp-1: down").count(), 1, "{log}");
    assert_unmoved(fleet);

    // A path that died while nobody looked is found out.
    steer.kill().unwrap();
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    wait_for(&steer, 0, "down");
    assert_new_flows_take(&lab, Path::Backbone);
    steer.detach().unwrap();
}

#[test]
fn a_breakout_that_is_held_keeps_new_flows_from_the_backbone() {
    let lab = office(1);
    let steer = start(&lab, "");
    let config = fs::read_to_string(steer.config()).unwrap();
    let held = config.replace("priority = 1\n", "priority = 1\nwhen_down = \"hold\"\n");
    assert_ne!(config, held);
    fs::write(steer.config(), held).unwrap();
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    wait_for(&steer, 0, "down");
    let captures = lab.capture().unwrap();
    let flow = Flow::udp("52.96.9.9".parse().unwrap(), 443);
    flow.probe(&lab.client).unwrap_err();
    let wires = captures.stop().unwrap();
    let to_it = |packet: &&steer_tests::wire::Packet| packet.destination.ip() == flow.destination;
    assert_eq!(wires.backbone.outbound().find(to_it), None);
    assert!(wires.breakout().outbound().any(|packet| to_it(&packet)));
    steer.detach().unwrap();
}

#[test]
fn a_family_that_dies_alone_takes_the_next_way_alone() {
    for (family, states, takes) in [
        ("ip6", ["up", "down"], (Path::BREAKOUT, Path::Breakout(2))),
        ("ip", ["down", "up"], (Path::Breakout(2), Path::BREAKOUT)),
    ] {
        let lab = office(2);
        let first = &lab.breakouts()[0];
        let steer = start(&lab, SHORT_HOLD);
        assert_new_flows_take(&lab, Path::BREAKOUT);
        let before = Fleet::open(&lab.client, &flows(4, 4), PERIOD).unwrap();
        before.wait_for_answers(PATIENCE).unwrap();

        black_hole_of(&lab, first, family);
        let said = wait_for_families(&steer, "one family is dead", 0, states);
        assert_eq!(said["state"], "degraded", "{said:#}");
        let name = if family == "ip" { "IPv4" } else { "IPv6" };
        let why = said["reason"].as_str().unwrap();
        assert!(why.starts_with(&format!("{name} is down: ")), "{said:#}");
        assert_families_take(&lab, takes.0, takes.1);
        let shown = steer.command(&["status"]).unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains(&format!("  {name}    DOWN: ")), "{shown}");

        lab.black_hole(&[]).unwrap();
        wait_for(&steer, 0, "up");
        assert_new_flows_take(&lab, Path::BREAKOUT);
        before.wait_for_answers(PATIENCE).unwrap();
        assert_unmoved(before);
        steer.detach().unwrap();
    }
}

/// What `steer explain` says to people.
fn explained(steer: &Steer<'_>, destination: &str) -> String {
    let output = steer.command(&["explain", destination]).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_link_without_an_ipv6_address_carries_ipv4_alone_and_is_up() {
    let lab = office(2);
    let link = lab.breakouts()[0];
    let (interface, address) = (link.interface, link.address.1);
    // Only what the box says: the second link is up without a probe.
    let settings = Settings::default();
    let steer = Steer::start(&lab, &settings).unwrap();
    assert_new_flows_take(&lab, Path::BREAKOUT);
    lab.router
        .ip(&format!("addr del {address}/64 dev {interface}\n"))
        .unwrap();
    let said = wait_for_families(&steer, "IPv6 is gone", 0, ["up", "down"]);
    assert_eq!(said["state"], "up", "{said:#}");
    let why = said["families"][1]["reason"].as_str().unwrap();
    assert!(why.contains("brk0 has no IPv6 address"), "{said:#}");
    assert_families_take(&lab, Path::BREAKOUT, Path::Breakout(2));
    let v4 = explained(&steer, "52.96.1.1");
    assert!(
        v4.contains("  IPv4 by isp-1 on brk0: up; takes new flows\n"),
        "{v4}"
    );
    assert!(!v4.contains("IPv6"), "{v4}");
    let v6 = explained(&steer, "2603:1006::201");
    for line in [
        "now: steering (mark mode)\n",
        "  IPv6 by isp-1 on brk0: DOWN: brk0 has no IPv6 address",
        "  IPv6 by isp-2 on brk1: up; takes new flows\n",
    ] {
        assert!(v6.contains(line), "{v6}");
    }
    assert!(!v6.contains("IPv4"), "{v6}");

    let second = lab.breakouts()[1];
    lab.link_down(&second).unwrap();
    let both = |status: &Value| status["breakouts"][1]["state"] == "down";
    steer
        .wait_for("the second link is down, too", both)
        .unwrap();
    assert_families_take(&lab, Path::BREAKOUT, Path::Backbone);
    let v6 = explained(&steer, "2603:1006::201");
    assert!(v6.contains("  IPv6: new flows take the backbone\n"), "{v6}");
    lab.link_up(&second).unwrap();
    lab.router
        .ip(&format!("addr add {address}/64 dev {interface} nodad\n"))
        .unwrap();
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn redirect_mode_takes_a_dead_family_off_the_breakout() {
    let lab = Lab::start(Mode::Redirect.office()).unwrap();
    let settings = Settings {
        mode: Mode::Redirect,
        health: rules(SHORT_HOLD),
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    black_hole_of(&lab, &lab.breakouts()[0], "ip6");
    wait_for_families(&steer, "IPv6 is dead", 0, ["up", "down"]);
    assert_families_take(&lab, Path::BREAKOUT, Path::Backbone);
    lab.black_hole(&[]).unwrap();
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn redirect_mode_leaves_a_black_hole_and_returns_to_the_path() {
    let lab = Lab::start(Mode::Redirect.office()).unwrap();
    let settings = Settings {
        mode: Mode::Redirect,
        health: rules(SHORT_HOLD),
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    assert_new_flows_take(&lab, Path::BREAKOUT);
    lab.black_hole(&[lab.breakouts()[0]]).unwrap();
    wait_for(&steer, 0, "down");
    assert_new_flows_take(&lab, Path::Backbone);
    lab.black_hole(&[]).unwrap();
    wait_for(&steer, 0, "up");
    assert_new_flows_take(&lab, Path::BREAKOUT);
    steer.detach().unwrap();
}

#[test]
fn media_relays_are_probed_with_stun_and_without_more_rights_than_the_unit_has() {
    let lab = office(1);
    let settings = Settings {
        health: rules(
            "targets = [{ stun = \"52.112.0.9\" }, { stun = \"2603:1063::9\" }, \
             { tls = \"13.107.6.152\", name = \"outlook.office365.com\" }]\nquorum = 3\n",
        ),
        under: [
            "setpriv",
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all,+bpf,+perfmon,+net_admin",
        ]
        .map(str::to_owned)
        .into(),
        ..Settings::default()
    };
    let captures = lab.capture().unwrap();
    let steer = Steer::start(&lab, &settings).unwrap();
    let status = steer
        .wait_for("every target has answered", |status| {
            let probes = status["breakouts"][0]["probes"].as_array();
            probes.is_some_and(|all| all.iter().all(|it| it["answered"].as_u64() >= Some(3)))
        })
        .unwrap();
    let probes = &status["breakouts"][0]["probes"];
    assert_eq!(probes[0]["kind"], "stun", "{probes:#}");
    // Eight milliseconds of line, there and back.
    assert!(probes[0]["rtt_ms"].as_f64().unwrap() >= 8.0, "{probes:#}");
    let wires = captures.stop().unwrap();
    let media = |port, address: &str| {
        let address = address.parse().unwrap();
        wires
            .breakout()
            .outbound()
            .filter(|it| it.destination == std::net::SocketAddr::new(address, port))
            .count()
    };
    assert!(media(3478, "52.112.0.9") >= 3 && media(3478, "2603:1063::9") >= 3);
    assert_eq!(wires.leaks(), []);
    let lost = wires
        .backbone
        .outbound()
        .find(|it| it.destination.port() == 3478);
    assert_eq!(lost, None, "a probe left by another way");
    steer.detach().unwrap();
}
