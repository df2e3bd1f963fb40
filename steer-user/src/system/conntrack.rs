//! Connection tracking: is it in use, how full is its table, and how many connections still hold a
//! grant, so that `detach` can wait for them.
//!
//! The entries are listed over ctnetlink. The few message fields needed are read here: no crate
//! knows them, and the `conntrack` tool is not installed on most routers.

mod flows;

use std::{collections::BTreeMap, fs, io};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

pub use self::flows::{Flow, for_each_flow};
use super::{Family, Mark, MarkBits, PathId, SystemError};

/// How full the table of this network namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Entries now.
    pub entries: u64,
    /// The most there may be; one more packet that starts a connection would be dropped.
    pub max: u64,
}

impl Usage {
    /// How full the table is, in percent; 100 and above is full.
    pub fn percent(self) -> u64 {
        self.entries.saturating_mul(100) / self.max.max(1)
    }
}

/// Reads how full the table is; `None` if the kernel has no connection tracking loaded.
pub fn usage() -> Option<Usage> {
    let read = |name| -> Option<u64> {
        let path = format!("/proc/sys/net/netfilter/{name}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(Usage {
        entries: read("nf_conntrack_count")?,
        max: read("nf_conntrack_max")?,
    })
}

/// Counts the connections that hold a grant and still live, by path; paths without any are not
/// listed. TCP that was closed does not live, nor does UDP that was silent for ten seconds: their
/// entries stay for minutes.
///
/// Blocks for about a millisecond per thousand entries of the table.
pub fn granted(marks: MarkBits) -> Result<BTreeMap<PathId, u64>, SystemError> {
    granted_in(marks, None)
}

/// The same for one family, or both.
fn granted_in(
    marks: MarkBits,
    family: Option<Family>,
) -> Result<BTreeMap<PathId, u64>, SystemError> {
    let udp = UdpTimeouts::read();
    let mut counts = BTreeMap::new();
    let wanted = request(GET, DUMP, family, Mark::grant(marks), Mark::kind(marks));
    for_each_message(&wanted, |payload| {
        // The kernel has filtered already, unless it is too old to know how.
        if let Some(entry) = entry_of(payload)
            && let Some(path) = Mark::from_bits(entry.mark).granted_path(marks)
            && entry.lives(udp)
        {
            *counts.entry(path).or_default() += 1;
        }
    })
    .map_err(SystemError::Conntrack)?;
    Ok(counts)
}

/// Deletes the entries of a family's connections that hold this path's grant, and says how many of
/// them lived. Their clients' next packets belong to no connection any more: TCP is answered with a
/// reset from wherever they arrive then, UDP begins anew.
///
/// Blocks for about a millisecond per thousand entries of the table.
pub fn reset(marks: MarkBits, path: PathId, family: Family) -> Result<u64, SystemError> {
    let flows = granted_in(marks, Some(family))?;
    delete(family, path.grant(marks), Mark::mask(marks)).map_err(SystemError::Conntrack)?;
    Ok(flows.get(&path).copied().unwrap_or(0))
}

/// How long UDP entries stay after their last packet, in seconds.
#[derive(Clone, Copy)]
struct UdpTimeouts {
    unanswered: u32,
    stream: u32,
}

impl UdpTimeouts {
    fn read() -> Self {
        let read = |name: &str, default| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"));
            text.ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(default)
        };
        Self {
            unanswered: read("nf_conntrack_udp_timeout", 30),
            stream: read("nf_conntrack_udp_timeout_stream", 120),
        }
    }
}

/// What matters of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    mark: u32,
    status: u32,
    /// Seconds until it is forgotten.
    timeout: u32,
    /// `enum tcp_conntrack`; none for other protocols.
    tcp_state: Option<u8>,
}

