//! Controllers that are ended in the middle of whatever they do: at every single step of a start, a
//! restart, a reload and a detach, and at random moments. The wire tells whether a packet noticed.
//!
//! `STEER_KILLS=500` says how often a controller is killed at a random moment (30 unless told), and
//! `STEER_SEED` repeats a run.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    env, fs,
    net::IpAddr,
    path::Path as FilePath,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    thread,
    time::Duration,
};

use steer_tests::{
    lab::Lab,
    residue::Snapshot,
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer, write_config},
    traffic::{Fleet, Flow, probe_all, probe_each},
    wire::Wires,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often long-lived flows speak.
const PERIOD: Duration = Duration::from_millis(50);

/// Conntrack is in use already, so that mark mode steers at once; redirect mode watches a moment.
fn office(mode: Mode) -> Lab {
    Lab::start(mode.office()).unwrap()
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        watch_period: Duration::from_millis(1),
        ..Settings::default()
    }
}

/// Two plans that differ in what the long-lived and the new flows do not use.
fn changed_settings(mode: Mode, change: u64) -> Settings {
    Settings {
        more: if change.is_multiple_of(2) {
            String::new()
        } else {
            "[select]\nexclude = [\"150.171.0.0/16\", \"2603:1016::/36\"]\n".into()
        },
        ..settings(mode)
    }
}

/// The files that outlive a controller hold nothing or all of what they should.
fn assert_files_are_whole(lab: &Lab) {
    for name in ["classes.json", "undo.json"] {
        let path = lab.directory().join("state").join(name);
        if let Ok(text) = fs::read(&path) {
            let whole = serde_json::from_slice::<serde_json::Value>(&text);
            assert!(whole.is_ok(), "{name}: {}", String::from_utf8_lossy(&text));
        }
    }
    let lock = fs::read_to_string(lab.directory().join("run/steer.lock")).unwrap_or_default();
    assert!(
        lock.is_empty() || lock.trim().parse::<u32>().is_ok(),
        "steer.lock: {lock:?}"
    );
}

fn names_in(directory: &FilePath) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// The box is as it was, and no file tells of steer but the lock's, which may be open elsewhere.
fn assert_nothing_is_left(lab: &Lab, before: &Snapshot, what: &str) {
    let after = Snapshot::take(lab).unwrap();
    assert_eq!(before.difference(&after), "", "{what}");
    let state = names_in(&lab.directory().join("state"));
    assert_eq!(state, [""; 0], "{what}: in the state directory");
    let mut run = names_in(&lab.directory().join("run"));
    run.retain(|name| name != "steer.lock");
    assert_eq!(run, [""; 0], "{what}: in the run directory");
}

/// New flows to Microsoft 365, no two alike, leave by the breakout.
fn assert_new_flows_are_steered(lab: &Lab, what: &str) {
    for answer in probe_all(&lab.client, &new_flows(2, 2)).unwrap() {
        assert_eq!(answer.site, Site::Near, "{what}: {}", answer.flow);
    }
}

/// Flows whose destinations nobody had before.
fn new_flows(tcp: u16, udp: u16) -> Vec<Flow> {
    static ROUND: AtomicU16 = AtomicU16::new(1);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let other = |address| match address {
        IpAddr::V4(v4) => {
            let [_, _, _, last] = v4.octets();
            let [high, low] = round.to_be_bytes();
            IpAddr::from([52, 96 + (high & 3), low, last])
        }
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[5] = round;
            IpAddr::from(segments)
        }
    };
    let all = flows(tcp, udp).into_iter();
    all.map(|flow| Flow {
        destination: other(flow.destination),
        ..flow
    })
    .collect()
}

/// Nobody's packets to Microsoft 365 left by the backbone, and none left the breakout with an
/// invalid source.
fn assert_all_were_steered(wires: &Wires) {
    let astray: Vec<_> = wires
        .backbone
        .outbound()
        .filter(|packet| match packet.destination.ip() {
            IpAddr::V4(v4) => v4.octets()[0] == 52,
            IpAddr::V6(v6) => v6.segments()[0] == 0x2603,
        })
        .take(5)
        .collect();
    assert!(astray.is_empty(), "unsteered: {astray:?}");
    assert_eq!(wires.leaks(), []);
    assert!(wires.breakout().outbound().next().is_some());
}

