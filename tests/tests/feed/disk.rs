//! What a power cut or a bad disk leaves of the versions.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use serde_json::Value;

use super::{Alone, edited, serve, text};

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
