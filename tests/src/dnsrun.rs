//! The programs for queries and answers with maps of their own, and packets put through them by
//! `BPF_PROG_TEST_RUN`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use etherparse::PacketBuilder;
use steer_common::{
    abi::{FamilyTable, PathTable, STEERING},
    chunk::SourceKind,
    deadman::{Heartbeat, Open},
    dns::{DnsEvent, DnsTable, REWRITING},
    image::{Claim, Image, Order, Source},
    names::{Aim, NameClaim, NameTable},
    rule::{Action, Rule, TCP, UDP},
};
use steer_user::datapath::{Dns, DnsMaps, Lessons, LogLevel};

use crate::{
    packet::CLIENT,
    testrun::{Bench, ROUTER, Variant, open},
};

/// Where TC runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// LAN ingress.
    Query,
    /// LAN egress.
    Answer,
}

/// A packet after a program: its bytes and its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The mark.
    pub mark: u32,
}

/// The classifier and the programs for names, on the same maps.
pub struct DnsBench {
    /// The classifier.
    pub classifier: Bench,
    dns: Dns,
    bare_ip: bool,
}

/// A server that clients ask.
pub const SERVER4: &str = "192.0.2.53:53";
/// See [`SERVER4`].
pub const SERVER6: &str = "[2001:db8:ffff::53]:53";
/// The resolver of [`PATH`].
pub const NEAR4: &str = "198.51.100.1:53";
/// See [`NEAR4`].
pub const NEAR6: &str = "[2001:db8:2::1]:53";
/// A client.
pub const CLIENT4: &str = "10.1.2.3:40000";
/// See [`CLIENT4`].
pub const CLIENT6: &str = "[2001:db8:1::7]:40000";

/// The path that every client takes.
pub const PATH: u8 = 3;
/// A prefix of the plan, of [`STATIC_CLASS`] at TCP 443.
pub const PUBLISHED: &str = "52.96.0.0/14";
/// See [`PUBLISHED`].
pub const STATIC_CLASS: u16 = 2;
/// An address of the router.
pub const OWN: &str = "203.0.113.77/32";
/// The networks of the clients.
pub const CLIENTS: [&str; 3] = ["10.0.0.0/8", "192.168.0.0/16", "2001:db8:1::/48"];
/// The class whose addresses are steered at 443.
pub const CLASS: u16 = 7;

impl DnsBench {
    /// Loads everything for an interface like `variant`, with the private networks and 2001:db8:1::/48
    /// as clients, `resolvers` for the path that is up, and `names`.
    pub fn load(variant: &Variant, resolvers: &[IpAddr], names: &NameTable) -> Result<Self> {
        let mut classifier = Bench::load(variant)?;
        let ports = vec![variant.port("test", 1)];
        let pins = classifier.pins().clone();
        let mut dns = Dns::load(variant.mode(), pins, ports, LogLevel::Off)?;
        let sources: Vec<Source> = CLIENTS
            .iter()
            .map(|prefix| {
                Ok(Source {
                    prefix: prefix.parse()?,
                    kind: SourceKind::Client,
                })
            })
            .collect::<Result<_>>()?;
        let rules = vec![
            Rule::steer(CLASS, TCP, 443, 443),
            Rule::steer(CLASS, UDP, 443, 443),
        ];
        let claim = |rank, prefix: &str, rule| -> Result<Claim> {
            let prefix = prefix.parse()?;
            Ok(Claim {
                prefix,
                order: Order::new(rank, &prefix, 0),
                rules: vec![rule],
            })
        };
        let claims = [
            claim(0, OWN, Rule::pass(Action::RouterLocal))?,
            claim(1, PUBLISHED, Rule::steer(STATIC_CLASS, TCP, 443, 443))?,
        ];
        let classes = [(CLASS, rules.clone()), (CLASS + 1, rules)];
        let image = Image::build_learning(&claims, &sources, &classes)?;
        classifier.maps().publish(image)?;
        classifier.maps().set_paths(&PathTable::of(
            [FamilyTable::of(STEERING | 1 << PATH, PATH); 2],
            [[0; 2]; 16],
        ))?;
        dns.maps_mut().publish_names(names)?;
        let mut table = DnsTable {
            flags: REWRITING,
            ..DnsTable::default()
        };
        for (index, address) in (1_u8..).zip(resolvers) {
            dns.maps_mut().set_resolver(index, *address)?;
            table.active[usize::from(PATH)][usize::from(address.is_ipv6())] = index;
        }
        dns.maps_mut().set_table(&table)?;
        Ok(Self {
            classifier,
            dns,
            bare_ip: variant.bare_ip,
        })
    }

