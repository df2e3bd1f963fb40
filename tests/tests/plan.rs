//! The kernel programs decide as the plan does, for every feed there is: steer or pass, by which
//! class, and why not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::IpAddr, path::PathBuf};

use fastrand::Rng;
use ipnet::IpNet;
use steer_common::{
    abi::{FamilyTable, NextHop, PathTable, STEERING},
    mark,
    reason::Reason,
};
use steer_tests::{
    packet::{Packet, Transport},
    testrun::{Action, Bench, Variant, hex_dump, real_data},
};
use steer_user::{
    config::{OwnInclude, Selection},
    datapath::Mode,
    endpoints::{Category, EndpointSet, Feed, Instance},
    policy::{ClassRegistry, Flow, Plan, Site, Verdict},
};

const QUESTIONS: u32 = 10_000;
const PATH: u8 = 1;

/// A plan with everything that a configuration can ask for.
fn compile(feed: Feed, generous: bool) -> Plan {
    let mut select = Selection::default_for(feed.instance);
    if generous {
        select.exclude_sets.clear();
        select.categories.insert(Category::Default);
        select.include.push(OwnInclude {
            name: "own".into(),
            prefixes: vec![
                "198.51.100.0/24".parse().unwrap(),
                "2001:db8:5::/48".parse().unwrap(),
            ],
            names: Vec::new(),
            tcp: "443,8000-8100".parse().unwrap(),
            udp: "3478".parse().unwrap(),
            category: Category::Allow,
        });
        select.exclude = vec![
            "52.96.7.0/24".parse().unwrap(),
            "2603:1006:7::/48".parse().unwrap(),
        ];
    }
    let prefix = |text: &str| text.parse::<IpNet>().unwrap();
    let site = Site {
        clients: Some(vec![prefix("10.1.0.0/16"), prefix("fd00:1::/48")]),
        left_out: vec![prefix("10.1.99.0/24"), prefix("fd00:1:0:99::/64")],
        queries_left: vec![prefix("10.1.98.0/24")],
        router: vec![
            "52.98.1.1".parse().unwrap(),
            "2603:1006:8::1".parse().unwrap(),
        ],
    };
    Plan::compile(feed, select, site, &mut ClassRegistry::new()).unwrap()
}

/// An address inside a prefix, at an edge of it or next to it.
fn near(rng: &mut Rng, prefix: IpNet) -> IpAddr {
    let offset = |rng: &mut Rng| match rng.u8(..6) {
        0 => (0, false),
        1 => (0, true),
        2 => (-1, false),
        3 => (1, true),
        _ => (0, rng.bool()),
    };
    let (by, last) = offset(rng);
    let inside = rng.u8(..6) > 2;
    match prefix {
        IpNet::V4(net) => {
            let base = if inside {
                u32::from(net.network()) | rng.u32(..) & u32::from(net.hostmask())
            } else if last {
                net.broadcast().into()
            } else {
                net.network().into()
            };
            IpAddr::V4(base.wrapping_add_signed(by).into())
        }
        IpNet::V6(net) => {
            let base = if inside {
                u128::from(net.network()) | rng.u128(..) & u128::from(net.hostmask())
            } else if last {
                net.broadcast().into()
            } else {
                net.network().into()
            };
            IpAddr::V6(base.wrapping_add_signed(by.into()).into())
        }
    }
}

/// Random flows around the plan's prefixes and ports.
fn question(rng: &mut Rng, plan: &Plan) -> Flow {
    let sets: Vec<&EndpointSet> = plan
        .feed()
        .sets
        .iter()
        .filter(|set| !set.prefixes.is_empty())
        .collect();
    let set = sets[rng.usize(..sets.len())];
    let select = plan.selection();
    let own: Vec<IpNet> = select
        .exclude
        .iter()
        .chain(select.include.iter().flat_map(|own| &own.prefixes))
        .copied()
        .collect();
    let destination = match rng.u8(..20) {
        0 => IpAddr::V4(rng.u32(..).into()),
        1 => IpAddr::V6(rng.u128(..).into()),
        2 => [
            "52.98.1.1",
            "2603:1006:8::1",
            "10.1.2.3",
            "ff02::1",
            "224.0.0.1",
        ][rng.usize(..5)]
        .parse()
        .unwrap(),
        3 | 4 if !own.is_empty() => {
            let prefix = own[rng.usize(..own.len())];
            near(rng, prefix)
        }
        _ => {
            let prefix = set.prefixes[rng.usize(..set.prefixes.len())];
            near(rng, prefix)
        }
    };
    let protocol = [6, 6, 6, 17, 17, 17, 1, 132][rng.usize(..8)];
    let ports: Vec<u16> = set
        .ports(protocol)
        .iter()
        .flat_map(|ports| {
            ports
                .ranges()
                .iter()
                .flat_map(|range| [range.lo(), range.hi()])
        })
        .collect();
    let port = match rng.u8(..6) {
        0 => rng.u16(..),
        1 => [25, 53, 80, 443, 3478, 3481, 8000][rng.usize(..7)],
        _ if ports.is_empty() => 443,
        _ => {
            let port = ports[rng.usize(..ports.len())];
            if rng.u8(..4) == 0 {
                port.wrapping_add(1)
            } else {
                port
            }
        }
    };
    let sources = if destination.is_ipv4() {
        [
            "10.1.2.3",
            "10.1.2.3",
            "10.1.77.1",
            "10.1.99.1",
            "192.0.2.1",
        ]
    } else {
        [
            "fd00:1::3",
            "fd00:1::3",
            "fd00:1::77:1",
            "fd00:1:0:99::1",
            "2001:db8::1",
        ]
    };
    Flow {
        destination,
        protocol,
        port,
        source: Some(sources[rng.usize(..5)].parse().unwrap()),
    }
}

