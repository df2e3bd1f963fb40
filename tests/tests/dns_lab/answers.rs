//! What clients get when everything works.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use serde_json::Value;
use steer_tests::{
    steer::Steer,
    traffic::{Flow, probe_all},
    wire::{Path, Wires},
};

use super::{
    FAR, HEADQUARTERS, KINDS, Kind, Knowledge, NEAR, Office, PROVIDER, Question, Resolver,
    Software, of, start, wait_for,
};

/// Every way to ask for a name, over both families: what came back.
fn every_answer(office: &Office, name: &str, servers: [&str; 2]) -> BTreeSet<IpAddr> {
    let mut answers = BTreeSet::new();
    for server in servers {
        for kind in KINDS {
            for edns in [None, Some(512), Some(1232), Some(4096)] {
                let question = Question::new(name, kind).edns(edns);
                let reply = question.ask(&office.lab.client, server).unwrap();
                assert_eq!((reply.rcode, reply.truncated), (0, false), "{question:?}");
                answers.extend(reply.addresses);
            }
        }
    }
    answers
}

fn both(answers: [&str; 2]) -> BTreeSet<IpAddr> {
    of(answers).into_iter().flatten().collect()
}

/// What `steer explain` says of queries for a name.
fn explained(steer: &Steer<'_>, name: &str) -> String {
    let output = steer.command(&["explain", "--json", name]).unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["query"], name.to_ascii_lowercase());
    answer["verdict"].as_str().unwrap().to_owned()
}

fn far_before_near_after(far: Software, near: Software) {
    let Some(office) = Office::start(far, near, &Knowledge::every(NEAR)) else {
        return;
    };
    let answers = |name| every_answer(&office, name, HEADQUARTERS);
    assert_eq!(answers("outlook.office.com"), both(FAR));
    let steer = start(&office.lab, &PROVIDER);
    let captures = office.lab.capture().unwrap();
    for name in [
        "outlook.office.com",
        "OutLook.Office.com",
        "contoso.sharepoint.com",
        "au.download.windowsupdate.com",
    ] {
        assert_eq!(answers(name), both(NEAR), "{name}: {}", steer.log());
        assert_eq!(explained(&steer, name), "steer", "{name}");
    }
    for name in [
        "www.example.com",
        "left.sharepoint.com",
        "office.com.example",
    ] {
        assert_eq!(answers(name), both(FAR), "{name}");
        assert_eq!(explained(&steer, name), "pass", "{name}");
    }
    // A connection may carry any name: it goes where the client opens it to.
    for (kind, server) in KINDS.into_iter().zip(HEADQUARTERS) {
        let reply = Question::new("outlook.office.com", kind).ask_tcp(&office.lab.client, server);
        assert!(both(FAR).is_superset(&reply.addresses.into_iter().collect()));
    }
    // A name of a set without prefixes: its addresses are steered from the first packet on.
    assert_eq!(answers("one.msftauth.net"), both(NEAR), "{}", steer.log());
    let flows = NEAR.map(|it| Flow::tcp(it.parse().unwrap(), 443));
    let replies = probe_all(&office.lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    for reply in replies {
        assert_eq!(wires.path_of(&reply), Path::BREAKOUT, "{}", reply.flow);
    }
    let questions = |wire: &steer_tests::wire::Wire| {
        let to: BTreeSet<_> = wire.outbound().map(|packet| packet.destination).collect();
        to.into_iter()
            .filter(|it| it.port() == 53)
            .map(|it| it.ip())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(questions(wires.breakout()), both(PROVIDER));
    assert_eq!(questions(&wires.backbone), both(HEADQUARTERS));
    assert_eq!(wires.leaks(), []);
    let status = steer.status().unwrap();
    assert_eq!(status["dns"]["learned"], 2, "{status}");
    steer.detach().unwrap();
    assert_eq!(answers("outlook.office.com"), both(FAR));
}

#[test]
fn the_far_front_door_before_and_the_near_one_after_by_unbound_at_the_provider() {
    far_before_near_after(Software::Dnsmasq, Software::Unbound);
}

#[test]
fn the_far_front_door_before_and_the_near_one_after_by_dnsmasq_at_the_provider() {
    far_before_near_after(Software::Unbound, Software::Dnsmasq);
}

/// How many names are asked for; more by `STEER_DNS_TRIES`, 1,000 at most.
fn tries() -> u16 {
    let wanted = std::env::var("STEER_DNS_TRIES").ok();
    wanted.map_or(50, |it| it.parse::<u16>().unwrap().min(1000))
}

/// The addresses of one name, that no other name has.
fn own(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [
        Ipv4Addr::new(23, 2, high, low).into(),
        Ipv6Addr::new(0x2a02, 0x26f0, 0, 0, 0, 0, 1, number).into(),
    ]
}

/// Sends a client's first packet to an address; what becomes of it shows the wire.
pub fn knock(office: &Office, source: IpAddr, address: IpAddr) {
    let connected = office.lab.client.run(|| {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        let at = |address, port| SockaddrStorage::from(SocketAddr::new(address, port));
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &at(source, 0))?;
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &at(address, 443)) {
            Err(nix::errno::Errno::EINPROGRESS) | Ok(()) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    });
    // It is closed once the peer has answered.
    let socket = connected.unwrap();
    let mut poll = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&socket),
        nix::poll::PollFlags::POLLOUT,
    )];
    assert_eq!(nix::poll::poll(&mut poll, 10_000_u16).unwrap(), 1);
}

