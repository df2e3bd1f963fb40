//! Bits of marks: others', and steer's own elsewhere.

use steer_tests::{
    marker::Marker,
    residue::Snapshot,
    server::Site,
    steer::{Settings, Steer},
    traffic::{Fleet, probe_all},
};
use steer_user::datapath::attached_at;

use super::{PATIENCE, assert_steered, book::Recipe, office};
use std::{fs, process::Output, time::Duration};
use steer_tests::scenario::flows;

/// What a command said, wherever it said it.
fn text_of(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|it| String::from_utf8_lossy(it).into_owned())
        .concat()
}

#[test]
fn marks_of_others_are_kept_on_steered_packets_and_their_rules_stay() {
    let lab = office();
    let recipe = Recipe::named("Beside mwan3, pbr and Tailscale");
    lab.router.nft(recipe.block("others.nft")).unwrap();
    recipe.run_on_router(&lab);
    let before = Snapshot::take(&lab).unwrap();
    let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    assert_steered(&lab);
    let kept = lab
        .router
        .output("nft", &["list", "counter", "inet", "others", "kept"])
        .unwrap();
    assert!(!kept.contains("packets 0"), "{kept}");
    steer.detach().unwrap();
    // The counter of theirs has counted; nothing else is different.
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

#[test]
fn other_bits_steer_as_the_default_ones_do_and_detach_waits_for_their_flows() {
    let lab = office();
    let recipe = Recipe::named("Other bits");
    let before = Snapshot::take(&lab).unwrap();
    let mut steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    assert_steered(&lab);
    let rules = lab.router.output("ip", &["rule"]).unwrap();
    assert!(rules.contains("fwmark 0x210/0x3f0"), "{rules}");
    assert!(!rules.contains("0x21000000"), "{rules}");

    // Another mask would forget the flows that run.
    let fleet = Fleet::open(&lab.client, &flows(2, 2), Duration::from_millis(50)).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    let text = fs::read_to_string(steer.config()).unwrap();
    let other = text.replace("mask = 0x000003f0", "mask = 0x3f000000");
    fs::write(steer.config(), &other).unwrap();
    let refused = steer.command(&["reload"]).unwrap();
    let said = text_of(&refused);
    assert!(
        !refused.status.success() && said.contains("[mark] mask"),
        "{said}"
    );
    steer.stop().unwrap();
    let refused = steer.command(&["run"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("0x000003f0") && said.contains("steer detach"),
        "{said}"
    );
    fleet.wait_for_answers(PATIENCE).unwrap();

    // The file names other bits than the programs use: the programs are right.
    let detached = steer.command(&["detach", "--drain", "0"]).unwrap();
    let said = String::from_utf8_lossy(&detached.stdout).into_owned();
    // The probes' entries may still live beside the fleet's.
    assert!(said.contains("flows still used a breakout"), "{said}");
    drop(fleet);
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");

    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_steered(&lab);
    steer.detach().unwrap();
}

#[test]
fn before_a_program_that_ends_with_a_final_verdict_it_still_sees_the_packets() {
    let lab = office();
    let mut steer = Steer::start(&lab, &Settings::default()).unwrap();
    // Whoever comes later stands behind steer's; a steer that comes later stands behind it.
    steer.stop().unwrap();
    let detached = steer.command(&["detach", "--drain", "0"]).unwrap();
    assert!(detached.status.success(), "{}", text_of(&detached));
    let _final = Marker::attach_final(&lab.router, "lan0").unwrap();
    let text = fs::read_to_string(steer.config()).unwrap();
    let programs = || {
        let shown = lab.router.run(|| Ok(attached_at("lan0"))).unwrap();
        let names = shown.unwrap();
        let own = names.iter().position(|name| name == "lan_ingress");
        assert_eq!(names.len(), 2, "{names:?}");
        own.unwrap()
    };
    for (order, place) in [("last", 1), ("first", 0), ("last", 1), ("first", 0)] {
        let line = format!("[mark]\norder = \"{order}\"\n");
        fs::write(steer.config(), text.replace("[mark]\n", &line)).unwrap();
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
        assert_eq!(programs(), place, "{order}");
        if order == "first" {
            assert_steered(&lab);
        } else {
            let answers = probe_all(&lab.client, &flows(2, 2)).unwrap();
            assert!(answers.iter().all(|answer| answer.site == Site::Far));
        }
        steer.stop().unwrap();
    }
    steer.detach().unwrap();
}
