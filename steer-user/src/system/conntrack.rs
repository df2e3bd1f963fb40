//! Connection tracking: is it in use, how full is its table, and how many connections still hold a
//! grant, so that `detach` can wait for them.
//!
//! The entries are listed over ctnetlink. The few message fields needed are read here: no crate
//! knows them, and the `conntrack` tool is not installed on most routers.

use std::{collections::BTreeMap, fs, io};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{Mark, PathId, SystemError};

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

/// Counts the connections that hold a grant, by path; paths without any are not listed.
///
/// Blocks for about a millisecond per thousand entries of the table.
pub fn granted() -> Result<BTreeMap<PathId, u64>, SystemError> {
    let mut counts = BTreeMap::new();
    for_each_mark(Mark::GRANT, Mark::KIND, |mark| {
        // The kernel has filtered already, unless it is too old to know how.
        if let Some(path) = Mark::granted_path(mark) {
            *counts.entry(path).or_default() += 1;
        }
    })
    .map_err(SystemError::Conntrack)?;
    Ok(counts)
}

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
const GET: u16 = 1 << 8 | 1;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
const ATTRIBUTE_MARK: u16 = 8;
const ATTRIBUTE_MARK_MASK: u16 = 21;
const HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
/// The two highest bits of an attribute's type are flags.
const TYPE_BITS: u16 = 0x3fff;

fn for_each_mark(bits: Mark, compared: Mark, mut found: impl FnMut(u32)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(bits, compared), 0)?;
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
                _ => {
                    if let Some(mark) = mark_of(payload) {
                        found(mark);
                    }
                }
            }
        }
    }
}

/// `IPCTNL_MSG_CT_GET` for all entries of both families, filtered by mark.
fn request(bits: Mark, compared: Mark) -> Vec<u8> {
    const LENGTH: u32 = 36;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(GET.to_ne_bytes());
    message.extend(DUMP.to_ne_bytes());
    // Sequence and port number; then family (any), version and resource, all zero.
    message.extend([0; 8 + FAMILY_HEADER]);
    for (kind, value) in [(ATTRIBUTE_MARK, bits), (ATTRIBUTE_MARK_MASK, compared)] {
        message.extend(8_u16.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value.bits().to_be_bytes());
    }
    message
}

/// The first message's type and payload, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

/// The connection mark, in host byte order, of one entry.
fn mark_of(payload: &[u8]) -> Option<u32> {
    let mut rest = payload.get(FAMILY_HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_BITS;
        let value = rest.get(4..length)?;
        if kind == ATTRIBUTE_MARK {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
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
            assert_eq!(granted().unwrap(), BTreeMap::new());
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
                granted().unwrap(),
                BTreeMap::from([(path(1), 6), (path(15), 800)])
            );
            let usage = usage().unwrap();
            assert!(
                usage.entries >= 806 && usage.max > usage.entries,
                "{usage:?}"
            );
        });
    }

    #[test]
    fn a_cut_message_is_no_entry() {
        assert_eq!(mark_of(&[2, 0, 0, 0]), None);
        assert_eq!(mark_of(&[2, 0, 0, 0, 8, 0, 8, 0, 1]), None);
        assert_eq!(mark_of(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert!(split_message(&[0; 15]).is_none());
        assert!(split_message(&[200, 0, 0, 0, 0, 0, 0, 0]).is_none());
    }
}
