//! Clients that ask resolvers over TLS or HTTPS: their queries cannot be steered, and the operator is
//! told who they are.

use std::{
    net::{IpAddr, UdpSocket},
    process::Output,
};

use serde_json::{Value, json};
use steer_tests::{
    server::{Server, Site},
    traffic::{Flow, probe_all},
    wire::Path,
};

use super::{Knowledge, NEAR, Office, PROVIDER, Software, start, wait_for};

/// What the doctor says of it.
fn found(output: &Output) -> Vec<(String, String)> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    findings
        .filter(|it| it["check"] == "bypass")
        .map(|it| (text(it, "state"), text(it, "found")))
        .collect()
}

#[test]
fn clients_that_ask_past_the_resolver_are_named_and_blocked_ones_are_not() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let _resolver = Server::start(&lab.far, Site::Far, &[853], &[853]).unwrap();
    let local = |it: &str| format!("route add local {it} dev lo table local\n");
    let held = RESOLVERS.map(local).concat();
    lab.far.ip(&held).unwrap();
    let steer = start(lab, &PROVIDER);
    let doctor = || found(&steer.command(&["doctor", "--json"]).unwrap());
    let well = "no client is seen to ask past the office's resolvers";
    assert_eq!(doctor(), [("ok".to_owned(), well.to_owned())]);
    // The third host's are dropped by the box's firewall.
    let hosts = [0, 1, 2].map(|number| lab.host(number));
    lab.router
        .nft(&format!(
            "table ip owner {{ chain c {{ type filter hook forward priority 10; policy accept;
             ip saddr {} th dport {{ 443, 853 }} drop\n}}\n}}\n",
            hosts[2].0
        ))
        .unwrap();
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    let flows = [
        Flow::tcp(address("8.8.8.8"), 443).from(hosts[0].0),
        Flow::udp(address("8.8.8.8"), 443).from(hosts[1].0),
        Flow::tcp(address("2606:4700:4700::1111"), 443).from(hosts[1].1),
        Flow::tcp(address("93.184.216.99"), 853).from(hosts[0].0),
        Flow::udp(address("2620:fe::fe"), 853).from(hosts[0].1),
        // Neither a resolver that is known nor a port of theirs.
        Flow::tcp(address("93.184.216.34"), 443).from(hosts[0].0),
        Flow::tcp(address("9.9.9.9"), 80).from(hosts[0].0),
    ];
    let captures = lab.capture().unwrap();
    let blocked = || {
        let socket = UdpSocket::bind((hosts[2].0, 0))?;
        Ok(socket.send_to(b"blocked", "8.8.8.8:853")?)
    };
    lab.client.run(blocked).unwrap();
    let answers = probe_all(&lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    let dropped = wires
        .backbone
        .outbound()
        .all(|it| it.source.ip() != hosts[2].0);
    assert!(dropped, "by the firewall");
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::Backbone, "{}", answer.flow);
    }
    let [first, second] = [hosts[0], hosts[1]].map(|(v4, v6)| (v4.to_string(), v6.to_string()));
    let asked = |address: &str, operator: Option<&str>, over: &str, clients: &[&str]| json!({"address": address, "operator": operator, "over": over, "clients": clients});
    let expected = json!({
        "tls": 2,
        "https": 3,
        "resolvers": [
            asked("8.8.8.8", Some("Google"), "HTTPS", &[&first.0, &second.0]),
            asked("93.184.216.99", None, "TLS", &[&first.0]),
            asked("2606:4700:4700::1111", Some("Cloudflare"), "HTTPS", &[&second.1]),
            asked("2620:fe::fe", Some("Quad9"), "TLS", &[&first.1]),
        ],
    });
    // It was looked at when steer began, and that is told for 5 s.
    wait_for("word of the bypass", || {
        let status = steer.status().unwrap();
        status["dns"]["bypass"]["https"] != 0
    });
    assert_eq!(steer.status().unwrap()["dns"]["bypass"], expected);
    let said = doctor();
    assert_eq!(said.len(), 4, "{said:?}");
    let google = format!("8.8.8.8 (Google) over HTTPS by {}, {}", first.0, second.0);
    assert!(said.contains(&("note".to_owned(), google)), "{said:?}");
    let status = steer.command(&["status"]).unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    let line = format!("bypassed over TLS to 93.184.216.99 by {}\n", first.0);
    assert!(status.contains(&line), "{status}");
    steer.detach().unwrap();
}

/// Public resolvers of the lab.
const RESOLVERS: [&str; 4] = ["8.8.8.8", "9.9.9.9", "2606:4700:4700::1111", "2620:fe::fe"];
