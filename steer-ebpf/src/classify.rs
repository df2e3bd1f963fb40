//! From a packet to its class: destination, protocol and port against the active generation.
//!
//! Destinations come first: most packets are nobody's business here and leave after one lookup.
//! Whatever is odd about the rest makes it pass, with its reason counted.

use aya_ebpf::{
    bindings::BPF_F_RDONLY_PROG,
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use steer_common::{
    chunk::{self, Chunk, Chunks, DST4, DST6, SRC4, SRC6, SourceKind},
    dns::{self, Address},
    flow::{self, Standing},
    lookup,
    reason::Reason,
    rule::{Action, TCP, UDP},
};

use crate::{
    config, learned,
    parse::{Bytes, IPV4, IPV6, Link},
};

type Inner = Array<Chunk, { chunk::CHUNKS as usize }, { BPF_F_RDONLY_PROG as usize }>;

/// The active generation: one plan, replaced with one write.
#[btf_map]
static GENERATION: ArrayOfMaps<Inner, 1> = ArrayOfMaps::new();

/// A generation, read once for a packet.
struct Generation<'a>(&'a Inner);

impl Chunks for Generation<'_> {
    #[inline(always)]
    fn chunk(&self, index: u32) -> Option<&Chunk> {
        self.0.get(index)
    }
}

/// What became of a packet.
pub enum Outcome {
    /// Nothing to do with us.
    Pass,
    /// It might have been steered, but for the reason.
    PassBecause(Reason),
    /// It belongs to a class.
    Match(Match),
}

/// A packet of a class.
pub struct Match {
    /// The class, an index of the registry.
    pub class: u16,
    /// The length of the IP packet, in bytes.
    pub length: usize,
    /// A hash of the client's address.
    pub client: u64,
    /// A hash of addresses, protocol and ports.
    pub flow: u64,
    /// 0: IPv4, 1: IPv6.
    pub family: usize,
    /// TCP, or else UDP.
    pub tcp: bool,
    /// A first packet of TCP: SYN without ACK, FIN or RST.
    pub syn: bool,
    /// A packet that must be answered: TCP's first one, or an Initial of QUIC.
    pub first: bool,
    /// A number made from the destination's address.
    pub destination: u64,
    /// What a change of the plan means for its flow.
    pub standing: Standing,
}

/// What a program does with the first fragment of a datagram, whose ports are in sight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FirstFragments {
    /// It decides for the datagram: the stack puts it together before it routes.
    Match,
    /// It passes with the rest, so that one datagram takes one way.
    Pass,
}

/// Whether the IP packet that begins where `link` says comes from a destination of the plan.
#[inline(always)]
pub fn is_answer(bytes: &Bytes, link: &Link) -> bool {
    let Some(generation) = GENERATION.get(0).map(Generation) else {
        return false;
    };
    let entry = match link.ethertype {
        IPV4 => bytes
            .read::<20>(link.l3)
            .map(|header| lookup::v4(&generation, DST4, word(&header, 12))),
        IPV6 => bytes
            .read::<40>(link.l3)
            .map(|header| lookup::v6(&generation, DST6, long(&header, 8), long(&header, 16))),
        _ => None,
    };
    entry.is_some_and(|entry| entry != 0)
}

/// The header fields that IPv4 and IPv6 have in common.
struct Ip {
    length: usize,
    hops: u8,
    protocol: u8,
    l4: usize,
    options: bool,
    first_fragment: bool,
    later_fragment: bool,
    client: u64,
    destination: u64,
    addresses: u64,
    family: usize,
    standing: Standing,
}

/// Classifies the IP packet that begins where `link` says.
#[inline(always)]
pub fn classify(bytes: &Bytes, link: &Link, fragments: FirstFragments) -> Outcome {
    let Some(generation) = GENERATION.get(0).map(Generation) else {
        return Outcome::Pass;
    };
    match link.ethertype {
        IPV4 => v4(&generation, bytes, link, fragments),
        IPV6 => v6(&generation, bytes, link, fragments),
        _ => Outcome::Pass,
    }
}

