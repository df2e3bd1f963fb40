//! Reloads of a running controller: what is wrong changes nothing, what is right moves new flows
//! only. Both are judged by flows.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    fs,
    net::IpAddr,
    path::{Path as FilePath, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    server::Site,
    steer::{self, Mode, Settings, Steer},
    traffic::{Fleet, Flow, probe_all},
    wire::Path,
};
use steer_user::{config, endpoints};

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// A set of a feed.
fn set(id: u16, prefixes: &[&str]) -> Value {
    json!({
        "id": id, "serviceArea": "Exchange", "category": "Optimize", "required": true,
        "ips": prefixes, "tcpPorts": "443", "udpPorts": "443,3478",
    })
}

fn write_feed(lab: &Lab, sets: &[Value]) -> PathBuf {
    let path = lab.directory().join("feed.json");
    fs::write(&path, Value::from(sets).to_string()).unwrap();
    path
}

fn settings(feed: &FilePath, select: &str) -> Settings {
    Settings {
        more: format!(
            "[feed]\nfile = \"{}\"\n[select]\n{select}\n",
            feed.display()
        ),
        ..Settings::default()
    }
}

fn generation(status: &Value) -> u64 {
    status["plan"]["generation"].as_u64().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// A controller that steers, and how it looks while nothing changes.
struct Untouched<'lab> {
    lab: &'lab Lab,
    steer: Steer<'lab>,
    /// The configuration as it was when steer started, to ask for the status while the real file
    /// is broken.
    good: PathBuf,
    plan: Value,
}

impl<'lab> Untouched<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let feed = write_feed(lab, &[set(1, &["52.96.0.0/14", "2603:1006::/40"])]);
        let steer = Steer::start(lab, &settings(&feed, "")).unwrap();
        let good = lab.directory().join("good.toml");
        fs::copy(steer.config(), &good).unwrap();
        let plan = steer.status().unwrap()["plan"].clone();
        let untouched = Self {
            lab,
            steer,
            good,
            plan,
        };
        untouched.check("at the start");
        untouched
    }

    /// The same plan steers on, and a new flow of each family leaves by the breakout.
    fn check(&self, what: &str) {
        let output = steer::command(self.lab, &self.good, &["status", "--json"]).unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output));
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["state"], "steering", "{what}");
        assert_eq!(status["plan"], self.plan, "{what}");
        let flows = [
            Flow::tcp("52.96.1.1".parse().unwrap(), 443),
            Flow::udp("2603:1006::1".parse().unwrap(), 443),
        ];
        for answer in probe_all(&self.lab.client, &flows).unwrap() {
            assert_eq!(answer.site, Site::Near, "{what}: {}", answer.flow);
        }
    }

    /// `steer reload` ends with the code and says all of it.
    fn refuses(&self, what: &str, code: i32, parts: &[&str]) {
        let output = self.steer.command(&["reload"]).unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{what}: {said}");
        for part in parts {
            assert!(
                said.contains(part),
                "{what}: {part:?} is missing in\n{said}"
            );
        }
    }

    /// A hang-up leads to a refusal in the log that says all of it.
    fn refuses_on_hang_up(&self, what: &str, parts: &[&str]) {
        let before = self.steer.whole_log().unwrap().len();
        self.steer.hang_up().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let said = loop {
            let log = self.steer.whole_log().unwrap();
            if log[before..].contains("nothing was changed") {
                break log[before..].to_owned();
            }
            assert!(Instant::now() < deadline, "{what}: no refusal in\n{log}");
            thread::sleep(Duration::from_millis(2));
        };
        for part in parts {
            assert!(
                said.contains(part),
                "{what}: {part:?} is missing in\n{said}"
            );
        }
    }
}

