//! What is learned outlives the controller, is explained, and is not everybody's where others have the
//! address, too.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use steer_tests::{
    steer::{Settings, Steer},
    traffic::{Flow, probe_all},
    wire::Path,
};

use super::{
    FAR, HEADQUARTERS, Kind, Knowledge, NEAR, Office, PROVIDER, Question, SELECT, Software,
    answers::{knock, knocked},
    of, start, start_as,
};

/// What the provider says of a name of Windows Update.
const DELIVERY: &str = "23.2.2.9";

pub fn explained(steer: &Steer<'_>, address: &str) -> Value {
    let output = steer.command(&["explain", "--json", address]).unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn learned_addresses_are_explained_and_outlive_a_kill_and_a_restart() {
    let delivery = DELIVERY.parse().unwrap();
    let near = Knowledge::Zone {
        every: NEAR,
        names: vec![("au.download.windowsupdate.com".into(), delivery)],
    };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let mut steer = start(lab, &PROVIDER);
    assert_eq!(explained(&steer, NEAR[0])["verdict"], "pass");
    assert_eq!(
        office.asked("one.msftauth.net"),
        of(NEAR),
        "{}",
        steer.log()
    );
    let flows = NEAR.map(|it| Flow::tcp(it.parse().unwrap(), 443));
    let steered = |steer: &Steer<'_>, what: &str| {
        for address in NEAR {
            let answer = explained(steer, address);
            assert_eq!(answer["verdict"], "steer", "{what}: {answer}");
            assert_eq!(answer["learned"]["name"], "one.msftauth.net", "{answer}");
            assert_eq!(answer["learned"]["shared"], false, "{answer}");
            assert_eq!(answer["category"], "Default", "{answer}");
        }
        let captures = lab.capture().unwrap();
        let replies = probe_all(&lab.client, &flows).unwrap();
        let wires = captures.stop().unwrap();
        for reply in replies {
            assert_eq!(wires.path_of(&reply), Path::BREAKOUT, "{what}");
        }
    };
    steered(&steer, "learned");
    // A name of a list of the project's has an address of its own.
    let question = Question::new("au.download.windowsupdate.com", Kind::A);
    let reply = question.ask(&lab.client, HEADQUARTERS[0]).unwrap();
    assert_eq!(reply.addresses, [DELIVERY.parse::<IpAddr>().unwrap()]);
    let output = steer.command(&["dns", "--learned", "--json"]).unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lessons: Vec<_> = shown["learned"].as_array().unwrap().iter().collect();
    let of = |address: &str| lessons.iter().find(|it| it["address"] == address).unwrap();
    assert_eq!(of(NEAR[0])["list"], "worldwide", "{shown}");
    assert_eq!(of(DELIVERY)["list"], "own", "{shown}");
    assert_eq!(of(DELIVERY)["own"], "updates/windows-update", "{shown}");
    let output = steer.command(&["dns", "--learned"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = "for au.download.windowsupdate.com of service \"updates/windows-update\"";
    assert!(text.contains(line), "{text}");
    let output = steer
        .command(&["explain", "--port", "25", NEAR[0]])
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("-> pass") && text.contains("not with this port"),
        "{text}"
    );
    steer.kill().unwrap();
    steered(&steer, "killed");
    steer.run().unwrap();
    steer.wait_until_steering(super::PATIENCE).unwrap();
    steered(&steer, "started again");
    steer.stop().unwrap();
    steered(&steer, "stopped");
    steer.run().unwrap();
    steer.wait_until_steering(super::PATIENCE).unwrap();
    steered(&steer, "started once more");
    steer.detach().unwrap();
}

/// The ways that a first packet of each client takes to the shared address, after `refuse` or not.
fn ways(refuse: bool) -> Option<[Path; 2]> {
    let shared: IpAddr = FAR[0].parse().unwrap();
    let near = Knowledge::Zone {
        every: NEAR,
        names: vec![("shared.msftauth.net".into(), shared)],
    };
    let office = Office::start(Software::Dnsmasq, Software::Unbound, &near)?;
    let lab = &office.lab;
    let (lan4, _) = lab.lan();
    let clients = [100, 101].map(|host| Ipv4Addr::from_bits(lan4.network().to_bits() + host));
    for client in clients {
        let line = format!("addr add {client}/24 dev eth0\n");
        lab.client.ip(&line).unwrap();
    }
    let word = if refuse { "refuse" } else { "askers" };
    let settings = Settings {
        more: format!("{SELECT}shared = {word:?}\n"),
        ..Settings::default()
    };
    let steer = start_as(lab, &PROVIDER, &settings);
    let ask = |client: Ipv4Addr, name: &str| {
        let question = Question::new(name, Kind::A).from(client.into());
        let reply = question.ask(&lab.client, HEADQUARTERS[0]).unwrap();
        assert_eq!(reply.addresses, [shared], "{name}: {}", steer.log());
    };
    let ways = |clients: &[Ipv4Addr]| {
        let mut ways = vec![];
        for client in clients {
            let captures = lab.capture().unwrap();
            knock(&office, (*client).into(), shared);
            let [breakout, backbone] = knocked(&captures.stop().unwrap());
            assert_ne!(breakout.is_empty(), backbone.is_empty());
            ways.push(if backbone.is_empty() {
                Path::BREAKOUT
            } else {
                Path::Backbone
            });
        }
        ways
    };
    let [asker, other] = clients;
    ask(asker, "shared.msftauth.net");
    // While nobody else has the address, it is the class's.
    assert_eq!(ways(&clients), [Path::BREAKOUT, Path::BREAKOUT]);
    // A name that is nobody's business here, answered by headquarters with the same address.
    ask(other, "www.example.com");
    let answer = explained(&steer, FAR[0]);
    let events = &steer.status().unwrap()["dns"]["events"];
    assert!(events["shared-address"].as_u64() >= Some(1), "{events}");
    if refuse {
        assert_eq!(answer["verdict"], "pass", "{answer}");
    } else {
        assert_eq!(answer["learned"]["shared"], true, "{answer}");
        let reason = answer["reason"].as_str().unwrap();
        assert!(
            reason.contains("only for the clients that asked"),
            "{reason}"
        );
    }
    let after = ways(&clients);
    steer.detach().unwrap();
    Some([after[0], after[1]])
}

#[test]
fn an_address_that_other_names_have_too_is_steered_for_those_who_asked() {
    if let Some(ways) = ways(false) {
        assert_eq!(ways, [Path::BREAKOUT, Path::Backbone]);
    }
}

#[test]
fn an_address_that_other_names_have_too_is_refused_where_the_operator_says_so() {
    if let Some(ways) = ways(true) {
        assert_eq!(ways, [Path::Backbone, Path::Backbone]);
    }
}
