//! Queries and answers by the thousand: the kernel programs steer and learn exactly what a model says
//! that stands on another parser (hickory).
//!
//! `STEER_SEED`, `STEER_QUERIES`, `STEER_ANSWERS` and `STEER_MUTATIONS` override the defaults; a failure
//! prints the seed, the number of the case and the frame.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod generate;
mod model;
#[path = "../differential/captures.rs"]
mod pcaps;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use fastrand::Rng;
use generate::Frame;
use hickory_proto::{op::Message, rr::RData};
use ipnet::IpNet;
use model::{Lesson, Match, Question, Refusal};
use steer_common::{
    dns::{DnsEvent, LONGEST_LIFE, SHORTEST_LIFE},
    mark,
    names::{Aim, NameClaim, NameTable},
};
use steer_tests::{
    dnsrun::{self, CLASS, CLIENTS, DnsBench, NEAR4, NEAR6, OWN, PATH, PUBLISHED, Program, Seen},
    testrun::{ROUTER, Variant, hex_dump, real_data},
};
use steer_user::datapath::Mode;

const SEED: u64 = 0x0365_0053;
const QUERIES: u32 = 2_400;
const ANSWERS: u32 = 2_400;
const MUTATIONS: u32 = 20_000;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn near(v6: bool) -> SocketAddr {
    at(if v6 { NEAR6 } else { NEAR4 })
}

/// The programs, and what the model says of them.
struct Trial {
    bench: DnsBench,
    variant: Variant,
    learned: u64,
    tally: BTreeMap<String, u32>,
}

