//! Packets for tests, built field by field with etherparse and then broken on purpose.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader,
};

use crate::testrun::ROUTER;

/// The client's Ethernet address.
pub const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// TCP's flags.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;
/// The EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// The EtherType of an 802.1ad tag.
pub const QINQ: u16 = 0x88a8;

/// What follows the IP header.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TCP with its flags.
    Tcp(u8),
    /// UDP.
    Udp,
    /// Another protocol: eight bytes of it.
    Other(u8),
}

/// A packet as the fields that a test is about; the rest is ordinary.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where the frame goes on the LAN.
    pub to: [u8; 6],
    /// EtherType and id of each tag, the outer one first.
    pub tags: Vec<(u16, u16)>,
    /// The client.
    pub source: IpAddr,
    /// The server.
    pub destination: IpAddr,
    /// The client's port.
    pub source_port: u16,
    /// The server's port.
    pub port: u16,
    /// TTL or hop limit.
    pub hops: u8,
    /// TCP, UDP or another protocol.
    pub transport: Transport,
    /// Bytes behind the transport header.
    pub payload: usize,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and bytes, whose first one becomes the next header's number.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: don't fragment, more fragments, offset in units of 8 bytes.
    pub fragment: (bool, bool, u16),
    /// The identification of an IPv4 packet.
    pub identification: u16,
    edits: Vec<(usize, Vec<u8>)>,
    raw: Vec<(usize, Vec<u8>)>,
    bare: bool,
    padding: usize,
    cut: Option<usize>,
    ether_type: Option<[u8; 2]>,
}

impl Packet {
    fn new(source: &str, destination: &str, port: u16, transport: Transport) -> Self {
        let address = |text: &str| match text.parse() {
            Ok(address) => address,
            Err(_) => unreachable!("a test names the address {text}"),
        };
        Self {
            to: ROUTER,
            tags: Vec::new(),
            source: address(source),
            destination: address(destination),
            source_port: 50_000,
            port,
            hops: 64,
            transport,
            payload: 32,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: (true, false, 0),
            identification: 0x1234,
            edits: Vec::new(),
            raw: Vec::new(),
            bare: false,
            padding: 0,
            cut: None,
            ether_type: None,
        }
    }

    /// A TCP SYN from a client of the destination's family.
    pub fn tcp(destination: &str, port: u16) -> Self {
        Self::new(client(destination), destination, port, Transport::Tcp(SYN))
    }

    /// A UDP datagram.
    pub fn udp(destination: &str, port: u16) -> Self {
        Self::new(client(destination), destination, port, Transport::Udp)
    }

    /// A packet of a protocol without ports.
    pub fn other(destination: &str, protocol: u8) -> Self {
        Self::new(
            client(destination),
            destination,
            0,
            Transport::Other(protocol),
        )
    }

    /// From another source.
    pub fn from(mut self, source: &str) -> Self {
        self.source = Self::new(source, source, 0, Transport::Udp).source;
        self
    }

    /// From another port of the client: another connection.
    pub fn from_port(mut self, port: u16) -> Self {
        self.source_port = port;
        self
    }

    /// With these TCP flags.
    pub fn flags(mut self, flags: u8) -> Self {
        self.transport = Transport::Tcp(flags);
        self
    }

    /// With this TTL or hop limit.
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// With this identification.
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// To another Ethernet address.
    pub fn to(mut self, to: [u8; 6]) -> Self {
        self.to = to;
        self
    }

