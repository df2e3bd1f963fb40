//! The table: (description, program, packet, what becomes of it).

use steer_common::reason::Reason;
use steer_tests::{
    packet::{ACK, FIN, Packet, QINQ, RST, SYN, VLAN},
    testrun::{LONGEST, Variant},
};
use steer_user::datapath::Mode;

use super::{COMMON, EXCHANGE, FIBER, LTE, OWN, Paths, SHAREPOINT, TEAMS};

/// What a step comes to.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It passes and nothing is counted: none of our business.
    Untouched,
    /// It passes unchanged, and the reason is counted.
    Passes(Reason),
    /// It is marked or redirected, and counted.
    Steered { class: u16, path: u8 },
    /// Mark mode: a wish without a path, so that nftables can move a first packet back.
    WishForNone { class: u16 },
}

/// One packet of a case.
pub struct Step {
    pub paths: Paths,
    /// Epochs of silence before it.
    pub silent: u8,
    pub packet: Packet,
    pub mark: u32,
    pub expect: Expect,
    /// The packet afterwards, where it is spelled out.
    pub bytes: Option<Vec<u8>>,
}

/// A line of the table.
pub struct Case {
    pub what: &'static str,
    pub variant: Variant,
    pub steps: Vec<Step>,
}

const HTTPS4: &str = "52.96.1.1";
const HTTPS6: &str = "2603:1006::1";
const TEAMS4: &str = "52.112.1.1";
const TEAMS6: &str = "2620:1ec:40::1";

const EXCHANGE_FIBER: Expect = steered(EXCHANGE, FIBER);
const TEAMS_FIBER: Expect = steered(TEAMS, FIBER);
const MALFORMED: Expect = Expect::Passes(Reason::Malformed);
const FRAGMENT: Expect = Expect::Passes(Reason::Fragment);
const OPTIONS: Expect = Expect::Passes(Reason::Options);
const PINNED: Expect = Expect::Passes(Reason::FlowPinned);

const fn steered(class: u16, path: u8) -> Expect {
    Expect::Steered { class, path }
}

fn step(packet: Packet, expect: Expect) -> Step {
    Step {
        paths: Paths::Up,
        silent: 0,
        packet,
        mark: 0,
        expect,
        bytes: None,
    }
}

fn on(paths: Paths, packet: Packet, expect: Expect) -> Step {
    Step {
        paths,
        ..step(packet, expect)
    }
}

fn case(what: &'static str, variant: Variant, steps: Vec<Step>) -> Vec<Case> {
    vec![Case {
        what,
        variant,
        steps,
    }]
}

fn mark(what: &'static str, packet: Packet, expect: Expect) -> Vec<Case> {
    case(what, Variant::new(Mode::Mark), vec![step(packet, expect)])
}

fn marked(what: &'static str, mark: u32, packet: Packet, expect: Expect) -> Vec<Case> {
    let step = Step {
        mark,
        ..step(packet, expect)
    };
    case(what, Variant::new(Mode::Mark), vec![step])
}

fn redirect(what: &'static str, packet: Packet, expect: Expect) -> Vec<Case> {
    flow(what, vec![step(packet, expect)])
}

/// Packets of redirect mode in a row.
fn flow(what: &'static str, steps: Vec<Step>) -> Vec<Case> {
    case(what, Variant::new(Mode::Redirect), steps)
}

/// The same of both programs.
fn both(what: &'static str, packet: Packet, expect: Expect) -> Vec<Case> {
    let mut cases = mark(what, packet.clone(), expect);
    cases.extend(redirect(what, packet, expect));
    cases
}

/// The same of both programs, loaded for these VLANs.
fn vlans(
    what: &'static str,
    vlans: &[(u16, u16)],
    tags: &[(u16, u16)],
    expect: Expect,
) -> Vec<Case> {
    let packet = Packet::tcp(HTTPS4, 443).tagged(tags);
    let each = |mode| {
        let variant = Variant::new(mode).vlans(vlans);
        case(what, variant, vec![step(packet.clone(), expect)])
    };
    [each(Mode::Mark), each(Mode::Redirect)].concat_cases()
}

trait Concat {
    fn concat_cases(self) -> Vec<Case>;
}

