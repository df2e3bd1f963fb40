//! `[[list]]`: an operator's own destinations on the road of Microsoft's.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    steer::{Settings, Steer},
    traffic::{Fleet, Flow, probe_all},
    unpacked,
    webservice::{Proof, Reply, WebService},
};

use super::{METRICS, PATIENCE, signed::Signer, text};

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

/// Where lists are fetched, by any path to the near side.
const SERVER: &str = "192.88.99.2:9443";

/// A server of lists, and an office whose configuration takes one of them from it.
fn fetching<'lab>(lab: &'lab Lab, more: &str, key: &str) -> (WebService, Steer<'lab>) {
    let pem = lab.directory().join("ca.pem");
    let address = SERVER.parse().unwrap();
    let service = WebService::start(&lab.near, address, "192.88.99.2", &pem).unwrap();
    say(&service, SERVICE);
    let settings = Settings {
        more: format!(
            "[metrics]\nlisten = \"{METRICS}\"\n\
             [feed]\nca_file = \"{}\"\nvia = \"isp-1\"\ntimeout = \"2s\"\n{more}\n\
             [[list]]\nname = \"saas\"\nurl = \"https://{SERVER}/saas.toml\"\ninterval = \"100ms\"\n{key}",
            pem.display()
        ),
        ..Settings::default()
    };
    let steer = Steer::start(lab, &settings).unwrap();
    (service, steer)
}

fn say(service: &WebService, list: &str) {
    let reply = Reply::http("200 OK", "", list.as_bytes());
    service.say(move |_| reply.clone());
}

/// Where new flows to the two halves of 93.184.216.0/24 are answered.
fn halves(lab: &Lab) -> [Site; 2] {
    let flow = |last| Flow::tcp([93, 184, 216, last].into(), 443);
    let answers = probe_all(&lab.client, &[flow(1), flow(129)]).unwrap();
    [answers[0].site, answers[1].site]
}

const LOWER: [Site; 2] = [Site::Near, Site::Far];
const UPPER: [Site; 2] = [Site::Far, Site::Near];

fn upper() -> String {
    SERVICE.replace("216.0/25", "216.128/25")
}

/// Waits until that is what new flows meet; a look takes as long as it takes.
fn until(lab: &Lab, what: &str, sites: [Site; 2]) {
    let started = Instant::now();
    while halves(lab) != sites {
        assert!(started.elapsed() < PATIENCE, "{what}");
    }
}

/// Answers that change nothing, a part of the reason that is told, and the word it is counted under.
fn bad_answers() -> Vec<(&'static str, Reply, &'static str, &'static str)> {
    let many: Vec<String> = (0..40)
        .map(|it| format!("\"198.51.100.{it}/32\""))
        .collect();
    let grown = format!("[{}, \"93.", many.join(", "));
    let ok = |body: &str| Reply::http("200 OK", "", body.as_bytes());
    let length = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        SERVICE.len()
    );
    let cut = [length.as_bytes(), &SERVICE.as_bytes()[..40]].concat();
    vec![
        (
            "gone",
            Reply::http("404 Not Found", "", b""),
            "answered 404",
            "status",
        ),
        (
            "a page",
            ok("<!doctype html><html></html>"),
            "saas.toml",
            "list",
        ),
        ("half", Reply::Raw(cut), "cut short", "broken"),
        (
            "silence",
            Reply::Stall(Vec::new()),
            "no whole answer",
            "timeout",
        ),
        (
            "huge",
            ok(&"#".repeat((1 << 20) + 1)),
            "no list has",
            "too_large",
        ),
        (
            "host bits",
            ok(&SERVICE.replace("216.0/25", "216.9/25")),
            "bits set after",
            "list",
        ),
        (
            "a private prefix",
            ok(&SERVICE.replace("93.184.216.0/25", "10.0.0.0/8")),
            "private",
            "list",
        ),
        ("twice", ok(&SERVICE.repeat(2)), "is there twice", "list"),
        ("nothing", ok("service = []"), "has no service", "list"),
        (
            "a denied prefix",
            ok(&SERVICE.replace("93.184.216.0/25", "203.0.113.128/25")),
            "denylist",
            "held",
        ),
        (
            "grown",
            ok(&SERVICE.replace("[\"93.", &grown)),
            "would come",
            "held",
        ),
    ]
}