fn assert_stayed(fleet: Fleet, site: Site) {
    fleet.wait_for_answers(PATIENCE).unwrap();
    for record in fleet.stop() {
        assert!(!record.was_moved(), "{record:?}");
        assert_eq!(record.sites, [site], "{record:?}");
    }
}

/// A start that is cut anywhere leaves nothing that a detach does not take away, and breaks no
/// running flow; a second start after it goes well.
fn a_start_may_be_cut_anywhere(mode: Mode) {
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let fleet = Fleet::open(&lab.client, &flows(4, 4), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    // Long enough for the flows to be heard of, where nothing else remembers them.
    let settings = Settings {
        watch_period: Duration::from_secs(2),
        ..settings(mode)
    };
    let mut steer = Steer::prepare(&lab, &settings).unwrap();
    let mut point = 1;
    loop {
        steer.cut_at(Some(("start", point)));
        let cut = steer.run_until_cut().unwrap();
        assert_files_are_whole(&lab);
        steer.cut_at(None);
        if point % 8 == 0 && cut {
            steer.run().unwrap();
            steer.wait_until_steering(PATIENCE).unwrap();
        }
        let detached = steer.command(&["detach", "--drain", "0"]).unwrap();
        assert!(
            detached.status.success(),
            "after a cut at point {point}: {detached:?}"
        );
        steer.wait_until_ended().unwrap();
        assert_nothing_is_left(&lab, &before, &format!("a start cut at point {point}"));
        if !cut {
            break;
        }
        point += 1;
    }
    println!("a start has {} points", point - 1);
    assert!(point > 20);
    assert_stayed(fleet, Site::Far);
}

#[test]
fn a_start_in_mark_mode_may_be_cut_anywhere() {
    a_start_may_be_cut_anywhere(Mode::Mark);
}

#[test]
fn a_start_in_redirect_mode_may_be_cut_anywhere() {
    a_start_may_be_cut_anywhere(Mode::Redirect);
}

/// While programs steer: a start, a reload and a detach that are cut anywhere.
fn steering_goes_on_when_a_controller_is_cut_anywhere(mode: Mode) {
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let mut steer = Steer::start(&lab, &settings(mode)).unwrap();
    let captures = lab.capture().unwrap();
    let fleet = Fleet::open(&lab.client, &flows(4, 4), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    steer.kill().unwrap();
    let mut starts = 1;
    loop {
        steer.cut_at(Some(("start", starts)));
        let cut = steer.run_until_cut().unwrap();
        assert_files_are_whole(&lab);
        assert_new_flows_are_steered(&lab, &format!("a restart cut at point {starts}"));
        if !cut {
            break;
        }
        starts += 1;
    }
    steer.kill().unwrap();
    let mut reloads = 1;
    loop {
        steer.cut_at(Some(("reload", reloads)));
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
        write_config(&lab, &changed_settings(mode, reloads.into())).unwrap();
        // Cut, the command says that the controller broke off.
        let reloaded = steer.command(&["reload"]).unwrap().status.success();
        assert_files_are_whole(&lab);
        assert_new_flows_are_steered(&lab, &format!("a reload cut at point {reloads}"));
        if reloaded {
            break;
        }
        let ended = steer.wait_until_ended().unwrap().unwrap();
        assert!(!ended.success(), "{}", steer.log());
        reloads += 1;
    }
    steer.kill().unwrap();
    println!(
        "a restart has {} points, a reload {}",
        starts - 1,
        reloads - 1
    );
    assert!(starts > 10 && reloads > 5);
    assert_stayed(fleet, Site::Near);
    assert_all_were_steered(&captures.stop().unwrap());
    steer.detach().unwrap();
    assert_nothing_is_left(&lab, &before, "a detach at the end");
}

#[test]
fn steering_in_mark_mode_goes_on_when_a_controller_is_cut_anywhere() {
    steering_goes_on_when_a_controller_is_cut_anywhere(Mode::Mark);
}

#[test]
fn steering_in_redirect_mode_goes_on_when_a_controller_is_cut_anywhere() {
    steering_goes_on_when_a_controller_is_cut_anywhere(Mode::Redirect);
}

/// A detach that is cut anywhere is finished by the next one, with and without a controller.
fn a_detach_may_be_cut_anywhere(mode: Mode) {
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let mut steer = Steer::prepare(&lab, &settings(mode)).unwrap();
    let mut point = 1;
    for by_controller in [true, false] {
        loop {
            steer.cut_at(by_controller.then_some(("detach", point)));
            steer.run().unwrap();
            steer.wait_until_steering(PATIENCE).unwrap();
            if !by_controller {
                steer.kill().unwrap();
                steer.cut_at(Some(("detach", point)));
            }
            let cut = !steer
                .command(&["detach", "--drain", "0"])
                .unwrap()
                .status
                .success();
            steer.wait_until_ended().unwrap();
            assert_files_are_whole(&lab);
            steer.cut_at(None);
            if cut {
                // New flows get through by one way or the other, and nothing stays.
                probe_all(&lab.client, &new_flows(2, 2)).unwrap();
                let again = steer.command(&["detach", "--drain", "0"]).unwrap();
                assert!(again.status.success(), "point {point}: {again:?}");
            }
            assert_nothing_is_left(&lab, &before, &format!("a detach cut at point {point}"));
            if !cut {
                break;
            }
            point += 3;
        }
        println!("a detach has about {point} points");
        assert!(point > 10);
        point = 2;
    }
}

#[test]
fn a_detach_from_mark_mode_may_be_cut_anywhere() {
    a_detach_may_be_cut_anywhere(Mode::Mark);
}

#[test]
fn a_detach_from_redirect_mode_may_be_cut_anywhere() {
    a_detach_may_be_cut_anywhere(Mode::Redirect);
}

/// Says that it is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A number of the environment, or another.
fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Under load, and while configurations change.
fn controllers_may_be_killed_at_any_moment(mode: Mode) {
    let kills = number("STEER_KILLS", 30);
    let seed = number("STEER_SEED", fastrand::u64(..));
    println!("STEER_KILLS={kills} STEER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = office(mode);
    let before = Snapshot::take(&lab).unwrap();
    let mut steer = Steer::start(&lab, &settings(mode)).unwrap();
    let captures = lab.capture().unwrap();
    let fleet = Fleet::open(&lab.client, &flows(10, 10), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();

    let over = AtomicBool::new(false);
    let opened = thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let mut opened = 0;
            while !over.load(Ordering::Relaxed) {
                for answer in probe_each(&lab.client, &new_flows(4, 4)) {
                    let answer = answer.unwrap();
                    assert_eq!(answer.site, Site::Near, "{}", answer.flow);
                    opened += 1;
                }
            }
            opened
        });
        let until_here = Over(&over);
        for kill in 0..kills {
            write_config(&lab, &changed_settings(mode, kill)).unwrap();
            // Most moments are in a start; some in what comes later: looks, sweeps, reloads.
            if random.u8(..4) == 0 {
                steer.wait_until_steering(PATIENCE).unwrap();
                steer.hang_up().unwrap();
            }
            thread::sleep(Duration::from_micros(random.u64(..400_000)));
            steer.kill().unwrap();
            assert_files_are_whole(&lab);
            assert!(!newcomers.is_finished(), "seed {seed}, kill {kill}");
            steer.run().unwrap();
        }
        steer.wait_until_steering(PATIENCE).unwrap();
        drop(until_here);
        newcomers.join().unwrap()
    });
    assert_stayed(fleet, Site::Near);
    let wires = captures.stop().unwrap();
    assert_all_were_steered(&wires);
    println!(
        "{kills} kills: {opened} new flows and 20 old ones, {} packets by the breakout, 0 unsteered",
        wires.breakout().outbound().count()
    );
    steer.detach().unwrap();
    assert_nothing_is_left(&lab, &before, "killed controllers");
}

#[test]
fn controllers_in_mark_mode_may_be_killed_at_any_moment() {
    controllers_may_be_killed_at_any_moment(Mode::Mark);
}

#[test]
fn controllers_in_redirect_mode_may_be_killed_at_any_moment() {
    controllers_may_be_killed_at_any_moment(Mode::Redirect);
}