    /// The maps.
    pub fn maps(&mut self) -> &mut DnsMaps {
        self.dns.maps_mut()
    }

    /// The same maps, for answers over TCP.
    pub fn lessons(&self) -> Result<Lessons> {
        Ok(Lessons::open(self.classifier.pins())?)
    }

    /// The dead-man takes `down` for down, of the paths that answers are heard on; no controller
    /// watches.
    pub fn leave_alone(&mut self, heard: &[u8], down: &[u8]) -> Result<()> {
        let pins = self.classifier.pins();
        let mut taken = Open::default();
        for path in down {
            taken.0[usize::from(*path)] = 1;
        }
        let heard = heard.iter().fold(0, |bits, path| bits | 1 << path);
        let mut heartbeat: Array<MapData, Heartbeat> = open(pins, "HEARTBEAT")?;
        heartbeat.set(0, Heartbeat { at: 0, heard }, 0)?;
        let mut down: Array<MapData, Open> = open(pins, "OPEN")?;
        for family in 0..2 {
            down.set(family, taken, 0)?;
        }
        Ok(())
    }

    fn program(&mut self, which: Program) -> Result<(&mut SchedClassifier, &'static str)> {
        let name = match which {
            Program::Query => "dns_query",
            Program::Answer => "dns_answer",
        };
        let object = self.dns.objects_mut().next().context("no object")?;
        let program = object.program_mut(name).context("no program")?;
        Ok((program.try_into()?, name))
    }

    /// What a run of a program takes when a packet goes through it `repeat` times.
    pub fn cost(&mut self, which: Program, packet: &[u8], repeat: u32) -> Result<Duration> {
        let result = self.program(which)?.0.test_run(TestRunOptions {
            data_in: Some(packet),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok(result.duration)
    }

    /// Puts a packet through a program; nothing but "next" is right.
    pub fn run(&mut self, which: Program, packet: &[u8]) -> Result<Seen> {
        let (program, name) = self.program(which)?;
        let mut bytes = vec![0; packet.len() + 64];
        let mut after = [0; 192];
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut bytes),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        })?;
        anyhow::ensure!(
            result.return_value == u32::MAX,
            "{name} returned {}",
            result.return_value
        );
        bytes.truncate(result.data_size_out as usize);
        Ok(Seen {
            bytes,
            mark: u32::from_ne_bytes(after[8..12].try_into()?),
        })
    }

    /// How often something happened so far.
    pub fn event(&mut self, event: DnsEvent) -> Result<u64> {
        let events = self.dns.maps().events()?;
        Ok(events
            .iter()
            .find(|(it, _)| *it == event)
            .map_or(0, |(_, count)| *count))
    }

    /// How many instructions the verifier looked at, of both programs; kernels before 5.16 do not
    /// tell.
    pub fn verified_instructions(&mut self) -> Result<[Option<u32>; 2]> {
        let object = self.dns.objects_mut().next().context("no object")?;
        let mut counts = [None; 2];
        for (count, name) in counts.iter_mut().zip(["dns_query", "dns_answer"]) {
            let program = object.program(name).context("no program")?;
            *count = program.info()?.verified_instruction_count();
        }
        Ok(counts)
    }

    /// A datagram as it crosses the LAN.
    pub fn datagram(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        macro_rules! with_ip {
            ($builder:expr) => {
                match (from.ip(), to.ip()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => $builder.ipv4(a.octets(), b.octets(), 64),
                    (IpAddr::V6(a), IpAddr::V6(b)) => $builder.ipv6(a.octets(), b.octets(), 64),
                    _ => anyhow::bail!("two families"),
                }
                .udp(from.port(), to.port())
                .write(&mut bytes, payload)?
            };
        }
        with_ip!(PacketBuilder::ethernet2(CLIENT, ROUTER));
        if self.bare_ip {
            bytes.drain(..14);
        }
        Ok(bytes)
    }
}

