//! Every export, loaded by the tool that it is for and compared with the plan: around the edges of
//! every prefix and port, with includes and excludes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod names;
mod office;
mod tool;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::Value;
use steer_common::rule::{TCP, UDP};
use steer_tests::namespace::Namespace;
use steer_user::{
    endpoints::Category,
    policy::{ClassLabel, Flow, Plan, Verdict},
};

use self::{
    office::{Export, Office},
    tool::{Tool, assert_judged},
};

/// The highest first: where two hold the same flow, the first counts.
const CATEGORIES: [(&str, Category); 3] = [
    ("optimize", Category::Optimize),
    ("allow", Category::Allow),
    ("default", Category::Default),
];

/// What a set of an export holds.
struct Element {
    prefix: IpNet,
    protocol: u8,
    ports: (u16, u16),
}

impl Element {
    fn has(&self, flow: &Flow) -> bool {
        let (lo, hi) = self.ports;
        self.protocol == flow.protocol
            && (lo..=hi).contains(&flow.port)
            && self.prefix.contains(&flow.destination)
    }
}

#[test]
fn the_kernels_nftables_sets_hold_what_the_plan_steers() {
    let office = Office::new(&[]);
    let export = office.export(&["nftables", "--table", "other_m365"]);
    let Some(nft) = Tool::find("usr/sbin/nft") else {
        return;
    };
    let router = router("nft");
    assert_judged(&export.text, &office.folder, |file| {
        nft.run_in(&router, &["-c", "-f", file])
    });
    // The second time it replaces what the first one brought.
    for _ in 0..2 {
        let loaded = nft.run_in(&router, &["-f", &export.file()]);
        loaded.unwrap();
    }
    let list = ["-j", "list", "table", "inet", "other_m365"];
    let list: Value = serde_json::from_str(&nft.run_in(&router, &list).unwrap()).unwrap();
    let mut sets: BTreeMap<String, Vec<Element>> = BTreeMap::new();
    for set in list["nftables"].as_array().unwrap() {
        let Some(set) = set.get("set") else { continue };
        let elements = set["elem"].as_array().into_iter().flatten();
        let name = set["name"].as_str().unwrap().to_owned();
        sets.insert(
            name,
            elements.map(|it| nft_element(&it["concat"])).collect(),
        );
    }
    assert_flows(&office.plan, &sets, "");
    assert_eq!(export.notes, "");
}

fn nft_element(concat: &Value) -> Element {
    let prefix = match &concat[0] {
        Value::String(address) => address.parse::<IpAddr>().unwrap().into(),
        net => {
            let (address, length) = (&net["prefix"]["addr"], &net["prefix"]["len"]);
            let text = format!("{}/{length}", address.as_str().unwrap());
            text.parse().unwrap()
        }
    };
    let port = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    let ports = match &concat[2] {
        one @ Value::Number(_) => (port(one), port(one)),
        many => (port(&many["range"][0]), port(&many["range"][1])),
    };
    Element {
        prefix,
        protocol: protocol(concat[1].as_str().unwrap()),
        ports,
    }
}

#[test]
fn the_kernels_ipsets_hold_what_the_plan_steers() {
    let office = Office::new(&[]);
    let export = office.export(&["ipset", "--prefix", "other"]);
    let Some(ipset) = Tool::find("usr/sbin/ipset") else {
        return;
    };
    let router = router("ipset");
    if let Err(said) = ipset.run_in(&router, &["create", "try", "hash:net,port"]) {
        println!("skipped: this kernel has no such sets: {said}");
        return;
    }
    ipset.run_in(&router, &["destroy", "try"]).unwrap();
    assert_judged(&export.text, &office.folder, |file| {
        // The second time it replaces what the first one brought.
        ipset.run_in(&router, &["restore", "-f", file])?;
        ipset.run_in(&router, &["restore", "-f", file])
    });
    ipset
        .run_in(&router, &["restore", "-f", &export.file()])
        .unwrap();
    let saved = ipset.run_in(&router, &["save"]).unwrap();
    let mut sets: BTreeMap<String, Vec<Element>> = BTreeMap::new();
    for line in saved.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["create", name, ..] => assert!(sets.insert((*name).to_owned(), vec![]).is_none()),
            ["add", name, element] => {
                let (net, port) = element.split_once(',').unwrap();
                let (protocol, port) = port.split_once(':').unwrap();
                let port = port.parse().unwrap();
                sets.get_mut(*name).unwrap().push(Element {
                    prefix: net_of(net),
                    protocol: self::protocol(protocol),
                    ports: (port, port),
                });
            }
            _ => panic!("{line}"),
        }
    }
    assert_flows(&office.plan, &sets, "other_");
    assert_eq!(export.notes, "");
}

