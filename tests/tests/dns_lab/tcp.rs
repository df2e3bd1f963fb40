//! Queries over TCP that steer reads: names of the plan are asked near, everything else goes on as it
//! went, and without steer nothing is different.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use steer_tests::{
    steer::Steer,
    traffic::{Flow, probe_all},
    wire::{Path, Wire},
};

use super::{
    FAR, HEADQUARTERS, KINDS, Kind, Knowledge, NEAR, Office, PROVIDER, Question, Resolver,
    Software, ask::Connection, learned::explained, of, start, start_with, wait_for,
};

const FORWARD: &str = "tcp = \"forward\"\n";

/// What both servers say over TCP, the one over IPv4 and the other over IPv6.
fn asked(office: &Office, name: &str) -> [Vec<IpAddr>; 2] {
    [0, 1].map(|at| {
        let question = Question::new(name, KINDS[at]);
        let reply = question.ask_tcp(&office.lab.client, HEADQUARTERS[at]);
        assert_eq!((reply.rcode, reply.truncated), (0, false), "{name}");
        reply.addresses
    })
}

/// Who asked whom on a wire.
fn askers(wire: &Wire) -> BTreeSet<(IpAddr, IpAddr)> {
    let asked = wire.outbound().filter(|it| it.destination.port() == 53);
    asked
        .map(|it| (it.source.ip(), it.destination.ip()))
        .collect()
}

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|it| it.parse().unwrap())
}

#[test]
fn names_of_the_plan_are_asked_near_and_others_as_the_client_asks() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let plan = |number| Question::new("outlook.office.com", KINDS[number]);
    // As `wg-quick` and careful distributions have it: the way back is looked at, with the mark.
    for key in ["rp_filter", "src_valid_mark"] {
        let key = format!("net.ipv4.conf.all.{key}");
        lab.router.sysctl(&key, 1).unwrap();
    }
    let mut before = Connection::open(&lab.client, HEADQUARTERS[0]);
    let mut steer = start_with(lab, &PROVIDER, FORWARD);
    let captures = lab.capture().unwrap();
    for name in [
        "outlook.office.com",
        "OutLook.Office.com",
        "a.sharepoint.com",
        "one.msftauth.net",
    ] {
        assert_eq!(asked(&office, name), of(NEAR), "{name}: {}", steer.log());
    }
    for name in ["www.example.com", "left.sharepoint.com"] {
        assert_eq!(asked(&office, name), of(FAR), "{name}: {}", steer.log());
    }
    // All at once, in one connection.
    let mut connection = Connection::open(&lab.client, HEADQUARTERS[1]);
    let names = [
        "www.example.com",
        "a.sharepoint.com",
        "b.example.com",
        "b.sharepoint.com",
    ];
    let replies = connection.ask(&names.map(|name| Question::new(name, Kind::A)));
    let replies: Vec<_> = replies.into_iter().map(|it| it.addresses).collect();
    let [far, near] = [of(FAR)[0].clone(), of(NEAR)[0].clone()];
    assert_eq!(replies, [&far, &near, &far, &near].map(Clone::clone));
    // One that began without steer stays where it is.
    assert_eq!(before.ask(&[plan(0)])[0].addresses, far);
    let wires = captures.stop().unwrap();
    let near_servers: BTreeSet<_> = askers(wires.breakout())
        .into_iter()
        .map(|it| it.1)
        .collect();
    assert_eq!(near_servers, addresses(PROVIDER).into());
    let (v4, v6) = lab.host(0);
    let far_asked: BTreeSet<_> = [v4, v6].into_iter().zip(addresses(HEADQUARTERS)).collect();
    assert_eq!(askers(&wires.backbone), far_asked);
    assert_eq!(wires.leaks(), []);
    let status = steer.status().unwrap();
    assert_eq!(status["dns"]["tcp"]["near"], 10, "{status}");
    assert_eq!(status["dns"]["tcp"]["learned"], 2, "{status}");
    assert_eq!(status["dns"]["tcp"]["fell_back"], 0, "{status}");
    // Without a controller nobody listens; what is open ends, and the next goes where it is sent.
    steer.kill().unwrap();
    assert_eq!(asked(&office, "outlook.office.com"), of(FAR));
    assert_eq!(before.ask(&[plan(0)])[0].addresses, far);
    steer.run().unwrap();
    steer.wait_until_steering(super::PATIENCE).unwrap();
    assert_eq!(
        asked(&office, "outlook.office.com"),
        of(NEAR),
        "{}",
        steer.log()
    );
    // A resolver that is gone costs a moment, and no name.
    drop(office.near.take());
    assert_eq!(
        asked(&office, "c.sharepoint.com"),
        of(FAR),
        "{}",
        steer.log()
    );
    steer.detach().unwrap();
    assert_eq!(asked(&office, "outlook.office.com"), of(FAR));
}

