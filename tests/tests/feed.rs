//! The endpoint list as change-managed input: a real `steer` asks a real HTTPS server that serves
//! versions through time, and everything that is no good list.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    namespace::Namespace,
    server::Site,
    steer::{Settings, Steer, binary},
    traffic::{Fleet, Flow, probe_all},
    webservice::{Reply, WebService},
};
use steer_user::endpoints::Feed;

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// The built-in list as the service writes it.
fn list() -> Vec<Value> {
    let feed = Feed::builtin().unwrap();
    let set = |set: &steer_user::endpoints::EndpointSet| {
        let names: Vec<&str> = set
            .names
            .iter()
            .map(steer_user::endpoints::NamePattern::as_str)
            .collect();
        json!({
            "id": set.id.0, "serviceArea": set.service_area.as_str(),
            "category": set.category.as_str(), "required": set.required,
            "ips": set.prefixes, "urls": names,
            "tcpPorts": set.tcp.to_string(), "udpPorts": set.udp.to_string(),
        })
    };
    feed.sets.iter().map(set).collect()
}

/// The list with other prefixes of set 1.
fn edited(come: &[&str], go: &[&str]) -> Value {
    let mut list = list();
    let ips = list[0]["ips"].as_array_mut().unwrap();
    assert!(go.iter().all(|it| ips.contains(&json!(it))), "{ips:?}");
    ips.retain(|it| !go.contains(&it.as_str().unwrap()));
    ips.extend(come.iter().map(|it| json!(it)));
    Value::from(list)
}

