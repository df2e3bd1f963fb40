//! What the programs should make of a message, by hickory's parser.
//!
//! Names, header and record data are read by hickory. What is our own is the strictness on top, said
//! once more in plain words: pointers lead to where a label of an earlier name begins, nothing stands
//! behind the last record, the walk takes at most [`STEPS`] steps and finds at most [`ADDRESSES`].

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use hickory_proto::{
    op::{Header, MessageType, OpCode, Query},
    rr::{
        DNSClass, Name, RData, RecordType,
        rdata::{A, AAAA, svcb::IpHint},
    },
    serialize::binary::{BinDecodable as _, BinDecoder, Restrict},
};

/// The most octets of a query that is steered, and of an answer that teaches.
const LONGEST_QUERY: usize = 320;
const LONGEST_ANSWER: usize = 1500;
/// The most labels of a name that is looked up.
const LABELS: usize = 40;
/// The most labels, pointers and parameters of an answer, the question included.
const STEPS: usize = 256;
/// The most addresses of an answer.
const ADDRESSES: usize = 32;
/// The octets of a name that are compared.
const NAME: usize = 64;

/// Why a message is left alone.
pub type Refusal = String;

/// What is asked, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub labels: Vec<Vec<u8>>,
    pub kind: u16,
}

impl Question {
    fn of(query: &Query) -> Self {
        Self {
            labels: query.name.iter().map(<[u8]>::to_ascii_lowercase).collect(),
            kind: query.query_type.into(),
        }
    }

    /// Whether the programs take both for one: of a long name the last octets.
    pub fn is_same(&self, other: &Self) -> bool {
        let octets = |it: &Self| {
            let octets = it.labels.iter().flat_map(|label| {
                let length = u8::try_from(label.len()).unwrap();
                std::iter::once(length).chain(label.iter().copied())
            });
            octets.collect::<Vec<u8>>()
        };
        let (a, b) = (octets(self), octets(other));
        self.kind == other.kind
            && a.len() == b.len()
            && a.iter()
                .skip(1)
                .rev()
                .take(NAME)
                .eq(b.iter().skip(1).rev().take(NAME))
    }
}

/// What a query that the programs may steer asks.
pub fn query(message: &[u8]) -> Result<Question, Refusal> {
    const META: std::ops::RangeInclusive<u16> = 128..=255;
    let wrong = |error| format!("{error}");
    if message.len() > LONGEST_QUERY {
        return Err("too long".into());
    }
    let mut decoder = BinDecoder::new(message);
    let header = Header::read(&mut decoder).map_err(wrong)?;
    let (meta, counts) = (header.metadata, header.counts);
    if meta.message_type != MessageType::Query || meta.op_code != OpCode::Query {
        return Err("no query".into());
    }
    if meta.authoritative || meta.truncation || !meta.recursion_desired {
        return Err("unusual flags".into());
    }
    if (counts.queries, counts.answers, counts.authorities) != (1, 0, 0) || counts.additionals > 1 {
        return Err("unusual counts".into());
    }
    let asked = Query::read(&mut decoder).map_err(wrong)?;
    if compressed(&message[12..decoder.index()]) {
        return Err("a pointer in the question".into());
    }
    let question = Question::of(&asked);
    if asked.query_class != DNSClass::IN || question.labels.len() > LABELS {
        return Err("unusual question".into());
    }
    if question.labels.is_empty()
        || matches!(question.kind, 0 | 41)
        || META.contains(&question.kind)
    {
        return Err("no type of data".into());
    }
    if counts.additionals == 1 {
        let root = decoder.pop().map_err(wrong)?.unverified();
        let kind = decoder.read_u16().map_err(wrong)?.unverified();
        decoder.read_slice(6).map_err(wrong)?;
        let length = decoder.read_u16().map_err(wrong)?.unverified();
        if root != 0 || RecordType::from(kind) != RecordType::OPT {
            return Err("more than EDNS".into());
        }
        decoder.read_slice(length.into()).map_err(wrong)?;
    }
    if !decoder.is_empty() {
        return Err("something behind the end".into());
    }
    Ok(question)
}

/// Whether a name begins with labels and ends with a pointer.
fn compressed(name: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&length) = name.get(at) {
        match length {
            0 => return false,
            1..=63 => at += 1 + usize::from(length),
            _ => return true,
        }
    }
    true
}

/// An answer to a query that is awaited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// Every address of the answer section, hints included; also those that nobody may learn.
    pub addresses: BTreeSet<IpAddr>,
    /// The shortest time to live of the section, in seconds.
    pub ttl: u32,
}