/// The command reads the file itself to find the controller, so its mistakes are a matter of
/// usage: exit code 2. The controller finds them, too.
#[test]
fn a_bad_configuration_is_refused_with_place_and_remedy_and_changes_nothing() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let untouched = Untouched::start(&lab);
    let cases = config::cases::bad();
    assert!(cases.len() >= 25, "{}", cases.len());
    for (what, marked, key, parts) in &cases {
        let offset = marked.find('@').unwrap();
        let line = marked[..offset].matches('\n').count() + 1;
        let place = format!("steer.toml:{line}:");
        fs::write(untouched.steer.config(), marked.replacen('@', "", 1)).unwrap();
        let parts = [place.as_str(), key, "remedy:", parts[0], parts[1]];
        untouched.refuses(what, 2, &parts);
        untouched.refuses_on_hang_up(what, &parts);
        untouched.check(what);
    }
    println!("{} bad configurations", cases.len());
}

/// What the file alone does not show, only the controller can refuse: exit code 1.
#[test]
fn a_configuration_that_does_not_fit_is_refused_with_a_remedy_and_changes_nothing() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let untouched = Untouched::start(&lab);
    let good = fs::read_to_string(&untouched.good).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    #[rustfmt::skip] // one case, one line
    let cases = [
        ("another mode", replaced("\"mark\"", "\"redirect\""), ["mode changed", "Restart steer"]),
        ("another LAN", replaced("lan0", "lan7"), ["[[lan]] interface", "Restart steer"]),
        ("a VLAN", replaced("\"lan0\"\n", "\"lan0\"\nvlans = [10]\n"), ["[[lan]] interface or vlans", "Restart steer"]),
        ("another hook", format!("{good}[redirect]\nxdp = \"generic\"\n"), ["[redirect] changed", "Restart steer"]),
        ("pins elsewhere", replaced("pin_dir = \"", "pin_dir = \"/sys/fs/bpf/steer-none"), ["[system] changed", "Restart steer"]),
        ("a feed that is not there", replaced("feed.json", "none.json"), ["none.json", "remedy:"]),
        ("clients inside of Microsoft 365", replaced("\"lan0\"\n", "\"lan0\"\nsources = [\"52.96.9.0/24\"]\n"), ["set 1: ips \"52.96.0.0/14\"", "select.exclude"]),
    ];
    for (what, config, parts) in &cases {
        fs::write(untouched.steer.config(), config).unwrap();
        let parts = [parts[0], parts[1], "nothing was changed"];
        untouched.refuses(what, 1, &parts);
        untouched.refuses_on_hang_up(what, &parts);
        untouched.check(what);
    }
}

/// Only the controller reads the feed: exit code 1.
#[test]
fn a_bad_feed_is_refused_with_place_and_remedy_and_changes_nothing() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let untouched = Untouched::start(&lab);
    let cases = endpoints::cases::bad();
    assert!(cases.len() >= 25, "{}", cases.len());
    for (what, feed, [place, reason, remedy]) in &cases {
        fs::write(lab.directory().join("feed.json"), feed).unwrap();
        let parts = ["feed.json", place, reason, remedy, "nothing was changed"];
        untouched.refuses(what, 1, &parts);
        untouched.check(what);
    }
    println!("{} bad feeds", cases.len());
    // The last one also by a signal, and then a good one.
    untouched.refuses_on_hang_up("a hang-up", &["feed.json", "remedy:"]);
    untouched.check("a hang-up");
    write_feed(&lab, &[set(1, &["52.96.0.0/14", "2603:1006::/40"])]);
    let output = untouched.steer.command(&["reload"]).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let status = untouched.steer.status().unwrap();
    assert_eq!(
        generation(&status),
        untouched.plan["generation"].as_u64().unwrap() + 1
    );
}

