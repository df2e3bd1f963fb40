//! The programs for names load in every variant, change nothing but addresses and checksums, and leave
//! alone what is not theirs.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr};

use steer_common::{
    abi::{Choice, FamilyTable, PathTable, STEERING},
    dns::{DnsEvent, DnsTable, Learned, NAME_BUDGET, REWRITING, SECOND, SHARED},
    mark,
    names::{NameTable, WholeName},
};
use steer_tests::{
    dnsrun::{
        self, CLASS, CLIENT4, CLIENT6, DnsBench, NEAR4, NEAR6, PATH, Program, SERVER4, SERVER6,
        answer, query,
    },
    testrun::Variant,
};
use steer_user::datapath::{Lesson, Mode, monotonic_ns};

/// The verifier gives up at 1,000,000 instructions; growth has to be somebody's decision.
const QUERY_BUDGET: u32 = 60_000;
/// See [`QUERY_BUDGET`].
const ANSWER_BUDGET: u32 = 600_000;

fn names() -> NameTable {
    dnsrun::names().unwrap()
}

fn bench(variant: &Variant) -> DnsBench {
    DnsBench::load(variant, &[at(NEAR4).ip(), at(NEAR6).ip()], &names())
        .unwrap_or_else(|error| panic!("{variant:?}: {error:#}"))
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_programs_load_in_every_variant() {
    let variants = [
        Variant::new(Mode::Mark),
        Variant::new(Mode::Mark).vlans(&[(10, 0), (100, 20)]),
        Variant {
            bare_ip: true,
            ..Variant::new(Mode::Mark)
        },
        Variant::new(Mode::Redirect),
    ];
    for variant in variants {
        let [Some(query), Some(answer)] = bench(&variant).verified_instructions().unwrap() else {
            return println!("skipped: kernels before 5.16 do not count verified instructions");
        };
        println!("{query:>8} dns_query, {answer:>8} dns_answer verified instructions: {variant:?}");
        assert!(query <= QUERY_BUDGET, "{query} of {QUERY_BUDGET}");
        assert!(answer <= ANSWER_BUDGET, "{answer} of {ANSWER_BUDGET}");
    }
}

#[test]
fn a_query_goes_to_the_path_s_resolver_and_its_answer_comes_from_the_server() {
    for variant in [Variant::new(Mode::Mark), Variant::new(Mode::Redirect)] {
        for (client, server, near) in [(CLIENT4, SERVER4, NEAR4), (CLIENT6, SERVER6, NEAR6)] {
            let mut bench = bench(&variant);
            let question = query(7, "Outlook.OFFICE.com", 1);
            let sent = bench.datagram(at(client), at(server), &question).unwrap();
            let expected = bench.datagram(at(client), at(near), &question).unwrap();
            let seen = bench.run(Program::Query, &sent).unwrap();
            assert_eq!(seen.bytes, expected, "{variant:?} {client}");
            let mark = if variant.mark {
                mark::Bits::DEFAULT.with_wish(0, PATH)
            } else {
                mark::Bits::DEFAULT.with_grant(0, PATH)
            };
            assert_eq!(seen.mark, mark, "{variant:?} {client}");

            let reply = answer(7, "Outlook.OFFICE.com", 0x8180, &[[20, 1, 2, 3]]);
            let sent = bench.datagram(at(near), at(client), &reply).unwrap();
            let expected = bench.datagram(at(server), at(client), &reply).unwrap();
            let seen = bench.run(Program::Answer, &sent).unwrap();
            assert_eq!(seen.bytes, expected, "{variant:?} {client}");
        }
    }
}

#[test]
fn what_is_not_an_ordinary_question_for_the_plan_is_left_alone() {
    let mut bench = bench(&Variant::new(Mode::Mark));
    let name = "outlook.office.com";
    let changed = |at: usize, value: u8| {
        let mut octets = query(1, name, 1);
        octets[at] = value;
        octets
    };
    let with = |additional: &[u8]| {
        let mut octets = [&query(1, name, 1), additional].concat();
        octets[11] = 1;
        octets
    };
    let cases = [
        ("another name", query(1, "www.example.com", 1)),
        ("the apex of a suffix", query(1, "sharepoint.com", 1)),
        ("an excluded name", query(1, "a.corp.sharepoint.com", 1)),
        (
            "a suffix of another name",
            query(1, "outlook.office.com.evil.net", 1),
        ),
        ("no recursion desired", changed(2, 0)),
        ("an answer", changed(2, 0x81)),
        ("opcode UPDATE", changed(2, 0x29)),
        ("truncated", changed(2, 0x03)),
        ("two questions", changed(5, 2)),
        ("an answer record", changed(7, 1)),
        ("class CH", changed(35, 3)),
        ("ANY", query(1, name, 255)),
        ("AXFR", query(1, name, 252)),
        ("rubbish behind it", [query(1, name, 1), vec![0]].concat()),
        ("TSIG", with(&[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0])),
        (
            "EDNS that goes on past the end",
            with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 1]),
        ),
        ("a pointer in the question", {
            let mut octets = query(1, "ab.office.com", 1);
            octets[12] = 0xc0;
            octets
        }),
    ];
    for (what, question) in cases {
        let sent = bench.datagram(at(CLIENT4), at(SERVER4), &question).unwrap();
        let seen = bench.run(Program::Query, &sent).unwrap();
        assert_eq!(seen.bytes, sent, "{what}");
        assert_eq!(seen.mark, 0, "{what}");
    }
    let edns = with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let sent = bench.datagram(at(CLIENT4), at(SERVER4), &edns).unwrap();
    assert_ne!(
        bench.run(Program::Query, &sent).unwrap().bytes,
        sent,
        "EDNS"
    );

    let plain = query(2, name, 28);
    for (what, from, to) in [
        ("another port", at(CLIENT4), at("192.0.2.53:5353")),
        ("the resolver itself", at(CLIENT4), at(NEAR4)),
        ("not a client", at("203.0.113.9:4000"), at(SERVER4)),
    ] {
        let sent = bench.datagram(from, to, &plain).unwrap();
        assert_eq!(
            bench.run(Program::Query, &sent).unwrap().bytes,
            sent,
            "{what}"
        );
    }
}

