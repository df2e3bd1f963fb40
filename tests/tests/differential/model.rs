//! What the kernel programs must decide, written once more: plain slices, linear searches, a map of
//! flows. Nothing of it is shared with the programs but the names of the reasons.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use steer_common::reason::Reason;

/// How many paths there are.
pub const PATHS: u8 = 4;
/// How many preferences there are.
pub const PREFERENCES: usize = 8;

/// The path that is so many further on.
pub fn further(path: u8, preference: usize) -> u8 {
    let steps = u8::try_from(preference).unwrap();
    (path - 1 + steps) % PATHS + 1
}

/// What the plan does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    Steer(u16),
    Exclude,
    RouterLocal,
}

/// One line of the plan; `protocol` 255 is any.
#[derive(Clone, Debug)]
pub struct Line {
    pub prefix: IpNet,
    pub rank: u8,
    pub set: u32,
    pub rules: Vec<(u8, u16, u16, Do)>,
}

/// The plan as lists.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub lines: Vec<Line>,
    /// Prefix, and whether it makes clients (else leaves them out).
    pub sources: Vec<(IpNet, bool)>,
}

impl Plan {
    /// The rules for an address in their order; none when the plan does not know the address.
    fn rules(&self, address: IpAddr) -> Vec<(u8, u16, u16, Do)> {
        let mut lines: Vec<&Line> = self
            .lines
            .iter()
            .filter(|line| line.prefix.contains(&address))
            .collect();
        lines.sort_by_key(|line| (line.rank, 255 - line.prefix.prefix_len(), line.set));
        lines
            .iter()
            .flat_map(|line| line.rules.iter().copied())
            .collect()
    }

    fn source(&self, address: IpAddr) -> Result<(), Reason> {
        let matching = self
            .sources
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address));
        match matching.max_by_key(|(prefix, client)| (prefix.prefix_len(), !client)) {
            Some((_, true)) => Ok(()),
            Some((_, false)) => Err(Reason::SourceExcluded),
            None => Err(Reason::NotLan),
        }
    }
}

/// The office beyond the plan.
#[derive(Clone, Debug)]
pub struct World {
    pub plan: Plan,
    pub mark: bool,
    pub bare_ip: bool,
    /// Outer and inner id.
    pub vlans: Vec<(u16, u16)>,
    pub router: [u8; 6],
    pub steering: bool,
    /// The paths that carry flows in each family (0: IPv4).
    pub up: [Vec<u8>; 2],
    /// Those that new flows of each preference may take.
    pub choices: [[Vec<u8>; 2]; PREFERENCES],
    /// The preference of each class; 0 where none is named.
    pub preferences: HashMap<u16, usize>,
    /// The MTU of each path in each family (0: IPv4), where the next hop is known.
    pub mtu: HashMap<(u8, usize), usize>,
    /// The path of each client with preference 0 while every path is up, as seen; with the others it
    /// is that many further on.
    pub homes: HashMap<IpAddr, u8>,
    /// Where each connection began: 0 is the kernel's own routing.
    pub flows: HashMap<Tuple, u8>,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: (u16, u16),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing of ours.
    Untouched,
    /// It passes, for a reason.
    Pass(Reason),
    /// Mark mode: the wish; path 0: none is up, which is a reason, too.
    Wish { class: u16, path: u8, length: usize },
    /// Redirect mode; where the IP header stands.
    Redirect {
        class: u16,
        path: u8,
        length: usize,
        family: usize,
        l3: usize,
    },
}

/// A packet of a class.
#[derive(Clone, Copy, Debug)]
pub struct Classified {
    pub class: u16,
    pub length: usize,
    pub tuple: Tuple,
    pub syn: bool,
    pub l3: usize,
}