fn serve(service: &WebService, version: &str, list: Value) {
    let version = version.to_owned();
    service.say(move |target| {
        if target.starts_with("/version/") {
            Reply::json(&json!({"instance": "Worldwide", "latest": version}))
        } else if target.starts_with("/endpoints/") {
            Reply::json(&list)
        } else {
            Reply::json(&json!([{"endpointSetId": 1, "disposition": "Change", "impact": "AddedIp",
                "version": version, "add": {"effectiveDate": "20270101", "ips": ["150.171.64.0/22"]}}]))
        }
    });
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

fn entries(list: &Value) -> BTreeSet<(u64, String)> {
    let sets = list.as_array().unwrap().iter();
    sets.flat_map(|set| {
        let id = set["id"].as_u64().unwrap();
        ["ips", "urls"]
            .into_iter()
            .flat_map(move |key| set[key].as_array().unwrap())
            .map(move |entry| (id, entry.as_str().unwrap().to_owned()))
    })
    .collect()
}

/// What a difference of steer's says came and went.
fn moved(difference: &Value) -> [BTreeSet<(u64, String)>; 2] {
    ["added", "removed"].map(|verb| {
        let sets = difference["sets"].as_array().into_iter().flatten();
        sets.flat_map(|set| {
            let id = set["id"].as_u64().unwrap();
            ["prefixes", "names"]
                .into_iter()
                .filter_map(|what| set[format!("{verb}_{what}")].as_array().cloned())
                .flatten()
                .map(move |entry| (id, entry.as_str().unwrap().to_owned()))
        })
        .collect()
    })
}

/// A namespace with a web service, and a `steer` that no controller runs beside.
struct Alone {
    namespace: Namespace,
    service: WebService,
    folder: tempfile::TempDir,
}

impl Alone {
    fn start(name: &str, feed: &str) -> Self {
        let namespace = Namespace::create(&format!("steer-{}-{name}", std::process::id())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("ca.pem");
        let any = "127.0.0.1:0".parse().unwrap();
        let service = WebService::start(&namespace, any, "127.0.0.1", &pem).unwrap();
        let at = folder.path().display();
        let config = format!(
            "[feed]\nurl = \"https://{}\"\nca_file = \"{at}/ca.pem\"\n{feed}\n\
             [[lan]]\ninterface = \"lan0\"\nsources = [\"10.0.0.0/8\"]\n\
             [[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n\
             [system]\nstate_dir = \"{at}/state\"\nrun_dir = \"{at}/run\"\npin_dir = \"{at}/pins\"\n",
            service.address
        );
        fs::write(folder.path().join("steer.toml"), config).unwrap();
        Self {
            namespace,
            service,
            folder,
        }
    }

    fn steer(&self, arguments: &[&str], cut: Option<u32>) -> Output {
        let mut command = self.namespace.command(binary().unwrap());
        command.arg("endpoints").args(arguments);
        command
            .arg("--config")
            .arg(self.folder.path().join("steer.toml"));
        command.envs(cut.map(|point| ("STEER_CUT", format!("feed {point}"))));
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.steer(&[arguments, &["--json"]].concat(), None);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fine(&self, arguments: &[&str]) -> String {
        let output = self.steer(arguments, None);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    fn refused(&self, arguments: &[&str], why: &str) {
        let output = self.steer(arguments, None);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(why),
            "{why:?} is missing in {}",
            text(&output)
        );
    }

    fn version(&self) -> Value {
        self.json(&["show"])["report"]["version"].clone()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }
}

#[test]
fn versions_come_wait_are_approved_pinned_and_rolled_back() {
    let alone = Alone::start("manage", "update = \"approve\"\nremoval_delay = \"0s\"");
    let (first, second) = (
        edited(&["150.171.64.0/22"], &[]),
        edited(&[], &["132.245.0.0/16"]),
    );
    serve(&alone.service, "2026070100", first.clone());
    alone.refused(&["update"], "an operator has to approve it");
    assert_eq!(alone.version(), Value::Null);
    assert_eq!(alone.json(&["show"])["report"]["waiting"], "2026070100");
    assert_eq!(alone.json(&["show"])["calendar"][0][0], "20270101");
    alone.refused(&["approve", "2026070101"], "2026070100 is held back");
    alone.fine(&["approve", "--why", "change 7"]);
    assert_eq!(alone.version(), "2026070100");
    serve(&alone.service, "2026080100", second.clone());
    alone.refused(&["update"], "approve");
    alone.fine(&["approve"]);
    let difference = alone.json(&["diff", "2026070100", "2026080100"]);
    let (old, new) = (entries(&first), entries(&second));
    let wanted = [&new - &old, &old - &new];
    assert_eq!(moved(&difference), wanted);
    let journal = alone.json(&["show"])["journal"].clone();
    let last = journal.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["what"], moved(&last["moved"])),
        (&json!("applied"), wanted)
    );

    alone.fine(&["rollback"]);
    assert_eq!(alone.version(), "2026070100");
    serve(&alone.service, "2026090100", second);
    alone.refused(&["update"], "pinned by");
    alone.refused(&["approve"], "unpin");
    alone.fine(&["unpin"]);
    alone.fine(&["approve"]);
    assert_eq!(alone.version(), "2026090100");
    alone.fine(&["pin", "2026070100"]);
    assert_eq!(alone.version(), "2026070100");
    let shown = alone.json(&["show", "--journal", "100"]);
    let whats: Vec<&str> = shown["journal"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        whats,
        [
            "held",
            "applied",
            "held",
            "applied",
            "rolled_back",
            "held",
            "unpinned",
            "applied",
            "rolled_back"
        ]
    );
    // One GUID for all of it, and the list only when the version moved.
    let asked = alone.service.asked();
    let guids: BTreeSet<&str> = asked
        .iter()
        .map(|it| &it.split("ClientRequestId=").nth(1).unwrap()[..36])
        .collect();
    assert_eq!(guids.len(), 1, "{asked:?}");
    alone
        .service
        .say(|_| Reply::json(&json!({"instance": "Worldwide", "latest": "2026070100"})));
    alone.fine(&["update"]);
    assert_eq!(alone.service.asked().len(), 1);
}

#[test]
fn guards_and_hooks_hold_a_list_back_and_say_why() {
    let guards = "guards = { deny = [\"8.8.8.0/24\"], widest_v4 = 12 }\nupdate = \"automatic\"";
    let alone = Alone::start("guards", guards);
    let without_11: Vec<Value> = list().into_iter().filter(|set| set["id"] != 11).collect();
    let mut short = list();
    short.truncate(8);
    for (version, list, why, approved) in [
        (
            "2026070100",
            without_11.into(),
            "set 11, which is required, is missing",
            true,
        ),
        ("2026070101", Value::from(short), "at most 30 %", true),
        (
            "2026070102",
            edited(&["8.8.8.8/32"], &[]),
            "denylist",
            false,
        ),
        (
            "2026070103",
            edited(&["24.0.0.0/11"], &[]),
            "wider than /12",
            false,
        ),
    ] {
        serve(&alone.service, version, list);
        alone.refused(&["update"], why);
        assert_eq!(alone.version(), Value::Null, "{why}");
        if approved {
            continue;
        }
        alone.refused(&["approve"], why);
    }
    serve(
        &alone.service,
        "2026070200",
        edited(&["150.171.64.0/22"], &[]),
    );
    let config = alone.folder.path().join("steer.toml");
    let good = fs::read_to_string(&config).unwrap();
    for (hook, why) in [
        ("[\"/bin/false\"]", "ended with"),
        ("[\"/bin/sleep\", \"60\"]", "longer than"),
    ] {
        let hooks = format!("hooks = {{ before = {hook}, timeout = \"300ms\" }}\n[[lan]]");
        fs::write(&config, good.replacen("[[lan]]", &hooks, 1)).unwrap();
        alone.refused(&["update"], why);
    }
    let out = alone.folder.path().join("told");
    let hooks = format!(
        "hooks = {{ after = [\"/bin/sh\", \"-c\", \"cat > {}\"] }}\n[[lan]]",
        out.display()
    );
    fs::write(&config, good.replacen("[[lan]]", &hooks, 1)).unwrap();
    alone.fine(&["update"]);
    let told: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
    assert_eq!(told["to"], "2026070200");
    assert_eq!(
        moved(&told["moved"])[0],
        BTreeSet::from([(1, "150.171.64.0/22".into())])
    );
}

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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// What is no good answer of the endpoints method: a name, the reply, a word of the reason.
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_answers() -> Vec<(String, Reply, &'static str)> {
    let good = Value::from(list()).to_string().into_bytes();
    let mut bad: Vec<(String, Reply, &'static str)> = Vec::new();
    for status in [
        "201 Created",
        "204 No Content",
        "304 Not Modified",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "407 Proxy Authentication Required",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ] {
        bad.push((status.into(), Reply::http(status, "", b""), "answered"));
    }
    bad.push((
        "429".into(),
        Reply::http("429 Too Many Requests", "retry-after: 7\r\n", b""),
        "asked again in 7 s",
    ));
    for (to, why) in [
        ("/endpoints/Worldwide", "more than 4 redirections"),
        ("http://127.0.0.1/", "not HTTPS"),
        ("ftp://x/", "not HTTPS"),
    ] {
        bad.push((
            format!("redirection to {to}"),
            Reply::http("302 Found", &format!("location: {to}\r\n"), b""),
            why,
        ));
    }
    bad.push((
        "redirection to nowhere".into(),
        Reply::http("302 Found", "", b""),
        "redirects to nowhere",
    ));
    let length = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", good.len());
    for end in (0..good.len()).step_by(1024) {
        let bytes = [length.as_bytes(), &good[..end]].concat();
        bad.push((
            format!("cut short after {end} bytes"),
            Reply::Raw(bytes),
            "cut short",
        ));
    }
    let half = &good[..good.len() / 2];
    bad.push((
        "half a list that says it is whole".into(),
        Reply::http("200 OK", "", half),
        "ends too early",
    ));
    bad.push((
        "nothing at all".into(),
        Reply::Raw(Vec::new()),
        "connection closed",
    ));
    bad.push((
        "no HTTP".into(),
        Reply::Raw(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()),
        "invalid HTTP",
    ));
    bad.push((
        "silence".into(),
        Reply::Stall(Vec::new()),
        "no whole answer",
    ));
    bad.push((
        "half, then silence".into(),
        Reply::Stall([length.as_bytes(), half].concat()),
        "no whole answer",
    ));
    bad.push((
        "huge".into(),
        Reply::http("200 OK", "", &vec![b' '; (16 << 20) + 1]),
        "no list has",
    ));
    let packed = "content-encoding: gzip\r\n";
    bad.push((
        "a bomb".into(),
        Reply::http("200 OK", packed, &gzip(&vec![b' '; 64 << 20])),
        "no list has",
    ));
    bad.push((
        "not packed".into(),
        Reply::http("200 OK", packed, &good),
        "cannot be unpacked",
    ));
    let gz = gzip(&good);
    bad.push((
        "packed and cut".into(),
        Reply::http("200 OK", packed, &gz[..gz.len() / 2]),
        "cannot be unpacked",
    ));
    bad.push((
        "packed otherwise".into(),
        Reply::http("200 OK", "content-encoding: br\r\n", &good),
        "not asked for",
    ));
    for (what, feed, _) in steer_user::endpoints::cases::bad() {
        if feed.len() < 1 << 20 {
            bad.push((
                what.into(),
                Reply::http("200 OK", "content-type: text/html\r\n", feed.as_bytes()),
                "is refused whole",
            ));
        }
    }
    bad
}

struct Office<'lab> {
    service: WebService,
    steer: Steer<'lab>,
}

fn office<'lab>(lab: &'lab Lab, feed: &str) -> Office<'lab> {
    let pem = lab.directory().join("ca.pem");
    let address = "192.88.99.2:9443".parse().unwrap();
    let service = WebService::start(&lab.near, address, "192.88.99.2", &pem).unwrap();
    let settings = Settings {
        more: format!(
            "[feed]\nurl = \"https://{address}\"\nca_file = \"{}\"\nvia = \"isp-1\"\n{feed}\n",
            pem.display()
        ),
        ..Settings::default()
    };
    let steer = Steer::start(lab, &settings).unwrap();
    Office { service, steer }
}