/// Whether an answer is the one to a question, so that it gets its source back; and what it teaches.
pub fn answer(message: &[u8], asked: &Question) -> (bool, Result<Lesson, Refusal>) {
    let refuse = |restored, why: &str| (restored, Err(why.to_owned()));
    let mut decoder = BinDecoder::new(message);
    let Ok(header) = Header::read(&mut decoder) else {
        return refuse(false, "no header");
    };
    if message.len() < 17 || header.metadata.message_type != MessageType::Response {
        return refuse(false, "no answer");
    }
    let code = message[3] & 15;
    let failed = !matches!(code, 0 | 3);
    if !(header.counts.queries == 0 && failed) {
        let question = match Query::read(&mut decoder) {
            Ok(question) if header.counts.queries == 1 => question,
            _ => return refuse(false, "no question"),
        };
        if compressed(&message[12..decoder.index()])
            || question.query_class != DNSClass::IN
            || question.name.iter().count() > LABELS
            || decoder.index() > LONGEST_ANSWER
            || !Question::of(&question).is_same(asked)
        {
            return refuse(false, "another question");
        }
    }
    if code != 0 {
        return refuse(true, "no data");
    }
    if header.metadata.truncation {
        return refuse(true, "truncated");
    }
    if header.metadata.op_code != OpCode::Query {
        return refuse(true, "no answer to a query");
    }
    if message.len() > LONGEST_ANSWER {
        return refuse(true, "too long");
    }
    (true, lesson(message, &header))
}

/// Every record of a message that has one question.
fn lesson(message: &[u8], header: &Header) -> Result<Lesson, Refusal> {
    let counts = header.counts;
    let mut walk = Walk {
        decoder: BinDecoder::new(message),
        message,
        starts: BTreeSet::new(),
        steps: 0,
        found: 0,
        lesson: Lesson {
            ttl: u32::MAX,
            ..Lesson::default()
        },
    };
    walk.decoder.read_slice(12).map_err(text)?;
    walk.name()?;
    walk.decoder.read_slice(4).map_err(text)?;
    for _ in 0..counts.answers {
        walk.record(true)?;
    }
    for _ in 0..u32::from(counts.authorities) + u32::from(counts.additionals) {
        walk.record(false)?;
    }
    if !walk.decoder.is_empty() {
        return Err("something behind the end".into());
    }
    if walk.steps > STEPS {
        return Err("too many steps".into());
    }
    Ok(walk.lesson)
}

fn text(error: impl std::fmt::Display) -> Refusal {
    error.to_string()
}

struct Walk<'a> {
    decoder: BinDecoder<'a>,
    message: &'a [u8],
    starts: BTreeSet<usize>,
    steps: usize,
    found: usize,
    lesson: Lesson,
}

