//! Versions through time: real answers of the service where they are there, and a history of our
//! own. What is right is worked out here from the JSON alone.
//!
//! `STEER_FEED_CHANGES=1000` says how many versions come while flows run (12 unless told).

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    m365,
    server::Site,
    testrun::real_data,
    traffic::{Fleet, Flow, Protocol, probe_all},
    wire::Path,
};

use super::{Office, PATIENCE, edited, entries, list, moved, office, serve};

/// The answers of a folder of real ones, the oldest first; else some of our own.
fn history() -> Vec<(String, Value)> {
    let files = real_data("m365").into_iter();
    let files = files.flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut real: Vec<(String, Value)> = files
        .filter_map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name()?.to_str()?;
            let day = name.strip_prefix("worldwide-")?.strip_suffix(".json")?;
            let list = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            Some((format!("{day}00"), list))
        })
        .collect();
    real.sort_by(|one, other| one.0.cmp(&other.0));
    if real.is_empty() {
        println!("a history of our own is used instead");
        return made_up();
    }
    real
}

/// Every month something comes, goes, changes its ports or its category, or is a set of its own.
fn made_up() -> Vec<(String, Value)> {
    let mut lists = list();
    let mut versions = Vec::new();
    for month in 1..=6_usize {
        let set = |id: u64| lists.iter().position(|set| set["id"] == id).unwrap();
        let (exchange, teams) = (set(1), set(12));
        let ips = lists[exchange]["ips"].as_array_mut().unwrap();
        ips.remove(month);
        ips.push(json!(format!("150.171.{}.0/24", 100 + month)));
        lists[teams]["tcpPorts"] = json!(["80,443", "443", "443,8443"][month % 3]);
        lists[teams]["category"] = json!(["Allow", "Default", "Optimize"][month % 3]);
        lists.retain(|set| set["id"] != 600 + month - 1);
        lists.push(json!({
            "id": 600 + month, "serviceArea": "Common", "category": "Allow",
            "urls": [format!("month{month}.example.com")], "required": false,
            "ips": ["20.20.32.0/24", format!("2620:1ec:{month:x}::/48")], "tcpPorts": "443",
        }));
        versions.push((format!("2027{month:02}0100"), Value::from(lists.clone())));
    }
    versions
}

fn numbers(set: &Value, key: &str) -> BTreeSet<u16> {
    let text = set[key].as_str().unwrap_or_default();
    let items = text.split(',').filter(|it| !it.trim().is_empty());
    items
        .flat_map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            first.trim().parse().unwrap()..=last.trim().parse().unwrap()
        })
        .collect()
}

fn prefixes(set: &Value) -> impl Iterator<Item = IpNet> {
    let ips = set["ips"].as_array().into_iter().flatten();
    ips.map(|it| it.as_str().unwrap().parse().unwrap())
}

fn sets(list: &Value) -> &[Value] {
    list.as_array().unwrap()
}

/// Whether steer's own choice is to steer a set: Optimize and Allow, but for mail transport.
fn is_selected(set: &Value) -> bool {
    ["Optimize", "Allow"]
        .map(Value::from)
        .contains(&set["category"])
        && set["id"] != 10
}

fn is_steered(list: &Value, flow: &Flow) -> bool {
    sets(list).iter().filter(|set| is_selected(set)).any(|set| {
        let key = match flow.protocol {
            Protocol::Tcp => "tcpPorts",
            Protocol::Udp => "udpPorts",
        };
        numbers(set, key).contains(&flow.port)
            && prefixes(set).any(|prefix| prefix.contains(&flow.destination))
    })
}

/// A flow to every prefix with its set's first ports, where the lab's front ends answer.
fn flows_of(list: &Value) -> BTreeSet<(IpAddr, bool, u16)> {
    let reachable = |address: &IpAddr| {
        let mut prefixes = m365::FRONT_END_PREFIXES.iter();
        prefixes.any(|it| it.parse::<IpNet>().unwrap().contains(address))
    };
    let of_set = |set: &Value| {
        let mut tcp = numbers(set, "tcpPorts").into_iter();
        let mut udp = numbers(set, "udpPorts").into_iter();
        let tcp = tcp.rfind(|port| m365::TCP_PORTS.contains(port));
        let udp = udp.rfind(|port| m365::UDP_PORTS.contains(port));
        let mut flows = Vec::new();
        for prefix in prefixes(set) {
            // The last addresses of a prefix may be what other hosts of the lab call broadcast.
            let address = match prefix {
                IpNet::V4(v4) if v4.prefix_len() < 30 => {
                    IpAddr::from((u32::from(v4.broadcast()) - 1).to_be_bytes())
                }
                _ => prefix.network(),
            };
            flows.extend(tcp.map(|port| (address, true, port)));
            flows.extend(udp.map(|port| (address, false, port)));
        }
        flows
    };
    let flows = sets(list).iter().flat_map(of_set);
    flows.filter(|(address, ..)| reachable(address)).collect()
}