    /// Behind tags, the outer one first.
    pub fn tagged(mut self, tags: &[(u16, u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// Without an Ethernet header.
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// So long that the IP packet has this length.
    pub fn length(mut self, length: usize) -> Self {
        self.payload = 0;
        self.payload = length - (self.bytes().len() - self.l3());
        self
    }

    /// With this much payload.
    pub fn payload(mut self, payload: usize) -> Self {
        self.payload = payload;
        self
    }

    /// With IPv4 options.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With IPv6 extension headers.
    pub fn extensions(mut self, extensions: &[(u8, &[u8])]) -> Self {
        self.extensions = extensions
            .iter()
            .map(|&(number, bytes)| (number, bytes.to_vec()))
            .collect();
        self
    }

    /// A fragment of IPv4: whether more follow, and the offset in units of 8 bytes.
    pub fn fragment(mut self, more: bool, offset: u16) -> Self {
        self.fragment = (false, more, offset);
        self
    }

    /// With bytes overwritten from the IP header on; the IPv4 checksum is made right again.
    pub fn edit(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.edits.push((offset, bytes.to_vec()));
        self
    }

    /// With bytes overwritten from the IP header on, and nothing made right again.
    pub fn raw(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.raw.push((offset, bytes.to_vec()));
        self
    }

    /// With zeroes behind the IP packet, as Ethernet pads short frames.
    pub fn padded(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// With another EtherType than its IP version's.
    pub fn ethertype(mut self, ether_type: [u8; 2]) -> Self {
        self.ether_type = Some(ether_type);
        self
    }

    /// Ended after so many bytes of the frame.
    pub fn cut(mut self, length: usize) -> Self {
        self.cut = Some(length);
        self
    }

    /// Ended after so many bytes from the IP header on.
    pub fn cut_ip(self, length: usize) -> Self {
        let l3 = self.l3();
        self.cut(l3 + length)
    }

    /// Where the IP header begins.
    pub fn l3(&self) -> usize {
        if self.bare {
            0
        } else {
            14 + 4 * self.tags.len()
        }
    }

    /// The packet as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.link();
        let l3 = bytes.len();
        bytes.extend(self.ip());
        for (offset, edit) in &self.edits {
            bytes[l3 + offset..l3 + offset + edit.len()].copy_from_slice(edit);
        }
        if self.destination.is_ipv4() && !self.edits.is_empty() {
            let end = l3 + (usize::from(bytes[l3] & 0x0f) * 4).clamp(20, bytes.len() - l3);
            let sum = header_checksum(&bytes[l3..end]);
            bytes[l3 + 10..l3 + 12].copy_from_slice(&sum);
        }
        for (offset, edit) in &self.raw {
            bytes[l3 + offset..l3 + offset + edit.len()].copy_from_slice(edit);
        }
        if let Some(ether_type) = self.ether_type {
            bytes[l3 - 2..l3].copy_from_slice(&ether_type);
        }
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(length) = self.cut {
            bytes.truncate(length);
        }
        bytes
    }

    fn link(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.bare {
            return bytes;
        }
        let ip = if self.destination.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let mut types: Vec<EtherType> = self.tags.iter().map(|&(tag, _)| EtherType(tag)).collect();
        types.push(ip);
        let ethernet = Ethernet2Header {
            source: CLIENT,
            destination: self.to,
            ether_type: types[0],
        };
        bytes.extend(ethernet.to_bytes());
        for (&(_, id), &ether_type) in self.tags.iter().zip(&types[1..]) {
            let tag = SingleVlanHeader {
                vlan_id: id.try_into().unwrap_or_default(),
                ether_type,
                ..SingleVlanHeader::default()
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    fn ip(&self) -> Vec<u8> {
        let payload = vec![0x55; self.payload];
        let (number, body) = self.transport(&payload);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    time_to_live: self.hops,
                    protocol: number,
                    source: source.octets(),
                    destination: destination.octets(),
                    identification: self.identification,
                    dont_fragment: self.fragment.0,
                    more_fragments: self.fragment.1,
                    fragment_offset: self.fragment.2.try_into().unwrap_or_default(),
                    options: Ipv4Options::try_from(&self.options[..]).unwrap_or_default(),
                    ..Ipv4Header::default()
                };
                header.total_len = len16(header.header_len() + body.len());
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &body].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut numbers: Vec<u8> = self.extensions.iter().map(|&(kind, _)| kind).collect();
                numbers.push(number.0);
                let mut chain = Vec::new();
                for ((_, extension), &next) in self.extensions.iter().zip(&numbers[1..]) {
                    chain.push(next);
                    chain.extend(&extension[1..]);
                }
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: len16(chain.len() + body.len()),
                    next_header: IpNumber(numbers[0]),
                    hop_limit: self.hops,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                [&header.to_bytes()[..], &chain, &body].concat()
            }
            _ => unreachable!("a packet has one family"),
        }
    }

    fn transport(&self, payload: &[u8]) -> (IpNumber, Vec<u8>) {
        match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(self.source_port, self.port, 0x0101_0101, 0xffff);
                header.fin = flags & FIN != 0;
                header.syn = flags & SYN != 0;
                header.rst = flags & RST != 0;
                header.ack = flags & ACK != 0;
                let sum = match (self.source, self.destination) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                    }
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                    }
                    _ => Ok(0),
                };
                header.checksum = sum.unwrap_or_default();
                (IpNumber::TCP, [&header.to_bytes()[..], payload].concat())
            }
            Transport::Udp => {
                let length = len16(8 + payload.len());
                let mut header = UdpHeader {
                    source_port: self.source_port,
                    destination_port: self.port,
                    length,
                    checksum: 0,
                };
                let sum = match (self.source, self.destination) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                    }
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                    }
                    _ => Ok(0),
                };
                header.checksum = sum.unwrap_or_default();
                (IpNumber::UDP, [&header.to_bytes()[..], payload].concat())
            }
            // Eight bytes that would be the ports of a plan, were they ports.
            Transport::Other(number) => (
                IpNumber(number),
                [&[0xc3, 0x50, 0x01, 0xbb, 0, 8, 0, 0][..], payload].concat(),
            ),
        }
    }
}

/// The ordinary client of the family of `destination`.
fn client(destination: &str) -> &'static str {
    if destination.contains(':') {
        "2001:db8:1:1::10"
    } else {
        "10.1.1.10"
    }
}

fn len16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// The checksum of an IPv4 header, the plain way (RFC 1071).
fn header_checksum(header: &[u8]) -> [u8; 2] {
    let words = header
        .chunks(2)
        .enumerate()
        .filter(|&(index, _)| index != 5);
    let mut sum: u32 = words
        .map(|(_, pair)| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into()))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}