#[test]
fn after_a_truncated_answer_the_connection_gets_the_near_one() {
    let own = |number: u8| IpAddr::from([23, 2, 9, number]);
    let many: Vec<_> = (0..40)
        .map(|number| ("many.sharepoint.com".to_owned(), own(number)))
        .collect();
    let near = Knowledge::Zone {
        every: NEAR,
        names: many,
    };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let steer = start_with(lab, &PROVIDER, FORWARD);
    for server in HEADQUARTERS {
        let question = Question::new("many.sharepoint.com", Kind::A).edns(None);
        let short = question.ask(&lab.client, server).unwrap();
        assert!(short.truncated, "{short:?}");
        let whole = question.ask_tcp(&lab.client, server);
        let addresses: BTreeSet<_> = whole.addresses.into_iter().collect();
        assert_eq!(addresses, (0..40).map(own).collect(), "{}", steer.log());
    }
    steer.detach().unwrap();
}

/// A client asks for a name without prefixes over TCP: which way its first packets take to what it is
/// told, and what it is told.
fn first_packets(office: &Office, steer: &Steer<'_>, name: &str, own: &[IpAddr]) -> Path {
    let captures = office.lab.capture().unwrap();
    let mut told = BTreeSet::new();
    for (kind, server) in KINDS.into_iter().zip(HEADQUARTERS) {
        let reply = Question::new(name, kind).ask_tcp(&office.lab.client, server);
        told.extend(reply.addresses);
    }
    assert_eq!(told, own.iter().copied().collect(), "{}", steer.log());
    let flows: Vec<Flow> = own.iter().map(|it| Flow::tcp(*it, 443)).collect();
    let replies = probe_all(&office.lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    assert_eq!(wires.leaks(), []);
    let paths: BTreeSet<Path> = replies.iter().map(|it| wires.path_of(it)).collect();
    assert_eq!(paths.len(), 1, "{paths:?} {}", steer.log());
    *paths.first().unwrap()
}

#[test]
fn answers_over_tcp_teach_before_the_client_has_them() {
    const NAME: &str = "many.msftauth.net";
    let v4 = (1..=20).map(|host| IpAddr::from([23, 2, 1, host]));
    let v6 = (1..=20).map(|host| IpAddr::from([0x2606, 0x4700, 1, 0, 0, 0, 0, host]));
    let own: Vec<IpAddr> = v4.chain(v6).collect();
    let near = Knowledge::Zone {
        every: NEAR,
        names: own.iter().map(|it| (NAME.to_owned(), *it)).collect(),
    };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let steer = start_with(&office.lab, &PROVIDER, FORWARD);
    assert_eq!(first_packets(&office, &steer, NAME, &own), Path::BREAKOUT);
    let explained = steer.command(&["explain", "23.2.1.7"]).unwrap();
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(explained.contains(NAME), "{explained}");
    // What the server of the client's choice answers teaches, too.
    drop(office.near.take());
    let far = FAR.map(|it| it.parse().unwrap());
    assert_eq!(
        first_packets(&office, &steer, "one.msftauth.net", &far),
        Path::BREAKOUT
    );
    let status = steer.status().unwrap();
    assert_eq!(status["dns"]["tcp"]["learned"], 42, "{status}");
    steer.detach().unwrap();
}

#[test]
fn the_router_as_the_resolver_is_asked_for_other_names_and_a_firewall_that_drops_is_noticed() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let (lan4, lan6) = lab.lan();
    let [v4, v6]: [IpAddr; 2] = [
        std::net::Ipv4Addr::from_bits(lan4.network().to_bits() + 1).into(),
        std::net::Ipv6Addr::from_bits(lan6.network().to_bits() + 1).into(),
    ];
    let own = [v4.to_string(), v6.to_string()];
    let own = [own[0].as_str(), own[1].as_str()];
    let knowledge = Knowledge::Forward(HEADQUARTERS);
    let resolver = Resolver::start(lab, &lab.router, Software::Dnsmasq, own, &knowledge);
    let Some(_resolver) = resolver else { return };
    let ask = |name: &str, at: usize| {
        Question::new(name, KINDS[at])
            .ask_tcp(&lab.client, own[at])
            .addresses
    };
    for server in own {
        wait_for("resolver of the router", || {
            office.ask("www.example.com", Kind::A, server).is_some()
        });
    }
    let steer = start_with(lab, &PROVIDER, FORWARD);
    for at in [0, 1] {
        assert_eq!(
            ask("outlook.office.com", at),
            of(NEAR)[at],
            "{}",
            steer.log()
        );
        assert_eq!(ask("www.example.com", at), of(FAR)[at], "{}", steer.log());
    }
    // The firewall knows that the LAN may ask the router itself, and nobody else through it.
    let rules = format!(
        "table inet box {{ chain input {{ type filter hook input priority 0; policy accept;
         iifname \"lan0\" tcp dport 53 ip daddr != {v4} drop
         iifname \"lan0\" tcp dport 53 ip6 daddr != {v6} drop\n}}\n}}\n"
    );
    lab.router.nft(&rules).unwrap();
    let server = SocketAddr::new(HEADQUARTERS[0].parse().unwrap(), 53);
    wait_for("word that connections are lost", || {
        let connect = || Ok(TcpStream::connect_timeout(&server, Duration::from_millis(50)).is_ok());
        let _ = lab.client.run(connect).unwrap();
        // steer looks at its table once in 10 s, and at once when somebody deletes something there.
        let touch = "add chain inet steer other\ndelete chain inet steer other\n";
        lab.router.nft(touch).unwrap();
        let status = steer.status().unwrap();
        let problems = status["problems"].to_string();
        problems.contains("let TCP port 53 from the LAN in") && status["dns"]["tcp"].is_null()
    });
    assert_eq!(asked(&office, "outlook.office.com"), of(FAR));
    // Let in, they are read again.
    lab.router.nft("delete table inet box").unwrap();
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success());
    assert_eq!(
        asked(&office, "outlook.office.com"),
        of(NEAR),
        "{}",
        steer.log()
    );
    steer.detach().unwrap();
}

