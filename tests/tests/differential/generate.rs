//! Random plans and random packets: mostly right ones with a flaw, some mutated, some noise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use steer_tests::{
    packet::{ACK, Packet, QINQ, SYN, Transport, VLAN},
    testrun::{LONGEST, SHORTEST},
};

use super::model::{Do, Line, Plan};

/// Picks one.
pub fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

/// True in so many of a hundred cases.
fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

/// A plan of nested prefixes of both families, with clients and clients that are left out.
pub fn plan(rng: &mut Rng) -> Plan {
    let mut plan = Plan::default();
    for set in 0..rng.u32(20..60) {
        let prefix = match plan.lines.last() {
            // Inside or around another one, or the same.
            Some(line) if chance(rng, 50) => near_prefix(rng, line.prefix),
            _ if chance(rng, 50) => v4(rng.u32(0x3400_0000..0x3500_0000), rng.u8(10..=32)),
            _ => v6(0x2603 << 112 | rng.u128(..) >> 16, rng.u8(20..=128)),
        };
        let rank = rng.u8(0..4);
        let rules = match rank {
            0 => vec![(255, 0, u16::MAX, pick(rng, &[Do::Exclude, Do::RouterLocal]))],
            _ => (0..rng.usize(1..3)).map(|_| rule(rng, set)).collect(),
        };
        // Few lines that pass: most of the plan is for steering.
        if rank != 0 || chance(rng, 30) {
            plan.lines.push(Line {
                prefix,
                rank,
                set,
                rules,
            });
        }
    }
    for _ in 0..rng.usize(1..12) {
        let prefix = if chance(rng, 50) {
            v4(0x0a00_0000 | rng.u32(..0x0004_0000), rng.u8(16..=32))
        } else {
            v6(
                0x2001_0db8_0001 << 80 | rng.u128(..1 << 68),
                rng.u8(48..=128),
            )
        };
        plan.sources.push((prefix, chance(rng, 50)));
    }
    plan.sources.push((v4(0x0a00_0000, 14), true));
    plan.sources.push((v6(0x2001_0db8_0001 << 80, 48), true));
    plan
}

fn rule(rng: &mut Rng, set: u32) -> (u8, u16, u16, Do) {
    let first = pick(rng, &[0, 80, 443, 443, 443, 3478, 1000, 50_000]);
    let last = first + pick(rng, &[0, 0, 0, 3, 500]);
    // Classes repeat, as the sets of one class do.
    let class = 1 + u16::try_from(set % 15).unwrap();
    (pick(rng, &[6, 17]), first, last, Do::Steer(class))
}

fn v4(address: u32, length: u8) -> IpNet {
    Ipv4Net::new(Ipv4Addr::from(address), length)
        .unwrap()
        .trunc()
        .into()
}

fn v6(address: u128, length: u8) -> IpNet {
    Ipv6Net::new(Ipv6Addr::from(address), length)
        .unwrap()
        .trunc()
        .into()
}

fn near_prefix(rng: &mut Rng, prefix: IpNet) -> IpNet {
    let length = prefix.prefix_len();
    match within(rng, prefix) {
        IpAddr::V4(address) => v4(address.into(), rng.u8(length.saturating_sub(3).max(8)..=32)),
        IpAddr::V6(address) => v6(
            address.into(),
            rng.u8(length.saturating_sub(3).max(16)..=128),
        ),
    }
}

/// An address of a prefix.
fn within(rng: &mut Rng, prefix: IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) => {
            Ipv4Addr::from(u32::from(net.network()) | rng.u32(..) & u32::from(net.hostmask()))
                .into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from(u128::from(net.network()) | rng.u128(..) & u128::from(net.hostmask()))
                .into()
        }
    }
}