impl Trial {
    fn new(variant: &Variant, names: &NameTable) -> Self {
        let near = [near(false).ip(), near(true).ip()];
        Self {
            bench: DnsBench::load(variant, &near, names).unwrap(),
            variant: variant.clone(),
            learned: 0,
            tally: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    fn print(&self, title: &str) {
        println!("{title}, {:?}:", self.variant);
        for (what, count) in &self.tally {
            println!("{count:>8} {what}");
        }
    }

    fn total(&self, begin: &str) -> u32 {
        let counts = self
            .tally
            .iter()
            .filter(|(what, _)| what.starts_with(begin));
        counts.map(|(_, count)| count).sum()
    }

    /// Nobody is taken for dead because the case before left a query unanswered.
    fn heal(&mut self) {
        for v6 in [false, true] {
            let index = 1 + u8::from(v6);
            self.bench
                .maps()
                .set_resolver(index, near(v6).ip())
                .unwrap();
        }
    }

    fn run(&mut self, program: Program, frame: &Frame) -> Seen {
        self.bench.run(program, &frame.bytes()).unwrap()
    }

    /// Those of a frame that is steered.
    fn tags(&self) -> Vec<u16> {
        let ids = self.variant.vlans.last().into_iter();
        ids.flat_map(|id| [id >> 16, id & 0xffff])
            .map(|id| u16::try_from(id).unwrap())
            .collect()
    }

    fn steers_vlan(&self, tags: &[u16]) -> bool {
        let id = match *tags {
            [] | [0] => 0,
            [outer] => u32::from(outer) << 16,
            [outer, inner] => u32::from(outer) << 16 | u32::from(inner),
            _ => return false,
        };
        if self.variant.vlans.is_empty() {
            id == 0
        } else {
            self.variant.vlans.contains(&id)
        }
    }

    /// Where the model sends a query, and which question it is.
    fn query(
        &self,
        frame: &Frame,
        matched: impl Fn(&Question) -> Match,
    ) -> Result<(SocketAddr, Question), Refusal> {
        let near = near(frame.source.is_ipv6());
        let clients = CLIENTS.map(|it| it.parse::<IpNet>().unwrap());
        if !frame.is_plain() || frame.to != ROUTER {
            return Err("packet".into());
        }
        if frame.destination.port() != 53 {
            return Err("port".into());
        }
        let question = model::query(&frame.message)?;
        match matched(&question) {
            Match::Nothing => return Err("no name of the plan".into()),
            Match::Excluded => return Err("excluded".into()),
            Match::Steer { .. } => {}
        }
        if !self.steers_vlan(&frame.tags) {
            return Err("VLAN".into());
        }
        if !clients.iter().any(|it| it.contains(&frame.source.ip())) {
            return Err("no client".into());
        }
        if frame.destination.ip() == near.ip() {
            return Err("asks the resolver already".into());
        }
        Ok((near, question))
    }

    /// Puts a query through the program; whether it went to the resolver, as the model says.
    fn ask(&mut self, frame: &Frame, matched: impl Fn(&Question) -> Match) -> bool {
        self.heal();
        let verdict = self.query(frame, matched);
        let mut expected = frame.clone();
        let mut mark = 0;
        if let Ok((near, _)) = &verdict {
            expected.destination = *near;
            mark = if self.variant.mark {
                mark::Bits::DEFAULT.with_wish(0, PATH)
            } else {
                mark::Bits::DEFAULT.with_grant(0, PATH)
            };
        }
        let seen = self.run(Program::Query, frame);
        let expected = Seen {
            bytes: expected.bytes(),
            mark,
        };
        assert!(
            seen == expected,
            "the model says {verdict:?}, the mark is {:#x}\n{}became\n{}",
            seen.mark,
            hex_dump(&frame.bytes()),
            hex_dump(&seen.bytes)
        );
        match &verdict {
            Ok(_) => self.count("rewritten"),
            Err(why) => self.count(format!("left alone: {}", short(why))),
        }
        verdict.is_ok()
    }

    /// Puts an answer through the program; what it taught, as the model says. `asked` is the query that
    /// is awaited, from whom it is awaited, and which class its name has.
    fn answer(&mut self, frame: &Frame, asked: &Frame, from: SocketAddr, class: u16) -> Outcome {
        let question = model::query(&asked.message).unwrap();
        let is_ours = frame.is_plain()
            && frame.tags.len() < 3
            && (frame.source, frame.destination) == (from, asked.source)
            && frame.message[..2] == asked.message[..2];
        let (restored, lesson) = if is_ours {
            model::answer(&frame.message, &question)
        } else {
            (false, Err("not awaited".into()))
        };
        let mut expected = frame.clone();
        if restored {
            expected.source = asked.destination;
        }
        let public: BTreeSet<IpAddr> = lesson
            .iter()
            .flat_map(|lesson| &lesson.addresses)
            .copied()
            .filter(|it| model::is_public(*it) && !is_in_plan(*it))
            .collect();
        let seen = self.run(Program::Answer, frame);
        let say = |what: &str, found: &str| {
            panic!(
                "{what}: the model says {restored}, {lesson:?}; {found}\n{}became\n{}",
                hex_dump(&frame.bytes()),
                hex_dump(&seen.bytes)
            )
        };
        if seen.bytes != expected.bytes() {
            say("other octets", "");
        }
        let known: BTreeSet<IpAddr> = public
            .iter()
            .copied()
            .filter(|it| self.bench.maps().learned_address(*it).is_some())
            .collect();
        let count = self.bench.event(DnsEvent::Learned).unwrap();
        let new = count - self.learned;
        self.learned = count;
        if new != public.len() as u64 || known != public {
            let all = self.bench.maps().learned().unwrap();
            let all: Vec<IpAddr> = all.iter().map(|it| it.address).collect();
            say("other addresses", &format!("there are {all:?}"));
        }
        for address in public {
            let value = self.bench.maps().learned_address(address).unwrap();
            let ttl = lesson.as_ref().unwrap().ttl;
            let life = ttl.clamp(SHORTEST_LIFE, LONGEST_LIFE);
            if (value.class, value.life) != (class, life) {
                say(
                    "another class or life",
                    &format!("{} {}", value.class, value.life),
                );
            }
            self.bench.maps().forget_learned(address).unwrap();
        }
        let outcome = match lesson {
            Ok(lesson) if known.is_empty() => Outcome::Nothing(lesson),
            Ok(lesson) => Outcome::Taught(lesson),
            Err(why) => Outcome::Refused(why),
        };
        let restored = if restored { "restored" } else { "as it was" };
        match &outcome {
            Outcome::Taught(_) => self.count("taught"),
            Outcome::Nothing(_) => self.count("nothing to learn"),
            Outcome::Refused(why) => self.count(format!("refused: {restored}, {}", short(why))),
        }
        outcome
    }
}

/// A reason without its numbers.
fn short(why: &Refusal) -> &str {
    why.split([':', '0', '1']).next().unwrap_or_default().trim()
}

/// What became of an answer.
enum Outcome {
    Taught(Lesson),
    Nothing(Lesson),
    Refused(Refusal),
}

fn is_in_plan(address: IpAddr) -> bool {
    let all = CLIENTS.into_iter().chain([PUBLISHED, OWN]);
    all.map(|it| it.parse::<IpNet>().unwrap())
        .any(|it| it.contains(&address))
}

fn variants() -> [Variant; 3] {
    [
        Variant::new(Mode::Mark),
        Variant::new(Mode::Mark).vlans(&[(10, 0), (100, 20)]),
        Variant::new(Mode::Redirect),
    ]
}

/// Runs `case` for its share of `count` numbers in each variant, with a random number generator of
/// its own for each, so that one case can be run alone.
fn each(count: u32, title: &str, mut case: impl FnMut(&mut Trial, &mut Rng, u32)) -> Vec<Trial> {
    let seed = setting("STEER_SEED", SEED);
    let variants = variants();
    let share = count.div_ceil(u32::try_from(variants.len()).unwrap());
    let trials = variants.iter().enumerate().map(|(place, variant)| {
        let mut trial = Trial::new(variant, &dnsrun::names().unwrap());
        for number in 1..=share {
            let mut rng = Rng::with_seed(seed ^ u64::from(number) << 32 ^ (place as u64) << 24);
            let place = Place { seed, number };
            case(&mut trial, &mut rng, number);
            std::mem::forget(place);
        }
        trial.print(title);
        trial
    });
    trials.collect()
}

/// Says where it was when a case panics.
struct Place {
    seed: u64,
    number: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        eprintln!("case {} of STEER_SEED={}", self.number, self.seed);
    }
}

#[test]
fn queries_go_to_the_resolver_exactly_when_the_model_says_so() {
    let count = setting("STEER_QUERIES", QUERIES);
    let trials = each(count, "queries", |trial, rng, number| {
        let frame = generate::query(rng, number, &trial.tags());
        trial.ask(&frame, model::matched);
    });
    let rewritten: u32 = trials.iter().map(|it| it.total("rewritten")).sum();
    assert!(rewritten * 10 > count, "only {rewritten} of {count}");
}

/// Asks a question that teaches: the query, from whom its answer comes, the name's class.
fn ask(trial: &mut Trial, rng: &mut Rng, number: u32) -> (Frame, String, u16, SocketAddr, u16) {
    let v6 = rng.bool();
    let (mut query, name, kind) = generate::asked(rng, number, v6);
    let direct = rng.u32(..8) == 0;
    if direct {
        query.destination = near(v6);
    }
    query.tags = trial.tags();
    let question = model::query(&query.message).unwrap();
    let Match::Steer { class, .. } = model::matched(&question) else {
        panic!("{name} does not teach");
    };
    assert_eq!(trial.ask(&query, model::matched), !direct, "{name}");
    (query, name, kind, near(v6), class)
}

#[test]
fn answers_teach_exactly_the_addresses_that_the_model_reads() {
    let count = setting("STEER_ANSWERS", ANSWERS);
    let trials = each(count, "answers", |trial, rng, number| {
        let (query, name, kind, from, class) = ask(trial, rng, number);
        let message = generate::answer(rng, number, &query.message, &name, kind);
        let frame = generate::answered(rng, from, query.source, message);
        let outcome = trial.answer(&frame, &query, from, class);
        // What the programs learn from is a message to hickory as a whole.
        if let Outcome::Taught(lesson) | Outcome::Nothing(lesson) = outcome {
            let whole = whole(&frame.message).unwrap();
            assert_eq!(whole, lesson.addresses);
        }
    });
    let taught: u32 = trials.iter().map(|it| it.total("taught")).sum();
    assert!(taught * 3 > count, "only {taught} of {count}");
}

/// The addresses of a message's answer section when hickory reads all of it.
fn whole(message: &[u8]) -> Result<BTreeSet<IpAddr>, Refusal> {
    use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
    let hints = |it: &SVCB| -> Vec<IpAddr> {
        let values = it.svc_params.iter().flat_map(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|it| it.0.into()).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|it| it.0.into()).collect(),
            _ => Vec::new(),
        });
        values.collect()
    };
    let message = Message::from_vec(message).map_err(|error| error.to_string())?;
    let addresses = message
        .answers
        .iter()
        .flat_map(|record| match &record.data {
            RData::A(it) => vec![it.0.into()],
            RData::AAAA(it) => vec![it.0.into()],
            RData::SVCB(it) => hints(it),
            RData::HTTPS(it) => hints(it),
            _ => Vec::new(),
        });
    Ok(addresses.collect())
}