enum Stop {
    Untouched,
    Because(Reason),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Because(reason)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl World {
    /// The client whose path has to be known to decide over a packet, if it is of a class.
    pub fn client(&self, frame: &[u8]) -> Option<IpAddr> {
        self.classify(frame).ok().map(|packet| packet.tuple.source)
    }

    /// Decides over a packet, and remembers its flow.
    pub fn decide(&mut self, frame: &[u8], mark: u32) -> Verdict {
        let packet = match self.classify(frame) {
            Err(Stop::Untouched) => return Verdict::Untouched,
            Err(Stop::Because(reason)) => return Verdict::Pass(reason),
            Ok(packet) => packet,
        };
        let decided = if self.mark {
            self.wish(frame, mark, &packet)
        } else {
            self.redirect(frame, &packet)
        };
        decided.unwrap_or_else(Verdict::Pass)
    }

    fn wish(&self, frame: &[u8], mark: u32, packet: &Classified) -> Result<Verdict, Reason> {
        if mark & 0x3f00_0000 != 0 {
            return Err(Reason::ForeignMark);
        }
        // The test's device is loopback, whose address is all zero.
        let mine = frame[..6] == [0; 6] || (!self.bare_ip && frame[..6] == self.router);
        if !mine {
            return Err(Reason::NotForUs);
        }
        if !self.steering {
            return Err(Reason::NotSteering);
        }
        Ok(Verdict::Wish {
            class: packet.class,
            path: self.choose(packet).unwrap_or(0),
            length: packet.length,
        })
    }

    fn redirect(&mut self, frame: &[u8], packet: &Classified) -> Result<Verdict, Reason> {
        if frame[..6] != self.router {
            return Err(Reason::NotForUs);
        }
        let family = usize::from(packet.tuple.source.is_ipv6());
        let tcp = packet.tuple.protocol == 6;
        let path = match self.flows.get(&packet.tuple) {
            Some(0) if !packet.syn => return Err(Reason::FlowPinned),
            Some(path) if !packet.syn => {
                if !self.up[family].contains(path) {
                    return Err(Reason::NoPath);
                }
                *path
            }
            _ => {
                let chosen = if !self.steering {
                    Err(Reason::NotSteering)
                } else if tcp && !packet.syn {
                    Err(Reason::FlowPinned)
                } else {
                    match self.choose(packet) {
                        None => Err(Reason::NoPath),
                        Some(path) if self.mtu.contains_key(&(path, family)) => Ok(path),
                        Some(_) => Err(Reason::NextHop),
                    }
                };
                self.flows.insert(packet.tuple, chosen.unwrap_or(0));
                chosen?
            }
        };
        let Some(&mtu) = self.mtu.get(&(path, family)) else {
            return Err(Reason::NextHop);
        };
        if packet.length > mtu {
            return Err(Reason::Mtu);
        }
        Ok(Verdict::Redirect {
            class: packet.class,
            path,
            length: packet.length,
            family,
            l3: packet.l3,
        })
    }

    /// A client's own path if the class may take it, else the one with the lowest number.
    fn choose(&self, packet: &Classified) -> Option<u8> {
        let client = packet.tuple.source;
        let preference = self.preferences.get(&packet.class).copied().unwrap_or(0);
        let may = &self.choices[preference][usize::from(client.is_ipv6())];
        let home = self.homes.get(&client).map(|it| further(*it, preference));
        home.filter(|path| may.contains(path))
            .or_else(|| may.iter().copied().min())
    }

    fn classify(&self, frame: &[u8]) -> Result<Classified, Stop> {
        let (l3, version, ids) = if self.bare_ip {
            let version = frame.first().ok_or(Stop::Untouched)? >> 4;
            (0, version, Vec::new())
        } else {
            link(frame).ok_or(Stop::Untouched)?
        };
        // Priority tags name no VLAN.
        let mut ids = ids.into_iter().skip_while(|&id| id == 0);
        let vlan = (ids.next().unwrap_or(0), ids.next().unwrap_or(0));
        let ip = &frame[l3.min(frame.len())..];
        match version {
            4 => self.v4(ip, l3, vlan),
            6 => self.v6(ip, l3, vlan),
            _ => Err(Stop::Untouched),
        }
    }

    fn v4(&self, ip: &[u8], l3: usize, vlan: (u16, u16)) -> Result<Classified, Stop> {
        if ip.len() < 20 {
            return Err(Stop::Untouched);
        }
        let address =
            |at: usize| IpAddr::from(Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]));
        let (source, destination) = (address(12), address(16));
        let rules = self.plan.rules(destination);
        if rules.is_empty() {
            return Err(Stop::Untouched);
        }
        let total = usize::from(u16_at(ip, 2).unwrap_or(0));
        let header = usize::from(ip[0] % 16) * 4;
        if ip[0] / 16 != 4 || header < 20 || total < header || total > ip.len() {
            return Err(Reason::Malformed.into());
        }
        self.may(source, vlan)?;
        if ip[8] < 2 {
            return Err(Reason::Ttl.into());
        }
        if header != 20 {
            return Err(Reason::Options.into());
        }
        let more = ip[6] & 0x20 != 0;
        let offset = u16::from(ip[6] & 0x1f) << 8 | u16::from(ip[7]);
        if offset != 0 || (more && !self.mark) {
            return Err(Reason::Fragment.into());
        }
        ports(&ip[20..total], ip[9], (source, destination), &rules, more).map(|packet| Classified {
            length: total,
            l3,
            ..packet
        })
    }

    fn v6(&self, ip: &[u8], l3: usize, vlan: (u16, u16)) -> Result<Classified, Stop> {
        if ip.len() < 40 {
            return Err(Stop::Untouched);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&ip[at..at + 16]);
            IpAddr::from(Ipv6Addr::from(octets))
        };
        let (source, destination) = (address(8), address(24));
        let rules = self.plan.rules(destination);
        if rules.is_empty() {
            return Err(Stop::Untouched);
        }
        let total = 40 + usize::from(u16_at(ip, 4).unwrap_or(0));
        if ip[0] / 16 != 6 || total > ip.len() {
            return Err(Reason::Malformed.into());
        }
        self.may(source, vlan)?;
        let (mut next, mut at, mut walked) = (ip[6], 40, 0);
        let (mut first, mut later) = (false, false);
        while walked < 4 && (next == 60 || next == 44) && !later {
            let Some(extension) = ip.get(at..at + 8) else {
                return Err(Reason::Malformed.into());
            };
            if next == 44 {
                later = extension[2] != 0 || extension[3] & 0xf8 != 0;
                first |= extension[3] & 1 != 0;
                at += 8;
            } else {
                at += 8 * (usize::from(extension[1]) + 1);
            }
            next = extension[0];
            walked += 1;
            if at > total {
                return Err(Reason::Malformed.into());
            }
        }
        if ip[7] < 2 {
            return Err(Reason::Ttl.into());
        }
        if !later && [0, 43, 44, 60].contains(&next) {
            return Err(Reason::Options.into());
        }
        if later || (first && !self.mark) {
            return Err(Reason::Fragment.into());
        }
        ports(&ip[at..total], next, (source, destination), &rules, first).map(|packet| Classified {
            length: total,
            l3,
            ..packet
        })
    }

    fn may(&self, source: IpAddr, vlan: (u16, u16)) -> Result<(), Reason> {
        if !self.vlans.contains(&vlan) {
            return Err(Reason::Vlan);
        }
        self.plan.source(source)
    }
}

