//! A lying and hostile network: nothing is learned unasked, what the plan says stays, tables keep their
//! size and budgets hold under a flood.
//!
//! `STEER_FLOOD` (queries, and as many answers) overrides the flood's size.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use nix::time::{ClockId, clock_gettime};
use steer_common::{
    dns::{self, CLIENT_BUDGET, DnsEvent, NAME_BUDGET, WINDOW_SHIFT},
    mark,
};
use steer_tests::{
    dnsrun::{
        self, CLIENT4, CLIENT6, DnsBench, NEAR4, NEAR6, PATH, Program, SERVER4, SERVER6, answer,
        query, wire,
    },
    packet::Packet,
    testrun::Variant,
};
use steer_user::datapath::Mode;

/// Queries of the flood, and as many answers.
const FLOOD: u32 = 1_000_000;
const NAME: &str = "contoso.sharepoint.com";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn bench() -> DnsBench {
    let near = [at(NEAR4).ip(), at(NEAR6).ip()];
    DnsBench::load(&Variant::new(Mode::Mark), &near, &dnsrun::names().unwrap()).unwrap()
}

fn put(bench: &mut DnsBench, which: Program, from: &str, to: &str, message: &[u8]) -> bool {
    let sent = bench.datagram(at(from), at(to), message).unwrap();
    bench.run(which, &sent).unwrap().bytes != sent
}

fn learned(bench: &mut DnsBench) -> Vec<IpAddr> {
    let all = bench.maps().learned().unwrap();
    let mut all: Vec<IpAddr> = all.iter().map(|it| it.address).collect();
    all.sort_unstable();
    all
}

/// The mark of a client's TCP packet to port 443 of an address.
fn marked(bench: &mut DnsBench, to: &str) -> u32 {
    let mut packet = Packet::tcp(to, 443);
    packet.source = at(CLIENT4).ip();
    bench.classifier.run(&packet.bytes(), 0).unwrap().mark
}

/// What the plan publishes is steered, the router's own address is not, and neither is a stranger.
fn is_as_published(bench: &mut DnsBench) {
    let steered = mark::Bits::DEFAULT.with_wish(0, PATH);
    assert_eq!(marked(bench, "52.97.1.1"), steered);
    assert_eq!(marked(bench, "203.0.113.77"), 0);
    assert_eq!(marked(bench, "20.77.77.77"), 0);
}

/// An answer with one record of IPv6 that is an address.
fn answer6(id: u16, name: &str, address: &str) -> Vec<u8> {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    [
        &id.to_be_bytes()[..],
        &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0],
        &wire(name),
        &[0, 28, 0, 1, 0xc0, 12, 0, 28, 0, 1, 0, 0, 1, 0x2c, 0, 16],
        &address.octets(),
    ]
    .concat()
}

