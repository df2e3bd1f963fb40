//! `[[list]]`: an operator's own destinations on the road of Microsoft's.

use std::{fs, time::Duration};

use serde_json::Value;
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    steer::{Settings, Steer},
    traffic::{Fleet, Flow, probe_all},
};

use super::{PATIENCE, text};

const SERVICE: &str = "[[service]]\nname = \"crm\"\nprefixes = [\"93.184.216.0/25\"]\n\
                       names = [\"crm.example.com\"]\ntcp = \"443\"\n";

#[test]
fn a_list_of_the_operators_own_is_steered_counted_explained_and_refused_whole() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let file = lab.directory().join("saas.toml");
    fs::write(&file, SERVICE).unwrap();
    let more = "[[list]]\nname = \"updates\"\nbuiltin = \"microsoft-updates\"\n\
                [[list]]\nname = \"saas\"\nfile = \"saas.toml\"\n";
    let settings = Settings {
        more: more.into(),
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    let flow = |last, port| Flow::tcp([93, 184, 216, last].into(), port);
    let sites = |first: u8| {
        let flows = [flow(first, 443), flow(first, 80), flow(first + 128, 443)];
        let answers = probe_all(&lab.client, &flows).unwrap();
        answers.iter().map(|it| it.site).collect::<Vec<_>>()
    };
    assert_eq!(sites(1), [Site::Near, Site::Far, Site::Far]);
    let fleet = Fleet::open(&lab.client, &[flow(2, 443)], Duration::from_millis(100)).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();

    let explained = steer.command(&["explain", "93.184.216.9"]).unwrap();
    assert!(
        text(&explained).contains("saas/crm"),
        "{}",
        text(&explained)
    );
    let counted = |status: &Value| {
        let counters = status["counters"].as_array().into_iter().flatten();
        let mut own = counters.filter(|it| it["list"] == "own");
        own.any(|it| it["packets"].as_u64() > Some(0))
    };
    steer
        .wait_for("the list's packets are counted", counted)
        .unwrap();
    let listed = steer.command(&["endpoints", "list", "--json"]).unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let of = |name: &str| {
        let mut sets = listed["sets"].as_array().unwrap().iter();
        sets.find(|it| it["name"] == name).unwrap().clone()
    };
    assert_eq!(of("saas/crm")["names"][0], "crm.example.com");
    assert_eq!(of("updates/windows-update")["tcp_ports"], "80,443");

    for (bad, why) in [
        (SERVICE.replace("93.184.216.0/25", "10.0.0.0/8"), "private"),
        (SERVICE[..30].to_owned(), "saas.toml"),
        (SERVICE.repeat(2), "is there twice"),
    ] {
        fs::write(&file, bad).unwrap();
        let reloaded = steer.command(&["reload"]).unwrap();
        assert!(!reloaded.status.success());
        assert!(text(&reloaded).contains(why), "{}", text(&reloaded));
        assert_eq!(sites(3), [Site::Near, Site::Far, Site::Far], "{why}");
    }
    fs::write(&file, SERVICE.replace("216.0/25", "216.128/25")).unwrap();
    assert!(steer.command(&["reload"]).unwrap().status.success());
    assert_eq!(sites(4), [Site::Far, Site::Far, Site::Near]);
    fleet.wait_for_answers(PATIENCE).unwrap();
    for record in fleet.stop() {
        assert!(
            !record.was_moved() && record.sites == [Site::Near],
            "{record:?}"
        );
    }
}
