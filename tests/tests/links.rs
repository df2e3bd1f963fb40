//! Breakouts on every kind of interface that this kernel has, in both modes. The kinds that it lacks
//! are steered in `cargo xtask kernels`, whose guests have them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::time::{Duration, Instant};

use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    links::{Kind, lay},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer, command, write_config},
    traffic::probe_all,
    wire::Path,
};
use steer_user::datapath::attached_at;

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

fn office(mode: Mode) -> Lab {
    let lan = match mode {
        Mode::Mark => LanKind::Private,
        Mode::Redirect => LanKind::Public,
    };
    Lab::start(LabOptions {
        lan,
        firewall: false,
        ..LabOptions::default()
    })
    .unwrap()
}

/// A configuration that names no gateway: a point-to-point device needs none, and others' is the one
/// that the kernel has a default route to.
fn without_gateways(steer: &str) -> String {
    let lines = steer.lines().filter(|line| !line.starts_with("gateway"));
    lines.collect::<Vec<_>>().join("\n")
}

fn wait_for(steer: &Steer<'_>, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}:\n{}", steer.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn state(steer: &Steer<'_>) -> String {
    let status = steer.status().unwrap();
    status["breakouts"][0]["state"].as_str().unwrap().to_owned()
}

fn assert_steered(lab: &Lab) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(6, 6)).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

/// Steers over such a breakout, loses it, and has it back.
fn steers_over(kind: Kind, mode: Mode) {
    let lab = office(mode);
    let Some(_laid) = lay(&lab, kind).unwrap() else {
        println!("skipped: this kernel has no {kind} devices; see `cargo xtask kernels`");
        return;
    };
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings).unwrap();
    if kind.is_bare() {
        let text = without_gateways(&std::fs::read_to_string(steer.config()).unwrap());
        steer.stop().unwrap();
        std::fs::write(steer.config(), text).unwrap();
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
    }
    wait_for(&steer, "the breakout is not up", || state(&steer) == "up");
    assert_steered(&lab);

    let breakout = lab.breakouts()[0];
    lab.link_down(&breakout).unwrap();
    wait_for(&steer, "the breakout is not down", || {
        state(&steer) == "down"
    });
    for answer in probe_all(&lab.client, &flows(2, 2)).unwrap() {
        assert_eq!(answer.site, Site::Far, "{}", answer.flow);
    }
    lab.link_up(&breakout).unwrap();
    wait_for(&steer, "the breakout is not up again", || {
        state(&steer) == "up"
    });
    wait_for(&steer, "new flows do not come back", || {
        let answers = probe_all(&lab.client, &flows(2, 2));
        answers.is_ok_and(|all| all.iter().all(|answer| answer.site == Site::Near))
    });
    assert_steered(&lab);
    steer.detach().unwrap();
}

/// Why redirect mode does not start with such a breakout.
fn refused(kind: Kind, more: &str) -> String {
    let lab = office(Mode::Redirect);
    let _laid = lay(&lab, kind).unwrap().unwrap();
    let settings = Settings {
        mode: Mode::Redirect,
        more: more.to_owned(),
        ..Settings::default()
    };
    let config = write_config(&lab, &settings).unwrap();
    let output = command(&lab, &config, &["run"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let programs = lab.router.run(|| Ok(attached_at("lan0"))).unwrap();
    assert_eq!(programs.unwrap_or_default(), [""; 0]);
    assert!(!lab.pin_directory().exists());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn redirect_mode_refuses_a_bare_ip_breakout_and_says_what_to_do() {
    let said = refused(Kind::Tun, "");
    assert!(
        said.contains("(brk0) carries IP packets without Ethernet headers"),
        "{said}"
    );
    assert!(said.contains("Use mode = \"mark\""), "{said}");
}

#[test]
fn native_xdp_is_refused_where_it_would_lose_what_it_sends() {
    let said = refused(Kind::Bridge, "[redirect]\nxdp = \"native\"\n");
    assert!(said.contains("(brk0) is a bridge"), "{said}");
    assert!(said.contains("\"generic\""), "{said}");
}

macro_rules! kinds {
    ($($name:ident: $kind:ident, $mode:ident;)*) => {$(
        #[test]
        fn $name() {
            steers_over(Kind::$kind, Mode::$mode);
        }
    )*};
}

kinds! {
    a_vlan_is_a_breakout_in_mark_mode: Vlan, Mark;
    a_bridge_is_a_breakout_in_mark_mode: Bridge, Mark;
    a_bond_is_a_breakout_in_mark_mode: Bond, Mark;
    a_vxlan_tunnel_is_a_breakout_in_mark_mode: Vxlan, Mark;
    a_bare_ip_device_is_a_breakout_in_mark_mode: Tun, Mark;
    a_gre_tunnel_is_a_breakout_in_mark_mode: Gre, Mark;
    a_port_in_a_vrf_is_a_breakout_in_mark_mode: Vrf, Mark;
    a_vlan_is_a_breakout_in_redirect_mode: Vlan, Redirect;
    a_bridge_is_a_breakout_in_redirect_mode: Bridge, Redirect;
}