#[test]
fn mutated_answers_never_teach_other_addresses() {
    let count = setting("STEER_MUTATIONS", MUTATIONS);
    let trials = each(count, "mutated answers", |trial, rng, number| {
        let (query, name, kind, from, class) = ask(trial, rng, number);
        let mut message = generate::answer(rng, number, &query.message, &name, kind);
        if rng.u32(..8) != 0 {
            generate::mutate(rng, &mut message);
        }
        let mut frame = Frame::new(from, query.source, message);
        match rng.u32(..16) {
            0 => frame.message[rng.usize(..2)] ^= 1 << rng.u32(..8),
            1 => frame
                .destination
                .set_port(query.source.port() ^ 1 << rng.u32(..16)),
            2 => frame.source.set_port(rng.u16(..)),
            3 => frame.source = query.destination,
            4 => {
                frame.destination =
                    generate::ends(number + 1, from.is_ipv6(), query.source.port()).0;
            }
            _ => {}
        }
        trial.answer(&frame, &query, from, class);
    });
    let sum = |begin: &str| -> u32 { trials.iter().map(|it| it.total(begin)).sum() };
    let (taught, refused) = (sum("taught"), sum("refused"));
    assert!(
        taught * 20 > count && refused * 4 > count,
        "{taught} {refused}"
    );
    for mut trial in trials {
        let left = trial.bench.maps().learned().unwrap();
        assert!(left.is_empty(), "learned besides: {left:?}");
    }
}