#[test]
fn answers_that_nobody_waits_for_teach_nothing() {
    let mut bench = bench();
    let good = answer(5, NAME, 0x8180, &[[20, 1, 1, 1]]);
    let unasked = |bench: &mut DnsBench, what: &str, from: &str, to: &str, message: &[u8]| {
        assert!(!put(bench, Program::Answer, from, to, message), "{what}");
        assert_eq!(learned(bench), [] as [IpAddr; 0], "{what}");
    };
    unasked(&mut bench, "unsolicited", NEAR4, CLIENT4, &good);
    assert!(put(
        &mut bench,
        Program::Query,
        CLIENT4,
        SERVER4,
        &query(5, NAME, 1)
    ));
    let other_id = answer(6, NAME, 0x8180, &[[20, 1, 1, 1]]);
    unasked(&mut bench, "another id", NEAR4, CLIENT4, &other_id);
    unasked(&mut bench, "another port", NEAR4, "10.1.2.3:40001", &good);
    unasked(&mut bench, "another client", NEAR4, "10.1.2.4:40000", &good);
    unasked(
        &mut bench,
        "another source",
        "198.51.100.2:53",
        CLIENT4,
        &good,
    );
    unasked(&mut bench, "the server itself", SERVER4, CLIENT4, &good);
    unasked(
        &mut bench,
        "another port of the source",
        "198.51.100.1:54",
        CLIENT4,
        &good,
    );
    let other_name = answer(5, "fabrikam.sharepoint.com", 0x8180, &[[20, 1, 1, 1]]);
    unasked(&mut bench, "another name", NEAR4, CLIENT4, &other_name);
    is_as_published(&mut bench);
    // After all of it the right one teaches.
    assert!(put(&mut bench, Program::Answer, NEAR4, CLIENT4, &good));
    assert_eq!(learned(&mut bench), ["20.1.1.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn awaited_answers_that_lie_teach_nothing_and_reach_the_client() {
    let mut bench = bench();
    let a = |addresses: &[[u8; 4]]| answer(7, NAME, 0x8180, addresses);
    let many: Vec<[u8; 4]> = (0..500_u16)
        .map(|n| [20, 3, n.to_be_bytes()[0], n.to_be_bytes()[1]])
        .collect();
    let looped = |target: [u8; 2]| {
        let mut octets = a(&[[20, 1, 1, 1]]);
        let owner = octets.len() - 16;
        octets[owner..owner + 2].copy_from_slice(&target);
        octets
    };
    let owner = u8::try_from(a(&[[0; 4]]).len() - 16).unwrap();
    let cases = [
        ("10/8", a(&[[10, 0, 0, 1]])),
        ("172.16/12", a(&[[172, 31, 255, 255]])),
        ("192.168/16", a(&[[192, 168, 0, 1]])),
        ("loopback", a(&[[127, 0, 0, 53]])),
        ("link-local", a(&[[169, 254, 169, 254]])),
        ("carrier-grade NAT", a(&[[100, 64, 0, 1]])),
        ("nothing", a(&[[0; 4]])),
        ("multicast", a(&[[239, 1, 2, 3]])),
        ("broadcast", a(&[[255; 4]])),
        ("the router's own", a(&[[203, 0, 113, 77]])),
        ("the plan's own", a(&[[52, 97, 1, 1]])),
        ("33 records", a(&many[..33])),
        ("80 records", a(&many[..80])),
        ("500 records, cut to a packet", a(&many)[..1400].to_vec()),
        ("a pointer to itself", looped([0xc0, owner])),
        ("a pointer forward", looped([0xc0, owner + 2])),
        ("a pointer into the header", looped([0xc0, 2])),
        ("a pointer into a label", looped([0xc0, 14])),
        ("a pointer past the end", looped([0xff, 0xff])),
    ];
    let cases6 = [
        ("unique local", "fd00::1"),
        ("link-local", "fe80::1"),
        ("loopback", "::1"),
        ("mapped", "::ffff:20.1.1.1"),
        ("multicast", "ff02::fb"),
        ("the LAN's", "2001:db8:1::99"),
    ];
    let cases6 = cases6.map(|(what, address)| (what, answer6(7, NAME, address)));
    for (what, lie, (client, server, near), kind) in cases
        .into_iter()
        .map(|(what, lie)| (what, lie, (CLIENT4, SERVER4, NEAR4), 1))
        .chain(cases6.map(|(what, lie)| (what, lie, (CLIENT6, SERVER6, NEAR6), 28)))
    {
        assert!(
            put(
                &mut bench,
                Program::Query,
                client,
                server,
                &query(7, NAME, kind)
            ),
            "{what}"
        );
        assert!(
            put(&mut bench, Program::Answer, near, client, &lie),
            "{what} is not restored"
        );
        assert_eq!(learned(&mut bench), [] as [IpAddr; 0], "{what}");
        is_as_published(&mut bench);
    }
    // A packet that is longer than what is read.
    assert!(put(
        &mut bench,
        Program::Query,
        CLIENT4,
        SERVER4,
        &query(7, NAME, 1)
    ));
    assert!(put(
        &mut bench,
        Program::Answer,
        NEAR4,
        CLIENT4,
        &a(&many[..150])
    ));
    assert_eq!(learned(&mut bench), [] as [IpAddr; 0], "too long");
}

/// The memory that every map of this process' programs takes, by the map's id.
fn memory() -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().parse().ok()
        };
        if let (Some(id), Some(octets)) = (field("map_id:"), field("memlock:")) {
            found.insert(id, octets);
        }
    }
    found
}