#[test]
fn a_question_that_is_asked_again_passes_as_it_is_until_it_was_answered() {
    let mut bench = bench(&Variant::new(Mode::Mark));
    let rewritten = |bench: &mut DnsBench, id| {
        let question = query(id, "outlook.office.com", 1);
        let sent = bench.datagram(at(CLIENT4), at(SERVER4), &question).unwrap();
        bench.run(Program::Query, &sent).unwrap().bytes != sent
    };
    assert!(rewritten(&mut bench, 1));
    assert!(!rewritten(&mut bench, 2), "the first one is not answered");
    let reply = |bench: &mut DnsBench, flags| {
        let reply = answer(1, "outlook.office.com", flags, &[]);
        let sent = bench.datagram(at(NEAR4), at(CLIENT4), &reply).unwrap();
        bench.run(Program::Answer, &sent).unwrap().bytes != sent
    };
    assert!(reply(&mut bench, 0x8182), "SERVFAIL gets its source back");
    assert!(!rewritten(&mut bench, 3), "SERVFAIL is no answer");
    assert_eq!(bench.event(DnsEvent::Failed).unwrap(), 1);
    assert_eq!(bench.event(DnsEvent::Repeated).unwrap(), 2);
}

#[test]
fn an_answer_makes_the_resolver_s_next_question_its_own_again() {
    let mut bench = bench(&Variant::new(Mode::Mark));
    for id in 1..20 {
        let question = query(id, "outlook.office.com", 1);
        let sent = bench.datagram(at(CLIENT4), at(SERVER4), &question).unwrap();
        assert_ne!(
            bench.run(Program::Query, &sent).unwrap().bytes,
            sent,
            "{id}"
        );
        let reply = answer(id, "outlook.office.com", 0x8180, &[[20, 0, 0, 1]]);
        let sent = bench.datagram(at(NEAR4), at(CLIENT4), &reply).unwrap();
        assert_ne!(
            bench.run(Program::Answer, &sent).unwrap().bytes,
            sent,
            "{id}"
        );
    }
    assert_eq!(bench.maps().resolver_state(1).unwrap().unanswered, 0);
    let count = bench.maps().resolver_count(1).unwrap();
    assert_eq!((count.queries, count.answers, count.failures), (19, 19, 0));
}