impl Office<'_> {
    fn update(&self) -> Output {
        self.steer.command(&["endpoints", "update"]).unwrap()
    }
}

#[test]
fn bad_answers_leave_the_plan_alone_with_a_reason_and_good_ones_are_taken_again() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let office = office(
        &lab,
        "update = \"automatic\"\nremoval_delay = \"0s\"\ntimeout = \"2s\"",
    );
    serve(
        &office.service,
        "2026070100",
        edited(&["150.171.64.0/22"], &[]),
    );
    assert!(office.update().status.success(), "{}", office.steer.log());
    let before = office.steer.status().unwrap();
    let bad = bad_answers();
    assert!(bad.len() >= 40, "{}", bad.len());
    for (what, reply, why) in &bad {
        let reply = reply.clone();
        office.service.say(move |target| {
            if target.starts_with("/version/") {
                Reply::json(&json!({"instance": "Worldwide", "latest": "2026080100"}))
            } else {
                reply.clone()
            }
        });
        let output = office.update();
        assert_eq!(output.status.code(), Some(1), "{what}: {}", text(&output));
        assert!(
            text(&output).contains(why),
            "{what}: {why:?} is missing in {}",
            text(&output)
        );
        let status = office.steer.status().unwrap();
        assert_eq!(status["plan"], before["plan"], "{what}");
        let error = status["feed"]["update"]["error"].as_str().unwrap();
        assert!(error.contains(why), "{what}: {error}");
        assert!(
            office
                .steer
                .whole_log()
                .unwrap()
                .contains(error.lines().next().unwrap()),
            "{what}"
        );
    }
    let errors = office.steer.status().unwrap()["feed"]["update"]["errors"].clone();
    let counted: u64 = errors
        .as_object()
        .unwrap()
        .values()
        .map(|it| it.as_u64().unwrap())
        .sum();
    assert_eq!(counted, bad.len() as u64, "{errors}");
    println!("{} bad answers: {errors}", bad.len());

    serve(
        &office.service,
        "2026080100",
        edited(&["150.171.72.0/22"], &[]),
    );
    assert!(office.update().status.success(), "{}", office.steer.log());
    let status = office.steer.status().unwrap();
    assert_eq!(status["feed"]["version"], "2026080100");
    assert_eq!(status["feed"]["update"]["error"], Value::Null);
    let flow = [Flow::tcp("150.171.72.9".parse().unwrap(), 443)];
    assert_eq!(probe_all(&lab.client, &flow).unwrap()[0].site, Site::Near);
    // An older version is refused, too.
    serve(&office.service, "2026070100", edited(&[], &[]));
    assert!(text(&office.update()).contains("older than 2026080100"));
}

