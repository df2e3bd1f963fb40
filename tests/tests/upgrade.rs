//! A new version of steer whose maps have another layout takes over from a running one, and the old
//! one again from it, while packets run.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    fs,
    path::{Path as FilePath, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use steer_tests::{
    lab::Lab,
    residue::Snapshot,
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer, binary, cargo_build},
    traffic::{Fleet, probe_each},
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often long-lived flows speak.
const PERIOD: Duration = Duration::from_millis(20);

/// This build's steer with other maps, beside it.
fn next_binary() -> PathBuf {
    let beside = binary().unwrap().with_file_name("steer-next");
    if let Some(mut build) = cargo_build() {
        build.args([
            "-p",
            "steer-tests",
            "--bin",
            "steer-next",
            "--features",
            "next-abi",
        ]);
        assert!(build.status().unwrap().success(), "steer-next builds");
    }
    beside
}

/// The versions that have something pinned.
fn versions(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.pin_directory()).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// Says that it is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn an_upgrade_and_a_downgrade_lose_and_move_nothing(mode: Mode) {
    let (old, next) = (binary().unwrap(), next_binary());
    let lab = Lab::start(mode.office()).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    // These begin on the backbone, and stay there.
    let far = Fleet::open(&lab.client, &flows(5, 5), PERIOD).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings).unwrap();
    let near = Fleet::open(&lab.client, &flows(10, 10), PERIOD).unwrap();
    near.wait_for_answers(PATIENCE).unwrap();
    let first = versions(&lab);
    assert_eq!(first.len(), 1, "{first:?}");

    let over = AtomicBool::new(false);
    let opened = thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let mut opened = 0;
            while !over.load(Ordering::Relaxed) {
                let batch: Vec<_> = (0..4).flat_map(|_| flows(2, 2)).collect();
                for answer in probe_each(&lab.client, &batch) {
                    let answer = answer.unwrap();
                    assert_eq!(answer.site, Site::Near, "{}", answer.flow);
                    opened += 1;
                }
            }
            opened
        });
        let until_here = Over(&over);
        for round in 0..2 {
            let mut change = |binary: &FilePath, what: &str| {
                // As a package manager's restart does, and as a crash.
                if round % 2 == 0 {
                    steer.stop().unwrap();
                } else {
                    steer.kill().unwrap();
                }
                steer.use_binary(binary);
                steer.run().unwrap();
                steer.wait_until_steering(PATIENCE).unwrap();
                near.wait_for_answers(PATIENCE).unwrap();
                far.wait_for_answers(PATIENCE).unwrap();
                let now = versions(&lab);
                assert_eq!(now.len(), 1, "{what}: the old pins are gone: {now:?}");
                now
            };
            assert_ne!(change(&next, "upgrade"), first);
            assert_eq!(change(old, "downgrade"), first);
        }
        drop(until_here);
        newcomers.join().unwrap()
    });
    let mut messages = 0;
    for (fleet, site) in [(far, Site::Far), (near, Site::Near)] {
        for record in fleet.stop() {
            assert!(!record.was_moved(), "{record:?}");
            assert_eq!(record.sites, [site], "{record:?}");
            // One may be on its way.
            assert!(record.sent - record.answered <= 10, "lost: {record:?}");
            messages += record.answered;
        }
    }
    println!("{opened} new flows, and {messages} messages of 30 old ones");
    steer.detach().unwrap();
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

#[test]
fn an_upgrade_and_a_downgrade_in_mark_mode_lose_and_move_nothing() {
    an_upgrade_and_a_downgrade_lose_and_move_nothing(Mode::Mark);
}

#[test]
fn an_upgrade_and_a_downgrade_in_redirect_mode_lose_and_move_nothing() {
    an_upgrade_and_a_downgrade_lose_and_move_nothing(Mode::Redirect);
}

/// An upgrade that is cut anywhere: old or new programs steer, and the next start goes on from there.
fn an_upgrade_may_be_cut_anywhere(mode: Mode) {
    let (old, next) = (binary().unwrap(), next_binary());
    let lab = Lab::start(mode.office()).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    let settings = Settings {
        mode,
        watch_period: Duration::from_millis(1),
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings).unwrap();
    let near = Fleet::open(&lab.client, &flows(5, 5), PERIOD).unwrap();
    near.wait_for_answers(PATIENCE).unwrap();
    steer.stop().unwrap();
    let mut point = 1;
    loop {
        // Up and down in turn; what was begun in the one direction is often ended in the other.
        steer.use_binary(if point % 2 == 1 { &next } else { old });
        steer.cut_at(Some(("start", point)));
        let cut = steer.run_until_cut().unwrap();
        for answer in probe_each(&lab.client, &flows(2, 2)) {
            let answer = answer.unwrap();
            assert_eq!(answer.site, Site::Near, "point {point}: {}", answer.flow);
        }
        if !cut {
            break;
        }
        point += 1;
    }
    println!("cut at {} points", point - 1);
    assert!(point > 20);
    near.wait_for_answers(PATIENCE).unwrap();
    for record in near.stop() {
        assert!(!record.was_moved(), "{record:?}");
    }
    assert_eq!(versions(&lab).len(), 1);
    // Another version takes all of it away, too.
    steer.stop().unwrap();
    steer.use_binary(if point % 2 == 0 { &next } else { old });
    steer.cut_at(None);
    steer.detach().unwrap();
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

#[test]
fn an_upgrade_in_mark_mode_may_be_cut_anywhere() {
    an_upgrade_may_be_cut_anywhere(Mode::Mark);
}

#[test]
fn an_upgrade_in_redirect_mode_may_be_cut_anywhere() {
    an_upgrade_may_be_cut_anywhere(Mode::Redirect);
}