#[test]
fn a_list_from_a_url_is_followed_and_a_bad_answer_leaves_the_last_good_one_with_a_reason() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let guards = "[feed.guards]\ndeny = [\"203.0.113.0/24\"]\n";
    let (service, mut steer) = fetching(&lab, guards, "");
    until(&lab, "the list is fetched", LOWER);
    let running = Flow::tcp([93, 184, 216, 2].into(), 443);
    let fleet = Fleet::open(&lab.client, &[running], Duration::from_millis(100)).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();

    for (what, reply, why, kind) in bad_answers() {
        service.say(move |_| reply.clone());
        let told = |status: &Value| {
            let list = &status["lists"][0];
            list["error"]
                .as_str()
                .is_some_and(|error| error.contains(why))
                && list["errors"][kind].as_u64() > Some(0)
        };
        steer.wait_for(what, told).unwrap();
        assert_eq!(halves(&lab), LOWER, "{what}");
    }
    service.prove(Proof::UnknownAuthority).unwrap();
    let told = |status: &Value| status["lists"][0]["errors"]["tls"].as_u64() > Some(0);
    steer.wait_for("a wrong certificate is told", told).unwrap();
    service.prove(Proof::Good).unwrap();
    assert!(steer.whole_log().unwrap().contains("list saas: "));

    say(&service, &upper());
    until(&lab, "the newer list is in use without help", UPPER);
    let healthy = |status: &Value| {
        let list = &status["lists"][0];
        list["error"].is_null() && list["failures"] == 0 && list["services"] == 1
    };
    steer.wait_for("the list is well again", healthy).unwrap();
    let explained = steer.command(&["explain", "93.184.216.130"]).unwrap();
    assert!(
        text(&explained).contains("saas/crm"),
        "{}",
        text(&explained)
    );

    // The copy on disk holds what is in use, for reloads, restarts and commands without a controller.
    service.say(|_| Reply::http("503 Service Unavailable", "", b""));
    assert!(steer.command(&["reload"]).unwrap().status.success());
    assert_eq!(halves(&lab), UPPER);
    steer.stop().unwrap();
    let explained = steer.command(&["explain", "93.184.216.130"]).unwrap();
    assert!(
        text(&explained).contains("saas/crm"),
        "{}",
        text(&explained)
    );
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_eq!(halves(&lab), UPPER);
    fleet.wait_for_answers(PATIENCE).unwrap();
    for record in fleet.stop() {
        assert!(
            !record.was_moved() && record.sites == [Site::Near],
            "{record:?}"
        );
    }
}

#[test]
fn a_copy_that_is_damaged_is_skipped_with_a_word_and_fetched_again() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let (service, mut steer) = fetching(&lab, "", "");
    until(&lab, "the list is fetched", LOWER);
    let copy = lab.directory().join("state/lists/saas");
    let fetched = |status: &Value| status["lists"][0]["fetched"].as_u64() > Some(0);
    steer.wait_for("the copy is on disk", fetched).unwrap();
    steer.stop().unwrap();
    let good = fs::read(&copy).unwrap();
    fs::write(&copy, &good[..good.len() - 7]).unwrap();
    say(&service, &upper());
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    until(&lab, "the list is fetched again", UPPER);
    assert!(steer.whole_log().unwrap().contains("is damaged"));
}

/// What `steer endpoints show` has of the list's journal.
fn journal(steer: &Steer<'_>) -> Vec<Value> {
    let shown = steer.command(&["endpoints", "show", "--json", "--journal", "1000"]);
    let shown: Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
    assert_eq!(shown["lists"][0]["name"], "saas", "{shown}");
    shown["lists"][0]["journal"].as_array().unwrap().clone()
}

#[test]
fn the_journal_tells_what_moved_in_a_list_and_what_was_held_back() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let guards = "[feed.guards]\ndeny = [\"203.0.113.0/24\"]\n";
    let (service, steer) = fetching(&lab, guards, "");
    let wait_for = |what: &str, entries: usize| {
        let has = |_: &Value| journal(&steer).len() == entries;
        steer.wait_for(what, has).unwrap();
        journal(&steer).pop().unwrap()
    };
    let first = wait_for("the first list is told", 1);
    assert_eq!(first["from"], "none", "{first}");
    assert_eq!(first["moved"]["sets"][0]["name"], "saas/crm", "{first}");
    assert_eq!(first["moved"]["sets"][0]["kind"], "added", "{first}");

    say(&service, &upper().replace("\"443\"", "\"80,443\""));
    let second = wait_for("what moved is told", 2);
    assert_eq!(
        (&second["what"], &second["who"]),
        (&json!("applied"), &json!("steer"))
    );
    assert_eq!(second["from"], first["to"], "{second}");
    let moved = &second["moved"]["sets"][0];
    assert_eq!(
        moved["added_prefixes"],
        json!(["93.184.216.128/25"]),
        "{second}"
    );
    assert_eq!(
        moved["removed_prefixes"],
        json!(["93.184.216.0/25"]),
        "{second}"
    );
    let field = json!([{"field": "tcpPorts", "from": "443", "to": "80,443"}]);
    assert_eq!(moved["changed"], field, "{second}");
    assert!(second["generation"].as_u64() > Some(1), "{second}");

    say(
        &service,
        &SERVICE.replace("93.184.216.0/25", "203.0.113.128/25"),
    );
    let third = wait_for("what is held back is told", 3);
    assert_eq!(third["what"], "held", "{third}");
    assert!(
        third["why"].as_str().unwrap().contains("denylist"),
        "{third}"
    );
    let shown = text(&steer.command(&["endpoints", "show"]).unwrap());
    let line = format!("list      saas from https://{SERVER}/saas.toml");
    assert!(
        shown.contains(&line) && shown.contains("journal   2 "),
        "{shown}"
    );
    // Once, however often the server says it.
    say(&service, &upper());
    wait_for("the next one is told", 4);
}

