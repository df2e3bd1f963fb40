//! Random queries and answers, as frames of the LAN: most of them ordinary, many odd in one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use steer_tests::{dnsrun::wire, testrun::ROUTER};

/// A frame with a UDP datagram; what is odd about it is a field of its own.
#[derive(Clone, Debug)]
pub struct Frame {
    pub to: [u8; 6],
    /// VLAN ids, the outer one first.
    pub tags: Vec<u16>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub hops: u8,
    /// IPv4 options, or a hop-by-hop header.
    pub options: bool,
    /// The fragment field of IPv4.
    pub fragment: u16,
    pub protocol: u8,
    /// UDP without a checksum (IPv4).
    pub bare: bool,
    /// What UDP's length is wrong by.
    pub lie: i16,
    /// Octets behind the packet, as short frames have them.
    pub padding: usize,
    pub message: Vec<u8>,
}

const UDP: u8 = 17;

impl Frame {
    pub fn new(source: SocketAddr, destination: SocketAddr, message: Vec<u8>) -> Self {
        Self {
            to: ROUTER,
            tags: Vec::new(),
            source,
            destination,
            hops: 64,
            options: false,
            fragment: 0,
            protocol: UDP,
            bare: false,
            lie: 0,
            padding: 0,
            message,
        }
    }