/// An address inside a prefix, at its edges or just outside.
fn near(rng: &mut Rng, prefix: IpNet) -> IpAddr {
    let step = |address: IpAddr, by: i8| -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                Ipv4Addr::from(u32::from(address).wrapping_add_signed(by.into())).into()
            }
            IpAddr::V6(address) => {
                Ipv6Addr::from(u128::from(address).wrapping_add_signed(by.into())).into()
            }
        }
    };
    match rng.u8(..10) {
        0 => prefix.network(),
        1 => prefix.broadcast(),
        2 => step(prefix.network(), -1),
        3 => step(prefix.broadcast(), 1),
        _ => within(rng, prefix),
    }
}

/// An address of the LAN: few, so that flows meet again.
fn client(rng: &mut Rng, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from(0x2001_0db8_0001 << 80 | u128::from(rng.u8(..24))).into()
    } else {
        Ipv4Addr::from(0x0a00_0000 | u32::from(rng.u8(..24)) << 12).into()
    }
}

/// A source and a destination of one family that the plan has an opinion on.
pub fn addresses(rng: &mut Rng, plan: &Plan) -> (IpAddr, IpAddr) {
    let line = &plan.lines[rng.usize(..plan.lines.len())];
    let destination = if chance(rng, 4) {
        if chance(rng, 50) {
            Ipv4Addr::from(rng.u32(..)).into()
        } else {
            Ipv6Addr::from(rng.u128(..)).into()
        }
    } else {
        near(rng, line.prefix)
    };
    let v6 = destination.is_ipv6();
    let of_family: Vec<IpNet> = plan
        .sources
        .iter()
        .map(|&(prefix, _)| prefix)
        .filter(|prefix| prefix.network().is_ipv6() == v6)
        .collect();
    let source = if chance(rng, 90) {
        client(rng, v6)
    } else {
        let prefix = pick(rng, &of_family);
        near(rng, prefix)
    };
    (source, destination)
}

/// A packet as a client might send it, with its flaws and mutations.
pub fn packet(rng: &mut Rng, plan: &Plan, vlans: &[(u16, u16)], bare: bool) -> Vec<u8> {
    loop {
        let mut bytes = if chance(rng, 4) {
            noise(rng)
        } else {
            structured(rng, plan, vlans, bare)
        };
        if chance(rng, 15) {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len().min(90));
                bytes[at] = match rng.u8(..3) {
                    0 => rng.u8(..),
                    1 => bytes[at] ^ 1 << rng.u8(..8),
                    _ => bytes[at].wrapping_add(pick(rng, &[1, 255])),
                };
            }
        }
        if chance(rng, 6) {
            bytes.truncate(rng.usize(..bytes.len()));
        }
        if bytes.len() >= SHORTEST && bytes.len() <= LONGEST {
            return bytes;
        }
    }
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(SHORTEST..200)];
    rng.fill(&mut bytes);
    if chance(rng, 50) {
        bytes[12..14].copy_from_slice(&pick(rng, &[[8, 0], [0x86, 0xdd], [0x81, 0]]));
    }
    bytes
}