/// A second path, and the resolver behind it.
const OTHER: u8 = PATH + 2;
const OTHER4: &str = "198.51.100.9:53";

/// Both paths carry flows, of which every class takes the first one, and each has a resolver.
fn two_paths(variant: &Variant) -> (DnsBench, PathTable) {
    let mut bench = bench(variant);
    let family = FamilyTable::of(STEERING | 1 << PATH | 1 << OTHER, PATH);
    let paths = PathTable::of([family; 2], [[0; 2]; 16]);
    bench.classifier.maps().set_paths(&paths).unwrap();
    bench.maps().set_resolver(3, at(OTHER4).ip()).unwrap();
    let mut table = DnsTable {
        flags: REWRITING,
        ..DnsTable::default()
    };
    table.active[usize::from(PATH)][0] = 1;
    table.active[usize::from(OTHER)][0] = 3;
    bench.maps().set_table(&table).unwrap();
    (bench, paths)
}

/// A client of this number asks, and the query goes by the path to the resolver.
fn assert_asks(bench: &mut DnsBench, variant: &Variant, client: u8, path: u8, resolver: &str) {
    // A client for each, so that no question is asked again.
    let from = SocketAddr::from(([10, 1, 2, client], 40000));
    let question = query(client.into(), "outlook.office.com", 1);
    let sent = bench.datagram(from, at(SERVER4), &question).unwrap();
    let expected = bench.datagram(from, at(resolver), &question).unwrap();
    let seen = bench.run(Program::Query, &sent).unwrap();
    assert_eq!(seen.bytes, expected, "{variant:?} {client}");
    let mark = if variant.mark {
        mark::Bits::DEFAULT.with_wish(0, path)
    } else {
        mark::Bits::DEFAULT.with_grant(0, path)
    };
    assert_eq!(seen.mark, mark, "{variant:?} {client}");
}

#[test]
fn with_nobody_watching_a_query_leaves_a_path_that_the_dead_man_takes_for_down() {
    for variant in [Variant::new(Mode::Mark), Variant::new(Mode::Redirect)] {
        let (mut bench, _) = two_paths(&variant);
        for (id, down, path, resolver) in [(1, &[][..], PATH, NEAR4), (2, &[PATH], OTHER, OTHER4)] {
            bench.leave_alone(&[PATH, OTHER], down).unwrap();
            assert_asks(&mut bench, &variant, id, path, resolver);
        }
    }
}

#[test]
fn a_query_takes_the_path_that_the_class_of_the_name_prefers() {
    for variant in [Variant::new(Mode::Mark), Variant::new(Mode::Redirect)] {
        let (mut bench, mut paths) = two_paths(&variant);
        assert_asks(&mut bench, &variant, 1, PATH, NEAR4);
        paths.families[0].choices[1] = Choice {
            paths: 1 << OTHER,
            buckets: [OTHER; 64],
        };
        paths.preferences[usize::from(CLASS)] = 1;
        bench.classifier.maps().set_paths(&paths).unwrap();
        assert_asks(&mut bench, &variant, 2, OTHER, OTHER4);
        paths.preferences[usize::from(CLASS)] = 2;
        bench.classifier.maps().set_paths(&paths).unwrap();
        assert_asks(&mut bench, &variant, 3, PATH, NEAR4);
    }
}