    /// Whether headers are such that the programs look at the message.
    pub fn is_plain(&self) -> bool {
        self.hops > 1
            && !self.options
            && matches!(self.fragment, 0 | 0x4000)
            && self.protocol == UDP
            && self.lie == 0
            && self.message.len() >= 17
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = 8 + self.message.len();
        let lied = u16::try_from(i32::try_from(length).unwrap() + i32::from(self.lie)).unwrap();
        let mut udp = [
            &self.source.port().to_be_bytes()[..],
            &self.destination.port().to_be_bytes(),
            &lied.to_be_bytes(),
            &[0, 0],
            &self.message,
        ]
        .concat();
        let (ether_type, header, pseudo) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (
                0x0800_u16,
                self.v4(from, to, length),
                [from.octets(), to.octets()].concat(),
            ),
            (IpAddr::V6(from), IpAddr::V6(to)) => (
                0x86dd,
                self.v6(from, to, length),
                [from.octets(), to.octets()].concat(),
            ),
            _ => unreachable!("two families"),
        };
        if !self.bare {
            let pseudo = [&pseudo[..], &[0, UDP], &lied.to_be_bytes()].concat();
            let sum = match checksum(&[&pseudo[..], &udp].concat()) {
                0 => 0xffff,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = [&self.to[..], &[2, 0, 0, 0, 0, 9]].concat();
        for (place, tag) in self.tags.iter().enumerate() {
            let outer = place == 0 && self.tags.len() > 1;
            bytes.extend(if outer { [0x88, 0xa8] } else { [0x81, 0] });
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(header);
        bytes.extend(udp);
        bytes.resize(bytes.len() + self.padding, 0xaa);
        bytes
    }

    fn v4(&self, from: Ipv4Addr, to: Ipv4Addr, length: usize) -> Vec<u8> {
        let words: u8 = if self.options { 6 } else { 5 };
        let total = u16::try_from(4 * usize::from(words) + length).unwrap();
        let mut header = [
            &[0x40 | words, 0][..],
            &total.to_be_bytes(),
            &[0x12, 0x34],
            &self.fragment.to_be_bytes(),
            &[self.hops, self.protocol, 0, 0],
            &from.octets(),
            &to.octets(),
        ]
        .concat();
        // No operation.
        header.resize(4 * usize::from(words), 1);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn v6(&self, from: Ipv6Addr, to: Ipv6Addr, length: usize) -> Vec<u8> {
        let hop_by_hop = [self.protocol, 0, 1, 4, 0, 0, 0, 0];
        let more: &[u8] = if self.options { &hop_by_hop } else { &[] };
        let next = if self.options { 0 } else { self.protocol };
        let length = u16::try_from(length + more.len()).unwrap();
        [
            &[0x60, 0, 0, 0][..],
            &length.to_be_bytes(),
            &[next, self.hops],
            &from.octets(),
            &to.octets(),
            more,
        ]
        .concat()
    }
}

/// The Internet checksum of octets whose own checksum is 0.
fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A client and a server for case `number`: each client is one of its own, so that nothing is asked
/// again and nobody's budget ends.
pub fn ends(number: u32, v6: bool, port: u16) -> (SocketAddr, SocketAddr) {
    let [_, a, b, c] = number.to_be_bytes();
    if v6 {
        let client = Ipv6Addr::new(0x2001, 0xdb8, 1, a.into(), 0, 0, b.into(), c.into());
        (
            (client, port).into(),
            steer_tests::dnsrun::SERVER6.parse().unwrap(),
        )
    } else {
        let client = Ipv4Addr::new(10, a, b, c);
        (
            (client, port).into(),
            steer_tests::dnsrun::SERVER4.parse().unwrap(),
        )
    }
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

fn label(rng: &mut Rng, longest: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-_";
    let length = rng.usize(1..=longest);
    (0..length)
        .map(|_| char::from(LETTERS[rng.usize(..LETTERS.len())]))
        .collect()
}

/// A name of the plan that teaches, or, for `number`s that are asked to, any.
pub fn name(rng: &mut Rng, number: u32, any: bool) -> String {
    let own = format!("n{number}");
    let name = match rng.u32(..if any { 21 } else { 5 }) {
        0 => format!("{own}.sharepoint.com"),
        1 => format!("{}.{own}.sharepoint.com", label(rng, 20)),
        2 => format!("{own}cdn.onenote.net"),
        3 => format!("autodiscover.{own}.onmicrosoft.com"),
        4 => format!("{own}.other.example.com"),
        5 | 16..=20 => "outlook.office.com".into(),
        7 => [
            "sharepoint.com",
            "onmicrosoft.com",
            "office.com",
            "com",
            "other.example.com",
        ][rng.usize(..5)]
        .into(),
        6 | 8 => format!("{own}.corp.sharepoint.com"),
        9 => format!("{own}.sharepoint.com.{}.net", label(rng, 10)),
        10 => format!("{own}xsharepoint.com"),
        11 => format!("{}.{own}cdn.onenote.net", label(rng, 5)),
        12 => format!("autodiscover{own}.x.onmicrosoft.com"),
        13 => {
            let many = rng.usize(35..60);
            let labels: Vec<String> = (0..many).map(|_| label(rng, 2)).collect();
            format!("{}.{own}.sharepoint.com", labels.join("."))
        }
        14 => {
            let labels: Vec<String> = (0..rng.usize(1..4)).map(|_| label(rng, 63)).collect();
            format!("{}.{own}.sharepoint.com", labels.join("."))
        }
        _ => format!("{own}.{}.org", label(rng, 30)),
    };
    if one_in(rng, 3) {
        return name
            .chars()
            .map(|it| {
                if rng.bool() {
                    it.to_ascii_uppercase()
                } else {
                    it
                }
            })
            .collect();
    }
    name
}

const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// The EDNS record, perhaps with options.
pub fn edns(rng: &mut Rng) -> Vec<u8> {
    let mut options = Vec::new();
    if rng.bool() {
        // Client subnet.
        options.extend([0, 8, 0, 7, 0, 1, 24, 0, 20, 1, 2]);
    }
    if one_in(rng, 4) {
        // A cookie, and padding.
        options.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 12, 0, 4, 0, 0, 0, 0]);
    }
    let length = u16::try_from(options.len()).unwrap();
    [
        &[0][..],
        &OPT.to_be_bytes(),
        &[4, 208, 0, 0, 0x80, 0],
        &length.to_be_bytes(),
        &options,
    ]
    .concat()
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    [id, flags]
        .into_iter()
        .chain(counts)
        .flat_map(u16::to_be_bytes)
        .collect()
}

fn record(owner: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [
        owner,
        &kind.to_be_bytes(),
        &class.to_be_bytes(),
        &ttl.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A query from the LAN, in a frame with these tags unless they are what is odd about it.
pub fn query(rng: &mut Rng, number: u32, tags: &[u16]) -> Frame {
    let v6 = rng.bool();
    let (client, server) = ends(number, v6, rng.u16(1024..));
    let name = name(rng, number, true);
    let kind = match rng.u32(..24) {
        0 => [0, OPT, 250, 251, 252, 255, 128, 253][rng.usize(..8)],
        1 => rng.u16(..),
        2 => [SVCB, HTTPS, TXT, 2, 15, 33][rng.usize(..6)],
        n if n % 2 == 0 => A,
        _ => AAAA,
    };
    let class: u16 = if one_in(rng, 20) {
        [0, 3, 254, 255, 0x8001, 4][rng.usize(..6)]
    } else {
        1
    };
    let flags = match rng.u32(..32) {
        0 => rng.u16(..),
        1 => 1 << rng.u32(..16),
        2 => 0x0100 | 1 << rng.u32(..16),
        3 => 0x0130,
        _ => 0x0100,
    };
    let mut question = [&wire(&name)[..], &kind.to_be_bytes(), &class.to_be_bytes()].concat();
    if one_in(rng, 30) {
        // The last label becomes a pointer.
        let at = question.len() - 6;
        question.splice(at - 1..at + 2, [0xc0, 12]);
    }
    let mut counts = [1, 0, 0, 0];
    let mut more = Vec::new();
    match rng.u32(..40) {
        14..=28 => {
            counts[3] = 1;
            more = edns(rng);
        }
        8 => {
            counts[0] = 2;
            more.clone_from(&question);
        }
        9 => {
            counts[rng.usize(1..4)] = 1;
            more = record(&[0xc0, 12], A, 1, 60, &[20, 0, 0, 1]);
        }
        10 => {
            counts[3] = 2;
            more = [edns(rng), edns(rng)].concat();
        }
        // TSIG, SIG(0).
        11 => {
            counts[3] = 1;
            more = record(&[3, b'k', b'e', b'y', 0], 250, 255, 0, &[0; 20]);
        }
        12 => {
            counts[3] = 2;
            more = [edns(rng), record(&[0], 24, 255, 0, &[0; 20])].concat();
        }
        13 => counts[rng.usize(..4)] = rng.u16(..),
        _ => {}
    }
    let mut message = [header(rng.u16(..), flags, counts), question, more].concat();
    if one_in(rng, 40) {
        message.extend((0..rng.usize(1..20)).map(|_| rng.u8(..)));
    }
    if one_in(rng, 40) {
        message.truncate(rng.usize(1..message.len()));
    }
    let mut frame = Frame::new(client, server, message);
    frame.tags = tags.to_vec();
    oddity(rng, &mut frame, true);
    frame
}

/// One thing about the packet that is not as usual, sometimes.
fn oddity(rng: &mut Rng, frame: &mut Frame, query: bool) {
    let v6 = frame.source.is_ipv6();
    let (local, remote) = if query {
        (&mut frame.source, &mut frame.destination)
    } else {
        (&mut frame.destination, &mut frame.source)
    };
    match rng.u32(..48) {
        0 => remote.set_port(rng.u16(..)),
        1 if query => {
            let near = if v6 {
                steer_tests::dnsrun::NEAR6
            } else {
                steer_tests::dnsrun::NEAR4
            };
            *remote = near.parse().unwrap();
        }
        2 if query => local.set_ip(if v6 {
            "2001:db8:77::1".parse().unwrap()
        } else {
            "203.0.113.9".parse().unwrap()
        }),
        3 => frame.options = true,
        4 if !v6 => frame.fragment = [0x2000, 1, 0x2001, 0x1fff][rng.usize(..4)],
        5 | 6 if !v6 => frame.fragment = 0x4000,
        7 => frame.hops = rng.u8(..3),
        8..=10 if !v6 => frame.bare = true,
        11 => frame.lie = rng.i16(-8..=8),
        12..=14 => frame.padding = rng.usize(1..40),
        15 => frame.protocol = [6, 1, 132, 136][rng.usize(..4)],
        16 if query => {
            frame.to = [[2, 0, 0, 0, 0, 2], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]][rng.usize(..3)];
        }
        17..=19 => frame.tags = vec![[10, 0, 11][rng.usize(..3)]],
        23 | 24 => frame.tags = vec![100, [20, 21][rng.usize(..2)]],
        27 => frame.tags = vec![100, 20, 5],
        _ => {}
    }
}

/// The query that answer `number` is for: one that is steered and teaches.
pub fn asked(rng: &mut Rng, number: u32, v6: bool) -> (Frame, String, u16) {
    let (client, server) = ends(number, v6, rng.u16(1024..));
    let name = name(rng, number, false);
    let kind = [A, A, AAAA, AAAA, HTTPS, SVCB][rng.usize(..6)];
    let question = [&wire(&name)[..], &kind.to_be_bytes(), &[0, 1]].concat();
    let message = [header(rng.u16(..), 0x0100, [1, 0, 0, 0]), question].concat();
    (Frame::new(client, server, message), name, kind)
}

/// Addresses of case `number`, some of them such as no public service has.
struct Addresses {
    number: u32,
    next: u8,
}

impl Addresses {
    fn v4(&mut self, rng: &mut Rng) -> Vec<u8> {
        let [_, a, b, c] = self.number.to_be_bytes();
        self.next += 1;
        match rng.u32(..12) {
            0 => match rng.u32(..10) {
                0 => [10, 9, 9, 9],
                1 => [172, rng.u8(14..34), 1, 1],
                2 => [192, 168, 1, 1],
                3 => [127, 0, 0, 1],
                4 => [169, 254, 169, 254],
                5 => [100, rng.u8(60..130), 1, 1],
                6 => [rng.u8(222..), 1, 1, 1],
                7 => [0, 0, 0, 0],
                8 => [255; 4],
                _ => [52, 97, 0, 1],
            }
            .to_vec(),
            // The number in an address that nobody else has.
            _ => vec![20 + a, b, c, self.next],
        }
    }

    fn v6(&mut self, rng: &mut Rng) -> Vec<u8> {
        let [_, a, b, c] = self.number.to_be_bytes();
        self.next += 1;
        let mut address = [0_u8; 16];
        match rng.u32(..12) {
            0 => {
                let heads: [&[u8]; 8] = [
                    &[0xfe, 0x80],
                    &[0xfd, 0],
                    &[0xff, 2],
                    &[0x20, 1, 0x0d, 0xb8, 0, 1],
                    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 20, 1, 1, 1],
                    &[0, 0x64, 0xff, 0x9b],
                    &[0x40, 0],
                    &[],
                ];
                let head = heads[rng.usize(..heads.len())];
                address[..head.len()].copy_from_slice(head);
            }
            _ => address[..8].copy_from_slice(&[0x26, 3, 0x10, 0x63, a, b, c, self.next]),
        }
        address.to_vec()
    }
}

/// An answer to a question, as a resolver might give it, or not quite.
pub fn answer(rng: &mut Rng, number: u32, question: &[u8], name: &str, kind: u16) -> Vec<u8> {
    let id = u16::from_be_bytes([question[0], question[1]]);
    let mut addresses = Addresses { number, next: 0 };
    let compress = !one_in(rng, 5);
    let ttl = |rng: &mut Rng| match rng.u32(..8) {
        0 => [
            0,
            1,
            299,
            300,
            301,
            86_399,
            86_400,
            86_401,
            0x7fff_ffff,
            0x8000_0000,
            u32::MAX,
        ][rng.usize(..11)],
        _ => rng.u32(..100_000),
    };
    let mut message = header(id, 0, [0; 4]);
    let mut echoed = wire(name);
    if one_in(rng, 6) {
        echoed = echoed.to_ascii_uppercase();
    }
    message.extend([&echoed[..], &kind.to_be_bytes(), &[0, 1]].concat());
    let mut owner = if compress { vec![0xc0, 12] } else { wire(name) };
    let mut counts = [1_u16, 0, 0, 0];
    let chain = [0, 0, 1, 2, 3, 8][rng.usize(..6)];
    let mut last = 12;
    for link in 0..chain {
        let target = if compress && rng.bool() {
            // Only the first label is new; the rest is the one before's.
            let rest = last + 1 + usize::from(message[last]);
            [&[2, b'f', b'0' + link][..], &pointer(rest)].concat()
        } else {
            wire(&format!("e{link}.{}.akadns.net", label(rng, 8)))
        };
        last = message.len() + owner.len() + 10;
        message.extend(record(&owner, CNAME, 1, ttl(rng), &target));
        owner = if compress {
            pointer(last).to_vec()
        } else {
            target
        };
        counts[1] += 1;
    }
    let many = match rng.u32(..20) {
        0 => 0,
        1 => rng.usize(28..36),
        2 => rng.usize(9..28),
        _ => rng.usize(1..9),
    };
    for data in data(rng, kind, many, &mut addresses) {
        message.extend(record(&owner, kind, 1, ttl(rng), &data));
        counts[1] += 1;
    }
    more_records(rng, &mut message, &mut counts, &mut addresses);
    let flags = match rng.u32(..24) {
        0 => 0x8180 | rng.u16(..16),
        1 => rng.u16(..),
        2 => 0x8380,
        3 => 0x0180,
        4 => 0x8180 | rng.u16(1..16) << 11,
        _ => [0x8180, 0x8580, 0x81a0][rng.usize(..3)],
    };
    if one_in(rng, 30) {
        let section = rng.usize(..4);
        counts[section] = counts[section].wrapping_add([1, u16::MAX, 500][rng.usize(..3)]);
    }
    message.splice(
        2..12,
        [flags].into_iter().chain(counts).flat_map(u16::to_be_bytes),
    );
    match rng.u32(..40) {
        0 => message.extend((0..rng.usize(1..9)).map(|_| rng.u8(..))),
        1 => message.truncate(rng.usize(17..message.len())),
        // Another question.
        2 => message[13] ^= 1,
        _ => {}
    }
    message
}

/// The data of the records that have `many` addresses: one record for all of them where they are hints.
fn data(rng: &mut Rng, kind: u16, many: usize, addresses: &mut Addresses) -> Vec<Vec<u8>> {
    match kind {
        A => (0..many).map(|_| addresses.v4(rng)).collect(),
        AAAA => (0..many).map(|_| addresses.v6(rng)).collect(),
        _ => {
            let parameter = |key: u8, value: Vec<u8>| {
                let length = u16::try_from(value.len()).unwrap();
                [&[0, key][..], &length.to_be_bytes(), &value].concat()
            };
            let mut data = vec![0, 1, 0];
            if rng.bool() {
                data.extend(parameter(1, b"\x02h2".to_vec()));
            }
            if many > 1 {
                let hints = (0..many / 2).flat_map(|_| addresses.v4(rng)).collect();
                data.extend(parameter(4, hints));
            }
            if many > 0 {
                let hints = (many / 2..many).flat_map(|_| addresses.v6(rng)).collect();
                data.extend(parameter(6, hints));
            }
            vec![data]
        }
    }
}

fn pointer(to: usize) -> [u8; 2] {
    (0xc000 | u16::try_from(to).unwrap()).to_be_bytes()
}

/// What else stands in answers: signatures, name servers, mail, text, EDNS.
fn more_records(
    rng: &mut Rng,
    message: &mut Vec<u8>,
    counts: &mut [u16; 4],
    addresses: &mut Addresses,
) {
    let question = [0xc0, 12];
    if one_in(rng, 6) {
        let data = [
            &[0, 1, 8, 2, 0, 0, 0, 60, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1][..],
            &question,
            &[7; 32],
        ]
        .concat();
        message.extend(record(&question, 46, 1, 400, &data));
        counts[1] += 1;
    }
    if one_in(rng, 12) {
        message.extend(record(&question, TXT, 1, 400, &[3, b'a', b'b', b'c']));
        counts[1] += 1;
    }
    if one_in(rng, 20) {
        // Of another class.
        message.extend(record(&question, A, 3, 400, &[20, 200, 0, 1]));
        counts[1] += 1;
    }
    match rng.u32(..10) {
        0 => {
            let data = [&wire("ns1.example.net")[..], &[1, b'h', 0xc0, 12], &[0; 20]].concat();
            message.extend(record(&question, 6, 1, 60, &data));
            counts[2] += 1;
        }
        1 => {
            message.extend(record(&question, 2, 1, 60, &wire("ns1.example.net")));
            counts[2] += 1;
        }
        2 => {
            message.extend(record(
                &question,
                15,
                1,
                60,
                &[&[0, 10][..], &wire("mx.example.net")].concat(),
            ));
            message.extend(record(
                &question,
                33,
                1,
                60,
                &[&[0, 1, 0, 1, 1, 187][..], &wire("s.example.net")].concat(),
            ));
            message.extend(record(&question, 39, 1, 60, &wire("d.example.net")));
            counts[2] += 3;
        }
        _ => {}
    }
    if one_in(rng, 6) {
        // Addresses that are not in the answer section teach nothing.
        let data = addresses.v4(rng);
        message.extend(record(&question, A, 1, 60, &data));
        counts[3] += 1;
    }
    if rng.bool() {
        message.extend(edns(rng));
        counts[3] += 1;
    }
}

/// The frame of an answer that comes from `resolver`.
pub fn answered(
    rng: &mut Rng,
    resolver: SocketAddr,
    client: SocketAddr,
    message: Vec<u8>,
) -> Frame {
    let mut frame = Frame::new(resolver, client, message);
    oddity(rng, &mut frame, false);
    frame
}

/// Changes an answer, in one to three ways.
pub fn mutate(rng: &mut Rng, message: &mut Vec<u8>) {
    for _ in 0..[1, 1, 2, 3][rng.usize(..4)] {
        let length = message.len();
        let at = rng.usize(..length);
        match rng.u32(..12) {
            0..=2 => message[at] ^= 1 << rng.u32(..8),
            3 => message[at] = rng.u8(..),
            4 => message[at] = [0, 0xc0, 0xff, 63, 64, 12, 1, 28][rng.usize(..8)],
            5 if length > 20 => message.truncate(rng.usize(17..length)),
            6 => message.extend((0..rng.usize(1..30)).map(|_| rng.u8(..))),
            // A pointer to anywhere.
            7 if at + 1 < length => {
                message[at..at + 2].copy_from_slice(&pointer(rng.usize(..length)));
            }
            // A pointer to itself.
            8 if at + 1 < length => {
                message[at..at + 2].copy_from_slice(&pointer(at));
            }
            // A section's count.
            9 => {
                let section = 4 + 2 * rng.usize(..4);
                message[section + 1] =
                    message[section + 1].wrapping_add([1, 255, 2][rng.usize(..3)]);
            }
            // Sections swapped.
            10 => {
                let (a, b) = (4 + 2 * rng.usize(..4), 4 + 2 * rng.usize(..4));
                message.swap(a, b);
                message.swap(a + 1, b + 1);
            }
            // A part taken out or doubled.
            _ if at > 12 => {
                let end = (at + rng.usize(1..20)).min(length);
                let part = message[at..end].to_vec();
                if rng.bool() {
                    message.splice(at..at, part);
                } else if length - part.len() > 17 {
                    message.drain(at..end);
                }
            }
            _ => {}
        }
    }
}