/// Which learned addresses were knocked at on each way: breakout, backbone.
pub fn knocked(wires: &Wires) -> [BTreeSet<IpAddr>; 2] {
    [wires.breakout(), &wires.backbone].map(|wire| {
        let knocks = wire.outbound().filter(|it| it.destination.port() == 443);
        knocks.map(|it| it.destination.ip()).collect()
    })
}

#[test]
fn the_first_packet_to_every_learned_address_leaves_by_the_breakout() {
    let tries = tries();
    let name = |number: u16| format!("n{number}.msftauth.net");
    let names = (0..tries)
        .flat_map(|number| own(number).map(|address| (name(number), address)))
        .collect();
    let knowledge = Knowledge::Zone { every: NEAR, names };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &knowledge) else {
        return;
    };
    // A client learns 256 new addresses in five minutes: an office has more than one.
    let (lan4, lan6) = office.lab.lan();
    let clients: Vec<[IpAddr; 2]> = (0..=tries / 200)
        .map(|number| {
            let host = 100 + u32::from(number);
            [
                Ipv4Addr::from_bits(lan4.network().to_bits() + host).into(),
                Ipv6Addr::from_bits(lan6.network().to_bits() + u128::from(host)).into(),
            ]
        })
        .collect();
    for [v4, v6] in &clients {
        let lines = format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
        office.lab.client.ip(&lines).unwrap();
    }
    let steer = start(&office.lab, &PROVIDER);
    let captures = office.lab.capture().unwrap();
    let mut expected = BTreeSet::new();
    for number in 0..tries {
        let client = clients[usize::from(number / 200)];
        for (at, address) in own(number).into_iter().enumerate() {
            let name = name(number);
            let question = Question::new(&name, KINDS[at]).from(client[at]);
            let reply = question.ask(&office.lab.client, HEADQUARTERS[at]).unwrap();
            assert_eq!(reply.addresses, [address], "{}", steer.log());
            knock(&office, client[at], address);
            expected.insert(address);
        }
    }
    let wires = captures.stop().unwrap();
    let [breakout, backbone] = knocked(&wires);
    println!(
        "{} of {} first packets by the breakout, {} by the backbone",
        breakout.len(),
        expected.len(),
        backbone.len()
    );
    assert_eq!(breakout, expected);
    assert_eq!(backbone, BTreeSet::new());
    assert_eq!(wires.leaks(), []);
    steer.detach().unwrap();
}

#[test]
fn a_truncated_answer_teaches_nothing_and_the_connection_after_it_goes_where_the_client_wants() {
    // More than 512 octets, which is all without EDNS, and less than 1232.
    let many: Vec<_> = (0..31)
        .map(|number| ("many.msftauth.net".to_owned(), own(number)[0]))
        .collect();
    let addresses: BTreeSet<IpAddr> = many.iter().map(|(_, address)| *address).collect();
    let knowledge = Knowledge::Zone {
        every: NEAR,
        names: many,
    };
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &knowledge) else {
        return;
    };
    let steer = start(&office.lab, &PROVIDER);
    let learned = || steer.status().unwrap()["dns"]["learned"].as_u64().unwrap();
    for server in HEADQUARTERS {
        let short = Question::new("many.msftauth.net", Kind::A).edns(None);
        let reply = short.ask(&office.lab.client, server).unwrap();
        assert!(reply.truncated, "{reply:?}");
        assert_eq!(learned(), 0);
        let reply = short.ask_tcp(&office.lab.client, server);
        assert_eq!(reply.addresses, of(FAR)[0]);
    }
    let reply = office.ask("many.msftauth.net", Kind::A, HEADQUARTERS[0]);
    let reply = reply.unwrap();
    assert!(!reply.truncated, "{reply:?}");
    assert_eq!(BTreeSet::from_iter(reply.addresses), addresses);
    assert_eq!(learned(), 31);
    steer.detach().unwrap();
}

#[test]
fn a_router_that_is_the_resolver_is_bypassed_for_names_of_the_plan_and_asked_for_others() {
    let Some(office) = Office::start(
        Software::Dnsmasq,
        Software::Unbound,
        &Knowledge::every(NEAR),
    ) else {
        return;
    };
    let (lan4, lan6) = office.lab.lan();
    let [v4, v6]: [IpAddr; 2] = [
        Ipv4Addr::from_bits(lan4.network().to_bits() + 1).into(),
        Ipv6Addr::from_bits(lan6.network().to_bits() + 1).into(),
    ];
    let own = [v4.to_string(), v6.to_string()];
    let own = [own[0].as_str(), own[1].as_str()];
    for software in [Software::Dnsmasq, Software::Unbound] {
        let lab = &office.lab;
        let knowledge = Knowledge::Forward(HEADQUARTERS);
        let resolver = Resolver::start(lab, &lab.router, software, own, &knowledge);
        let Some(resolver) = resolver else { return };
        for server in own {
            wait_for("resolver of the router", || {
                let reply = office.ask("www.example.com", Kind::A, server);
                reply.is_some_and(|reply| reply.rcode == 0)
            });
        }
        let answers = |name| every_answer(&office, name, own);
        assert_eq!(answers("outlook.office.com"), both(FAR), "{software:?}");
        let steer = start(lab, &PROVIDER);
        assert_eq!(answers("outlook.office.com"), both(NEAR), "{software:?}");
        assert_eq!(answers("www.example.com"), both(FAR), "{software:?}");
        steer.detach().unwrap();
        drop(resolver);
    }
}