/// Where the IP header stands, its version by EtherType, and the ids of the tags.
fn link(frame: &[u8]) -> Option<(usize, u8, Vec<u16>)> {
    let mut at = 12;
    let mut ids = Vec::new();
    while ids.len() < 2 && [0x8100, 0x88a8].contains(&u16_at(frame, at)?) {
        ids.push(u16_at(frame, at + 2)? & 0x0fff);
        at += 4;
    }
    let version = match u16_at(frame, at)? {
        0x0800 => 4,
        0x86dd => 6,
        _ => return None,
    };
    Some((at + 2, version, ids))
}

fn ports(
    l4: &[u8],
    protocol: u8,
    (source, destination): (IpAddr, IpAddr),
    rules: &[(u8, u16, u16, Do)],
    fragment: bool,
) -> Result<Classified, Stop> {
    let least = match protocol {
        6 => 20,
        17 => 8,
        _ => return Err(Reason::Protocol.into()),
    };
    if l4.len() < least {
        return Err(Reason::Malformed.into());
    }
    let claimed = match protocol {
        6 => usize::from(l4[12] / 16) * 4,
        _ => usize::from(u16_at(l4, 4).unwrap_or(0)),
    };
    if claimed < least || (!fragment && claimed > l4.len()) {
        return Err(Reason::Malformed.into());
    }
    let ports = (u16_at(l4, 0).unwrap_or(0), u16_at(l4, 2).unwrap_or(0));
    let rule = rules.iter().find(|&&(wanted, from, to, _)| {
        wanted == 255 || (wanted == protocol && (from..=to).contains(&ports.1))
    });
    let class = match rule {
        None => return Err(Reason::Port.into()),
        Some((.., Do::Exclude)) => return Err(Reason::Excluded.into()),
        Some((.., Do::RouterLocal)) => return Err(Reason::RouterLocal.into()),
        Some(&(.., Do::Steer(class))) => class,
    };
    Ok(Classified {
        class,
        length: 0,
        tuple: Tuple {
            source,
            destination,
            protocol,
            ports,
        },
        syn: protocol == 6 && l4[13] & 0b1_0111 == 0b0_0010,
        l3: 0,
    })
}
