//! A breakout that goes and comes back faster than anybody looks: steering comes back, too. How fast
//! is printed, not judged.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::time::{Duration, Instant};

use steer_tests::{
    lab::{BREAKOUTS, Lab, LanKind},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

fn office(mode: Mode) -> Lab {
    Lab::start(mode.office()).unwrap()
}

/// Waits until new flows of both families leave by the breakout again.
fn wait_until_steered(lab: &Lab, steer: &Steer<'_>, what: &str) {
    let started = Instant::now();
    for flow in [flows(2, 0)[0], flows(2, 0)[1]] {
        while flow.probe(&lab.client).map(|answer| answer.site).ok() != Some(Site::Near) {
            assert!(started.elapsed() < PATIENCE, "{what}: {}", steer.log());
        }
    }
    println!("{what}: steered again after {:?}", started.elapsed());
}

/// Deletes the breakout's link and makes it anew: the same name and addresses, another index.
fn renew_breakout(lab: &Lab) {
    let breakout = BREAKOUTS[0];
    let (v4, v6) = breakout.address;
    let (gateway4, gateway6) = breakout.gateway;
    let far = breakout.isp_interface;
    lab.renew_breakout(&breakout).unwrap();
    let (lan4, lan6) = lab.lan();
    let lan = match lab.options.lan {
        LanKind::Private => String::new(),
        LanKind::Public => {
            format!("route replace {lan4} via {v4}\nroute replace {lan6} via {v6}\n")
        }
    };
    let isp = format!(
        "link set {far} up\naddr add {gateway4}/30 dev {far}\n\
         addr add {gateway6}/64 dev {far} nodad\n{lan}"
    );
    lab.isp.ip(&isp).unwrap();
    lab.link_up(&breakout).unwrap();
}

fn steering_comes_back_with_the_breakout(mode: Mode) {
    let lab = office(mode);
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    for _ in 0..3 {
        renew_breakout(&lab);
        wait_until_steered(&lab, &steer, "made anew");
        let (v4, v6) = BREAKOUTS[0].address;
        let name = BREAKOUTS[0].interface;
        lab.router
            .ip(&format!(
                "link set {name} down\nlink set {name} up\naddr replace {v4}/30 dev {name}\n\
                 addr replace {v6}/64 dev {name} nodad\n"
            ))
            .unwrap();
        wait_until_steered(&lab, &steer, "down and up");
    }
    steer.detach().unwrap();
}

#[test]
fn steering_in_mark_mode_comes_back_with_the_breakout() {
    steering_comes_back_with_the_breakout(Mode::Mark);
}

#[test]
fn steering_in_redirect_mode_comes_back_with_the_breakout() {
    steering_comes_back_with_the_breakout(Mode::Redirect);
}