/// What else than entries a set says, by its name in differences.
fn fields(list: &Value) -> BTreeSet<(u64, &'static str, String)> {
    let of_set = |set: &Value| {
        let id = set["id"].as_u64().unwrap();
        let ports = |key: &'static str| (id, key, format!("{:?}", numbers(set, key)));
        let word = |key: &'static str| (id, key, set[key].to_string());
        [
            ports("tcpPorts"),
            ports("udpPorts"),
            word("category"),
            word("serviceArea"),
            word("required"),
        ]
    };
    sets(list).iter().flat_map(of_set).collect()
}

/// The fields that have another value, of sets that both lists have.
fn changed(old: &Value, new: &Value) -> BTreeSet<(u64, String)> {
    let ids = |list: &Value| -> BTreeSet<u64> {
        let ids = sets(list).iter().map(|set| set["id"].as_u64().unwrap());
        ids.collect()
    };
    let both = &ids(old) & &ids(new);
    let differ = &fields(new) - &fields(old);
    let differ = differ.into_iter().filter(|(id, ..)| both.contains(id));
    differ
        .map(|(id, field, _)| (id, field.to_owned()))
        .collect()
}

/// The same as a difference of steer's says it.
fn told_changed(difference: &Value) -> BTreeSet<(u64, String)> {
    let sets = difference["sets"].as_array().into_iter().flatten();
    sets.flat_map(|set| {
        let id = set["id"].as_u64().unwrap();
        let fields = set["changed"].as_array().into_iter().flatten();
        fields.map(move |it| (id, it["field"].as_str().unwrap().to_owned()))
    })
    .collect()
}

fn assert_exact(difference: &Value, old: &Value, new: &Value) {
    let (before, after) = (entries(old), entries(new));
    assert_eq!(moved(difference), [&after - &before, &before - &after]);
    assert_eq!(told_changed(difference), changed(old, new));
}

impl Office<'_> {
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.steer.command(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.unwrap().stdout).unwrap()
    }

    /// Serves a version, waits for the controller to take it by itself, and compares the journal.
    fn follow(&self, version: &str, old: &Value, new: &Value) {
        serve(&self.service, version, new.clone());
        let mut approved = false;
        let heard = |status: &Value| {
            let feed = &status["feed"];
            feed["version"] == version || (!approved && feed["update"]["waiting"] == version)
        };
        let status = self
            .steer
            .wait_for("the version is heard of", heard)
            .unwrap();
        if status["feed"]["version"] != version {
            // Years at once are more than the guards let pass.
            let approve = ["endpoints", "approve", version];
            assert!(self.steer.command(&approve).unwrap().status.success());
            approved = true;
        }
        let shown = self.json(&["endpoints", "show"]);
        let last = shown["journal"].as_array().unwrap().last().unwrap();
        assert_eq!(last["to"], version);
        assert_eq!(last["what"], "applied");
        assert_eq!(last["who"] == "steer", !approved, "{last}");
        assert_exact(&last["moved"], old, new);
    }
}