/// Nobody says `reload`: the files are written, in place or by a rename, and the log tells what
/// changed.
#[test]
fn a_written_configuration_or_feed_is_reloaded_by_itself_with_word_of_what_changed() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let feed = write_feed(&lab, &[set(1, &["52.96.0.0/14"])]);
    let settings = Settings {
        reload_on_change: true,
        ..settings(&feed, "")
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    let good = fs::read_to_string(steer.config()).unwrap();
    let site = |to: &str| {
        let flow = Flow::udp(to.parse().unwrap(), 443);
        probe_all(&lab.client, &[flow]).unwrap()[0].site
    };
    let wait = |words: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !steer.whole_log().unwrap().contains(words) {
            assert!(Instant::now() < deadline, "{words:?}: {}", steer.log());
            thread::sleep(Duration::from_millis(5));
        }
    };

    // What is wrong changes nothing.
    fs::write(steer.config(), good.replacen("\"mark\"", "\"magic\"", 1)).unwrap();
    wait("nothing was changed");
    assert_eq!(site("52.96.1.1"), Site::Near);
    // The feed, put in place whole.
    fs::write(steer.config(), &good).unwrap();
    wait("generation 2,");
    let new = lab.directory().join("new.json");
    fs::write(
        &new,
        Value::from([set(1, &["40.96.0.0/13"])].as_slice()).to_string(),
    )
    .unwrap();
    fs::rename(&new, &feed).unwrap();
    wait("generation 3,");
    assert_eq!(site("52.97.1.1"), Site::Far);
    assert_eq!(site("40.96.1.1"), Site::Near);
    // The configuration, written in place.
    let excluded = good.replacen("[select]", "[select]\nexclude = [\"40.97.0.0/16\"]", 1);
    fs::write(steer.config(), excluded).unwrap();
    wait("select.exclude: (not set) -> [\"40.97.0.0/16\"]");
    assert_eq!(site("40.97.1.1"), Site::Far);
    assert_eq!(site("40.98.1.1"), Site::Near);
}

/// A path's id lies in the marks of connections, so a breakout must not get another's.
#[test]
fn breakouts_change_places_in_the_configuration_only_with_their_ids_and_move_no_flow() {
    let lab = Lab::start(LabOptions {
        breakouts: 2,
        ..LabOptions::default()
    })
    .unwrap();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    let flows = flows(&STAYING);
    let running = Fleet::open(&lab.client, &flows, Duration::from_millis(50)).unwrap();
    running.wait_for_answers(PATIENCE).unwrap();
    let captures = lab.capture().unwrap();

    let good = fs::read_to_string(steer.config()).unwrap();
    let sections: Vec<&str> = good.split_inclusive("[[breakout]]\n").collect();
    let [head, first, rest] = sections[..] else {
        panic!("{good}");
    };
    let first = first.strip_suffix("[[breakout]]\n").unwrap();
    let (second, tail) = rest.split_once("[mark]").unwrap();
    let turned = |ids: [&str; 2]| {
        format!(
            "{head}{}{second}[[breakout]]\n{}{first}[mark]{tail}",
            ids[1], ids[0]
        )
    };
    fs::write(steer.config(), turned(["", ""])).unwrap();
    let output = steer.command(&["reload"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in ["isp-2 was path 2", "`id = 2`", "nothing was changed"] {
        assert!(text(&output).contains(part), "{}", text(&output));
    }

    fs::write(steer.config(), turned(["id = 1\n", "id = 2\n"])).unwrap();
    let output = steer.command(&["reload"]).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let new: Vec<_> = flows.iter().map(|flow| another(*flow, 1)).collect();
    let answers = probe_all(&lab.client, &new).unwrap();
    running.wait_for_answers(PATIENCE).unwrap();
    for record in running.stop() {
        assert!(!record.was_moved() && record.broken.is_none(), "{record:?}");
    }
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::Breakout(1), "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

/// Destinations that leave the plan with every second reload, each in another way: a prefix of a
/// set, a set, and two that are excluded.
const LEAVING: [&str; 4] = ["52.98.1.1", "40.96.1.1", "52.96.5.1", "2603:1016::1"];
/// Destinations that come with it: a set, an own prefix, and two that are not excluded any more.
const COMING: [&str; 4] = ["104.146.1.1", "2620:1ec::1", "150.171.1.1", "2603:1026::1"];
/// Destinations of both plans.
const STAYING: [&str; 2] = ["52.96.1.1", "2603:1006::1"];

/// Writes one of the two configurations and feeds between which the reloads change.
fn write_plan(lab: &Lab, mode: Mode, second: bool) -> Settings {
    let both = [
        "150.171.0.0/16",
        "2603:1026::/36",
        "2603:1016::/36",
        "2603:1006::/40",
    ];
    let feed = if second {
        vec![
            set(1, &["52.96.0.0/15"]),
            set(4, &both),
            set(3, &["104.146.0.0/17"]),
        ]
    } else {
        vec![
            set(1, &["52.96.0.0/14"]),
            set(4, &both),
            set(2, &["40.96.0.0/13"]),
        ]
    };
    let feed = write_feed(lab, &feed);
    let select = if second {
        "exclude = [\"52.96.5.0/24\", \"2603:1016::/36\"]\n\
         include = [{ name = \"own\", prefixes = [\"2620:1ec::/36\"], ports = \"443\" }]\n"
    } else {
        "exclude = [\"150.171.0.0/16\", \"2603:1026::/36\"]\n"
    };
    let settings = Settings {
        mode,
        ..settings(&feed, select)
    };
    steer::write_config(lab, &settings).unwrap();
    settings
}

fn flows(destinations: &[&str]) -> Vec<Flow> {
    let destinations = destinations.iter().map(|it| it.parse::<IpAddr>().unwrap());
    destinations
        .flat_map(|to| [Flow::tcp(to, 443), Flow::udp(to, 443)])
        .collect()
}

/// To a neighbour of the destination: no two flows are alike, whatever port the kernel gives
/// them. Connection tracking takes one that is like another for the other.
fn another(flow: Flow, number: u64) -> Flow {
    let destination = match flow.destination {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + u32::try_from(number).unwrap()).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(number)).into()),
    };
    Flow {
        destination,
        ..flow
    }
}

