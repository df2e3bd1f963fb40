//! The judge: what really was on a wire, captured by AF_PACKET at the far end of the router's
//! links, where neither steer nor the router's own stack can hide anything.

use std::{
    collections::BTreeMap,
    fmt,
    mem::size_of,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::IpNet;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockType, recvfrom, setsockopt, socket, sockopt,
    },
};
use serde::{Serialize, Serializer};

use crate::{
    namespace::Namespace,
    traffic::{Answer, Flow, Protocol, Record},
};

/// TCP flags as in the header's byte.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// First segment.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// An IP packet as it was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packet {
    /// When the capture read it.
    pub at: Instant,
    /// True when the router sent it; false when it went to the router.
    pub from_router: bool,
    /// Source address and port (0 without ports, as in ICMP and later fragments).
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// TCP flags; 0 for others.
    pub tcp_flags: u8,
    /// Hop limit or TTL.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of the frame.
    pub length: usize,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            destination,
            protocol,
            tcp_flags,
            ..
        } = self;
        write!(f, "{source} > {destination} protocol {protocol}")?;
        if *protocol == Protocol::Tcp.number() {
            write!(f, " flags {tcp_flags:#04x}")
        } else {
            Ok(())
        }
    }
}

/// A way out of the office.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// The WAN to headquarters.
    Backbone,
    /// The office's own Internet link, from 1.
    Breakout(u8),
    /// Packets of one flow were on more than one wire.
    Split,
    /// On no wire.
    Nowhere,
}

impl Path {
    /// The office's first Internet link.
    pub const BREAKOUT: Self = Self::Breakout(1);
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backbone => f.pad("backbone"),
            Self::Breakout(1) => f.pad("breakout"),
            Self::Breakout(n) => f.pad(&format!("breakout {n}")),
            Self::Split => f.pad("split"),
            Self::Nowhere => f.pad("nowhere"),
        }
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A running capture on one interface.
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts on an interface whose other end is the router's.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = i32::try_from(namespace.interface_index(interface)?)?;
        let socket = namespace.run(|| {
            // With a protocol it would hear every interface until it is bound to one (packet(7)).
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )
            .context("open a capture socket")?;
            bind_to(&socket, index)?;
            Ok(socket)
        })?;
        // Bursts must not be lost: a lost packet would be a leak that nobody saw.
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        let packets = Arc::new(Mutex::new(vec![]));
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("capture".into()).spawn({
            let (packets, socket, stop) =
                (Arc::clone(&packets), Arc::clone(&socket), Arc::clone(&stop));
            move || read_all(&socket, &packets, &stop)
        })?;
        Ok(Self {
            packets,
            socket,
            stop,
            thread: Some(thread),
        })
    }

    /// What was seen so far.
    pub fn packets(&self) -> Vec<Packet> {
        self.packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads what is still queued, ends the capture and returns all of it. Fails when the kernel
    /// had to drop packets: the judge would have been blind.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.end();
        let dropped = dropped(&self.socket)?;
        if dropped > 0 {
            bail!("the capture lost {dropped} packets: its verdict is worth nothing");
        }
        Ok(std::mem::take(
            &mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn bind_to(socket: &OwnedFd, index: i32) -> Result<()> {
    // SAFETY: a sockaddr_ll of zeros is valid; every field is plain data.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the address is a whole sockaddr_ll of that length, and lives until bind returns.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("bind the capture socket");
    }
    Ok(())
}

fn dropped(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the kernel writes at most `length` bytes to a structure of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("read the capture's statistics");
    }
    Ok(statistics.tp_drops)
}

fn read_all(socket: &OwnedFd, packets: &Mutex<Vec<Packet>>, stop: &AtomicBool) {
    // Receive offload joins segments to frames of up to 64 KiB.
    let mut frame = vec![0; 65_536];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(
            &mut polled,
            PollTimeout::from(if stopping { 0_u8 } else { 50 }),
        );
        while let Ok((length, Some(address))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame)
        {
            let from_router = address.pkttype() != libc::PACKET_OUTGOING;
            let ethernet = matches!(address.hatype(), libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK);
            let packet = if ethernet {
                parse(&frame[..length], from_router)
            } else {
                parse(&with_header(&frame[..length]), from_router)
            };
            if let Some(packet) = packet {
                packets
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(packet);
            }
        }
        if stopping {
            return;
        }
    }
}

/// An IP packet of a device without Ethernet header (TUN, GRE) with one.
fn with_header(packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = match packet.first().map(|byte| byte >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&[0; 12], &kind[..], packet].concat()
}

/// An Ethernet frame as a packet; `None` for what is not IP.
fn parse(frame: &[u8], from_router: bool) -> Option<Packet> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, protocol, ttl, traffic_class) = match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            let class = frame.get(15).copied().unwrap_or_default();
            let protocol = v4.payload().ip_number.0;
            let ends = (
                IpAddr::from(header.source()),
                IpAddr::from(header.destination()),
            );
            (ends.0, ends.1, protocol, header.ttl(), class)
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            let protocol = v6.payload().ip_number.0;
            let ends = (
                IpAddr::from(header.source()),
                IpAddr::from(header.destination()),
            );
            (
                ends.0,
                ends.1,
                protocol,
                header.hop_limit(),
                header.traffic_class(),
            )
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let (mut from_port, mut to_port, mut tcp_flags) = (0, 0, 0);
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (from_port, to_port) = (tcp.source_port(), tcp.destination_port());
            tcp_flags = tcp.slice()[13];
        }
        Some(TransportSlice::Udp(udp)) => {
            (from_port, to_port) = (udp.source_port(), udp.destination_port());
        }
        _ => {}
    }
    Some(Packet {
        at: Instant::now(),
        from_router,
        source: SocketAddr::new(source, from_port),
        destination: SocketAddr::new(destination, to_port),
        protocol,
        tcp_flags,
        ttl,
        traffic_class,
        length: frame.len(),
    })
}

