//! The exports that hold names: forwarders and the PAC file.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::json;
use steer_common::rule::TCP;
use steer_user::{
    endpoints::{EndpointSet, NamePattern},
    policy::{Flow, Plan, Verdict, unselected},
};

use super::{
    office::{self, Export, Office},
    statements,
    tool::{Tool, assert_judged},
};

const RESOLVERS: [&str; 4] = ["--resolver", "192.0.2.53", "--resolver", "2001:db8:53::53"];

#[test]
fn dnsmasq_forwards_the_names_of_selected_sets_and_no_others_below_them() {
    let office = Office::new(&[]);
    let export = office.export(&[&["dnsmasq"], &RESOLVERS[..]].concat());
    let Some(dnsmasq) = Tool::find("usr/sbin/dnsmasq") else {
        return;
    };
    assert_judged(&export.text, &office.folder, |file| {
        dnsmasq.run(&["--test", &format!("--conf-file={file}")])
    });
    let mut zones: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in statements(&export, '#') {
        let rest = line.strip_prefix("server=/").unwrap();
        let (zone, resolver) = rest.split_once('/').unwrap();
        zones.entry(zone.into()).or_default().push(resolver.into());
    }
    assert_forwarded(&office.plan, &export, &zones);
    // The feed has such names, and this format can say them.
    assert!(zones.values().any(|resolvers| *resolvers == ["#"]));
}

#[test]
fn unbound_forwards_the_names_of_selected_sets() {
    let office = Office::new(&[]);
    let export = office.export(&[&["unbound"], &RESOLVERS[..]].concat());
    let Some(unbound) = Tool::find("usr/sbin/unbound-checkconf") else {
        return;
    };
    assert_judged(&export.text, &office.folder, |file| {
        let conf = format!(
            "server:\n\tdirectory: \"\"\n\tchroot: \"\"\n\tusername: \"\"\n\tpidfile: \"\"\ninclude: {file}\n"
        );
        unbound.run(&[&office.write("unbound.conf", &conf)])
    });
    let mut zones: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut zone = String::new();
    for line in statements(&export, '#') {
        match line.trim().split_once(' ') {
            None => assert_eq!(line, "forward-zone:"),
            Some(("name:", name)) => {
                zone = name.trim_matches('"').strip_suffix('.').unwrap().to_owned();
            }
            Some(("forward-addr:", resolver)) => {
                let resolvers = zones.entry(zone.clone()).or_default();
                resolvers.push(resolver.to_owned());
            }
            _ => panic!("{line}"),
        }
    }
    assert_forwarded(&office.plan, &export, &zones);
}

/// A name goes to the resolvers when its most specific pattern is of a selected set, and otherwise
/// only if a note says so.
fn assert_forwarded(plan: &Plan, export: &Export, zones: &BTreeMap<String, Vec<String>>) {
    for (pattern, name) in questions(plan) {
        // The forwarder's own rule: the longest zone wins.
        let resolvers = (0..name.len())
            .filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.')
            .find_map(|at| zones.get(&name[at..]));
        let forwarded = resolvers.is_some_and(|resolvers| *resolvers != ["#"]);
        if forwarded {
            assert_eq!(resolvers.unwrap(), &[RESOLVERS[1], RESOLVERS[3]]);
        }
        let wanted = best(plan, &name, true) > best(plan, &name, false);
        if forwarded != wanted {
            let said = pattern.trim_start_matches("*.");
            assert!(export.notes.contains(said), "{name} of {pattern}");
            assert!(export.text.contains(said), "{name} of {pattern}");
        }
    }
    assert!(!zones.contains_key(""));
}

#[test]
fn a_browser_goes_direct_to_what_the_plan_steers_and_to_selected_names() {
    let office = Office::new(&[]);
    let export = office.export(&["pac", "--other", "PROXY \"quoted\":3128; DIRECT"]);
    let Some(duk) = Tool::find("usr/bin/duk") else {
        return;
    };
    let plan = &office.plan;
    let mut questions: Vec<(String, u16, bool)> = Vec::new();
    for flow in office::flows(plan) {
        if let Flow {
            destination: IpAddr::V4(address),
            protocol: TCP,
            port,
            ..
        } = flow
        {
            let steered = matches!(plan.decide(&flow), Verdict::Steer(_));
            questions.push((address.to_string(), port, steered));
        }
    }
    for (_, name) in self::questions(plan) {
        for port in [25, 79, 80, 81, 143, 442, 443, 444, 587, 993] {
            let with_port = |set: &EndpointSet| set.tcp.contains(port);
            let here = best_of(plan, &name, |set| selected(plan, set) && with_port(set));
            let direct = here > best(plan, &name, false).max(0);
            questions.push((name.clone(), port, direct));
        }
    }
    let asked: Vec<_> = questions
        .iter()
        .map(|(host, port, _)| json!([host, port]))
        .collect();
    let script = format!(
        "{}\nvar asked = {};\nfor (var i = 0; i < asked.length; i++) {{\n\
         var host = asked[i][0];\n\
         print(FindProxyForURL('https://' + host + ':' + asked[i][1] + '/path?q=1:2', host));\n}}\n",
        export.text,
        serde_json::Value::from(asked),
    );
    let said = duk.run(&[&office.write("asked.js", &script)]).unwrap();
    let answers: Vec<&str> = said.lines().collect();
    assert_eq!(answers.len(), questions.len());
    for ((host, port, direct), answer) in questions.iter().zip(answers) {
        let wanted = if *direct {
            "DIRECT"
        } else {
            "PROXY \"quoted\":3128; DIRECT"
        };
        assert_eq!(answer, wanted, "{host}:{port}");
    }
    assert!(questions.iter().filter(|(.., direct)| *direct).count() > 100);
}

