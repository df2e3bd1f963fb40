//! The flows: their destinations, and their frames.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use ipnet::{IpNet, Ipv4Net};
use steer_common::rule::UDP;
use steer_user::{
    config::Selection,
    endpoints::{EndpointSet, Feed},
    policy::{self, ClassRegistry, Plan, Site, Verdict},
};

use super::router::{BREAKOUT_ADDRESS, CLIENTS};

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

/// The flows of both kinds, and the plan that tells them apart.
pub struct Traffic {
    /// The built-in snapshot with the default selection, as steer loads it.
    pub plan: Plan,
    /// The IPv4 prefixes of the same sets.
    pub prefixes: Vec<Ipv4Net>,
    pub hits: Vec<Flow>,
    pub misses: Vec<Flow>,
}

impl Traffic {
    pub fn new() -> Result<Self> {
        let feed = Feed::builtin()?;
        let selection = Selection::default_for(feed.instance);
        let sets: Vec<EndpointSet> = feed
            .sets
            .iter()
            .filter(|set| {
                selection.categories.contains(&set.category)
                    && selection.service_areas.contains(&set.service_area)
                    && !selection.exclude_sets.contains(&set.id)
            })
            .cloned()
            .collect();
        let site = Site {
            clients: Some(vec![CLIENTS.parse()?]),
            left_out: Vec::new(),
            queries_left: Vec::new(),
            router: vec![BREAKOUT_ADDRESS.into()],
        };
        let plan = Plan::compile(feed, selection, site, &mut ClassRegistry::new())?;

        let v4 = |set: &EndpointSet| {
            let prefixes = set.prefixes.iter();
            let v4 = prefixes.filter_map(|prefix| match prefix {
                IpNet::V4(prefix) => Some(*prefix),
                IpNet::V6(_) => None,
            });
            v4.collect::<Vec<_>>()
        };
        let prefixes = Ipv4Net::aggregate(&sets.iter().flat_map(v4).collect());
        let mut services = Vec::new();
        for set in &sets {
            if let Some(ports) = set.udp.ranges().first() {
                services.extend(v4(set).into_iter().map(|prefix| (prefix, ports.lo())));
            }
        }
        ensure!(
            !services.is_empty(),
            "no set of the plan has IPv4 prefixes and UDP ports"
        );
        let mut random = Random(0x3650_0365);
        let mut hits = Vec::with_capacity(FLOWS);
        for (prefix, port) in services.iter().cycle().take(FLOWS) {
            let host = random.next() & !u32::from(prefix.netmask());
            let flow = random.flow(Ipv4Addr::from(u32::from(prefix.network()) | host), *port);
            ensure!(flow.is_steered(&plan), "the plan passes {flow:?}");
            hits.push(flow);
        }
        let mut misses = Vec::with_capacity(FLOWS);
        while misses.len() < FLOWS {
            let destination = Ipv4Addr::from(random.next());
            let flow = random.flow(destination, 443);
            let listed = prefixes.iter().any(|prefix| prefix.contains(&destination));
            if is_public(destination) && !listed && !flow.is_steered(&plan) {
                misses.push(flow);
            }
        }
        Ok(Self {
            plan,
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
    fn is_steered(&self, plan: &Plan) -> bool {
        let flow = policy::Flow {
            destination: self.destination.into(),
            protocol: UDP,
            port: self.port,
            source: Some(self.source.into()),
        };
        matches!(plan.decide(&flow), Verdict::Steer(_))
    }

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