#[test]
fn an_ipset_export_says_which_port_range_is_too_long_for_it() {
    let office = Office::new(&[r#"{ name = "all", prefixes = ["198.51.101.0/24"] }"#]);
    let export = office.export(&["ipset"]);
    assert!(
        export
            .notes
            .contains("198.51.101.0/24 tcp 1-65535 is left out"),
        "{}",
        export.notes
    );
    assert!(!export.text.contains("add steer_allow4_new 198.51.101."));
}

#[test]
fn frr_takes_lists_and_routes_for_the_addresses_that_the_plan_steers() {
    let office = Office::new(&[]);
    let arguments = [
        "frr",
        "--prefix",
        "other",
        "--gateway",
        "192.0.2.1",
        "--gateway6",
        "fe80::1",
        "--interface",
        "brk0",
        "--table",
        "100",
    ];
    let export = office.export(&arguments);
    let Some(vtysh) = Tool::find("usr/bin/vtysh") else {
        return;
    };
    assert_judged(&export.text, &office.folder, |file| {
        vtysh.run(&["-C", "-f", file])
    });
    let mut lists: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let mut routes = Vec::new();
    for line in statements(&export, '!') {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["ip" | "ipv6", "prefix-list", name, "seq", _, "permit", net] => {
                let name = (*name).to_owned();
                lists.entry(name).or_default().push(net.parse().unwrap());
            }
            ["ip", "route", net, "192.0.2.1", "brk0", "table", "100"]
            | ["ipv6", "route", net, "fe80::1", "brk0", "table", "100"] => {
                routes.push(net.parse().unwrap());
            }
            _ => panic!("{line}"),
        }
    }
    assert_addresses(&office.plan, &lists, &routes);
    assert_routes_say_that_ports_are_lost(&export);
}

#[test]
fn bird_takes_sets_and_routes_for_the_addresses_that_the_plan_steers() {
    let office = Office::new(&[]);
    let arguments = [
        "bird",
        "--prefix",
        "other",
        "--gateway",
        "192.0.2.1",
        "--gateway6",
        "fe80::1",
        "--interface",
        "brk0",
    ];
    let export = office.export(&arguments);
    let Some(bird) = Tool::find("usr/sbin/bird") else {
        return;
    };
    assert_judged(&export.text, &office.folder, |file| {
        let conf = office.write(
            "bird.conf",
            &format!(
                "router id 192.0.2.2;\nprotocol device {{}}\ninclude \"{file}\";\n\
                 filter all_sets {{ if net ~ other_optimize4 || net ~ other_allow4 then accept; reject; }}\n"
            ),
        );
        bird.run(&["-p", "-c", &conf])
    });
    let mut lists: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let mut routes = Vec::new();
    let mut list = None;
    for line in statements(&export, '#') {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("define ") {
            // One list for both families, as the other formats have it.
            let name = name.split(' ').next().unwrap().trim_end_matches(['4', '6']);
            list = Some(lists.entry(name.to_owned()).or_default());
        } else if line == "];" {
            list = None;
        } else if let Some(list) = &mut list {
            list.push(line.trim_end_matches(',').parse().unwrap());
        } else if let Some(route) = line.strip_prefix("route ") {
            let (net, via) = route.split_once(" via ").unwrap();
            let net: IpNet = net.parse().unwrap();
            let gateway = match net {
                IpNet::V4(_) => "192.0.2.1;",
                IpNet::V6(_) => "fe80::1%'brk0';",
            };
            assert_eq!(via, gateway);
            routes.push(net);
        }
    }
    assert_addresses(&office.plan, &lists, &routes);
    assert_routes_say_that_ports_are_lost(&export);
}

#[test]
fn without_a_gateway_no_route_is_written() {
    let office = Office::new(&[]);
    for (format, comment) in [("frr", '!'), ("bird", '#')] {
        let export = office.export(&[format]);
        let routes = statements(&export, comment).filter(|line| line.contains("route "));
        assert_eq!(routes.count(), 0, "{format}");
    }
}

#[test]
fn json_holds_what_the_plan_steers() {
    let office = Office::new(&[]);
    let export = office.export(&["json"]);
    let document: Value = serde_json::from_str(&export.text).unwrap();
    let digest = office.plan.feed().digest.to_string();
    assert_eq!(document["feed"]["digest"], digest);
    let classes: Vec<(String, Vec<Element>)> = document["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|class| (label(class), elements(class)))
        .collect();
    for flow in office::flows(&office.plan) {
        let holders: Vec<&str> = classes
            .iter()
            .filter(|(_, elements)| elements.iter().any(|element| element.has(&flow)))
            .map(|(label, _)| label.as_str())
            .collect();
        match office.plan.decide(&flow) {
            Verdict::Steer(matched) => {
                let label = match &matched.class.label {
                    ClassLabel::Set(id) => id.0.to_string(),
                    ClassLabel::Own(name) => name.clone(),
                };
                assert!(holders.contains(&label.as_str()), "{flow:?}: {holders:?}");
            }
            Verdict::Pass(_) => assert_eq!(holders, [""; 0], "{flow:?}"),
        }
    }
}

fn label(class: &Value) -> String {
    class["name"]
        .as_str()
        .map_or_else(|| class["set"].to_string(), ToOwned::to_owned)
}

fn elements(class: &Value) -> Vec<Element> {
    let mut elements = Vec::new();
    for (protocol, key) in [(TCP, "tcp_ports"), (UDP, "udp_ports")] {
        let ports = class[key].as_str().unwrap();
        for range in ports.split(',').filter(|range| !range.is_empty()) {
            let (lo, hi) = range.split_once('-').unwrap_or((range, range));
            let prefixes = class["prefixes"].as_array().unwrap();
            elements.extend(prefixes.iter().map(|prefix| Element {
                prefix: prefix.as_str().unwrap().parse().unwrap(),
                protocol,
                ports: (lo.parse().unwrap(), hi.parse().unwrap()),
            }));
        }
    }
    elements
}

/// A flow is in a set exactly when it is steered, and in the set of its category first.
fn assert_flows(plan: &Plan, sets: &BTreeMap<String, Vec<Element>>, prefix: &str) {
    let names: BTreeSet<String> = CATEGORIES
        .iter()
        .flat_map(|(word, _)| [format!("{prefix}{word}4"), format!("{prefix}{word}6")])
        .collect();
    assert_eq!(sets.keys().cloned().collect::<BTreeSet<_>>(), names);
    let flows = office::flows(plan);
    let mut steered = 0;
    for flow in &flows {
        let digit = if flow.destination.is_ipv4() { 4 } else { 6 };
        let first = CATEGORIES.iter().find(|(word, _)| {
            sets[&format!("{prefix}{word}{digit}")]
                .iter()
                .any(|element| element.has(flow))
        });
        let wanted = category(plan, flow);
        steered += usize::from(wanted.is_some());
        assert_eq!(first.map(|(_, category)| *category), wanted, "{flow:?}");
    }
    // Else the questions would be bad ones.
    assert!(steered > flows.len() / 50, "{steered} of {}", flows.len());
}

/// An address is in a list and on a route exactly when some flow to it is steered, and in the list
/// of the highest category of those first.
fn assert_addresses(plan: &Plan, lists: &BTreeMap<String, Vec<IpNet>>, routes: &[IpNet]) {
    let mut highest: BTreeMap<IpAddr, Option<Category>> = BTreeMap::new();
    for flow in office::flows(plan) {
        let best = highest.entry(flow.destination).or_default();
        *best = (*best).max(category(plan, &flow));
    }
    let known = CATEGORIES.map(|(word, _)| format!("other_{word}"));
    assert!(lists.keys().all(|name| known.contains(name)), "{lists:?}");
    let has = |nets: &[IpNet], address: &IpAddr| nets.iter().any(|net| net.contains(address));
    for (address, wanted) in highest {
        let first = CATEGORIES.iter().find(|(word, _)| {
            lists
                .get(&format!("other_{word}"))
                .is_some_and(|nets| has(nets, &address))
        });
        assert_eq!(first.map(|(_, category)| *category), wanted, "{address}");
        assert_eq!(has(routes, &address), wanted.is_some(), "route {address}");
    }
}

fn assert_routes_say_that_ports_are_lost(export: &Export) {
    let note = "a route takes every protocol and port to its prefix along";
    assert!(export.notes.contains(note), "{}", export.notes);
    assert!(export.text.contains(note));
}

fn category(plan: &Plan, flow: &Flow) -> Option<Category> {
    match plan.decide(flow) {
        Verdict::Steer(matched) => Some(matched.class.category),
        Verdict::Pass(_) => None,
    }
}

/// The lines that are no comment.
fn statements(export: &Export, comment: char) -> impl Iterator<Item = &str> {
    export
        .text
        .lines()
        .filter(move |line| !line.starts_with(comment))
}

fn protocol(name: &str) -> u8 {
    BTreeMap::from([("tcp", TCP), ("udp", UDP)])[name]
}

/// A prefix, or a single address.
fn net_of(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into())
}

fn router(name: &str) -> Namespace {
    Namespace::create(&format!("steer-{}-export-{name}", std::process::id())).unwrap()
}