#[test]
fn each_version_of_a_history_is_steered_and_told_exactly() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let feed = "update = \"automatic\"\nremoval_delay = \"0s\"\ninterval = \"100ms\"";
    let office = office(&lab, feed);
    let mut old = Value::from(list());
    let mut before: Option<String> = None;
    for (version, new) in history() {
        office.follow(&version, &old, &new);
        let difference = office.json(&[
            "endpoints",
            "diff",
            before.as_deref().unwrap_or("base"),
            &version,
        ]);
        assert_exact(&difference, &old, &new);
        let captures = lab.capture().unwrap();
        let flows: Vec<Flow> = (&flows_of(&old) | &flows_of(&new))
            .into_iter()
            .map(|(address, tcp, port)| {
                if tcp {
                    Flow::tcp(address, port)
                } else {
                    Flow::udp(address, port)
                }
            })
            .collect();
        let answers: Vec<_> = flows
            .chunks(32)
            .flat_map(|flows| probe_all(&lab.client, flows).unwrap())
            .collect();
        let wires = captures.stop().unwrap();
        let mut steered = 0;
        for answer in &answers {
            let wanted = if is_steered(&new, &answer.flow) {
                steered += 1;
                Path::Breakout(1)
            } else {
                Path::Backbone
            };
            assert_eq!(wires.path_of(answer), wanted, "{version}: {}", answer.flow);
        }
        println!(
            "{version}: {} flows, {steered} of them steered",
            answers.len()
        );
        (old, before) = (new, Some(version));
    }
}

#[test]
fn versions_that_come_under_load_move_new_flows_only() {
    let changes = std::env::var("STEER_FEED_CHANGES");
    let changes: u32 = changes.map_or(12, |it| it.parse().unwrap());
    let lab = Lab::start(LabOptions::default()).unwrap();
    let feed = "update = \"automatic\"\nremoval_delay = \"0s\"\ninterval = \"100ms\"";
    let office = office(&lab, feed);
    let (a, b) = ("150.171.64.0/22", "150.171.72.0/22");
    let flow = |host: &str| Flow::tcp(host.parse().unwrap(), 443);
    let captures = lab.capture().unwrap();
    let period = Duration::from_millis(100);
    let stable = [flow("52.96.1.1"), flow("40.96.1.1"), flow("2603:1016::1")];
    let near = Fleet::open(&lab.client, &stable, period).unwrap();
    let foreign = [flow("150.171.64.1"), flow("150.171.72.1")];
    let far = Fleet::open(&lab.client, &foreign, period).unwrap();
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    let over = AtomicBool::new(false);
    let mut probed = Vec::new();
    let newcomers = thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let mut opened = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let [.., high, low] = opened.to_be_bytes();
                let host = IpAddr::from([52, 97, high, low | 1]);
                let answers = probe_all(&lab.client, &[Flow::tcp(host, 443), Flow::udp(host, 443)]);
                assert!(
                    answers.unwrap().iter().all(|it| it.site == Site::Near),
                    "{host}"
                );
                opened += 2;
            }
            opened
        });
        let until_here = Over(&over);
        let mut old = Value::from(list());
        for change in 0..changes {
            let (come, go) = if change % 2 == 0 { (a, b) } else { (b, a) };
            let new = edited(&[come], &[]);
            office.follow(&(2_027_010_100 + change).to_string(), &old, &new);
            assert!(!newcomers.is_finished());
            let host = |prefix: &str| prefix.replace("0/22", &format!("{}", 2 + change % 250));
            let flows = [flow(&host(come)), flow(&host(go))];
            let answers = probe_all(&lab.client, &flows).unwrap();
            assert_eq!([answers[0].site, answers[1].site], [Site::Near, Site::Far]);
            probed.push(answers);
            old = new;
        }
        drop(until_here);
        newcomers.join().unwrap()
    });
    near.wait_for_answers(PATIENCE).unwrap();
    far.wait_for_answers(PATIENCE).unwrap();
    for (fleet, site) in [(near, Site::Near), (far, Site::Far)] {
        for record in fleet.stop() {
            assert!(!record.was_moved() && record.sites == [site], "{record:?}");
        }
    }
    let wires = captures.stop().unwrap();
    assert_eq!(wires.leaks(), []);
    let astray = |it: &&steer_tests::wire::Packet| match it.destination.ip() {
        IpAddr::V4(v4) => matches!(v4.octets(), [52, 96 | 97, ..] | [40, 96, ..]),
        IpAddr::V6(v6) => v6.segments()[0] == 0x2603,
    };
    assert_eq!(wires.backbone.outbound().find(astray), None);
    // The captures are searched for each, so that a thousand are sampled.
    for answers in probed.iter().step_by(probed.len().div_ceil(50)) {
        assert_eq!(wires.path_of(&answers[0]), Path::Breakout(1));
        assert_eq!(wires.path_of(&answers[1]), Path::Backbone);
    }
    println!(
        "{changes} changes, {newcomers} new flows and 5 old ones, {} packets by the breakout: none moved, none astray",
        wires.breakout().outbound().count()
    );
}

/// Says that it is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