impl<I: IntoIterator<Item = Vec<Case>>> Concat for I {
    fn concat_cases(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}

/// The whole table.
pub fn cases() -> Vec<Case> {
    [
        destinations(),
        sources(),
        ipv4(),
        fragments(),
        ipv6(),
        truncations(),
        frames(),
        vlan_tags(),
        protocols(),
        marks_and_paths(),
        rewriting(),
        flows(),
        bare(),
    ]
    .concat_cases()
}

fn destinations() -> Vec<Case> {
    let tcp = Packet::tcp;
    let udp = Packet::udp;
    [
        both("IPv4 TCP to a port of an Optimize set is steered", tcp(HTTPS4, 443), EXCHANGE_FIBER),
        both("IPv6 TCP to a port of an Optimize set is steered", tcp(HTTPS6, 443), EXCHANGE_FIBER),
        both("IPv4 UDP to a port of an Optimize set is steered", udp(TEAMS4, 3478), TEAMS_FIBER),
        both("IPv6 UDP to a port of an Optimize set is steered", udp(TEAMS6, 3478), TEAMS_FIBER),
        both("QUIC to Exchange is steered", udp(HTTPS4, 443), EXCHANGE_FIBER),
        both("the second port of a set is steered, too", tcp(HTTPS4, 80), EXCHANGE_FIBER),
        both("a port that no set of the prefix has passes", tcp(HTTPS4, 8080), Expect::Passes(Reason::Port)),
        both("a UDP port that the set has for TCP only passes", udp(HTTPS6, 443), Expect::Passes(Reason::Port)),
        both("the port below a range passes", udp(TEAMS4, 3477), Expect::Passes(Reason::Port)),
        both("the last port of a range is steered", udp(TEAMS4, 3481), TEAMS_FIBER),
        both("the port above a range passes", udp(TEAMS4, 3482), Expect::Passes(Reason::Port)),
        both("port 0 matches a range that begins with it", tcp("13.107.6.152", 0), steered(COMMON, FIBER)),
        both("port 65535 matches a range that ends with it", udp("13.107.6.153", 65_535), steered(COMMON, FIBER)),
        both("an address outside every prefix is none of our business", tcp("93.184.216.34", 443), Expect::Untouched),
        both("an IPv6 address outside every prefix is none of our business", tcp("2a00:1450::1", 443), Expect::Untouched),
        both("the first address of a prefix is steered", tcp("52.96.0.0", 443), EXCHANGE_FIBER),
        both("the address before a prefix is not", tcp("52.95.255.255", 443), Expect::Untouched),
        both("the last address of a prefix is steered", tcp("52.99.255.255", 443), EXCHANGE_FIBER),
        both("the address behind a prefix is not", tcp("52.100.0.0", 443), Expect::Untouched),
        both("the edge of a /31 inside a /24 is exact: before", tcp("13.107.6.151", 443), Expect::Untouched),
        both("the edge of a /31 inside a /24 is exact: behind", tcp("13.107.6.154", 443), Expect::Untouched),
        both("a single host is steered", tcp("198.51.100.7", 1000), steered(OWN, FIBER)),
        both("the neighbour of a single host is not", tcp("198.51.100.8", 1000), Expect::Untouched),
        both("the first address of an IPv6 prefix is steered", tcp("2603:1006::", 443), EXCHANGE_FIBER),
        both("the last address of an IPv6 prefix is steered", tcp("2603:1006:ff:ffff:ffff:ffff:ffff:ffff", 443), EXCHANGE_FIBER),
        both("the address before an IPv6 prefix is not", tcp("2603:1005:ffff:ffff:ffff:ffff:ffff:ffff", 443), Expect::Untouched),
        both("the address behind an IPv6 prefix is not", tcp("2603:1006:100::", 443), Expect::Untouched),
        both("both addresses of an IPv6 /127 are steered", tcp("2001:db8:ffff::1", 2000), steered(OWN, FIBER)),
        both("the address behind an IPv6 /127 is not", tcp("2001:db8:ffff::2", 2000), Expect::Untouched),
        both("on one prefix, Optimize wins over Allow for a port of both", tcp("13.107.6.152", 443), EXCHANGE_FIBER),
        both("on one prefix, Allow has the ports that Optimize leaves", tcp("13.107.6.152", 587), steered(COMMON, FIBER)),
        both("Optimize of a shorter prefix wins over Allow of a longer one", udp("52.122.1.1", 3478), TEAMS_FIBER),
        both("Allow of the longer prefix has the other ports", udp("52.122.1.1", 3490), steered(COMMON, FIBER)),
        both("Optimize of a longer prefix wins over Allow of a shorter one", tcp("104.146.200.1", 443), steered(OWN, FIBER)),
        both("Allow of the shorter prefix has the other ports there", tcp("104.146.200.1", 80), steered(SHAREPOINT, FIBER)),
        both("beside the longer prefix the shorter one has it all", tcp("104.146.201.1", 443), steered(SHAREPOINT, FIBER)),
        both("on one IPv6 host, Optimize wins over Allow for a port of both", tcp("2603:1006:1:2::3", 443), EXCHANGE_FIBER),
        both("on one IPv6 host, Allow has the ports that Optimize leaves", tcp("2603:1006:1:2::3", 25), steered(COMMON, FIBER)),
        both("an excluded prefix passes", tcp("52.96.7.9", 443), Expect::Passes(Reason::Excluded)),
        both("an excluded IPv6 prefix passes", tcp("2603:1006:7::9", 443), Expect::Passes(Reason::Excluded)),
        both("an excluded prefix passes on ports that no set has, too", udp("52.96.7.9", 9), Expect::Passes(Reason::Excluded)),
        both("an address of the router itself passes", tcp("52.98.1.1", 443), Expect::Passes(Reason::RouterLocal)),
        both("an IPv6 address of the router itself passes", tcp("2603:1006:8::1", 443), Expect::Passes(Reason::RouterLocal)),
        both("DNS to a private resolver is none of our business", udp("10.1.1.1", 53), Expect::Untouched),
        both("DNS over TCP to a private IPv6 resolver is none of our business", tcp("fd00::53", 53), Expect::Untouched),
        both("DNS to a Microsoft 365 prefix passes: no set has port 53", udp(HTTPS4, 53), Expect::Passes(Reason::Port)),
        both("multicast is none of our business", udp("224.0.0.251", 5353).to([1, 0, 0x5e, 0, 0, 0xfb]), Expect::Untouched),
        both("IPv6 multicast is none of our business", udp("ff02::fb", 5353).to([0x33, 0x33, 0, 0, 0, 0xfb]), Expect::Untouched),
        both("limited broadcast is none of our business", udp("255.255.255.255", 67).to([0xff; 6]), Expect::Untouched),
        both("link-local is none of our business", tcp("fe80::1", 443), Expect::Untouched),
    ]
    .concat_cases()
}

fn sources() -> Vec<Case> {
    let not_lan = Expect::Passes(Reason::NotLan);
    let left_out = Expect::Passes(Reason::SourceExcluded);
    let from4 = |source| Packet::tcp(HTTPS4, 443).from(source);
    let from6 = |source| Packet::tcp(HTTPS6, 443).from(source);
    [
        both("a source that is not on the LAN passes", from4("192.0.2.9"), not_lan),
        both("the source behind the LAN's last address passes", from4("10.2.0.0"), not_lan),
        both("the LAN's last address is steered", from4("10.1.255.255"), EXCHANGE_FIBER),
        both("source 0.0.0.0 passes", from4("0.0.0.0"), not_lan),
        both("a loopback source passes", from4("127.0.0.1"), not_lan),
        both("a multicast source passes", from4("224.0.0.1"), not_lan),
        both("an IPv6 source that is not on the LAN passes", from6("2001:db8:2::1"), not_lan),
        both("a link-local source passes", from6("fe80::10"), not_lan),
        both("a client that is left out passes", from4("10.1.99.8"), left_out),
        both("an IPv6 client that is left out passes", from6("2001:db8:1:99::8"), left_out),
        both("a client inside a subnet that is left out may be steered", from4("10.1.99.7"), EXCHANGE_FIBER),
        both("an IPv6 client inside a subnet that is left out may be steered", from6("2001:db8:1:99::7"), EXCHANGE_FIBER),
        both("a Microsoft 365 source on the LAN side passes", from4("52.96.1.2"), not_lan),
    ]
    .concat_cases()
}

fn ipv4() -> Vec<Case> {
    let https = || Packet::tcp(HTTPS4, 443);
    let ttl = Expect::Passes(Reason::Ttl);
    [
        both("TTL 0 passes: the kernel drops it", https().hops(0), ttl),
        both("TTL 1 passes: the kernel says that it expired", https().hops(1), ttl),
        both("TTL 2 is steered", https().hops(2), EXCHANGE_FIBER),
        both("TTL 255 is steered", https().hops(255), EXCHANGE_FIBER),
        both("options pass", https().options(&[0x94, 4, 0, 0]), OPTIONS),
        both("forty bytes of options pass", https().options(&[1; 40]), OPTIONS),
        both("a header shorter than 20 bytes (ihl 4) passes", https().edit(0, &[0x44]), MALFORMED),
        both("ihl 0 passes", https().edit(0, &[0x40]), MALFORMED),
        both("ihl 15 in a packet without options passes as options", https().edit(0, &[0x4f]), OPTIONS),
        both("a header longer than the packet passes", https().edit(2, &[0, 59]).edit(0, &[0x4f]), MALFORMED),
        both("version 6 in an IPv4 frame passes", https().raw(0, &[0x65]), MALFORMED),
        both("version 0 in an IPv4 frame passes", https().raw(0, &[0x05]), MALFORMED),
        both("a total length beyond the frame passes", https().edit(2, &[0, 73]), MALFORMED),
        both("a total length of 65535 in a short frame passes", https().edit(2, &[0xff, 0xff]), MALFORMED),
        both("a total length of 0 passes", https().edit(2, &[0, 0]), MALFORMED),
        both("a total length without the TCP header passes", https().edit(2, &[0, 39]), MALFORMED),
        both("a total length of just the headers is steered", https().payload(0), EXCHANGE_FIBER),
        both("a total length without the UDP header passes", Packet::udp(HTTPS4, 443).edit(2, &[0, 27]), MALFORMED),
        both("a UDP datagram without payload is steered", Packet::udp(HTTPS4, 443).payload(0), EXCHANGE_FIBER),
        both("a TCP header that says it is shorter than 20 bytes passes", https().raw(32, &[0x40]), MALFORMED),
        both("a TCP header longer than the packet passes", https().payload(0).raw(32, &[0x60]), MALFORMED),
        both("TCP options that fill the packet are steered", https().payload(40).raw(32, &[0xf0]), EXCHANGE_FIBER),
        both("a UDP length beyond the packet passes", Packet::udp(TEAMS4, 3478).raw(24, &[0, 41]), MALFORMED),
        both("a UDP length of 0 passes", Packet::udp(TEAMS4, 3478).raw(24, &[0, 0]), MALFORMED),
        both("a UDP length without its header passes", Packet::udp(TEAMS4, 3478).raw(24, &[0, 7]), MALFORMED),
        both("a UDP datagram that ends before its packet is steered", Packet::udp(TEAMS4, 3478).raw(24, &[0, 20]), TEAMS_FIBER),
        both("Ethernet padding behind a short packet is kept", https().payload(0).padded(6), EXCHANGE_FIBER),
        both("DSCP and ECN are kept", https().edit(1, &[0xb9]), EXCHANGE_FIBER),
        both("a packet that may be fragmented is steered", https().fragment(false, 0), EXCHANGE_FIBER),
        both("the reserved flag is no fragment", https().edit(6, &[0x80, 0]), EXCHANGE_FIBER),
        both("a wrong TCP checksum is the server's business", https().raw(36, &[0xde, 0xad]), EXCHANGE_FIBER),
        mark("a wrong IPv4 checksum gets a wish: the stack drops the packet", https().raw(10, &[0xde, 0xad]), EXCHANGE_FIBER),
    ]
    .concat_cases()
}

fn fragments() -> Vec<Case> {
    let tcp = || Packet::tcp(HTTPS4, 443);
    let udp = || Packet::udp(TEAMS4, 3478);
    let six = || Packet::udp(TEAMS6, 3478);
    let header = |offset_and_more: [u8; 2]| {
        let [high, low] = offset_and_more;
        [0, 0, high, low, 0, 0, 0, 7]
    };
    let (first, middle, last, atomic) = (
        header([0, 1]),
        header([0, 0x41]),
        header([0, 0x80]),
        header([0, 0]),
    );
    [
        mark("the first fragment gets a wish: conntrack puts the datagram together", udp().fragment(true, 0), TEAMS_FIBER),
        redirect("the first fragment passes with the rest", udp().fragment(true, 0), FRAGMENT),
        both("a middle fragment passes", udp().fragment(true, 8), FRAGMENT),
        both("the last fragment passes", udp().fragment(false, 16), FRAGMENT),
        both("a last fragment at offset 8 passes", tcp().fragment(false, 1), FRAGMENT),
        both("a fragment at the highest offset passes", tcp().fragment(false, 0x1fff), FRAGMENT),
        redirect("a first fragment with don't-fragment passes", udp().edit(6, &[0x60, 0]), FRAGMENT),
        mark("a first fragment too short for its TCP header passes", tcp().fragment(true, 0).edit(2, &[0, 36]), MALFORMED),
        mark("a first fragment has the length of the whole datagram", udp().fragment(true, 0).raw(24, &[0x10, 0]), TEAMS_FIBER),
        mark("the first IPv6 fragment gets a wish", six().extensions(&[(44, &first)]), TEAMS_FIBER),
        redirect("the first IPv6 fragment passes with the rest", six().extensions(&[(44, &first)]), FRAGMENT),
        both("a middle IPv6 fragment passes", six().extensions(&[(44, &middle)]), FRAGMENT),
        both("the last IPv6 fragment passes", six().extensions(&[(44, &last)]), FRAGMENT),
        both("an atomic IPv6 fragment is a whole packet", six().extensions(&[(44, &atomic)]), TEAMS_FIBER),
        both("the reserved bits of a fragment header are no offset", six().extensions(&[(44, &header([0, 6]))]), TEAMS_FIBER),
        both("a later IPv6 fragment with options behind is not looked into", six().extensions(&[(44, &last), (60, &[0, 255, 0, 0, 0, 0, 0, 0])]), FRAGMENT),
    ]
    .concat_cases()
}

fn ipv6() -> Vec<Case> {
    const PAD: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    const LONG: [u8; 24] = [0, 2, 1, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ATOMIC: [u8; 8] = [0; 8];
    let https = || Packet::tcp(HTTPS6, 443);
    let chain = |extensions: &[(u8, &[u8])]| Packet::tcp(HTTPS6, 443).extensions(extensions);
    let ttl = Expect::Passes(Reason::Ttl);
    [
        both("hop limit 0 passes", https().hops(0), ttl),
        both("hop limit 1 passes: the kernel says that it expired", https().hops(1), ttl),
        both("hop limit 2 is steered", https().hops(2), EXCHANGE_FIBER),
        both("destination options are walked over", chain(&[(60, &PAD)]), EXCHANGE_FIBER),
        both("long destination options are walked over", chain(&[(60, &LONG)]), EXCHANGE_FIBER),
        both("two extension headers are walked over", chain(&[(60, &PAD), (44, &ATOMIC)]), EXCHANGE_FIBER),
        both("four extension headers are walked over", chain(&[(60, &PAD), (60, &LONG), (44, &ATOMIC), (60, &PAD)]), EXCHANGE_FIBER),
        both("five extension headers pass", chain(&[(60, &PAD), (60, &PAD), (60, &PAD), (60, &PAD), (60, &PAD)]), OPTIONS),
        both("ten extension headers pass", chain(&[(60, &PAD[..]); 10]), OPTIONS),
        both("a hop-by-hop header passes: routers read it", chain(&[(0, &PAD)]), OPTIONS),
        both("a hop-by-hop header behind options passes", chain(&[(60, &PAD), (0, &PAD)]), OPTIONS),
        both("a routing header passes", chain(&[(43, &[0, 0, 4, 0, 0, 0, 0, 0])]), OPTIONS),
        both("a routing header of type 0 passes", chain(&[(43, &[0, 2, 0, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]), OPTIONS),
        both("an authentication header passes", chain(&[(51, &[0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]), Expect::Passes(Reason::Protocol)),
        both("an authentication header of length 0 passes", chain(&[(51, &[0; 8])]), Expect::Passes(Reason::Protocol)),
        both("a mobility header passes", chain(&[(135, &PAD)]), Expect::Passes(Reason::Protocol)),
        both("no next header passes", Packet::other(HTTPS6, 59), Expect::Passes(Reason::Protocol)),
        both("options longer than the packet pass", chain(&[(60, &[0, 255, 1, 4, 0, 0, 0, 0])]), MALFORMED),
        both("options that end one byte before the TCP header does pass", chain(&[(60, &PAD)]).payload(0).raw(4, &[0, 27]), MALFORMED),
        both("version 4 in an IPv6 frame passes", https().raw(0, &[0x40]), MALFORMED),
        both("version 15 in an IPv6 frame passes", https().raw(0, &[0xf0]), MALFORMED),
        both("a payload length beyond the frame passes", https().raw(4, &[0, 53]), MALFORMED),
        both("a payload length of 65535 in a short frame passes", https().raw(4, &[0xff, 0xff]), MALFORMED),
        both("a payload length of 0 (a jumbogram's) passes", https().raw(4, &[0, 0]), MALFORMED),
        both("a payload length without the TCP header passes", https().raw(4, &[0, 19]), MALFORMED),
        both("a payload length of just the TCP header is steered", https().payload(0), EXCHANGE_FIBER),
        both("a payload length without the UDP header passes", Packet::udp(TEAMS6, 3478).raw(4, &[0, 7]), MALFORMED),
        both("padding behind an IPv6 packet is kept", https().payload(0).padded(11), EXCHANGE_FIBER),
        both("traffic class and flow label are kept", https().raw(0, &[0x6b, 0x8a, 0xbc, 0xde]), EXCHANGE_FIBER),
    ]
    .concat_cases()
}

fn truncations() -> Vec<Case> {
    let tcp4 = || Packet::tcp(HTTPS4, 443).payload(0);
    let tcp6 = || Packet::tcp(HTTPS6, 443).payload(0);
    [
        // The kernel itself refuses to test TC programs with less than an IP header.
        redirect("a frame of nothing but an Ethernet header is none of our business", tcp4().cut(14), Expect::Untouched),
        redirect("a frame that ends in the IPv4 header is none of our business", tcp4().cut_ip(19), Expect::Untouched),
        both("a frame that ends with the IPv4 header passes", tcp4().cut_ip(20), MALFORMED),
        both("a frame that ends in the TCP ports passes", tcp4().cut_ip(23), MALFORMED),
        both("a frame that ends behind the TCP ports passes", tcp4().cut_ip(28), MALFORMED),
        both("a frame that ends one byte before the TCP header does passes", tcp4().cut_ip(39), MALFORMED),
        both("a UDP frame that ends one byte early passes", Packet::udp(TEAMS4, 3478).payload(0).cut_ip(27), MALFORMED),
        both("a cut frame whose length was cut with it passes", tcp4().edit(2, &[0, 24]).cut_ip(24), MALFORMED),
        redirect("a frame that ends in the IPv6 header is none of our business", tcp6().cut_ip(39), Expect::Untouched),
        both("a frame that ends with the IPv6 header passes", tcp6().cut_ip(40), MALFORMED),
        both("an IPv6 frame that ends in the TCP ports passes", tcp6().cut_ip(43), MALFORMED),
        both("an IPv6 frame that ends one byte before the TCP header does passes", tcp6().cut_ip(59), MALFORMED),
        both("an IPv6 frame that ends in an extension header passes", tcp6().extensions(&[(60, &[0, 0, 1, 4, 0, 0, 0, 0])]).raw(4, &[0, 4]).cut_ip(44), MALFORMED),
        both("an IPv6 frame that ends behind an extension header passes", tcp6().extensions(&[(60, &[0, 0, 1, 4, 0, 0, 0, 0])]).raw(4, &[0, 8]).cut_ip(48), MALFORMED),
        vlans("a frame that ends in its tag is none of our business", &[(10, 0)], &[(VLAN, 10)], Expect::Untouched)
            .into_iter()
            .map(|mut case| {
                case.steps[0].packet = case.steps[0].packet.clone().cut(17);
                case
            })
            .collect(),
    ]
    .concat_cases()
}

fn frames() -> Vec<Case> {
    let https = || Packet::tcp(HTTPS4, 443);
    let not_for_us = Expect::Passes(Reason::NotForUs);
    let raw = |ethertype: [u8; 2]| https().raw(0, &[0; 4]).ethertype(ethertype);
    [
        both("a frame for another host passes", https().to([2, 0, 0, 0, 0, 2]), not_for_us),
        both("an IPv6 frame for another host passes", Packet::tcp(HTTPS6, 443).to([2, 0, 0, 0, 1, 1]), not_for_us),
        both("a frame for everybody passes", https().to([0xff; 6]), not_for_us),
        both("a frame for a multicast group passes", https().to([1, 0, 0x5e, 0x60, 1, 1]), not_for_us),
        mark("a frame that the kernel takes for the host's gets a wish", https().to([0; 6]), EXCHANGE_FIBER),
        redirect("a frame for an address that is all zero passes", https().to([0; 6]), not_for_us),
        both("ARP is none of our business", raw([0x08, 0x06]), Expect::Untouched),
        both("LLDP is none of our business", raw([0x88, 0xcc]), Expect::Untouched),
        both("EAPOL is none of our business", raw([0x88, 0x8e]), Expect::Untouched),
        both("PPPoE is none of our business", raw([0x88, 0x64]), Expect::Untouched),
        both("MPLS is none of our business", raw([0x88, 0x47]), Expect::Untouched),
        both("an 802.3 length (STP) is none of our business", raw([0x00, 0x26]), Expect::Untouched),
        both("IPv6 bytes in an IPv4 frame are none of our business", Packet::tcp(HTTPS6, 443).ethertype([0x08, 0x00]), Expect::Untouched),
        both("IPv4 bytes in an IPv6 frame are none of our business", https().ethertype([0x86, 0xdd]), Expect::Untouched),
    ]
    .concat_cases()
}

fn vlan_tags() -> Vec<Case> {
    const TEN: &[(u16, u16)] = &[(10, 0), (100, 20)];
    let not_listed = Expect::Passes(Reason::Vlan);
    let six = |variant: Variant| {
        let packet = Packet::udp(TEAMS6, 3478).tagged(&[(QINQ, 100), (VLAN, 20)]);
        case("a QinQ frame of IPv6 is steered", variant.vlans(TEN), vec![step(packet, TEAMS_FIBER)])
    };
    let padded = |variant: Variant| {
        let packet = Packet::tcp(HTTPS4, 443).payload(0).padded(2).tagged(&[(VLAN, 10)]);
        case("padding behind a tagged packet is kept", variant.vlans(TEN), vec![step(packet, EXCHANGE_FIBER)])
    };
    [
        vlans("a frame of a listed VLAN is steered", TEN, &[(VLAN, 10)], EXCHANGE_FIBER),
        vlans("a frame of another VLAN passes", TEN, &[(VLAN, 11)], not_listed),
        vlans("an untagged frame passes where only VLANs are listed", TEN, &[], not_listed),
        vlans("a QinQ frame is steered", TEN, &[(QINQ, 100), (VLAN, 20)], EXCHANGE_FIBER),
        vlans("a QinQ frame with two 802.1Q tags is steered", TEN, &[(VLAN, 100), (VLAN, 20)], EXCHANGE_FIBER),
        vlans("a QinQ frame with the ids the other way round passes", TEN, &[(QINQ, 20), (VLAN, 100)], not_listed),
        vlans("the outer id alone is another VLAN", TEN, &[(VLAN, 100)], not_listed),
        vlans("the inner id alone is another VLAN", TEN, &[(VLAN, 20)], not_listed),
        vlans("a listed VLAN inside another passes", TEN, &[(QINQ, 200), (VLAN, 10)], not_listed),
        vlans("three tags are none of our business", TEN, &[(QINQ, 100), (VLAN, 20), (VLAN, 10)], Expect::Untouched),
        vlans("a priority tag passes where only VLANs are listed", TEN, &[(VLAN, 0)], not_listed),
        vlans("a priority tag before a VLAN's tag is no VLAN", TEN, &[(VLAN, 0), (VLAN, 10)], EXCHANGE_FIBER),
        vlans("a priority tag is untagged where untagged frames are steered", &[], &[(VLAN, 0)], EXCHANGE_FIBER),
        vlans("a tagged frame passes where untagged frames are steered", &[], &[(VLAN, 10)], not_listed),
        vlans("untagged frames and a VLAN can be steered: untagged", &[(0, 0), (10, 0)], &[], EXCHANGE_FIBER),
        vlans("untagged frames and a VLAN can be steered: tagged", &[(0, 0), (10, 0)], &[(VLAN, 10)], EXCHANGE_FIBER),
        vlans("the highest VLAN id is steered", &[(4094, 4094)], &[(QINQ, 4094), (VLAN, 4094)], EXCHANGE_FIBER),
        six(Variant::new(Mode::Mark)),
        six(Variant::new(Mode::Redirect)),
        padded(Variant::new(Mode::Mark)),
        padded(Variant::new(Mode::Redirect)),
    ]
    .concat_cases()
}

fn protocols() -> Vec<Case> {
    let passes = Expect::Passes(Reason::Protocol);
    [
        both("ICMP to Microsoft 365 passes", Packet::other(HTTPS4, 1), passes),
        both("ICMPv6 to Microsoft 365 passes", Packet::other(HTTPS6, 58), passes),
        both("ESP to Microsoft 365 passes", Packet::other(HTTPS4, 50), passes),
        both("GRE to Microsoft 365 passes", Packet::other(HTTPS4, 47), passes),
        both("SCTP to Microsoft 365 passes", Packet::other(HTTPS4, 132), passes),
        both("IP in IP to Microsoft 365 passes", Packet::other(HTTPS4, 4), passes),
        both("UDP-Lite to Microsoft 365 passes", Packet::other(HTTPS4, 136), passes),
        both("SCTP over IPv6 to Microsoft 365 passes", Packet::other(HTTPS6, 132), passes),
        both("protocol 255 passes, though rules use it for \"any\"", Packet::other(HTTPS4, 255), passes),
        both("ICMP to an excluded prefix passes as a protocol", Packet::other("52.96.7.9", 1), passes),
        both("ICMP to an address outside every prefix is none of our business", Packet::other("8.8.8.8", 1), Expect::Untouched),
    ]
    .concat_cases()
}

fn marks_and_paths() -> Vec<Case> {
    let https = || Packet::tcp(HTTPS4, 443);
    let mark_on = |what, paths, packet, expect| case(what, Variant::new(Mode::Mark), vec![on(paths, packet, expect)]);
    let redirect_on = |what, paths, packet, expect| flow(what, vec![on(paths, packet, expect)]);
    let foreign = Expect::Passes(Reason::ForeignMark);
    [
        marked("other owners' bits of the mark are kept", 0xc0ff_ff7f, https(), EXCHANGE_FIBER),
        marked("bit 30, next to our mask, is not ours", 0x4000_0000, https(), EXCHANGE_FIBER),
        marked("bit 23, next to our mask, is not ours", 0x0080_0000, https(), EXCHANGE_FIBER),
        marked("a packet with a wish of somebody else's passes", 0x1000_0000, https(), foreign),
        marked("a packet with a grant of somebody else's passes", 0x2000_0000, https(), foreign),
        marked("a packet with the lowest bit of our path id passes", 0x0100_0000, https(), foreign),
        marked("a packet with all bits of a mark passes", u32::MAX, https(), foreign),
        marked("the mark of a packet that is not steered is kept", 0x1234_5678, Packet::tcp("8.8.8.8", 443), Expect::Untouched),
        marked("the mark of a packet that passes is kept", 0x3f00_0000, https().hops(1), Expect::Passes(Reason::Ttl)),
        mark_on("when the fiber is down the wish is for the other path", Paths::FiberDown, https(), steered(EXCHANGE, LTE)),
        mark_on("when the fiber has no IPv6 the wish of IPv6 is for the other path", Paths::Fiber4, Packet::tcp(HTTPS6, 443), steered(EXCHANGE, LTE)),
        mark_on("when the fiber has no IPv6 the wish of IPv4 is for the fiber", Paths::Fiber4, https(), steered(EXCHANGE, FIBER)),
        redirect_on("when the fiber has no IPv6 a new IPv6 flow takes the other path", Paths::Fiber4, Packet::tcp(HTTPS6, 443), steered(EXCHANGE, LTE)),
        redirect_on("when the fiber has no IPv6 a new IPv4 flow takes the fiber", Paths::Fiber4, https(), steered(EXCHANGE, FIBER)),
        redirect_on("when the fiber is down a new flow takes the other path", Paths::FiberDown, https(), steered(EXCHANGE, LTE)),
        redirect_on("when the fiber is down a new IPv6 flow takes the other path", Paths::FiberDown, Packet::tcp(HTTPS6, 443), steered(EXCHANGE, LTE)),
        mark_on("when every path is down the wish is for none", Paths::Down, https(), Expect::WishForNone { class: EXCHANGE }),
        redirect_on("when every path is down a new flow passes", Paths::Down, https(), Expect::Passes(Reason::NoPath)),
        mark_on("nothing gets a wish while steering is off", Paths::Off, https(), Expect::Passes(Reason::NotSteering)),
        mark_on("a packet in the middle of a flow gets a wish: nftables decides", Paths::Up, https().flags(ACK), EXCHANGE_FIBER),
        redirect_on("a new flow passes while steering is off", Paths::Off, https(), Expect::Passes(Reason::NotSteering)),
        redirect_on("a new flow passes while the next hop is not known", Paths::Unresolved, https(), Expect::Passes(Reason::NextHop)),
        redirect_on("a new flow passes as it came while the device is gone", Paths::NoDevice, https(), Expect::Passes(Reason::NextHop)),
        redirect_on("a new IPv6 flow passes as it came while the device is gone", Paths::NoDevice, Packet::udp(TEAMS6, 3478), Expect::Passes(Reason::NextHop)),
        redirect_on("a new IPv4 flow passes while the next hop is known for IPv6 only", Paths::Only6, https(), Expect::Passes(Reason::NextHop)),
        redirect_on("a new IPv6 flow is steered while the next hop is known for IPv6 only", Paths::Only6, Packet::tcp(HTTPS6, 443), EXCHANGE_FIBER),
        redirect("a packet of exactly the MTU is steered", https().length(1500), EXCHANGE_FIBER),
        redirect("a packet one byte over the MTU passes: the kernel says so or fragments", https().length(1501), Expect::Passes(Reason::Mtu)),
        mark("a packet over the breakout's MTU gets a wish: the kernel routes it", https().length(1501), EXCHANGE_FIBER),
        mark("a packet as long as a test run takes gets a wish", https().length(LONGEST), EXCHANGE_FIBER),
        redirect("an IPv6 packet of exactly the MTU is steered", Packet::tcp(HTTPS6, 443).length(1480), EXCHANGE_FIBER),
        redirect("an IPv6 packet one byte over the MTU passes", Packet::tcp(HTTPS6, 443).length(1481), Expect::Passes(Reason::Mtu)),
        redirect_on("the MTU is that of the path that is taken", Paths::FiberDown, https().length(1401), Expect::Passes(Reason::Mtu)),
        redirect("padding does not count for the MTU", https().length(1500).padded(40), EXCHANGE_FIBER),
        case("tags do not count for the MTU", Variant::new(Mode::Redirect).vlans(&[(100, 20)]), vec![step(
            https().length(1500).tagged(&[(QINQ, 100), (VLAN, 20)]), EXCHANGE_FIBER)]),
    ]
    .concat_cases()
}

/// Packets spelled out, in and out: (TTL, checksum) before and after.
fn rewriting() -> Vec<Case> {
    let exact = |what: &'static str, input: Packet, hex: &str| {
        let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16));
        let mut case = redirect(what, input, EXCHANGE_FIBER);
        case[0].steps[0].bytes = Some(bytes.collect::<Result<_, _>>().unwrap());
        case
    };
    let with_checksum = |wanted: [u8; 2], hops| {
        let packet = |identification| {
            Packet::tcp(HTTPS4, 443).hops(hops).identification(identification)
        };
        let found = (0..=u16::MAX).find(|&identification| packet(identification).bytes()[24..26] == wanted);
        packet(found.unwrap())
    };
    [
        exact(
            "IPv4: addresses of the frame, TTL and checksum change, nothing else",
            Packet::tcp(HTTPS4, 443).payload(1),
            "02aa0000010402bb0000010008004500002912344000\
             3f06e92f0a01010a34600101c35001bb01010101000000005002ffff5368000055",
        ),
        exact(
            "IPv6: addresses of the frame and hop limit change, nothing else",
            Packet::tcp(HTTPS6, 443).payload(1),
            "02aa0000010602bb0000010086dd6000000000150\
             63f20010db8000100010000000000000010260310060000000000000000000000\
             01c35001bb01010101000000005002ffff2fff000055",
        ),
        redirect("a checksum that carries (0xff00) is right afterwards", with_checksum([0xff, 0x00], 64), EXCHANGE_FIBER),
        redirect("a checksum that carries (0xfffe) is right afterwards", with_checksum([0xff, 0xfe], 64), EXCHANGE_FIBER),
        redirect("a checksum that becomes zero (0xfeff) is zero, not 0xffff, as the kernel makes it", with_checksum([0xfe, 0xff], 64), EXCHANGE_FIBER),
        redirect("a checksum that becomes the highest (0xfefe) is right afterwards", with_checksum([0xfe, 0xfe], 64), EXCHANGE_FIBER),
        redirect("a checksum of zero is right afterwards", with_checksum([0, 0], 64), EXCHANGE_FIBER),
        redirect("a checksum that carries at TTL 2 is right afterwards", with_checksum([0xff, 0x80], 2), EXCHANGE_FIBER),
        exact(
            "a wrong IPv4 checksum stays wrong, for the next hop to drop",
            Packet::tcp(HTTPS4, 443).payload(0).raw(10, &[0xde, 0xad]),
            "02aa0000010402bb0000010008004500002812344000\
             3f06dfad0a01010a34600101c35001bb01010101000000005002ffffa8690000",
        ),
    ]
    .concat_cases()
}

fn flows() -> Vec<Case> {
    use Paths::{Down, FiberDown, Off, Unresolved, Up};
    let syn = || Packet::tcp(HTTPS4, 443);
    let ack = || syn().flags(ACK);
    let media = || Packet::udp(TEAMS4, 3478);
    let no_path = Expect::Passes(Reason::NoPath);
    let off = Expect::Passes(Reason::NotSteering);
    let lte = steered(EXCHANGE, LTE);
    let silent = |epochs, step| Step { silent: epochs, ..step };
    [
        flow("a TCP flow that began steered stays so", vec![on(Up, syn(), EXCHANGE_FIBER), on(Up, ack(), EXCHANGE_FIBER), on(Up, ack(), EXCHANGE_FIBER)]),
        flow("TCP from the middle of a flow passes: it began elsewhere", vec![on(Up, ack(), PINNED), on(Up, ack(), PINNED)]),
        flow("a SYN+ACK is no beginning", vec![on(Up, syn().flags(SYN | ACK), PINNED)]),
        flow("a SYN+FIN is no beginning", vec![on(Up, syn().flags(SYN | FIN), PINNED)]),
        flow("a SYN+RST is no beginning", vec![on(Up, syn().flags(SYN | RST), PINNED)]),
        flow("a packet without flags is no beginning", vec![on(Up, syn().flags(0), PINNED)]),
        flow("FIN and RST of a steered flow take its way", vec![on(Up, syn(), EXCHANGE_FIBER), on(Up, syn().flags(FIN | ACK), EXCHANGE_FIBER), on(Up, syn().flags(RST), EXCHANGE_FIBER)]),
        flow("a new SYN on the addresses and ports of a pinned flow is a new flow", vec![on(Up, ack(), PINNED), on(Up, syn(), EXCHANGE_FIBER), on(Up, ack(), EXCHANGE_FIBER)]),
        flow("a UDP flow is steered from its first packet on", vec![on(Up, media(), TEAMS_FIBER), on(Up, media(), TEAMS_FIBER)]),
        flow("UDP that began while steering was off stays", vec![on(Off, media(), off), on(Up, media(), PINNED)]),
        flow("TCP that began while steering was off stays", vec![on(Off, syn(), off), on(Up, ack(), PINNED)]),
        flow("TCP that is met in its middle while steering is off stays afterwards", vec![on(Off, ack(), off), on(Up, ack(), PINNED)]),
        flow("a flow that is steered stays so while steering is off", vec![on(Up, syn(), EXCHANGE_FIBER), on(Off, ack(), EXCHANGE_FIBER)]),
        flow("UDP that is steered stays so while steering is off", vec![on(Up, media(), TEAMS_FIBER), on(Off, media(), TEAMS_FIBER)]),
        flow("a new connection on old ports does not start while steering is off", vec![on(Up, syn(), EXCHANGE_FIBER), on(Off, syn(), off), on(Up, ack(), PINNED)]),
        flow("a flow that began while every path was down stays when one returns", vec![on(Down, syn(), no_path), on(Up, ack(), PINNED)]),
        flow("UDP that began while every path was down stays when one returns", vec![on(Down, media(), no_path), on(Up, media(), PINNED)]),
        flow("a flow whose path dies passes, and is not moved to another path", vec![on(Up, syn(), EXCHANGE_FIBER), on(FiberDown, ack(), no_path)]),
        flow("a flow whose path returns takes it again", vec![on(Up, syn(), EXCHANGE_FIBER), on(Down, ack(), no_path), on(Up, ack(), EXCHANGE_FIBER)]),
        flow("a flow on the second path stays there when the first returns", vec![on(FiberDown, syn(), lte), on(Up, ack(), lte)]),
        flow("a new flow of the same client takes the first path again", vec![on(FiberDown, syn(), lte), on(Up, syn().from_port(50_001), EXCHANGE_FIBER), on(Up, ack(), lte)]),
        flow("a flow that began without a next hop stays", vec![on(Unresolved, syn(), Expect::Passes(Reason::NextHop)), on(Up, ack(), PINNED)]),
        flow("a steered flow passes while its next hop is lost", vec![on(Up, syn(), EXCHANGE_FIBER), on(Unresolved, ack(), Expect::Passes(Reason::NextHop)), on(Up, ack(), EXCHANGE_FIBER)]),
        flow("flows of other ports are other flows", vec![on(Up, ack(), PINNED), on(Up, syn().from_port(50_001), EXCHANGE_FIBER), on(Up, ack(), PINNED)]),
        flow("TCP and UDP on the same ports are two flows", vec![on(Off, syn(), off), on(Up, Packet::udp(HTTPS4, 443), EXCHANGE_FIBER), on(Up, ack(), PINNED)]),
        flow("flows of other clients are other flows", vec![on(Up, ack(), PINNED), on(Up, syn().from("10.1.1.11"), EXCHANGE_FIBER), on(Up, ack(), PINNED)]),
        flow("flows to other servers are other flows", vec![on(Up, ack(), PINNED), on(Up, Packet::tcp("52.96.1.2", 443), EXCHANGE_FIBER), on(Up, ack(), PINNED)]),
        flow("IPv6 flows are pinned, too", vec![on(Up, Packet::tcp(HTTPS6, 443).flags(ACK), PINNED), on(Up, Packet::tcp(HTTPS6, 443), EXCHANGE_FIBER), on(Up, Packet::tcp(HTTPS6, 443).flags(ACK), EXCHANGE_FIBER)]),
        flow("UDP that was silent for less than three minutes is the old flow", vec![on(Off, media(), off), silent(20, on(Up, media(), PINNED))]),
        flow("UDP that was silent for more than three minutes is a new flow", vec![on(Off, media(), off), silent(23, on(Up, media(), TEAMS_FIBER))]),
        flow("TCP that was silent for long is the old flow", vec![on(Up, syn(), EXCHANGE_FIBER), silent(200, on(Off, ack(), EXCHANGE_FIBER))]),
        flow("a packet over the MTU passes and does not end the steered flow", vec![on(Up, media(), TEAMS_FIBER), on(Up, media().length(1501), Expect::Passes(Reason::Mtu)), on(Up, media(), TEAMS_FIBER)]),
        flow("a fragment does not end the steered flow", vec![on(Up, media(), TEAMS_FIBER), on(Up, media().fragment(true, 0), FRAGMENT), on(Up, media(), TEAMS_FIBER)]),
    ]
    .concat_cases()
}

/// Devices without an Ethernet header. A test run takes the first bytes for an Ethernet address
/// and so the packet for somebody else's; the hits are in `bare_ip.rs`, on a real device.
fn bare() -> Vec<Case> {
    let bare = |what, packet: Packet, expect| {
        let variant = Variant {
            bare_ip: true,
            ..Variant::new(Mode::Mark)
        };
        case(what, variant, vec![step(packet.bare(), expect)])
    };
    [
        bare("a packet of a bare-IP device is classified; the kernel says whom it is for", Packet::tcp(HTTPS4, 443), Expect::Passes(Reason::NotForUs)),
        bare("an IPv6 packet of a bare-IP device is classified", Packet::udp(TEAMS6, 3478), Expect::Passes(Reason::NotForUs)),
        bare("a miss on a bare-IP device is none of our business", Packet::tcp("8.8.8.8", 443), Expect::Untouched),
        bare("a malformed packet of a bare-IP device passes", Packet::tcp(HTTPS4, 443).edit(2, &[0, 200]), MALFORMED),
        bare("another version on a bare-IP device is none of our business", Packet::tcp(HTTPS4, 443).raw(0, &[0x55]), Expect::Untouched),
        bare("TTL 1 on a bare-IP device passes", Packet::tcp(HTTPS4, 443).hops(1), Expect::Passes(Reason::Ttl)),
    ]
    .concat_cases()
}