impl Entry {
    fn lives(self, udp: UdpTimeouts) -> bool {
        const ASSURED: u32 = 1 << 2;
        const TIME_WAIT: u8 = 7;
        const CLOSE: u8 = 8;
        const SILENT: u32 = 10;
        if let Some(state) = self.tcp_state {
            return !matches!(state, TIME_WAIT | CLOSE);
        }
        let whole = if self.status & ASSURED == 0 {
            udp.unanswered
        } else {
            udp.stream
        };
        self.timeout + SILENT > whole
    }
}

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
const GET: u16 = 1 << 8 | 1;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `NLM_F_REQUEST | NLM_F_ACK`
const ACKNOWLEDGE: u16 = 0x5;
const ATTRIBUTE_STATUS: u16 = 3;
const ATTRIBUTE_PROTOCOL: u16 = 4;
const ATTRIBUTE_TIMEOUT: u16 = 7;
const ATTRIBUTE_MARK: u16 = 8;
/// Inside `ATTRIBUTE_PROTOCOL`, and inside that.
const PROTOCOL_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const ATTRIBUTE_MARK_MASK: u16 = 21;
const HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
/// The two highest bits of an attribute's type are flags.
const TYPE_BITS: u16 = 0x3fff;

/// Asks, and hands on the payload of each message about an entry.
fn for_each_message(wanted: &[u8], mut found: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = ask(wanted)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some((kind, payload, next)) = split_message(rest) {
            rest = next;
            match i32::from(kind) {
                libc::NLMSG_DONE => return error_of(payload),
                libc::NLMSG_ERROR => {
                    error_of(payload)?;
                    return Ok(());
                }
                _ => found(payload),
            }
        }
    }
}