/// A hostile LAN and a lying resolver in one: questions and answers made in place, as many as wanted.
struct Flood {
    bench: DnsBench,
    query: Vec<u8>,
    answer: Vec<u8>,
    queries: u32,
    answers: u32,
}

/// Where things stand in the frames of the flood.
mod place {
    pub const ID: usize = 42;
    /// The first digit of the name.
    pub const DIGITS: usize = 42 + 12 + 2;
    pub const SOURCE: usize = 26;
    pub const DESTINATION: usize = 30;
    pub const CHECKSUM: usize = 40;
}

impl Flood {
    fn new() -> Self {
        let bench = bench();
        let name = "n00000000.sharepoint.com";
        let ends = |from: &str, to: &str| (at(from), at(to));
        let frame = |(from, to), message: &[u8]| {
            let mut frame = bench.datagram(from, to, message).unwrap();
            // UDP need not have one.
            frame[place::CHECKSUM..place::CHECKSUM + 2].fill(0);
            frame
        };
        let ask = frame(ends(CLIENT4, SERVER4), &query(0, name, 1));
        let reply = answer(0, name, 0x8180, &[[20, 0, 0, 0], [20, 0, 0, 0]]);
        Self {
            query: ask,
            answer: frame(ends(NEAR4, CLIENT4), &reply),
            bench,
            queries: 0,
            answers: 0,
        }
    }

    /// A client asks for a name by its number.
    fn ask(&mut self, client: Ipv4Addr, name: u32, id: u16) {
        // Nobody takes the resolver for dead for what was not answered.
        if self.queries.is_multiple_of(512) {
            self.bench.maps().set_resolver(1, at(NEAR4).ip()).unwrap();
        }
        self.queries += 1;
        Self::name(&mut self.query, name, id);
        self.query[place::SOURCE..place::SOURCE + 4].copy_from_slice(&client.octets());
        self.bench.run(Program::Query, &self.query).unwrap();
    }

    /// The resolver answers with two addresses.
    fn answer(&mut self, client: Ipv4Addr, name: u32, id: u16, addresses: [u32; 2]) {
        self.answers += 1;
        Self::name(&mut self.answer, name, id);
        self.answer[place::DESTINATION..place::DESTINATION + 4].copy_from_slice(&client.octets());
        let end = self.answer.len();
        self.answer[end - 4..].copy_from_slice(&addresses[1].to_be_bytes());
        self.answer[end - 20..end - 16].copy_from_slice(&addresses[0].to_be_bytes());
        self.bench.run(Program::Answer, &self.answer).unwrap();
    }

    fn name(frame: &mut [u8], name: u32, id: u16) {
        frame[place::ID..place::ID + 2].copy_from_slice(&id.to_be_bytes());
        let digits = format!("{name:08}");
        frame[place::DIGITS..place::DIGITS + 8].copy_from_slice(digits.as_bytes());
    }

    fn event(&mut self, event: DnsEvent) -> u64 {
        self.bench.event(event).unwrap()
    }
}

/// The window that budgets are counted in now.
fn window() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    let ns = u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000
        + u64::try_from(now.tv_nsec()).unwrap();
    ns >> WINDOW_SHIFT
}

/// Public addresses, one for each number.
fn public(number: u32) -> u32 {
    0x1400_0000 + number % 0x0300_0000
}

#[test]
fn a_client_that_floods_makes_nobody_else_s_answer_go_astray() {
    let mut flood = Flood::new();
    let (victim, attacker) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4));
    flood.ask(victim, 1, 1);
    for n in 0..40_000 {
        flood.ask(attacker, 2 + n, (n & 0xffff) as u16);
    }
    assert!(flood.event(DnsEvent::TooMany) > 0);
    flood.answer(victim, 1, 1, [public(0), public(1)]);
    assert_eq!(flood.event(DnsEvent::Restored), 1);
    assert_eq!(learned(&mut flood.bench).len(), 2);
}

