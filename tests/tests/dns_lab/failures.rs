//! What clients get when something is broken: always an answer, after one retry at worst.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;
use steer_tests::{
    lab::LabOptions,
    server::Site,
    traffic::{Fleet, Flow, probe_all},
    wire::Path,
};

use super::{
    FAR, HEADQUARTERS, Kind, Knowledge, NEAR, Office, PATIENCE, PROVIDER, Question, RESERVE, Reply,
    Resolver, SECOND, Software, of, start, wait_for,
};

/// Names that nobody asked for before, all at once, as a page's are.
fn ask_many(office: &Office, how_many: u32) -> Vec<Reply> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let client = &office.lab.client;
    thread::scope(|scope| {
        let questions: Vec<_> = (0..how_many)
            .map(|_| {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let server = HEADQUARTERS[number as usize % 2];
                let name = format!("n{number}.sharepoint.com");
                scope.spawn(move || {
                    let reply = Question::new(&name, Kind::A).ask(client, server);
                    (reply, name, server)
                })
            })
            .collect();
        let replies = questions.into_iter().map(|question| {
            let (reply, name, server) = question.join().unwrap();
            assert!(reply.is_some(), "{name} has no answer of {server}");
            let reply = reply.unwrap();
            assert_eq!(reply.rcode, 0, "{name} of {server}: {reply:?}");
            assert!(reply.tries <= 2, "{name} of {server}: {reply:?}");
            reply
        });
        replies.collect()
    })
}

fn address(all: [&str; 2]) -> Vec<IpAddr> {
    of(all)[0].clone()
}

/// How the provider's resolver breaks.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// Nobody listens.
    Ends,
    /// It takes questions and says nothing.
    Hangs,
    /// It does not serve this office.
    Refuses,
    /// It finds nothing out.
    Fails,
}

impl Failure {
    fn begin(self, office: &Office) {
        let software = match self {
            Self::Hangs => return office.near.borrow().as_ref().unwrap().hang(),
            Self::Ends => return drop(office.near.take()),
            Self::Refuses => Software::Dnsmasq,
            Self::Fails => Software::Unbound,
        };
        office.replace_near(software, &Knowledge::Nothing);
    }

    fn end(self, office: &Office) {
        if let Self::Hangs = self {
            return office.near.borrow().as_ref().unwrap().go_on();
        }
        office.replace_near(Software::Unbound, &Knowledge::every(NEAR));
    }
}

/// With a controller and without: every name resolves; after some silence the resolver is only
/// tried, until it answers again.
fn every_name_resolves_while_the_resolver(failure: Failure) {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let mut steer = start(&office.lab, &PROVIDER);
    for controller in [true, false] {
        if !controller {
            steer.kill().unwrap();
        }
        let replies = ask_many(&office, 2);
        assert!(
            replies.iter().all(|it| it.addresses == address(NEAR)),
            "{replies:?}"
        );
        failure.begin(&office);
        let mut waited = Vec::new();
        wait_for(
            "name that is asked where the client sends it at once",
            || {
                let replies = ask_many(&office, 6);
                waited.extend(replies.iter().map(|reply| reply.time));
                assert!(
                    replies.iter().all(|it| it.addresses == address(FAR)),
                    "{replies:?}"
                );
                replies.iter().any(|it| it.tries == 1)
            },
        );
        println!(
            "{failure:?}, controller {controller}: {} names, the slowest after {:?}",
            waited.len(),
            waited.iter().max()
        );
        failure.end(&office);
        wait_for("near answer again", || {
            let replies = ask_many(&office, 1);
            replies[0].addresses == address(NEAR)
        });
    }
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_eq!(ask_many(&office, 1)[0].addresses, address(NEAR));
    steer.detach().unwrap();
}

#[test]
fn every_name_resolves_while_the_near_resolver_is_gone() {
    every_name_resolves_while_the_resolver(Failure::Ends);
}

#[test]
fn every_name_resolves_while_the_near_resolver_hangs() {
    every_name_resolves_while_the_resolver(Failure::Hangs);
}

#[test]
fn every_name_resolves_while_the_near_resolver_refuses() {
    every_name_resolves_while_the_resolver(Failure::Refuses);
}

#[test]
fn every_name_resolves_while_the_near_resolver_fails() {
    every_name_resolves_while_the_resolver(Failure::Fails);
}

#[test]
fn every_name_resolves_while_the_near_resolver_comes_and_goes() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let steer = start(&office.lab, &PROVIDER);
    let known = [address(NEAR), address(FAR)];
    for _ in 0..3 {
        Failure::Hangs.begin(&office);
        let replies = ask_many(&office, 2);
        assert!(
            replies.iter().all(|it| it.addresses == address(FAR)),
            "{replies:?}"
        );
        // It answers late what it was asked.
        Failure::Hangs.end(&office);
        let replies = ask_many(&office, 2);
        assert!(
            replies.iter().all(|it| known.contains(&it.addresses)),
            "{replies:?}"
        );
    }
    steer.detach().unwrap();
}