/// Deletes every entry of a family whose mark has these bits. (Without a tuple the kernel deletes all that pass
/// the filter: `ctnetlink_flush_conntrack`, which knows marks since Linux 3.18.)
fn delete(family: Family, bits: Mark, compared: Mark) -> io::Result<()> {
    let socket = ask(&request(DELETE, ACKNOWLEDGE, Some(family), bits, compared))?;
    let (datagram, _) = socket.recv_from_full()?;
    match split_message(&datagram) {
        Some((_, payload, _)) => error_of(payload),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn ask(message: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(message, 0)?;
    Ok(socket)
}

/// About all entries of a family, or of both, whose mark has these bits.
fn request(kind: u16, flags: u16, family: Option<Family>, bits: Mark, compared: Mark) -> Vec<u8> {
    const LENGTH: u32 = 36;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port number.
    message.extend([0; 8]);
    // Family, version, resource. Of version 0 the kernel deletes both families, whatever is asked
    // (`ctnetlink_del_conntrack`, since Linux 5.3).
    let (family, version) = match family {
        None => (libc::AF_UNSPEC, 0),
        Some(Family::V4) => (libc::AF_INET, 1),
        Some(Family::V6) => (libc::AF_INET6, 1),
    };
    message.extend([u8::try_from(family).unwrap_or(0), version, 0, 0]);
    for (kind, value) in [(ATTRIBUTE_MARK, bits), (ATTRIBUTE_MARK_MASK, compared)] {
        message.extend(8_u16.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value.bits().to_be_bytes());
    }
    message
}

/// The first message's type and payload, and what follows it.
pub(super) fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

/// One entry; none if the message is cut or the entry has no mark.
fn entry_of(payload: &[u8]) -> Option<Entry> {
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let mut entry = Entry::default();
    let mut marked = false;
    for attribute in Attributes(payload.get(FAMILY_HEADER..)?) {
        let (kind, value) = attribute?;
        match kind {
            ATTRIBUTE_MARK => {
                entry.mark = number(value)?;
                marked = true;
            }
            ATTRIBUTE_STATUS => entry.status = number(value)?,
            ATTRIBUTE_TIMEOUT => entry.timeout = number(value)?,
            ATTRIBUTE_PROTOCOL => entry.tcp_state = tcp_state(value),
            _ => {}
        }
    }
    marked.then_some(entry)
}

/// TCP's state in what the protocol says.
fn tcp_state(value: &[u8]) -> Option<u8> {
    let tcp = inside(value, PROTOCOL_TCP)?;
    inside(tcp, TCP_STATE)?.first().copied()
}

/// The value of the attribute of this kind among nested ones.
pub(super) fn inside(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(bytes)
        .flatten()
        .find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// Netlink attributes: type and value; a cut one ends the walk with a none.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = self.split();
        if attribute.is_none() {
            self.0 = &[];
        }
        Some(attribute)
    }
}

impl<'a> Attributes<'a> {
    fn split(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_BITS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The negative `errno` at the start of an error or end message.
fn error_of(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::{
        super::testing::{in_namespace, sh},
        *,
    };

    #[test]
    fn connections_with_a_grant_are_counted_by_path_and_no_others() {
        in_namespace(async || {
            let marks = MarkBits::DEFAULT;
            assert_eq!(granted(marks).unwrap(), BTreeMap::new());
            // One connection for each port; its mark is decided by the port.
            sh("nft -f - <<END
table inet t { chain c { type filter hook output priority 0;
    udp dport 1001-1003 ct mark set 0x21000007
    udp dport 2001-2400 ct mark set 0x2f000000
    udp dport 3001 ct mark set 0x11000000
    udp dport 3002 ct mark set 0x31000000
    udp dport 3003 ct mark set 0x1
    udp dport 3004 ct mark set 0x20000000
    ct state new
}; }
END");
            let sockets: Vec<_> = ["127.0.0.1:0", "[::1]:0"]
                .map(|address| UdpSocket::bind(address).unwrap())
                .into();
            for port in (1001..=1003).chain(2001..=2400).chain(3001..=3005) {
                for (socket, host) in sockets.iter().zip(["127.0.0.1", "::1"]) {
                    // Nobody listens; the refusal comes with the next call.
                    let _ = socket.send_to(b"?", (host, port));
                }
            }
            let path = |id| PathId::new(id).unwrap();
            assert_eq!(
                granted(marks).unwrap(),
                BTreeMap::from([(path(1), 6), (path(15), 800)])
            );
            // 0x21000007, read as bits 4 to 9 or as the lowest six.
            assert_eq!(granted(MarkBits::at(4)).unwrap(), BTreeMap::new());
            // Exactly those of one path and family go.
            assert_eq!(reset(marks, path(15), Family::V6).unwrap(), 400);
            assert_eq!(
                granted(marks).unwrap(),
                BTreeMap::from([(path(1), 6), (path(15), 400)])
            );
            assert_eq!(reset(marks, path(15), Family::V4).unwrap(), 400);
            assert_eq!(granted(marks).unwrap(), BTreeMap::from([(path(1), 6)]));
            assert_eq!(reset(marks, path(15), Family::V4).unwrap(), 0);
            let usage = usage().unwrap();
            assert!(
                (16..806).contains(&usage.entries) && usage.max > usage.entries,
                "{usage:?}"
            );
        });
    }

    #[test]
    fn what_is_over_does_not_live() {
        let udp = UdpTimeouts {
            unanswered: 30,
            stream: 120,
        };
        let tcp = |state| Entry {
            tcp_state: Some(state),
            ..Entry::default()
        };
        assert!(tcp(3).lives(udp), "established");
        assert!(!tcp(7).lives(udp), "time wait");
        let of_udp = |status, timeout| Entry {
            status,
            timeout,
            ..Entry::default()
        };
        assert!(of_udp(4, 119).lives(udp));
        assert!(!of_udp(4, 110).lives(udp), "silent for ten seconds");
        assert!(of_udp(0, 29).lives(udp));
        assert!(!of_udp(0, 20).lives(udp));
    }

    #[test]
    fn a_cut_message_is_no_entry() {
        assert_eq!(entry_of(&[2, 0, 0, 0]), None);
        assert_eq!(entry_of(&[2, 0, 0, 0, 8, 0, 8, 0, 1]), None);
        assert_eq!(entry_of(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert!(split_message(&[0; 15]).is_none());
        assert!(split_message(&[200, 0, 0, 0, 0, 0, 0, 0]).is_none());
    }
}