impl Walk<'_> {
    fn name(&mut self) -> Result<(), Refusal> {
        let mut at = self.decoder.index();
        let earlier = self.starts.clone();
        Name::read(&mut self.decoder).map_err(text)?;
        loop {
            self.starts.insert(at);
            self.steps += 1;
            match self.message[at] {
                0 => return Ok(()),
                length @ 1..=63 => at += 1 + usize::from(length),
                high => {
                    let target = usize::from(high & 63) << 8 | usize::from(self.message[at + 1]);
                    return if earlier.contains(&target) {
                        Ok(())
                    } else {
                        Err("a pointer to where no label begins".into())
                    };
                }
            }
        }
    }

    fn record(&mut self, answer: bool) -> Result<(), Refusal> {
        self.name()?;
        let kind = self.decoder.read_u16().map_err(text)?.unverified();
        let class = self.decoder.read_u16().map_err(text)?.unverified();
        let ttl = self.decoder.read_u32().map_err(text)?.unverified();
        let octets = self.decoder.read_u16().map_err(text)?.unverified();
        let begin = self.decoder.index();
        let end = begin + usize::from(octets);
        if end > self.message.len() {
            return Err("data past the end".into());
        }
        let kind = RecordType::from(kind);
        if answer && kind != RecordType::OPT {
            if class != 1 {
                return Err("another class".into());
            }
            // RFC 2181, 8: the topmost bit makes it zero.
            let ttl = if ttl >> 31 == 0 { ttl } else { 0 };
            self.lesson.ttl = self.lesson.ttl.min(ttl);
        }
        // Where the names in the data begin, and how many octets must be behind the last one.
        let (skip, names, tail) = match kind {
            RecordType::A | RecordType::AAAA => (0, 0, None),
            RecordType::NS | RecordType::CNAME | RecordType::PTR | RecordType::DNAME => {
                (0, 1, Some(0))
            }
            RecordType::SOA => (0, 2, Some(20)),
            RecordType::MX => (2, 1, Some(0)),
            RecordType::SRV => (6, 1, Some(0)),
            RecordType::SVCB | RecordType::HTTPS => (2, 1, None),
            RecordType::RRSIG => (18, 1, None),
            _ => {
                self.decoder.read_slice(octets.into()).map_err(text)?;
                return Ok(());
            }
        };
        if skip >= usize::from(octets) {
            return Err("no data".into());
        }
        let address = matches!(kind, RecordType::A | RecordType::AAAA);
        let mut data = self.decoder.clone(u16::try_from(begin).unwrap());
        let data = address
            .then(|| RData::read(&mut data, kind, Restrict::new(octets)))
            .transpose()
            .map_err(text)?;
        self.decoder.read_slice(skip).map_err(text)?;
        for _ in 0..names {
            if self.decoder.index() >= end {
                return Err("no name".into());
            }
            self.name()?;
        }
        let behind = end
            .checked_sub(self.decoder.index())
            .ok_or("a name past the end")?;
        if tail.is_some_and(|tail| tail != behind) || (kind == RecordType::RRSIG && behind == 0) {
            return Err("data of another length".into());
        }
        let rest = self.decoder.read_slice(behind).map_err(text)?.unverified();
        match data {
            Some(RData::A(it)) if answer => self.address(it.0.into()),
            Some(RData::AAAA(it)) if answer => self.address(it.0.into()),
            _ if matches!(kind, RecordType::SVCB | RecordType::HTTPS) => self.service(rest, answer),
            _ => Ok(()),
        }
    }

    fn address(&mut self, address: IpAddr) -> Result<(), Refusal> {
        self.found += 1;
        if self.found > ADDRESSES {
            return Err("too many addresses".into());
        }
        self.lesson.addresses.insert(address);
        Ok(())
    }

    /// The parameters of a service, of which only hints are looked into.
    fn service(&mut self, parameters: &[u8], answer: bool) -> Result<(), Refusal> {
        let mut decoder = BinDecoder::new(parameters);
        let mut last = None;
        while !decoder.is_empty() {
            let key = decoder.read_u16().map_err(text)?.unverified();
            let octets = decoder.read_u16().map_err(text)?.unverified();
            let value = decoder
                .read_slice(octets.into())
                .map_err(text)?
                .unverified();
            if last.is_some_and(|last| last >= key) {
                return Err("keys in another order".into());
            }
            last = Some(key);
            self.steps += 1;
            let mut value = BinDecoder::new(value);
            let hints: Vec<IpAddr> = match key {
                4 if answer => {
                    let hints = IpHint::<A>::read(&mut value).map_err(text)?;
                    hints.0.iter().map(|it| it.0.into()).collect()
                }
                6 if answer => {
                    let hints = IpHint::<AAAA>::read(&mut value).map_err(text)?;
                    hints.0.iter().map(|it| it.0.into()).collect()
                }
                _ => continue,
            };
            if hints.is_empty() {
                return Err("an empty hint".into());
            }
            self.steps += hints.len();
            for hint in hints {
                self.address(hint)?;
            }
        }
        // The end is looked at, too.
        self.steps += 1;
        Ok(())
    }
}

/// Whether an address can be that of a public service: what the registries say of it (RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            let [a, b, ..] = it.octets();
            !(a == 0
                || it.is_private()
                || it.is_loopback()
                || it.is_link_local()
                || (a == 100 && (64..128).contains(&b))
                || it.is_multicast()
                || a >= 240)
        }
        IpAddr::V6(it) => {
            let global = (Ipv6Addr::from(0x2000_u128 << 112), 3);
            it.to_bits() >> (128 - global.1) == global.0.to_bits() >> (128 - global.1)
        }
    }
}

/// What the lab's names say of a question, by its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Goes to the resolver; whether the addresses are learned, and as which class.
    Steer { class: u16, learn: bool },
    /// The operator leaves it alone.
    Excluded,
    /// Not of the plan.
    Nothing,
}

/// The patterns of [`steer_tests::dnsrun::names`], one by one.
pub fn matched(question: &Question) -> Match {
    use steer_tests::dnsrun::CLASS;
    let labels: Vec<&[u8]> = question.labels.iter().map(Vec::as_slice).collect();
    let learn = |class| Match::Steer { class, learn: true };
    match labels.as_slice() {
        [b"outlook", b"office", b"com"] => Match::Steer {
            class: CLASS,
            learn: false,
        },
        [.., _, b"corp", b"sharepoint", b"com"] => Match::Excluded,
        [.., _, b"sharepoint", b"com"] => learn(CLASS),
        [.., label, b"onenote", b"net"] if label.ends_with(b"cdn") => learn(CLASS),
        [b"autodiscover", .., _, b"onmicrosoft", b"com"] if labels.len() > 3 => learn(CLASS),
        [.., _, b"other", b"example", b"com"] => learn(CLASS + 1),
        _ => Match::Nothing,
    }
}
