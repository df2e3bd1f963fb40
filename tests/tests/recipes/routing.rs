//! Rules, routes and translation that the box's own configuration keeps.

use std::fs;

use steer_tests::{
    lab::Lab,
    residue::Snapshot,
    steer::Steer,
    traffic::{Fleet, Flow},
    unpacked,
};

use super::{PATIENCE, assert_steered, book::Recipe, daemon::Daemon, office, wait_for};
use std::time::Duration;
use steer_tests::{scenario::flows, server::Site};

/// Long-lived flows stay where they began while steer comes, and those it steered stay when it is
/// killed and comes back.
fn assert_flows_stay<'lab>(lab: &'lab Lab, start: impl FnOnce() -> Steer<'lab>) {
    let period = Duration::from_millis(100);
    let before = Fleet::open(&lab.client, &flows(3, 3), period).unwrap();
    before.wait_for_answers(PATIENCE).unwrap();
    let mut steer = start();
    let after = Fleet::open(&lab.client, &flows(3, 3), period).unwrap();
    after.wait_for_answers(PATIENCE).unwrap();
    assert_steered(lab);
    steer.kill().unwrap();
    after.wait_for_answers(PATIENCE).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    for (fleet, site) in [(before, Site::Far), (after, Site::Near)] {
        fleet.wait_for_answers(PATIENCE).unwrap();
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.broken.is_none(), "{record:?}");
            assert_eq!(record.sites, [site], "{record:?}");
        }
    }
    steer.detach().unwrap();
}

#[test]
fn with_marks_only_the_boxs_own_rules_routes_and_translation_do_the_rest() {
    let lab = office();
    let recipe = Recipe::named("Mark only: the box routes and translates");
    recipe.run_on_router(&lab);
    lab.router.nft(recipe.block("office-nat.nft")).unwrap();
    let before = Snapshot::take(&lab).unwrap();
    assert_flows_stay(&lab, || {
        let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
        let changed = before.difference(&Snapshot::take(&lab).unwrap());
        for untouched in ["rules", "routes", "sysctls: net"] {
            let line = changed.lines().find(|it| it[2..].starts_with(untouched));
            assert_eq!(line, None, "{changed}");
        }
        steer
    });
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

#[test]
fn with_marks_only_what_nobody_translates_is_stopped_by_the_guard() {
    let lab = office();
    let recipe = Recipe::named("Mark only: the box routes and translates");
    recipe.run_on_router(&lab);
    let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    let captures = lab.capture().unwrap();
    let flow = Flow::udp("52.96.1.1".parse().unwrap(), 443);
    assert!(flow.probe(&lab.client).is_err());
    let wires = captures.stop().unwrap();
    assert_eq!(wires.leaks(), []);
    assert_eq!(wires.breakout().outbound().count(), 0);
    let said = steer.log();
    assert!(said.contains("nothing on this box translates"), "{said}");
    steer.detach().unwrap();
}

#[test]
fn translation_by_the_boxs_own_nftables_suffices() {
    let lab = office();
    let recipe = Recipe::named("Translation by the box's own nftables");
    lab.router.nft(recipe.block("office-nat.nft")).unwrap();
    assert_flows_stay(&lab, || Steer::start_with(&lab, recipe.steer()).unwrap());
}

#[test]
fn frr_routes_what_steer_grants() {
    let (Some(zebra), Some(pbrd)) = (
        unpacked::find("usr/lib/frr/zebra"),
        unpacked::find("usr/lib/frr/pbrd"),
    ) else {
        return;
    };
    let lab = office();
    let recipe = Recipe::named("FRR policy routing");
    let folder = lab.directory().join("frr");
    fs::create_dir(&folder).unwrap();
    let place = |name: &str| folder.join(name).display().to_string();
    let (file, group, socket) = (place("frr.conf"), place("group"), place("zserv"));
    fs::write(&file, recipe.block("/etc/frr/frr.conf")).unwrap();
    // FRR insists on its group.
    let groups = fs::read_to_string("/etc/group").unwrap();
    let groups: Vec<&str> = groups
        .lines()
        .filter(|line| !line.starts_with("frrvty:"))
        .chain(["frrvty:x:64321:root"])
        .collect();
    fs::write(&group, groups.join("\n") + "\n").unwrap();
    let prepare = format!("mount --bind {group} /etc/group");
    let start = |program: &std::path::Path| {
        let folder_name = folder.display().to_string();
        let pid = place(&format!("{}.pid", program.file_name().unwrap().display()));
        let arguments = [
            "-u",
            "root",
            "-g",
            "root",
            "-P",
            "0",
            "-z",
            &socket,
            "--vty_socket",
            &folder_name,
            "-i",
            &pid,
            "-f",
            &file,
            "--log",
            "stdout",
        ];
        Daemon::start(&lab.router, &folder, &prepare, program, &arguments)
    };
    let zebra = start(&zebra);
    wait_for(
        "zebra",
        || zebra.log(),
        || std::path::Path::new(&socket).exists(),
    );
    let pbrd = start(&pbrd);
    let rules = || {
        let v4 = lab.router.output("ip", &["-4", "rule"]).unwrap();
        v4 + &lab.router.output("ip", &["-6", "rule"]).unwrap()
    };
    wait_for(
        "pbrd's rules",
        || format!("{}{}{}", rules(), zebra.log(), pbrd.log()),
        || rules().matches("fwmark 0x21000000 iif lan0").count() == 2,
    );
    recipe.run_on_router(&lab);
    assert_flows_stay(&lab, || Steer::start_with(&lab, recipe.steer()).unwrap());
}