fn structured(rng: &mut Rng, plan: &Plan, vlans: &[(u16, u16)], bare: bool) -> Vec<u8> {
    let (source, destination) = addresses(rng, plan);
    let line = plan
        .lines
        .iter()
        .filter(|line| line.prefix.contains(&destination) && line.rank != 0);
    let rules: Vec<_> = line.flat_map(|line| line.rules.clone()).collect();
    let (protocol, port) = if rules.is_empty() || chance(rng, 12) {
        (pick(rng, &[6, 17]), pick(rng, &[53, 80, 443, 3478, 65_535]))
    } else {
        let (protocol, first, last, _) = pick(rng, &rules);
        let outside = pick(rng, &[first.wrapping_sub(1), last.wrapping_add(1)]);
        let inside = rng.u16(first..=last);
        (
            protocol,
            pick(rng, &[first, last, inside, inside, inside, outside]),
        )
    };
    let mut packet = if protocol == 6 {
        let any = rng.u8(..);
        let flags = pick(rng, &[SYN, SYN, ACK, ACK, SYN | ACK, any]);
        Packet::tcp("52.96.0.1", port).flags(flags)
    } else {
        Packet::udp("52.96.0.1", port)
    };
    if chance(rng, 3) {
        packet.transport = Transport::Other(rng.u8(..));
    }
    (packet.source, packet.destination) = (source, destination);
    packet.source_port = 40_000 + u16::from(rng.u8(..6));
    packet.payload = match rng.u8(..20) {
        0 => rng.usize(..2500),
        1 => rng.usize(1200..1500),
        _ => rng.usize(..40),
    };
    if chance(rng, 8) {
        packet.hops = rng.u8(..4);
    }
    if chance(rng, 4) {
        packet.to = match rng.u8(..4) {
            0 => [0; 6],
            1 => [0xff; 6],
            2 => [1, 0, 0x5e, 1, 2, 3],
            _ => [2, 0, 0, 0, 0, rng.u8(..4)],
        };
    }
    if bare {
        packet = packet.bare();
    } else {
        packet.tags = tags(rng, vlans);
    }
    if chance(rng, 25) {
        packet = flawed(rng, packet);
    }
    if chance(rng, 15) {
        packet = packet.padded(rng.usize(..20));
    }
    packet.bytes()
}

fn tags(rng: &mut Rng, vlans: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let ids = if chance(rng, 85) {
        let (outer, inner) = pick(rng, vlans);
        [outer, inner].into_iter().filter(|&id| id != 0).collect()
    } else {
        let ids = [0, 10, 11, 20, 100];
        (0..rng.usize(..4))
            .map(|_| pick(rng, &ids))
            .collect::<Vec<_>>()
    };
    let kind = |rng: &mut Rng| pick(rng, &[VLAN, VLAN, QINQ]);
    ids.into_iter().map(|id| (kind(rng), id)).collect()
}

/// The ways in which a packet can be odd or wrong.
fn flawed(rng: &mut Rng, mut packet: Packet) -> Packet {
    let v6 = packet.destination.is_ipv6();
    match rng.u8(..8) {
        0 if !v6 => packet = packet.options(&vec![1; 4 * rng.usize(1..=10)]),
        1 if !v6 => {
            packet.fragment = (
                chance(rng, 30),
                chance(rng, 50),
                pick(rng, &[0, 0, 1, 185, 0x1fff]),
            );
        }
        0..=3 if v6 => {
            let kinds = [60, 60, 60, 44, 44, 44, 0, 43, 51, 135];
            for _ in 0..rng.usize(1..7) {
                let length = rng.u8(..3);
                let mut body = vec![0; 8 * (usize::from(length) + 1)];
                let kind = pick(rng, &kinds);
                if kind == 44 {
                    let fragment = pick(rng, &[0, 0, 0, 1, 6, 8, 9, 0x0100]);
                    body.truncate(8);
                    body[2..4].copy_from_slice(&u16::to_be_bytes(fragment));
                } else {
                    body[1] = if chance(rng, 10) { rng.u8(..) } else { length };
                }
                packet.extensions.push((kind, body));
            }
        }
        4 | 5 => {
            // The length field: around what it should be, or anything.
            let at = if v6 { 4 } else { 2 };
            let bytes = packet.bytes();
            let here = packet.l3() + at;
            let right = u16::from_be_bytes([bytes[here], bytes[here + 1]]);
            let wrong = match rng.u8(..4) {
                0 => right.wrapping_add(1),
                1 => rng.u16(..),
                _ => right.wrapping_sub(u16::from(rng.u8(..48))),
            };
            packet = packet.raw(at, &wrong.to_be_bytes());
        }
        6 => packet = packet.raw(0, &[rng.u8(..)]),
        7 => {
            let bytes = packet.bytes();
            let at = rng.usize(..(bytes.len() - packet.l3()).min(60));
            packet = packet.raw(at, &[rng.u8(..)]);
        }
        _ => packet.payload = 0,
    }
    packet
}