/// A name of each form of patterns, and an exclusion; addresses of [`CLASS`] are learned for all but
/// the first.
pub fn names() -> Result<NameTable> {
    let steer = |class, learn| Aim::Steer {
        class,
        rewrite: true,
        learn,
    };
    let claims = [
        ("outlook.office.com", steer(CLASS, false)),
        ("*.sharepoint.com", steer(CLASS, true)),
        ("*cdn.onenote.net", steer(CLASS, true)),
        ("autodiscover.*.onmicrosoft.com", steer(CLASS, true)),
        ("*.other.example.com", steer(CLASS + 1, true)),
        ("*.corp.sharepoint.com", Aim::Exclude),
    ];
    let claims: Vec<NameClaim> = claims
        .into_iter()
        .map(|(pattern, aim)| {
            Ok(NameClaim {
                pattern: pattern.parse()?,
                aim,
                rank: 1,
                id: 0,
            })
        })
        .collect::<Result<_>>()?;
    Ok(NameTable::build(&claims)?)
}

/// A name as it stands in a message.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a label has at most 63 octets"
)]
pub fn wire(name: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        octets.push(label.len() as u8);
        octets.extend(label.as_bytes());
    }
    octets.push(0);
    octets
}

/// A question.
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    [
        &id.to_be_bytes()[..],
        &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &wire(name),
        &kind.to_be_bytes(),
        &[0, 1],
    ]
    .concat()
}

/// An answer with A records of the question's name, which live for 300 s.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an answer has fewer than 65536 records"
)]
pub fn answer(id: u16, name: &str, flags: u16, addresses: &[[u8; 4]]) -> Vec<u8> {
    let mut octets = [
        &id.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &[0, 1],
        &(addresses.len() as u16).to_be_bytes(),
        &[0, 0, 0, 0],
        &wire(name),
        &[0, 1, 0, 1],
    ]
    .concat();
    for address in addresses {
        octets.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0x2c, 0, 4]);
        octets.extend(address);
    }
    octets
}

/// Lets the programs see a question and its answer: the one goes to the resolver [`NEAR4`], the other
/// comes back from the server and teaches its address.
pub fn teaches(bench: &mut DnsBench) -> Result<()> {
    const NAME: &str = "contoso.sharepoint.com";
    const ADDRESS: [u8; 4] = [20, 1, 2, 3];
    let (client, server, near) = (CLIENT4.parse()?, SERVER4.parse()?, NEAR4.parse()?);
    let crosses = [
        (
            Program::Query,
            query(7, NAME, 1),
            [client, server],
            [client, near],
        ),
        (
            Program::Answer,
            answer(7, NAME, 0x8180, &[ADDRESS]),
            [near, client],
            [server, client],
        ),
    ];
    for (program, message, before, after) in crosses {
        let sent = bench.datagram(before[0], before[1], &message)?;
        let expected = bench.datagram(after[0], after[1], &message)?;
        let seen = bench.run(program, &sent)?.bytes;
        anyhow::ensure!(
            seen == expected,
            "{program:?} made {seen:02x?} of {sent:02x?}"
        );
    }
    let learned = bench.maps().learned_address(ADDRESS.into());
    anyhow::ensure!(learned.is_some(), "the answer taught nothing");
    Ok(())
}
