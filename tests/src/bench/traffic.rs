//! The flows: their destinations, and their frames.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use ipnet::Ipv4Net;

/// Flows of each kind.
pub const FLOWS: usize = 4096;
/// Octets of a frame, without the checksum that follows it on the wire.
pub const FRAME: usize = 64;
/// What clients send with.
pub const TTL: u8 = 64;

/// Whether a packet is Microsoft 365's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is to be steered.
    Hit,
    /// It is not.
    Miss,
}

/// A flow's part that decides its way.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub source: Ipv4Addr,
    pub source_port: u16,
    pub destination: Ipv4Addr,
    pub port: u16,
}

/// The flows of both kinds, and the prefixes that tell them apart.
pub struct Traffic {
    pub prefixes: Vec<Ipv4Net>,
    pub hits: Vec<Flow>,
    pub misses: Vec<Flow>,
}

/// Microsoft 365 over UDP, as published in August 2026: Exchange Online and SharePoint (QUIC).
const QUIC: &[&str] = &[
    "13.107.6.152/31",
    "13.107.18.10/31",
    "13.107.128.0/22",
    "23.103.160.0/20",
    "40.96.0.0/13",
    "40.104.0.0/15",
    "52.96.0.0/14",
    "131.253.33.215/32",
    "132.245.0.0/16",
    "150.171.32.0/22",
    "204.79.197.215/32",
    "13.107.136.0/22",
    "40.108.128.0/17",
    "52.104.0.0/14",
    "104.146.128.0/17",
    "150.171.40.0/22",
];
/// Teams' media.
const TEAMS: &[&str] = &["52.112.0.0/14", "52.122.0.0/15"];

impl Traffic {
    pub fn new() -> Result<Self> {
        let mut ports = Vec::new();
        for (prefixes, port) in [(QUIC, 443), (TEAMS, 3478)] {
            for prefix in prefixes {
                let prefix: Ipv4Net = prefix.parse().with_context(|| (*prefix).to_owned())?;
                ports.push((prefix, port));
            }
        }
        let prefixes: Vec<Ipv4Net> = ports.iter().map(|(prefix, _)| *prefix).collect();
        let mut random = Random(0x3650_0365);
        let hits = (0..FLOWS).map(|flow| {
            let (prefix, port) = ports[flow % ports.len()];
            let host = random.next() & !u32::from(prefix.netmask());
            random.flow(Ipv4Addr::from(u32::from(prefix.network()) | host), port)
        });
        let hits = hits.collect();
        let mut misses = Vec::with_capacity(FLOWS);
        while misses.len() < FLOWS {
            let destination = Ipv4Addr::from(random.next());
            let steered = prefixes.iter().any(|prefix| prefix.contains(&destination));
            if !steered && is_public(destination) {
                misses.push(random.flow(destination, 443));
            }
        }
        Ok(Self {
            prefixes,
            hits,
            misses,
        })
    }
}

/// Unicast that a router sends to the Internet.
fn is_public(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    !(first == 0
        || first >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

impl Flow {
    /// The flow's frame as the router's LAN interface receives it.
    pub fn frame(&self, to: [u8; 6], from: [u8; 6]) -> Result<[u64; FRAME / 8]> {
        const HEADERS: usize = 14 + 20 + 8;
        let builder = PacketBuilder::ethernet2(from, to)
            .ipv4(self.source.octets(), self.destination.octets(), TTL)
            .udp(self.source_port, self.port);
        let mut frame = Vec::with_capacity(FRAME);
        builder.write(&mut frame, &[0x40; FRAME - HEADERS])?;
        let mut words = [0; FRAME / 8];
        for (word, octets) in words.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(octets.try_into()?);
        }
        Ok(words)
    }
}

/// The same flows in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 32) as u32
    }

    fn flow(&mut self, destination: Ipv4Addr, port: u16) -> Flow {
        let [client, high, low, _] = self.next().to_be_bytes();
        Flow {
            source: Ipv4Addr::new(10, 20, 1, client),
            source_port: u16::from_be_bytes([high | 0x80, low]),
            destination,
            port,
        }
    }
}