#[inline(always)]
fn v4(
    generation: &Generation<'_>,
    bytes: &Bytes,
    link: &Link,
    fragments: FirstFragments,
) -> Outcome {
    let Some(header) = bytes.read::<20>(link.l3) else {
        return Outcome::Pass;
    };
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let destination = word(&header, 16);
    let source = word(&header, 12);
    let entry = match lookup::v4(generation, DST4, destination) {
        0 if lookup::learns(generation) => taught(
            generation,
            learned::halves(source),
            learned::halves(destination),
        ),
        entry => entry,
    };
    if entry == 0 {
        return Outcome::Pass;
    }
    let length = usize::from(half(&header, 2));
    if header[0] >> 4 != 4
        || header_length < 20
        || length < header_length
        || length > bytes.length - link.l3
    {
        return Outcome::PassBecause(Reason::Malformed);
    }
    let standing = match may_steer(link, lookup::v4(generation, SRC4, source)) {
        Ok(standing) => standing,
        Err(reason) => return Outcome::PassBecause(reason),
    };
    let fragment = half(&header, 6);
    let addresses = u64::from(source) << 32 | u64::from(destination);
    let ip = Ip {
        length,
        hops: header[8],
        protocol: header[9],
        l4: link.l3 + 20,
        options: header_length > 20,
        first_fragment: fragment & 0x3fff == 0x2000,
        later_fragment: fragment & 0x1fff != 0,
        client: source.into(),
        destination: destination.into(),
        addresses: flow::mix(config::flow_seed(), addresses),
        family: 0,
        standing,
    };
    transport(generation, bytes, link, &ip, entry, fragments)
}

#[inline(always)]
fn v6(
    generation: &Generation<'_>,
    bytes: &Bytes,
    link: &Link,
    fragments: FirstFragments,
) -> Outcome {
    let Some(header) = bytes.read::<40>(link.l3) else {
        return Outcome::Pass;
    };
    let destination = (long(&header, 24), long(&header, 32));
    let entry = match lookup::v6(generation, DST6, destination.0, destination.1) {
        0 if lookup::learns(generation) => taught(
            generation,
            (long(&header, 8), long(&header, 16)),
            destination,
        ),
        entry => entry,
    };
    if entry == 0 {
        return Outcome::Pass;
    }
    let length = usize::from(half(&header, 4)) + 40;
    if header[0] >> 4 != 6 || length > bytes.length - link.l3 {
        return Outcome::PassBecause(Reason::Malformed);
    }
    let source = (long(&header, 8), long(&header, 16));
    let standing = match may_steer(link, lookup::v6(generation, SRC6, source.0, source.1)) {
        Ok(standing) => standing,
        Err(reason) => return Outcome::PassBecause(reason),
    };
    let seeded = flow::mix(flow::mix(config::flow_seed(), source.0), source.1);
    let mut ip = Ip {
        length,
        hops: header[7],
        protocol: header[6],
        l4: link.l3 + 40,
        options: false,
        first_fragment: false,
        later_fragment: false,
        client: flow::mix(source.0, source.1),
        destination: destination.0 ^ destination.1,
        addresses: flow::mix(flow::mix(seeded, destination.0), destination.1),
        family: 1,
        standing,
    };
    if let Err(reason) = walk_extensions(bytes, link, &mut ip) {
        return Outcome::PassBecause(reason);
    }
    transport(generation, bytes, link, &ip, entry, fragments)
}

/// The entry of an address that an answer taught, 0 for none.
#[inline(always)]
fn taught(generation: &Generation<'_>, client: (u64, u64), address: (u64, u64)) -> u16 {
    match learned::class(client, address) {
        0 => 0,
        class => lookup::class(generation, class),
    }
}

/// Whether a query from this source and VLAN is looked at.
#[inline(always)]
pub fn may_ask(link: &Link, source: &Address) -> bool {
    let Some(generation) = GENERATION.get(0).map(Generation) else {
        return false;
    };
    let (high, low) = (dns::long(source, 0), dns::long(source, 1));
    let kind = if link.ethertype == IPV4 {
        lookup::v4(&generation, SRC4, u64::from_be(low) as u32)
    } else {
        lookup::v6(&generation, SRC6, u64::from_be(high), u64::from_be(low))
    };
    config::steers_vlan(link.vlan) && SourceKind::may_ask(kind)
}

/// Whether an address has its place in the plan, so that no answer teaches it.
#[inline(always)]
pub fn is_in_plan(address: &Address, v4: bool) -> bool {
    let Some(generation) = GENERATION.get(0).map(Generation) else {
        return true;
    };
    let (high, low) = (dns::long(address, 0), dns::long(address, 1));
    let (high, low) = (u64::from_be(high), u64::from_be(low));
    let entry = if v4 {
        lookup::v4(&generation, DST4, low as u32) | lookup::v4(&generation, SRC4, low as u32)
    } else {
        lookup::v6(&generation, DST6, high, low) | lookup::v6(&generation, SRC6, high, low)
    };
    entry != 0
}

/// Whether names of the plan teach addresses.
#[inline(always)]
pub fn learns() -> bool {
    GENERATION
        .get(0)
        .is_some_and(|inner| lookup::learns(&Generation(inner)))
}

/// The IPv6 extension headers that only the destination reads: destination options and fragment.
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
/// Those that routers read, too.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;