#[test]
fn reloads_are_counted_and_move_new_flows_only() {
    const RELOADS: u64 = 50;
    let lab = Lab::start(LabOptions::default()).unwrap();
    let settings = write_plan(&lab, Mode::Mark, false);
    let steer = Steer::start(&lab, &settings).unwrap();
    let captures = lab.capture().unwrap();
    let (leaving, coming, staying) = (flows(&LEAVING), flows(&COMING), flows(&STAYING));
    let near = [leaving.clone(), staying.clone()].concat();
    let period = Duration::from_millis(250);
    let by_breakout = Fleet::open(&lab.client, &near, period).unwrap();
    let by_backbone = Fleet::open(&lab.client, &coming, period).unwrap();
    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();

    let first = generation(&steer.status().unwrap());
    for reload in 1..=RELOADS {
        let second = reload % 2 == 1;
        write_plan(&lab, Mode::Mark, second);
        let wanted = first + reload;
        // By command and by signal, so that both lead to both plans.
        if reload % 4 < 2 {
            let output = steer.command(&["reload"]).unwrap();
            assert!(output.status.success(), "{}", text(&output));
            let said = text(&output);
            assert!(said.contains(&format!("generation {wanted},")), "{said}");
        } else {
            steer.hang_up().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while generation(&steer.status().unwrap()) < wanted {
                assert!(Instant::now() < deadline, "{}", steer.log());
                thread::sleep(Duration::from_millis(5));
            }
        }
        let status = steer.status().unwrap();
        assert_eq!(generation(&status), wanted, "{}", steer.log());
        assert_eq!(status["state"], "steering");
        let (on, off) = if second {
            (&coming, &leaving)
        } else {
            (&leaving, &coming)
        };
        for (flows, site) in [(on, Site::Near), (&staying, Site::Near), (off, Site::Far)] {
            let new: Vec<_> = flows.iter().map(|flow| another(*flow, reload)).collect();
            for answer in probe_all(&lab.client, &new).unwrap() {
                assert_eq!(
                    answer.site, site,
                    "new {} after reload {reload}",
                    answer.flow
                );
            }
        }
    }

    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();
    let mut messages = 0;
    for (fleet, site) in [(by_breakout, Site::Near), (by_backbone, Site::Far)] {
        for record in fleet.stop() {
            assert!(!record.was_moved(), "{record:?}");
            assert_eq!(record.sites, [site], "{record:?}");
            messages += record.answered;
        }
    }
    println!(
        "{RELOADS} reloads: {} flows stayed where they were, {messages} messages answered",
        near.len() + coming.len()
    );
    assert_eq!(captures.stop().unwrap().leaks(), []);
}