#[test]
fn versions_through_time_are_steered_within_a_poll_and_move_new_flows_only() {
    const VERSIONS: u32 = 12;
    let rounds = std::env::var("STEER_FEED_CHANGES")
        .ok()
        .and_then(|it| it.parse().ok());
    let rounds: u32 = rounds.unwrap_or(VERSIONS);
    let lab = Lab::start(LabOptions::default()).unwrap();
    let office = office(
        &lab,
        "update = \"automatic\"\nremoval_delay = \"0s\"\ninterval = \"100ms\"",
    );
    let (a, b) = ("150.171.64.0/22", "150.171.72.0/22");
    let flow = |host: &str| Flow::tcp(host.parse().unwrap(), 443);
    let captures = lab.capture().unwrap();
    let period = Duration::from_millis(100);
    let near = Fleet::open(&lab.client, &[flow("52.96.1.1"), flow("40.96.1.1")], period).unwrap();
    let far = Fleet::open(
        &lab.client,
        &[flow("150.171.64.1"), flow("150.171.72.1")],
        period,
    )
    .unwrap();
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    let mut old = Value::from(list());
    for round in 0..rounds {
        let (come, go) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let version = 2_027_010_100 + round;
        let new = edited(&[come], &[]);
        serve(&office.service, &version.to_string(), new.clone());
        let deadline = std::time::Instant::now() + PATIENCE;
        while office.steer.status().unwrap()["feed"]["version"] != json!(version.to_string()) {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                office.steer.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let host = |prefix: &str| prefix.replace("0/22", &format!("{}", 2 + round % 250));
        let answers = probe_all(&lab.client, &[flow(&host(come)), flow(&host(go))]).unwrap();
        assert_eq!(answers[0].site, Site::Near, "{version}");
        assert_eq!(answers[1].site, Site::Far, "{version}");
        let output = office
            .steer
            .command(&["endpoints", "show", "--json"])
            .unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let last = shown["journal"].as_array().unwrap().last().unwrap().clone();
        let (before, after) = (entries(&old), entries(&new));
        assert_eq!(last["to"], json!(version.to_string()));
        assert_eq!(last["who"], "steer");
        assert_eq!(moved(&last["moved"]), [&after - &before, &before - &after]);
        old = new;
    }
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    for (fleet, site) in [(near, Site::Near), (far, Site::Far)] {
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.sites == [site], "{record:?}");
        }
    }
    assert_eq!(captures.stop().unwrap().leaks(), []);
}
