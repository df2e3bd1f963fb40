//! What a power cut or a bad disk leaves of the versions.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use serde_json::Value;
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    traffic::{Flow, probe_all},
};

use super::{Alone, PATIENCE, edited, office, serve, text};

/// As by a power cut, at every step there is: the next start has one whole version, the one before or
/// the new one, and the journal has it once.
#[test]
fn an_update_that_is_cut_at_any_step_leaves_one_whole_version() {
    let alone = Alone::start("cut", "update = \"automatic\"\nremoval_delay = \"0s\"");
    let (first, second) = (
        edited(&["150.171.64.0/22"], &[]),
        edited(&["150.171.72.0/22"], &[]),
    );
    serve(&alone.service, "2026070100", first.clone());
    alone.fine(&["update"]);
    let saved = alone.folder.path().join("saved");
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .args([from, to])
                .status()
                .unwrap()
                .success()
        );
    };
    copy(&alone.state(), &saved);
    serve(&alone.service, "2026080100", second.clone());
    let mut cuts = 0;
    loop {
        copy(&saved, &alone.state());
        let output = alone.steer(&["update"], Some(cuts + 1));
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", text(&output));
        cuts += 1;
        let shown = alone.json(&["list"]);
        let prefixes = |set: &Value| -> BTreeSet<String> {
            set.as_array()
                .unwrap()
                .iter()
                .map(|it| it.as_str().unwrap().to_owned())
                .collect()
        };
        let got = prefixes(&shown["sets"][0]["prefixes"]);
        let wanted = if alone.version() == "2026080100" {
            &second
        } else {
            &first
        };
        assert_eq!(got, prefixes(&wanted[0]["ips"]), "cut {cuts}");
        alone.fine(&["update"]);
        let shown = alone.json(&["show", "--journal", "100"]);
        assert_eq!(shown["report"]["version"], "2026080100", "cut {cuts}");
        let journal = shown["journal"].as_array().unwrap();
        let numbers: Vec<u64> = journal
            .iter()
            .map(|it| it["number"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, [1, 2], "cut {cuts}: {journal:?}");
    }
    assert!(cuts >= 10, "{cuts}");
    println!("cut at {cuts} steps");
}

#[test]
fn what_is_damaged_on_disk_is_skipped_with_a_word() {
    let alone = Alone::start("damage", "update = \"automatic\"\nremoval_delay = \"0s\"");
    for (version, come) in [
        ("2026070100", "150.171.64.0/22"),
        ("2026080100", "150.171.72.0/22"),
    ] {
        serve(&alone.service, version, edited(&[come], &[]));
        alone.fine(&["update"]);
    }
    let folder = alone.state().join("feed");
    let newest = fs::read_dir(folder.join("versions"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .find(|it| it.to_string_lossy().contains("20260801"))
        .unwrap();
    let good = fs::read(&newest).unwrap();
    for length in (0..good.len()).step_by(1024) {
        fs::write(&newest, &good[..length]).unwrap();
        let output = alone.steer(&["list", "--json"], None);
        assert!(
            output.status.success() && text(&output).contains("version 2026070100 from"),
            "{length}: {}",
            text(&output)
        );
    }
    fs::write(&newest, &good).unwrap();
    fs::write(folder.join("state"), "steer feed 1 sha256 ").unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(folder.join("journal.jsonl"))
        .unwrap()
        .write_all(b"{\"numb")
        .unwrap();
    assert_eq!(alone.version(), "2026080100");
    serve(&alone.service, "2026090100", edited(&[], &[]));
    alone.fine(&["update"]);
    assert_eq!(alone.version(), "2026090100");
}

/// The same with a controller that steers: the kernel has one whole list, whatever the next start
/// finds on disk, and the start goes on with one whole version.
#[test]
fn a_controller_that_is_cut_at_any_step_of_an_update_goes_on_with_one_whole_version() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let feed = "update = \"automatic\"\nremoval_delay = \"0s\"\nkeep = 2";
    let mut office = office(&lab, feed);
    let version = |number: u32| format!("{}", 2_027_010_100 + number);
    let sites = |numbers: [u32; 2]| {
        let flow = |number| {
            Flow::tcp(
                [150, 171, 100 + u8::try_from(number).unwrap(), 9].into(),
                443,
            )
        };
        let answers = probe_all(&lab.client, &numbers.map(flow)).unwrap();
        [answers[0].site, answers[1].site]
    };
    let (old, new) = ([Site::Near, Site::Far], [Site::Far, Site::Near]);
    serve(
        &office.service,
        &version(0),
        edited(&["150.171.100.0/24"], &[]),
    );
    assert!(office.update().status.success(), "{}", office.steer.log());
    office.steer.kill().unwrap();
    let (mut in_use, mut point) = (0, 1);
    loop {
        office.steer.cut_at(Some(("feed", point)));
        office.steer.run().unwrap();
        office.steer.wait_until_steering(PATIENCE).unwrap();
        let status = office.steer.status().unwrap();
        let last = point - 1;
        if last > in_use {
            let is_new = status["feed"]["version"] == version(last);
            let wanted = if is_new { new } else { old };
            assert_eq!(sites([in_use, last]), wanted, "cut at {last}");
            in_use = if is_new { last } else { in_use };
        }
        assert_eq!(status["feed"]["version"], version(in_use), "cut at {last}");
        let newer = edited(&[&format!("150.171.{}.0/24", 100 + point)], &[]);
        serve(&office.service, &version(point), newer);
        if office.update().status.success() {
            break;
        }
        let ended = office.steer.wait_until_ended().unwrap().unwrap();
        assert!(!ended.success(), "{}", office.steer.log());
        let steered = sites([in_use, point]);
        assert!([old, new].contains(&steered), "cut at {point}: {steered:?}");
        point += 1;
    }
    assert_eq!(sites([in_use, point]), new);
    let output = office
        .steer
        .command(&["endpoints", "show", "--json", "--journal", "1000"]);
    let shown: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let journal = shown["journal"].as_array().unwrap();
    let numbers = journal.iter().map(|it| it["number"].as_u64().unwrap());
    assert!(numbers.eq(1..=journal.len() as u64), "{journal:?}");
    println!("an update has {} points", point - 1);
    assert!(point > 10);
}