#[test]
fn a_pac_file_knows_the_ports_of_schemes_and_takes_hosts_as_browsers_write_them() {
    let office = Office::new(&[]);
    let export = office.export(&["pac"]);
    let Some(duk) = Tool::find("usr/bin/duk") else {
        return;
    };
    let other = "PROXY proxy.example.com:8080";
    for (url, host, wanted) in [
        (
            "https://outlook.office.com/",
            "outlook.office.com",
            "DIRECT",
        ),
        ("http://outlook.office.com", "outlook.office.com", "DIRECT"),
        (
            "wss://OUTLOOK.office.com./x",
            "OUTLOOK.office.com.",
            "DIRECT",
        ),
        ("ftp://outlook.office.com/", "outlook.office.com", other),
        (
            "https://outlook.office.com:8443/",
            "outlook.office.com",
            other,
        ),
        ("https://outlookxoffice.com/", "outlookxoffice.com", other),
        (
            "https://outlook.office.com.example/",
            "outlook.office.com.example",
            other,
        ),
        ("https://[2603:1016::1]/", "[2603:1016::1]", other),
        ("https://52.112.1.1/?u=http://x:1", "52.112.1.1", "DIRECT"),
        ("https://52.112.0.1/", "52.112.0.1", other),
        ("nonsense", "outlook.office.com", other),
    ] {
        let call = format!("print(FindProxyForURL({}, {}));", json!(url), json!(host));
        let script = office.write("asked.js", &format!("{}\n{call}\n", export.text));
        assert_eq!(duk.run(&[&script]).unwrap().trim_end(), wanted, "{url}");
    }
}

/// A pattern of the feed, and a name that it stands for; of wildcards also a longer one.
fn questions(plan: &Plan) -> Vec<(String, String)> {
    let mut questions = Vec::new();
    for name in plan.feed().sets.iter().flat_map(|set| &set.names) {
        for star in ["x1", "a.b-c"] {
            let pattern = name.as_str().to_owned();
            questions.push((pattern.clone(), pattern.replace('*', star)));
        }
    }
    questions
}

fn selected(plan: &Plan, set: &EndpointSet) -> bool {
    unselected(plan.selection(), set).is_none()
}

/// How specific the best pattern for a name is among those of selected, or unselected, sets; a
/// pattern that a selected set has is no unselected one. -1: there is none.
fn best(plan: &Plan, name: &str, of_selected: bool) -> i32 {
    if of_selected {
        return best_of(plan, name, |set| selected(plan, set));
    }
    let taken: Vec<&NamePattern> = sets(plan, |set| selected(plan, set))
        .flat_map(|set| &set.names)
        .collect();
    sets(plan, |set| !selected(plan, set))
        .flat_map(|set| &set.names)
        .filter(|pattern| !taken.contains(pattern))
        .map(|pattern| specific(pattern.as_str(), name))
        .max()
        .unwrap_or(-1)
}

fn best_of(plan: &Plan, name: &str, which: impl Fn(&EndpointSet) -> bool) -> i32 {
    sets(plan, which)
        .flat_map(|set| &set.names)
        .map(|pattern| specific(pattern.as_str(), name))
        .max()
        .unwrap_or(-1)
}

fn sets(plan: &Plan, which: impl Fn(&EndpointSet) -> bool) -> impl Iterator<Item = &EndpointSet> {
    plan.feed().sets.iter().filter(move |set| which(set))
}

/// -1: the name is not among those of the pattern. An exact one is more specific than any other.
fn specific(pattern: &str, name: &str) -> i32 {
    if pattern == name {
        return 1000;
    }
    if pattern.contains('*') && stands_for(pattern.as_bytes(), name.as_bytes()) {
        return i32::try_from(pattern.len()).unwrap();
    }
    -1
}

fn stands_for(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|at| stands_for(rest, &name[at..])),
        ([first, pattern @ ..], [other, name @ ..]) if first == other => stands_for(pattern, name),
        _ => false,
    }
}