/// Captures on every way out of the office.
#[derive(Debug)]
pub struct Captures {
    pub(crate) backbone: Capture,
    /// One per breakout, in order, with the sources that are valid there.
    pub(crate) breakouts: Vec<(Capture, Vec<IpNet>)>,
}

impl Captures {
    /// Ends them all.
    pub fn stop(self) -> Result<Wires> {
        let backbone = self.backbone.stop()?;
        let breakouts = self
            .breakouts
            .into_iter()
            .map(|(capture, valid)| {
                Ok(Wire {
                    packets: capture.stop()?,
                    valid,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Wires {
            backbone: Wire {
                packets: backbone,
                valid: vec![],
            },
            breakouts,
        })
    }

    /// What was seen so far.
    pub fn look(&self) -> Wires {
        let breakouts = self.breakouts.iter();
        Wires {
            backbone: Wire {
                packets: self.backbone.packets(),
                valid: vec![],
            },
            breakouts: breakouts
                .map(|(capture, valid)| Wire {
                    packets: capture.packets(),
                    valid: valid.clone(),
                })
                .collect(),
        }
    }
}

/// What was on one wire.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Every IP packet, in order.
    pub packets: Vec<Packet>,
    /// The sources that the ISP accepts from the router.
    pub valid: Vec<IpNet>,
}

impl Wire {
    /// Packets that the router sent.
    pub fn outbound(&self) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(|packet| packet.from_router)
    }

    /// Packets that left with a source that is not valid here: translation was missed.
    pub fn leaks(&self) -> Vec<Packet> {
        let wrong = self.outbound().filter(|packet| {
            let source = packet.source.ip();
            let link_local = match source {
                IpAddr::V4(_) => false,
                // Neighbour discovery.
                IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
            };
            !link_local && !self.valid.iter().any(|net| net.contains(&source))
        });
        wrong.copied().collect()
    }

    /// Packets that the router sent, by destination, protocol and port.
    pub fn counts(&self) -> BTreeMap<(IpAddr, u8, u16), u64> {
        let mut counts = BTreeMap::new();
        for packet in self.outbound() {
            let key = (
                packet.destination.ip(),
                packet.protocol,
                packet.destination.port(),
            );
            *counts.entry(key).or_default() += 1;
        }
        counts
    }

    /// Packets of a flow that left here: same destination, protocol and port, and the client's
    /// source port, which translation keeps unless two clients chose the same one.
    pub fn carried(&self, answer: &Answer) -> usize {
        let ports = [answer.local.port(), answer.seen_source.port()];
        self.carried_from(answer.flow, &ports)
    }

    fn carried_from(&self, flow: Flow, ports: &[u16]) -> usize {
        let wanted = SocketAddr::new(flow.destination, flow.port);
        self.outbound()
            .filter(|packet| {
                packet.destination == wanted
                    && packet.protocol == flow.protocol.number()
                    && ports.contains(&packet.source.port())
            })
            .count()
    }
}

/// What was on every way out of the office.
#[derive(Clone, Debug)]
pub struct Wires {
    /// The router's link to the backbone.
    pub backbone: Wire,
    /// The router's links to the Internet, in order.
    pub breakouts: Vec<Wire>,
}

impl Wires {
    /// The first breakout's wire. Every lab has one.
    pub fn breakout(&self) -> &Wire {
        &self.breakouts[0]
    }

    /// The way a flow took, by its packets.
    pub fn path_of(&self, answer: &Answer) -> Path {
        self.path(|wire| wire.carried(answer) > 0)
    }

    /// The way that a long-lived flow took, by its packets.
    pub fn path_of_record(&self, record: &Record) -> Path {
        let sources = record.sources.iter().map(SocketAddr::port);
        let ports: Vec<_> = sources.chain([record.local.port()]).collect();
        self.path(|wire| wire.carried_from(record.flow, &ports) > 0)
    }

    fn path(&self, carries: impl Fn(&Wire) -> bool) -> Path {
        let mut path = if carries(&self.backbone) {
            Path::Backbone
        } else {
            Path::Nowhere
        };
        for (number, wire) in (1..).zip(&self.breakouts) {
            if carries(wire) {
                path = if path == Path::Nowhere {
                    Path::Breakout(number)
                } else {
                    Path::Split
                };
            }
        }
        path
    }

    /// Packets that left any breakout with an invalid source.
    pub fn leaks(&self) -> Vec<Packet> {
        self.breakouts.iter().flat_map(Wire::leaks).collect()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(source: [u8; 4]) -> Packet {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(source, [52, 96, 1, 1], 63)
            .tcp(50_000, 443, 1, 1000)
            .syn();
        let mut bytes = vec![];
        builder.write(&mut bytes, &[]).unwrap();
        parse(&bytes, true).unwrap()
    }

    #[test]
    fn a_packet_is_read_with_its_ports_and_flags() {
        let packet = frame([10, 20, 0, 10]);
        assert_eq!(packet.source, "10.20.0.10:50000".parse().unwrap());
        assert_eq!(packet.destination, "52.96.1.1:443".parse().unwrap());
        assert_eq!(
            (packet.protocol, packet.tcp_flags, packet.ttl),
            (6, flags::SYN, 63)
        );
    }

    #[test]
    fn only_sources_that_are_not_valid_leak() {
        let wire = Wire {
            packets: vec![frame([192, 0, 2, 2]), frame([10, 20, 0, 10])],
            valid: vec!["192.0.2.2/32".parse().unwrap()],
        };
        assert_eq!(wire.leaks(), wire.packets[1..]);
    }
}