#[test]
fn captured_messages_are_read_as_the_model_reads_them() {
    let Some(folder) = real_data("pcaps") else {
        return;
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| {
            it.extension()
                .is_some_and(|it| it == "pcap" || it == "pcapng")
        })
        .collect();
    files.sort();
    let mut messages: Vec<Vec<u8>> = files
        .iter()
        .flat_map(|file| pcaps::frames(file))
        .filter_map(|frame| dns(&frame))
        .collect();
    messages.sort();
    messages.dedup();
    // Every name that is asked in one of them is one of the plan.
    let names: BTreeSet<String> = messages.iter().filter_map(|it| asked_name(it)).collect();
    let claims: Vec<NameClaim> = names
        .iter()
        .filter_map(|name| {
            Some(NameClaim {
                pattern: name.parse().ok()?,
                aim: Aim::Steer {
                    class: CLASS,
                    rewrite: true,
                    learn: true,
                },
                rank: 1,
                id: 0,
            })
        })
        .collect();
    let known: BTreeSet<String> = claims
        .iter()
        .map(|it| it.pattern.as_str().to_owned())
        .collect();
    let matched = |question: &Question| {
        let labels: Vec<_> = question
            .labels
            .iter()
            .map(|it| String::from_utf8_lossy(it))
            .collect();
        if known.contains(&labels.join(".")) {
            Match::Steer {
                class: CLASS,
                learn: true,
            }
        } else {
            Match::Nothing
        }
    };
    let mut trial = Trial::new(&variants()[0], &NameTable::build(&claims).unwrap());
    for (number, message) in (1..).zip(&messages) {
        let v6 = number % 2 == 0;
        let (client, server) = generate::ends(number, v6, 4000);
        let seen = Frame::new(client, server, message.clone());
        trial.ask(&seen, matched);
        // The question that this message would be the answer to.
        let Ok((name, kind)) = asked(message) else {
            trial.count("no question");
            continue;
        };
        let (client, server) = generate::ends(number + 1_000_000, v6, 4000);
        let id = u16::from_be_bytes([message[0], message[1]]);
        let query = Frame::new(client, server, dnsrun::query(id, &name, kind));
        if !trial.ask(&query, matched) {
            continue;
        }
        let answer = Frame::new(near(v6), client, message.clone());
        trial.answer(&answer, &query, near(v6), CLASS);
    }
    trial.print("captures");
    assert!(trial.total("rewritten") > 0 && trial.total("taught") > 0);
}

/// The message of a frame that is a whole UDP datagram of DNS.
fn dns(frame: &[u8]) -> Option<Vec<u8>> {
    use etherparse::{SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match packet.transport? {
        TransportSlice::Udp(udp) if [udp.source_port(), udp.destination_port()].contains(&53) => {
            let message = udp.payload().to_vec();
            (!message.is_empty() && message.len() < 2000).then_some(message)
        }
        _ => None,
    }
}

/// Name and type of the first question.
fn asked(message: &[u8]) -> Result<(String, u16), Refusal> {
    let header = message.get(..12).ok_or("no header")?;
    let mut alone = [&header[..4], &[0, 1, 0, 0, 0, 0, 0, 0], &message[12..]].concat();
    // As a query, whatever it is.
    alone[2..4].copy_from_slice(&[1, 0]);
    let read = Message::from_vec(&alone).map_err(|error| error.to_string())?;
    let query = read.queries.first().ok_or("no question")?;
    let labels: Vec<_> = query.name.iter().map(String::from_utf8_lossy).collect();
    let kind = query.query_type.into();
    if labels.is_empty() || labels.iter().any(|it| it.contains('.')) {
        return Err("no name".into());
    }
    Ok((labels.join("."), kind))
}

fn asked_name(message: &[u8]) -> Option<String> {
    asked(message)
        .ok()
        .map(|(name, _)| name.to_ascii_lowercase())
}