#[test]
fn budgets_hold_and_tables_keep_their_size_in_a_flood_of_names() {
    let flood_size = std::env::var("STEER_FLOOD")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(FLOOD);
    // A window may end while this runs; the next one is long enough.
    for _ in 0..3 {
        let begin = window();
        let [first, again] = flood(flood_size);
        if window() == begin {
            let budgets = [CLIENT_BUDGET, NAME_BUDGET].map(u64::from);
            assert_eq!(first, budgets, "what a client learned and a name taught");
            assert_eq!(again, [0, 0], "the same once more");
            return;
        }
    }
    println!("skipped the budgets: the flood takes longer than a window of them");
}

/// What one client learned and what one name taught, before a flood and after it.
fn flood(size: u32) -> [[u64; 2]; 2] {
    let mut flood = Flood::new();
    let before = memory();
    assert!(before.len() > 10, "{before:?}");
    // A client, and a name, that want more than they may have: twice, with a flood between.
    let greedy = Ipv4Addr::new(192, 168, 7, 7);
    let taken = |flood: &mut Flood, round: u32| -> [u64; 2] {
        let start = flood.event(DnsEvent::Learned);
        for n in 0..400_u32 {
            let id = u16::try_from(n).unwrap();
            let number = round * 1000 + n;
            flood.ask(greedy, 90_000_000 + number, id);
            let addresses = [
                public(40_000_000 + 2 * number),
                public(40_000_001 + 2 * number),
            ];
            flood.answer(greedy, 90_000_000 + number, id, addresses);
        }
        let middle = flood.event(DnsEvent::Learned);
        for n in 0..200_u32 {
            let [_, _, a, b] = (round * 1000 + n).to_be_bytes();
            let client = Ipv4Addr::new(192, 168, a + 8, b);
            flood.ask(client, 99_999_999, 1);
            let number = 45_000_000 + round * 1000 + 2 * n;
            flood.answer(client, 99_999_999, 1, [public(number), public(number + 1)]);
        }
        [middle - start, flood.event(DnsEvent::Learned) - middle]
    };
    let first = taken(&mut flood, 0);
    let mut most = 0;
    for n in 0..size {
        let id = (n & 0xffff) as u16;
        // One host that asks for ever new names, and all the others.
        let [_, a, b, c] = (n >> 2).to_be_bytes();
        let client = if n.is_multiple_of(4) {
            Ipv4Addr::new(192, 168, 6, 6)
        } else {
            Ipv4Addr::new(10, a, b, c)
        };
        flood.ask(client, n, id);
        flood.answer(client, n, id, [public(2 * n), public(2 * n + 1)]);
        if n.is_multiple_of((size / 10).max(1)) {
            is_as_published_or_learned(&mut flood.bench);
            most = most.max(sizes(&mut flood.bench));
        }
    }
    let second = taken(&mut flood, 1);
    assert_eq!(memory(), before, "memory");
    let maps = flood.bench.maps();
    let (pending, learned) = (maps.pending().unwrap().len(), maps.learned().unwrap().len());
    println!(
        "{} queries and {} answers: {pending} of {} pending, {learned} of {} learned, memory {} octets; \
         a client learned {} + {}, a name taught {} + {}",
        flood.queries,
        flood.answers,
        dns::PENDING,
        dns::LEARNED,
        before.values().sum::<u64>(),
        first[0],
        second[0],
        first[1],
        second[1],
    );
    for (event, count) in flood.bench.maps().events().unwrap() {
        println!("{count:>9} {}", event.name());
    }
    assert!(most <= dns::PENDING.max(dns::LEARNED) as usize, "{most}");
    [first, second]
}

/// The fuller of the two tables.
fn sizes(bench: &mut DnsBench) -> usize {
    let maps = bench.maps();
    let (pending, learned) = (maps.pending().unwrap().len(), maps.learned().unwrap().len());
    assert!(pending <= dns::PENDING as usize, "{pending}");
    assert!(learned <= dns::LEARNED as usize, "{learned}");
    pending.max(learned)
}

/// Like [`is_as_published`]; strangers may have been learned meanwhile.
fn is_as_published_or_learned(bench: &mut DnsBench) {
    let steered = mark::Bits::DEFAULT.with_wish(0, PATH);
    assert_eq!(marked(bench, "52.97.1.1"), steered);
    assert_eq!(marked(bench, "203.0.113.77"), 0);
}