fn packet(flow: &Flow, source_port: u16) -> Vec<u8> {
    let mut packet = match flow.protocol {
        6 => Packet::tcp("52.96.0.1", flow.port),
        17 => Packet::udp("52.96.0.1", flow.port),
        other => Packet::other("52.96.0.1", other),
    };
    if let Transport::Other(_) = packet.transport {
        packet.payload = 64;
    }
    packet.source_port = source_port;
    packet.destination = flow.destination;
    packet.source = flow.source.unwrap();
    packet.bytes()
}

fn bench(mode: Mode) -> Bench {
    let mut bench = Bench::load(&Variant::new(mode)).unwrap();
    if mode == Mode::Redirect {
        let hop = NextHop {
            macs: [2; 12],
            device: 1,
            mtu: 1500,
        };
        bench.maps().set_next_hop(1, &hop).unwrap();
        bench.maps().set_device(1, 1).unwrap();
    }
    let paths = PathTable::of(
        [FamilyTable::of(STEERING | 1 << PATH, PATH); 2],
        [[1; 2]; mark::PATHS],
    );
    bench.maps().set_paths(&paths).unwrap();
    bench
}

/// Asks program and plan the same questions; how many were steered.
fn agree(bench: &mut Bench, plan: &Plan, rng: &mut Rng, name: &str) -> u32 {
    bench.maps().publish(plan.image().clone()).unwrap();
    let mut steered = 0;
    for number in 0..QUESTIONS {
        let flow = question(rng, plan);
        let bytes = packet(&flow, 10_000 + u16::try_from(number).unwrap());
        let decided = plan.decide(&flow);
        let (class, reason) = match &decided {
            Verdict::Steer(matched) => (Some(matched.class.index), None),
            Verdict::Pass(pass) => (None, pass.reason()),
        };
        let before = (
            class.map(|class| bench.count(class, PATH).unwrap().packets),
            reason.map(|reason| bench.reason(reason).unwrap()),
        );
        let ran = bench.run(&bytes, 0).unwrap();
        let after = (
            class.map(|class| bench.count(class, PATH).unwrap().packets - 1),
            reason.map(|reason| bench.reason(reason).unwrap() - 1),
        );
        let found = ran.action == Action::Redirect || ran.mark == 0x1100_0000;
        assert!(
            found == class.is_some() && before == after,
            "{name}: {flow:?}: the plan says {decided:?}, the program {:?} with mark {:#x}; \
             counters of class {class:?} and reason {reason:?} before: {before:?}, after, less one: {after:?}\n{}",
            ran.action,
            ran.mark,
            hex_dump(&bytes)
        );
        steered += u32::from(found);
    }
    steered
}

/// The built-in snapshot, and every feed among the real data.
fn feeds() -> Vec<(String, Feed)> {
    let mut feeds = vec![("the built-in snapshot".to_owned(), Feed::builtin().unwrap())];
    let mut files: Vec<PathBuf> = real_data("m365")
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let instance = name
            .split('-')
            .next()
            .and_then(|word| word.parse::<Instance>().ok());
        match instance {
            Some(instance) => feeds.push((name, Feed::read(&path, instance).unwrap())),
            None => eprintln!("skipped: {name} is no endpoint list: its name names no instance"),
        }
    }
    feeds
}

#[test]
fn the_programs_decide_as_the_plan_of_every_feed() {
    let seed = std::env::var("STEER_SEED").map_or(0x0365, |text| text.parse().unwrap());
    println!("STEER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut benches = [bench(Mode::Mark), bench(Mode::Redirect)];
    for (name, feed) in feeds() {
        for generous in [false, true] {
            let plan = compile(feed.clone(), generous);
            let steered = benches.each_mut().map(|bench| {
                let steered = agree(bench, &plan, &mut rng, &name);
                bench.forget_flows().unwrap();
                steered
            });
            println!(
                "{name}{}: {} classes, {QUESTIONS} questions to each program, steered {steered:?}",
                if generous { ", with every option" } else { "" },
                plan.classes().len()
            );
            assert!(
                steered.iter().all(|&steered| steered > QUESTIONS / 20),
                "{name}: {steered:?}"
            );
        }
    }
    let [mark, _] = &mut benches;
    assert!(mark.reason(Reason::RouterLocal).unwrap() > 0);
    assert!(mark.reason(Reason::Excluded).unwrap() > 0);
}