/// Moves `ip` behind up to four extension headers.
#[inline(always)]
fn walk_extensions(bytes: &Bytes, link: &Link, ip: &mut Ip) -> Result<(), Reason> {
    for _ in 0..4 {
        if ip.protocol != DESTINATION_OPTIONS && ip.protocol != FRAGMENT {
            break;
        }
        let Some(header) = bytes.read::<8>(ip.l4) else {
            return Err(Reason::Malformed);
        };
        if ip.protocol == FRAGMENT {
            let fragment = half(&header, 2);
            ip.later_fragment |= fragment & 0xfff8 != 0;
            ip.first_fragment |= fragment & 0x0001 != 0;
            ip.l4 += 8;
        } else {
            ip.l4 += (usize::from(header[1]) + 1) * 8;
        }
        ip.protocol = header[0];
        if ip.l4 - link.l3 > ip.length {
            return Err(Reason::Malformed);
        }
        if ip.later_fragment {
            // What follows is the middle of something.
            return Ok(());
        }
    }
    match ip.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => ip.options = true,
        _ => {}
    }
    Ok(())
}

/// Whether frames of this VLAN and this source are steered at all.
#[inline(always)]
fn may_steer(link: &Link, source: u16) -> Result<Standing, Reason> {
    if !config::steers_vlan(link.vlan) {
        return Err(Reason::Vlan);
    }
    if SourceKind::is_client(source) {
        return Ok(Standing::of(source));
    }
    if source == SourceKind::LeftOut as u16 {
        return Err(Reason::SourceExcluded);
    }
    Err(Reason::NotLan)
}

#[inline(always)]
fn transport(
    generation: &Generation<'_>,
    bytes: &Bytes,
    link: &Link,
    ip: &Ip,
    entry: u16,
    fragments: FirstFragments,
) -> Outcome {
    if ip.hops <= 1 {
        return Outcome::PassBecause(Reason::Ttl);
    }
    if ip.options {
        return Outcome::PassBecause(Reason::Options);
    }
    if ip.later_fragment || (ip.first_fragment && fragments == FirstFragments::Pass) {
        return Outcome::PassBecause(Reason::Fragment);
    }
    let tcp = ip.protocol == TCP;
    if !tcp && ip.protocol != UDP {
        return Outcome::PassBecause(Reason::Protocol);
    }
    let minimum = if tcp { 20 } else { 8 };
    let room = ip.length - (ip.l4 - link.l3);
    if room < minimum {
        return Outcome::PassBecause(Reason::Malformed);
    }
    let Some(head) = bytes.read::<8>(ip.l4) else {
        return Outcome::PassBecause(Reason::Malformed);
    };
    // TCP's header and UDP's datagram are as long as they say; conntrack calls what contradicts
    // the IP length invalid, too. A first fragment has only the beginning.
    let (says, syn, first) = if tcp {
        let Some([offset, flags]) = bytes.read::<2>(ip.l4 + 12) else {
            return Outcome::PassBecause(Reason::Malformed);
        };
        // FIN, SYN, RST and ACK: nothing but SYN.
        let syn = flags & 0x17 == 0x02;
        (usize::from(offset >> 4) * 4, syn, syn)
    } else {
        // QUIC version 1: long header, fixed bit, packet type 0 (RFC 9000, 17.2.2).
        let initial = bytes
            .read::<1>(ip.l4 + 8)
            .is_some_and(|[it]| it & 0xf0 == 0xc0);
        (usize::from(half(&head, 4)), false, initial)
    };
    if says < minimum || (says > room && !ip.first_fragment) {
        return Outcome::PassBecause(Reason::Malformed);
    }
    let Some(rule) = lookup::rule(generation, entry, ip.protocol, half(&head, 2)) else {
        return Outcome::PassBecause(Reason::Port);
    };
    match rule.action() {
        Action::Steer => {}
        Action::Exclude => return Outcome::PassBecause(Reason::Excluded),
        Action::RouterLocal => return Outcome::PassBecause(Reason::RouterLocal),
        Action::End => return Outcome::PassBecause(Reason::Port),
    }
    let ports = u64::from(word(&head, 0)) << 8 | u64::from(ip.protocol);
    Outcome::Match(Match {
        class: rule.class,
        length: ip.length,
        client: flow::finish(ip.client),
        flow: flow::finish(flow::mix(ip.addresses, ports)),
        family: ip.family,
        tcp,
        syn,
        first,
        destination: ip.destination,
        standing: rule.standing().and(ip.standing),
    })
}

#[inline(always)]
const fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
const fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
const fn long<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    (word(bytes, at) as u64) << 32 | word(bytes, at + 4) as u64
}