/// As by a power cut, at every step there is: the kernel has one whole list, whatever the next start
/// finds on disk, and the start goes on with one whole list.
#[test]
fn a_controller_that_is_cut_at_any_step_of_a_list_goes_on_with_one_whole_one() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let (service, mut steer) = fetching(&lab, "", "");
    let whole = |host: u32| SERVICE.replace("216.0/25", &format!("216.{host}/32"));
    let steered = |hosts: [u32; 2]| {
        let flow = |host| Flow::tcp([93, 184, 216, u8::try_from(host).unwrap()].into(), 443);
        let answers = probe_all(&lab.client, &hosts.map(flow)).unwrap();
        [0, 1].map(|place| answers[place].site == Site::Near)
    };
    let (old, new) = ([true, false], [false, true]);
    say(&service, &whole(100));
    let has = |steer: &Steer<'_>, what: &str, host: u32| {
        let wanted = json!([format!("93.184.216.{host}/32")]);
        let last = |_: &Value| {
            let last = journal(steer).pop();
            last.is_some_and(|it| it["moved"]["sets"][0]["added_prefixes"] == wanted)
        };
        steer.wait_for(what, last).unwrap();
    };
    has(&steer, "the first list is on disk", 100);
    steer.kill().unwrap();
    let (mut in_use, mut point) = (100, 1);
    loop {
        service.say(|_| Reply::http("503 Service Unavailable", "", b""));
        steer.cut_at(Some(("list", point)));
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
        let last = 100 + point - 1;
        if last > in_use {
            let found = steered([in_use, last]);
            assert!(
                [old, new].contains(&found),
                "cut at {}: {found:?}",
                point - 1
            );
            in_use = if found == new { last } else { in_use };
        }
        let next = 100 + point;
        say(&service, &whole(next));
        let over = |status: &Value| {
            let told = journal(&steer).pop();
            let to = told.map(|it| it["moved"]["sets"][0]["added_prefixes"].clone());
            status["state"] == "unattended"
                || to == Some(json!([format!("93.184.216.{next}/32")]))
                    && status["lists"][0]["failures"] == 0
        };
        let status = steer.wait_for("the end of the update", over).unwrap();
        if status["state"] != "unattended" {
            break;
        }
        let ended = steer.wait_until_ended().unwrap().unwrap();
        assert!(!ended.success(), "{}", steer.log());
        let found = steered([in_use, next]);
        assert!([old, new].contains(&found), "cut at {point}: {found:?}");
        point += 1;
    }
    assert_eq!(steered([in_use, 100 + point]), new);
    let numbers: Vec<u64> = journal(&steer)
        .iter()
        .map(|it| it["number"].as_u64().unwrap())
        .collect();
    assert!(
        numbers.iter().copied().eq(1..=numbers.len() as u64),
        "{numbers:?}"
    );
    println!("an update of a list has {} points", point - 1);
    assert!(point > 5);
}

#[test]
fn a_list_that_must_be_signed_is_taken_only_from_its_signer_under_its_name_and_never_an_older_one()
{
    let Some(program) = unpacked::find("usr/bin/minisign") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let signer = |name| Signer {
        program: program.clone(),
        folder: folder.path(),
        name,
    };
    let (ours, theirs) = (signer("ours"), signer("theirs"));
    let key = format!("public_key = \"{}\"\n", ours.make());
    theirs.make();
    let list = |prefix: &str| json!({"service": [{"name": "crm", "prefixes": [prefix]}]});
    let (old, new) = (list("93.184.216.0/25"), list("93.184.216.128/25"));
    let lab = Lab::start(LabOptions::default()).unwrap();
    let (service, steer) = fetching(&lab, "", &key);
    let say = |list: &Value, signature: &[u8]| {
        let (list, signature) = (Reply::json(list), Reply::http("200 OK", "", signature));
        service.say(move |target| {
            let is_list = !target.ends_with(".minisig");
            if is_list {
                list.clone()
            } else {
                signature.clone()
            }
        });
    };
    let told = |why: &str| {
        let says = |status: &Value| {
            let error = status["lists"][0]["error"].as_str();
            error.is_some_and(|error| error.contains(why))
        };
        steer.wait_for(why, says).unwrap();
    };
    told("is not signed by its public_key");
    assert_eq!(halves(&lab), [Site::Far, Site::Far]);
    say(&old, &ours.sign(&old, "saas 2026080100", &[]));
    until(&lab, "what the signer signed is in use", LOWER);
    for (signature, why) in [
        (
            theirs.sign(&new, "saas 2026090100", &[]),
            "is not signed by its public_key",
        ),
        (
            ours.sign(&new, "2026090100", &[]),
            "it was signed as \"2026090100\"",
        ),
        (
            ours.sign(&new, "saas 2026070100", &[]),
            "version 2026070100 is older than 2026080100",
        ),
    ] {
        say(&new, &signature);
        told(why);
        assert_eq!(halves(&lab), LOWER, "{why}");
    }
    say(&new, &ours.sign(&new, "saas 2026090100", &[]));
    until(&lab, "the newer one is in use", UPPER);
}