#[test]
fn the_second_resolver_is_asked_when_the_first_one_is_gone() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let reserve = Knowledge::every(SECOND);
    let reserve = Resolver::start(lab, &lab.isp, Software::Dnsmasq, RESERVE, &reserve);
    let Some(_reserve) = reserve else { return };
    office.wait_for_provider(RESERVE);
    let steer = start(lab, &[PROVIDER, RESERVE].concat());
    assert_eq!(office.asked("a.sharepoint.com"), of(NEAR));
    Failure::Ends.begin(&office);
    // Both families have a resolver each.
    let mut number = 0;
    wait_for("answer of the second resolver", || {
        number += 1;
        ask_many(&office, 4);
        office.asked(&format!("again{number}.sharepoint.com")) == of(SECOND)
    });
    let state = |status: &Value, address: &str| {
        let resolvers = status["dns"]["resolvers"].as_array().unwrap();
        let it = resolvers.iter().find(|it| it["address"] == address);
        let it = it.unwrap();
        (
            it["active"].as_bool().unwrap(),
            it["dead"].as_bool().unwrap(),
        )
    };
    let status = steer.status().unwrap();
    for (first, second) in PROVIDER.into_iter().zip(RESERVE) {
        assert_eq!(state(&status, first), (false, true), "{status}");
        assert_eq!(state(&status, second), (true, false), "{status}");
    }
    steer.detach().unwrap();
}

#[test]
fn queries_and_learned_addresses_follow_a_breakout_that_dies_and_flows_stay_when_it_is_back() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let steer = start(lab, &PROVIDER);
    assert_eq!(
        office.asked("one.msftauth.net"),
        of(NEAR),
        "{}",
        steer.log()
    );
    let learned = NEAR.map(|it| Flow::tcp(it.parse().unwrap(), 443));
    lab.link_down(&lab.breakouts()[0]).unwrap();
    wait_for("answer of headquarters", || {
        office.asked("outlook.office.com") == of(FAR)
    });
    // The client's cache has the near addresses still.
    let captures = lab.capture().unwrap();
    let replies = probe_all(&lab.client, &learned).unwrap();
    let fleet = Fleet::open(&lab.client, &learned, Duration::from_millis(100)).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    let wires = captures.stop().unwrap();
    for reply in replies {
        assert_eq!(reply.site, Site::Far);
        assert_eq!(wires.path_of(&reply), Path::Backbone, "{}", reply.flow);
    }
    lab.link_up(&lab.breakouts()[0]).unwrap();
    wait_for("near answer again", || {
        office.asked("outlook.office.com") == of(NEAR)
    });
    let captures = lab.capture().unwrap();
    let replies = probe_all(&lab.client, &learned).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    let wires = captures.stop().unwrap();
    for reply in replies {
        assert_eq!(wires.path_of(&reply), Path::BREAKOUT, "{}", reply.flow);
    }
    for record in fleet.stop() {
        assert!(!record.was_moved(), "{record:?}");
        assert_eq!(record.sites, [Site::Far]);
    }
    assert_eq!(wires.leaks(), []);
    steer.detach().unwrap();
}

#[test]
fn queries_leave_by_the_next_breakout_with_the_traffic() {
    let options = LabOptions {
        breakouts: 2,
        ..LabOptions::default()
    };
    let near = Knowledge::every(NEAR);
    let office = Office::with(options, Software::Dnsmasq, Software::Unbound, &near);
    let Some(office) = office else { return };
    let lab = &office.lab;
    let steer = start(lab, &PROVIDER);
    let questions = |number: u32| {
        let captures = lab.capture().unwrap();
        let name = format!("b{number}.sharepoint.com");
        assert_eq!(office.asked(&name), of(NEAR), "{}", steer.log());
        let wires = captures.stop().unwrap();
        [&wires.breakouts[0], &wires.breakouts[1], &wires.backbone].map(|wire| {
            let mut packets = wire.outbound();
            packets.any(|packet| packet.destination.port() == 53)
        })
    };
    assert_eq!(questions(0), [true, false, false]);
    lab.link_down(&lab.breakouts()[0]).unwrap();
    steer
        .wait_for("the first breakout is down", |status| {
            status["breakouts"][0]["state"] == "down"
        })
        .unwrap();
    assert_eq!(questions(1), [false, true, false]);
    steer.detach().unwrap();
}