/// Asks and answers, and gives what is learned then.
fn learned(bench: &mut DnsBench, id: u16, name: &str, reply: &[u8]) -> Vec<IpAddr> {
    let sent = bench
        .datagram(at(CLIENT4), at(SERVER4), &query(id, name, 1))
        .unwrap();
    bench.run(Program::Query, &sent).unwrap();
    let sent = bench.datagram(at(NEAR4), at(CLIENT4), reply).unwrap();
    bench.run(Program::Answer, &sent).unwrap();
    let mut found: Vec<IpAddr> = bench
        .maps()
        .learned()
        .unwrap()
        .iter()
        .map(|it| it.address)
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn an_answer_teaches_its_public_addresses_and_the_first_packet_there_is_steered() {
    use steer_tests::packet::Packet;
    let mut bench = bench(&Variant::new(Mode::Mark));
    let name = "contoso.sharepoint.com";
    let addresses = [
        [20, 1, 1, 1],
        [10, 1, 1, 1],
        [192, 168, 3, 4],
        [127, 0, 0, 1],
        [224, 0, 0, 9],
        [20, 1, 1, 2],
    ];
    let to = |address: &str, port| {
        let mut packet = Packet::tcp(address, port);
        packet.source = at(CLIENT4).ip();
        packet.bytes()
    };
    let before = bench.classifier.run(&to("20.1.1.1", 443), 0).unwrap();
    assert_eq!(before.mark, 0);
    let found = learned(&mut bench, 5, name, &answer(5, name, 0x8180, &addresses));
    let expected: Vec<IpAddr> = ["20.1.1.1", "20.1.1.2"]
        .map(|it| it.parse().unwrap())
        .into();
    assert_eq!(found, expected);
    assert_eq!(bench.event(DnsEvent::Implausible).unwrap(), 4);
    let entry = bench.maps().learned().unwrap()[0];
    assert_eq!((entry.value.class, entry.value.life), (CLASS, 300));
    assert_eq!(entry.name(), name);
    let marked =
        |bench: &mut DnsBench, port| bench.classifier.run(&to("20.1.1.1", port), 0).unwrap().mark;
    assert_eq!(
        marked(&mut bench, 443),
        mark::Bits::DEFAULT.with_wish(0, PATH)
    );
    assert_eq!(marked(&mut bench, 25), 0, "the class's ports apply");
    // Flows keep an address alive; one that has expired is somebody else's by now.
    let address = expected[0];
    let near_its_end = monotonic_ns() + 10 * SECOND;
    for (expires, steered) in [(near_its_end, true), (1, false)] {
        let value = Learned {
            expires,
            ..entry.value
        };
        bench.maps().insert_learned(address, &value).unwrap();
        assert_eq!(marked(&mut bench, 443) != 0, steered, "{expires}");
        let after = bench.maps().learned_address(address).unwrap().expires;
        assert_eq!(after > expires, steered, "{expires}");
    }
}

#[test]
fn only_the_answer_that_was_asked_for_teaches() {
    let name = "contoso.sharepoint.com";
    let good = answer(5, name, 0x8180, &[[20, 1, 1, 1]]);
    let wrong_id = answer(6, name, 0x8180, &[[20, 1, 1, 1]]);
    let wrong_name = answer(5, "fabrikam.sharepoint.com", 0x8180, &[[20, 1, 1, 1]]);
    let truncated = answer(5, name, 0x8380, &[[20, 1, 1, 1]]);
    let refused = answer(5, name, 0x8185, &[[20, 1, 1, 1]]);
    let a_query = answer(5, name, 0x0180, &[[20, 1, 1, 1]]);
    let behind = [&good[..], &[0]].concat();
    let short = good[..good.len() - 1].to_vec();
    let many: Vec<[u8; 4]> = (0..33).map(|n| [20, 2, 2, n]).collect();
    let many = answer(5, name, 0x8180, &many);
    for (what, reply) in [
        ("wrong id", wrong_id),
        ("wrong name", wrong_name),
        ("truncated", truncated),
        ("REFUSED", refused),
        ("a query", a_query),
        ("rubbish behind it", behind),
        ("cut short", short),
        ("too many", many),
    ] {
        let mut bench = bench(&Variant::new(Mode::Mark));
        assert!(learned(&mut bench, 5, name, &reply).is_empty(), "{what}");
    }
    let mut bench = bench(&Variant::new(Mode::Mark));
    let sent = bench.datagram(at(NEAR4), at(CLIENT4), &good).unwrap();
    bench.run(Program::Answer, &sent).unwrap();
    assert!(bench.maps().learned().unwrap().is_empty(), "unsolicited");
    assert_eq!(learned(&mut bench, 5, name, &good).len(), 1);
    let second = answer(5, name, 0x8180, &[[20, 9, 9, 9]]);
    let sent = bench.datagram(at(NEAR4), at(CLIENT4), &second).unwrap();
    bench.run(Program::Answer, &sent).unwrap();
    assert_eq!(bench.maps().learned().unwrap().len(), 1, "a second answer");
}

/// Answers over TCP are learned in userspace, by the same rules and from the same budgets.
#[test]
fn an_answer_over_tcp_teaches_what_one_over_udp_does() {
    let mut bench = bench(&Variant::new(Mode::Mark));
    let mut lessons = bench.lessons().unwrap();
    let long = "a-rather-long-label-of-a-site.and-another-one-before-it.contoso.sharepoint.com";
    for (id, name) in [(5, "contoso.sharepoint.com"), (6, long)] {
        let lesson = Lesson {
            client: at(CLIENT4).ip(),
            name: WholeName::of(name).unwrap(),
            class: CLASS,
        };
        let [a, b, c] =
            [1, 2, 3].map(|host| IpAddr::from([20, 1, u8::try_from(id).unwrap(), host]));
        let IpAddr::V4(by_udp) = a else {
            unreachable!("IPv4")
        };
        learned(
            &mut bench,
            id,
            name,
            &answer(id, name, 0x8180, &[by_udp.octets()]),
        );
        assert_eq!(lessons.teach(&lesson, b, 60).unwrap(), DnsEvent::Learned);
        assert_eq!(lessons.teach(&lesson, b, 60).unwrap(), DnsEvent::Refreshed);
        let [udp, tcp] = [a, b].map(|it| bench.maps().learned_address(it).unwrap());
        let same = |it: Learned| (it.client, it.name, it.life, it.class, it.flags);
        assert_eq!(same(tcp), same(udp), "{name}");
        // One was spent by the kernel's program, and one here.
        for more in 2..NAME_BUDGET {
            let [_, _, high, low] = more.to_be_bytes();
            let address = IpAddr::from([20, 100 + u8::try_from(id).unwrap(), high, low]);
            assert_eq!(
                lessons.teach(&lesson, address, 60).unwrap(),
                DnsEvent::Learned
            );
        }
        assert_eq!(lessons.teach(&lesson, c, 60).unwrap(), DnsEvent::OverBudget);
        assert_eq!(bench.maps().learned_address(c), None);
    }
    let lesson = Lesson {
        client: at(CLIENT4).ip(),
        name: WholeName::of("n.other.example.com").unwrap(),
        class: CLASS + 1,
    };
    let shared = IpAddr::from([20, 1, 5, 1]);
    assert_eq!(
        lessons.teach(&lesson, shared, 60).unwrap(),
        DnsEvent::Refreshed
    );
    let value = bench.maps().learned_address(shared).unwrap();
    assert_eq!((value.class, value.flags), (CLASS, SHARED));
    // A name outside the plan has them, too: before an answer for the plan, and after it.
    let lesson = Lesson {
        client: at(CLIENT6).ip(),
        name: WholeName::of("o.other.example.com").unwrap(),
        class: CLASS,
    };
    let [before, after] = [1, 2].map(|host| IpAddr::from([20, 1, 7, host]));
    for address in [before, after] {
        if address == before {
            lessons.claim(address).unwrap();
        }
        let learned = lessons.teach(&lesson, address, 60).unwrap();
        assert_eq!(learned, DnsEvent::Learned);
        if address == after {
            let alone = bench.maps().learned_address(address).unwrap();
            assert_eq!(alone.flags, 0);
            lessons.claim(address).unwrap();
        }
        let value = bench.maps().learned_address(address).unwrap();
        assert_eq!((value.class, value.flags), (CLASS, SHARED), "{address}");
    }
    for odd in ["10.1.1.1", "224.0.0.9", "fd00::1", "ff02::1"] {
        let odd = odd.parse().unwrap();
        assert_eq!(
            lessons.teach(&lesson, odd, 60).unwrap(),
            DnsEvent::Implausible
        );
    }
}
