//! The recipes of `docs/recipes.md`, each applied to the lab's router as it is written there, and
//! judged by what is on the wires.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod book;
mod daemon;
mod marks;
mod names;
mod networkd;
mod overlay;
mod resolver;
mod routing;
mod vrrp;

use std::time::{Duration, Instant};

use steer_tests::{
    lab::{Lab, LabOptions},
    scenario::flows,
    server::Site,
    steer::Steer,
    traffic::{Flow, probe_all},
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

fn office() -> Lab {
    let lab = Lab::start(LabOptions {
        firewall: false,
        ..LabOptions::default()
    });
    lab.unwrap()
}

/// What is not Microsoft 365.
fn other() -> Flow {
    Flow::tcp("93.184.216.34".parse().unwrap(), 443)
}

/// New flows to Microsoft 365 leave by the breakout, translated, and others by the backbone.
fn assert_steered(lab: &Lab) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(6, 6)).unwrap();
    let others = probe_all(&lab.client, &[other()]).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
    }
    assert_eq!(others[0].site, Site::Far);
    assert_eq!(wires.leaks(), []);
}

/// Waits until something holds.
fn wait_for(what: &str, said: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < PATIENCE,
            "{what} does not come:\n{}",
            said()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the first breakout is up.
fn wait_until_up(steer: &Steer<'_>) {
    wait_for(
        "the breakout",
        || steer.log(),
        || {
            steer
                .status()
                .is_ok_and(|status| status["breakouts"][0]["state"] == "up")
        },
    );
}