/// The flow table is asked only about packets of a class, and a plan's change takes classes away.
#[test]
fn redirect_mode_moves_new_flows_only_when_destinations_come_and_go() {
    let lab = Lab::start(LabOptions {
        lan: LanKind::Public,
        firewall: false,
        ..LabOptions::default()
    })
    .unwrap();
    let settings = write_plan(&lab, Mode::Redirect, false);
    let mut steer = Steer::start(&lab, &settings).unwrap();
    let captures = lab.capture().unwrap();
    let media = |to: &str| Flow::udp(to.parse().unwrap(), 3478);
    let leaving = [flows(&LEAVING), vec![media(LEAVING[0])]].concat();
    let coming = [flows(&COMING), vec![media(COMING[0])]].concat();
    let period = Duration::from_millis(250);
    let by_breakout = Fleet::open(&lab.client, &leaving, period).unwrap();
    let by_backbone = Fleet::open(&lab.client, &coming, period).unwrap();
    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();
    let change = |steer: &Steer<'_>, second| {
        write_plan(&lab, Mode::Redirect, second);
        let output = steer.command(&["reload"]).unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    let mut number = 0;
    let mut new_flows = |flows: &[Flow], site: Site, media: Site, when: &str| {
        number += 1;
        let new: Vec<_> = flows.iter().map(|flow| another(*flow, number)).collect();
        for answer in probe_all(&lab.client, &new).unwrap() {
            let says_that_it_begins = answer.flow.port == 443;
            let site = if says_that_it_begins { site } else { media };
            assert_eq!(answer.site, site, "new {} {when}", answer.flow);
        }
    };

    change(&steer, true);
    // Of flows whose packets look alike from the first to the last, it is not known yet which began
    // before.
    new_flows(&coming, Site::Near, Site::Far, "while what came is watched");
    new_flows(&leaving, Site::Far, Site::Far, "to what went");
    let deadline = Instant::now() + PATIENCE;
    while !steer
        .whole_log()
        .unwrap()
        .contains("change brought is taken in")
    {
        assert!(Instant::now() < deadline, "{}", steer.log());
        thread::sleep(Duration::from_millis(5));
    }
    new_flows(&coming, Site::Near, Site::Near, "after the watch period");
    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();

    // What went comes back while its flows are known, and so it is settled.
    change(&steer, false);
    new_flows(&leaving, Site::Near, Site::Near, "to what is back");
    new_flows(&coming, Site::Far, Site::Far, "to what went again");
    steer.kill().unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();
    change(&steer, true);
    new_flows(&coming, Site::Near, Site::Near, "after a restart");

    by_breakout.wait_for_answers(PATIENCE).unwrap();
    by_backbone.wait_for_answers(PATIENCE).unwrap();
    for (fleet, site) in [(by_breakout, Site::Near), (by_backbone, Site::Far)] {
        for record in fleet.stop() {
            assert_eq!(record.sites, [site], "{record:?}");
            assert!(!record.was_moved(), "{record:?}");
        }
    }
    assert_eq!(captures.stop().unwrap().leaks(), []);
}