#[test]
fn clients_whose_queries_are_left_alone_get_the_far_answers() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let steer = start_with(&office.lab, &PROVIDER, FORWARD);
    let reload = |from: &str, to: &str| {
        let text = fs::read_to_string(steer.config()).unwrap();
        fs::write(steer.config(), text.replacen(from, to, 1)).unwrap();
        let reload = steer.command(&["reload"]).unwrap();
        assert!(reload.status.success(), "{reload:?}");
    };
    let both = |name: &str| [office.asked(name), asked(&office, name)];
    assert_eq!(both("a.sharepoint.com"), [of(NEAR), of(NEAR)]);
    reload("[[lan]]\n", "[[lan]]\nqueries = \"leave\"\n");
    assert_eq!(both("b.sharepoint.com"), [of(FAR), of(FAR)]);
    reload("queries = \"leave\"\n", "");
    assert_eq!(both("c.sharepoint.com"), [of(NEAR), of(NEAR)]);
    // Those of one area, and others as before.
    reload(
        "[dns]\n",
        "[dns]\nleave = { service_areas = [\"sharepoint\"] }\n",
    );
    assert_eq!(both("d.sharepoint.com"), [of(FAR), of(FAR)]);
    assert_eq!(both("outlook.office.com"), [of(NEAR), of(NEAR)]);
    // Those of everybody but one computer.
    let (v4, v6) = office.lab.host(1);
    let excluded = format!("[[lan]]\nexclude_sources = [\"{v4}/32\", \"{v6}/128\"]\n");
    reload("[[lan]]\n", &excluded);
    let asked_by = |(v4, v6): (IpAddr, IpAddr), name: &str| {
        [v4, v6].map(|host| {
            let at = usize::from(host.is_ipv6());
            let question = Question::new(name, KINDS[at]).from(host);
            let reply = question.ask(&office.lab.client, HEADQUARTERS[at]).unwrap();
            assert_eq!(reply.tries, 1, "{host}");
            reply.addresses
        })
    };
    let captures = office.lab.capture().unwrap();
    assert_eq!(asked_by((v4, v6), "excel.office.com"), of(FAR));
    assert_eq!(asked_by(office.lab.host(2), "excel.office.com"), of(NEAR));
    let wires = captures.stop().unwrap();
    let far_asked: BTreeSet<_> = [v4, v6].into_iter().zip(addresses(HEADQUARTERS)).collect();
    assert_eq!(askers(&wires.backbone), far_asked);
    // Those of that computer are left alone, but its traffic is steered.
    let left = format!("[[lan]]\nleave_queries_of = [\"{v4}/32\", \"{v6}/128\"]\n");
    reload(&excluded, &left);
    let captures = office.lab.capture().unwrap();
    assert_eq!(asked_by((v4, v6), "word.office.com"), of(FAR));
    assert_eq!(asked_by(office.lab.host(2), "word.office.com"), of(NEAR));
    let front_doors = ["52.96.1.1", "2603:1006::1"].map(|it| it.parse().unwrap());
    let flows = [v4, v6].into_iter().zip(front_doors);
    let flows: Vec<Flow> = flows
        .map(|(from, to)| Flow::tcp(to, 443).from(from))
        .collect();
    let replies = probe_all(&office.lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    assert_eq!(askers(&wires.backbone), far_asked);
    for reply in &replies {
        assert_eq!(wires.path_of(reply), Path::BREAKOUT, "{}", reply.flow);
    }
    // And those of everybody.
    let (v4, v6) = office.lab.lan();
    let all = format!("[[lan]]\nleave_queries_of = [\"{v4}\", \"{v6}\"]\n");
    reload(&left, &all);
    assert_eq!(both("powerpoint.office.com"), [of(FAR), of(FAR)]);
    steer.detach().unwrap();
}

#[test]
fn what_a_name_outside_the_plan_is_answered_with_over_tcp_is_shared() {
    let shared = FAR[0];
    let near = Knowledge::Zone {
        every: NEAR,
        names: vec![("shared.msftauth.net".into(), shared.parse().unwrap())],
    };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let steer = start_with(&office.lab, &PROVIDER, FORWARD);
    let ask = |name: &str| {
        let question = Question::new(name, Kind::A);
        let reply = question.ask_tcp(&office.lab.client, HEADQUARTERS[0]);
        assert_eq!(reply.addresses, [shared.parse::<IpAddr>().unwrap()]);
        explained(&steer, shared)["learned"].clone()
    };
    let learned = ask("shared.msftauth.net");
    assert_eq!(learned["shared"], false, "{learned}");
    let learned = ask("www.example.com");
    assert_eq!(learned["shared"], true, "{learned}");
    steer.detach().unwrap();
}

#[test]
fn queries_over_tcp_are_left_alone_unless_told() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let steer = start(&office.lab, &PROVIDER);
    assert_eq!(asked(&office, "outlook.office.com"), of(FAR));
    steer.detach().unwrap();
}
