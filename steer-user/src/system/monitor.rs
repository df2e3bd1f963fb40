//! Hears from the kernel that something changed, so that nobody has to wait for the next look.
//!
//! What changed is not taken from the messages: they can be lost when many come at once. They only
//! say that it is time to look. Of routes only default routes, those of a DHCP client (delegated prefixes)
//! and deletions of steer's own are heard, and
//! the kernel sorts them out: a router with a full Internet table would do nothing else but look.

use std::{io, os::fd::AsRawFd as _, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::{
        AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket,
        protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
    },
};
use tokio::time::Instant;

use super::{PROTOCOL, SystemError};

/// The least time between two changes that are told: a link that flaps must not keep steer busy.
const PAUSE: Duration = Duration::from_millis(20);

/// The least time between two changes of our nftables table: comparing it costs more, and a tool
/// that flushes it in a loop must not keep steer busy.
const TABLE_PAUSE: Duration = Duration::from_millis(200);

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// A link, an address, a neighbour, or somebody's default route: it may name a breakout's gateway.
    pub links: bool,
    /// A rule of policy routing, or a route of steer's that was deleted.
    pub routing: bool,
    /// Somebody, perhaps steer itself, deleted something of our nftables table.
    pub table: bool,
}

/// A subscription to the kernel's announcements, in the network namespace of the thread that made
/// it.
pub struct Monitor {
    messages: futures_util::stream::Fuse<Messages>,
    not_before: Instant,
    tables: TokioSocket,
    tables_not_before: Instant,
    routes: TokioSocket,
    routes_not_before: Instant,
}

type Messages =
    futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

impl Monitor {
    /// Subscribes. `neighbours` adds the Ethernet addresses of directly connected hosts. Must be
    /// called inside a tokio runtime.
    pub fn subscribe(neighbours: bool) -> Result<Self, SystemError> {
        let mut groups = vec![
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        if neighbours {
            groups.push(MulticastGroup::Neigh);
        }
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(SystemError::Socket)?;
        tokio::spawn(connection);
        Ok(Self {
            messages: messages.fuse(),
            not_before: Instant::now(),
            tables: subscribe_to_tables().map_err(SystemError::Socket)?,
            tables_not_before: Instant::now(),
            routes: subscribe_to_routes().map_err(SystemError::Socket)?,
            routes_not_before: Instant::now(),
        })
    }

    /// Waits for the next change, and takes together what came at once. Dropping the future loses
    /// nothing.
    pub async fn changed(&mut self) -> Changed {
        tokio::select! {
            changed = next_of_links(&mut self.messages, self.not_before) => {
                self.not_before = Instant::now() + PAUSE;
                changed
            }
            () = next_of_table(&mut self.tables, self.tables_not_before) => {
                self.tables_not_before = Instant::now() + TABLE_PAUSE;
                Changed { table: true, ..Changed::default() }
            }
            changed = next_of_routes(&mut self.routes, self.routes_not_before) => {
                self.routes_not_before = Instant::now() + PAUSE;
                changed
            }
        }
    }
}

async fn next_of_links(
    messages: &mut futures_util::stream::Fuse<Messages>,
    not_before: Instant,
) -> Changed {
    tokio::time::sleep_until(not_before).await;
    let mut changed = Changed::default();
    match messages.next().await {
        Some((message, _)) => changed.note(&message),
        // The kernel closed the socket; the regular looks go on.
        None => std::future::pending().await,
    }
    while let Some(Some((message, _))) = messages.next().now_or_never() {
        changed.note(&message);
    }
    changed
}

/// `NFNLGRP_NFTABLES`
const TABLES_GROUP: u32 = 7;

fn subscribe_to_tables() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(TABLES_GROUP)?;
    Ok(socket)
}

/// `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV6_ROUTE`
const ROUTE_GROUPS: [u32; 2] = [7, 11];

/// Hears of default routes, of a DHCP client's routes, and when one of our own routes is deleted, by whomever.
fn subscribe_to_routes() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    only_relevant_routes(&socket)?;
    socket.socket_mut().bind_auto()?;
    for group in ROUTE_GROUPS {
        socket.socket_mut().add_membership(group)?;
    }
    Ok(socket)
}

/// Where a message about a route has who made the route: in struct rtmsg behind struct nlmsghdr.
const MAKER: u8 = 16 + 5;

/// Has the kernel throw away all messages but deletions of routes with our protocol number, all that
/// a DHCP client makes, and default routes with any other.
fn only_relevant_routes(socket: &TokioSocket) -> io::Result<()> {
    // Offsets in struct nlmsghdr and struct rtmsg behind it.
    const TYPE: u32 = 4;
    const PREFIX_LENGTH: u32 = 16 + 1;
    const RTM_DELROUTE: u16 = 25;
    // linux/bpf_common.h: load two bytes, load one byte, jump if equal, return.
    const HALF: u16 = 0x28;
    const BYTE: u16 = 0x30;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const STEPS: u16 = 9;
    // RTPROT_DHCP
    const DHCP: u32 = 16;
    const FILTER_BYTES: libc::socklen_t = 16;
    const _: () = assert!(size_of::<libc::sock_fprog>() == FILTER_BYTES as usize);
    let step = |code, k: u32, jt, jf| libc::sock_filter { code, jt, jf, k };
    // Classic BPF reads numbers in network order.
    let mut program: [_; STEPS as usize] = [
        step(BYTE, MAKER.into(), 0, 0),
        step(IF_EQUAL, PROTOCOL.into(), 0, 2),
        step(HALF, TYPE, 0, 0),
        step(IF_EQUAL, RTM_DELROUTE.to_be().into(), 3, 4),
        step(IF_EQUAL, DHCP, 2, 0),
        step(BYTE, PREFIX_LENGTH, 0, 0),
        step(IF_EQUAL, 0, 0, 1),
        step(RETURN, u32::MAX, 0, 0),
        step(RETURN, 0, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: STEPS,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until the call is over; the size is that of
    // the structure.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            FILTER_BYTES,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until a route of ours was deleted, or a default route changed.
async fn next_of_routes(socket: &mut TokioSocket, not_before: Instant) -> Changed {
    tokio::time::sleep_until(not_before).await;
    let mut changed = Changed::default();
    let mut message = Some(socket.recv_from_full().await);
    while let Some(received) = message {
        match received.map(|(bytes, _)| bytes.get(usize::from(MAKER)).copied()) {
            Ok(Some(maker)) if maker == PROTOCOL => changed.routing = true,
            Ok(_) => changed.links = true,
            // A loss of messages, which were of either kind.
            Err(_) => (changed.routing, changed.links) = (true, true),
        }
        message = socket.recv_from_full().now_or_never();
    }
    changed
}

/// Waits until something of our table was deleted.
async fn next_of_table(socket: &mut TokioSocket, not_before: Instant) {
    tokio::time::sleep_until(not_before).await;
    let mut found = false;
    while !found {
        // An error is a loss of messages: whatever it was may have been ours.
        found = match socket.recv_from_full().await {
            Ok((messages, _)) => deletes_ours(&messages),
            Err(_) => true,
        };
    }
    // What else is waiting belongs to the same change.
    while let Some(Ok(_)) = socket.recv_from_full().now_or_never() {}
}

/// Whether one of the messages deletes a table, chain, rule, set or element of ours. They carry the
/// table's name as their first attribute.
fn deletes_ours(mut messages: &[u8]) -> bool {
    const DELETIONS: [u16; 5] = [2, 5, 8, 11, 14];
    const SUBSYSTEM: u16 = 10;
    // Length and type of the attribute, the name, its terminator.
    const OURS: &[u8] = b"\x0a\0\x01\0steer\0";
    const HEADERS: usize = 20;
    while let Some(length) = messages
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes) as usize)
        && let Some(message) = messages.get(..length)
        && message.len() >= HEADERS
    {
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let ours = message[HEADERS..].starts_with(OURS);
        if kind >> 8 == SUBSYSTEM && DELETIONS.contains(&(kind & 0xff)) && ours {
            return true;
        }
        messages = messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

impl Changed {
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_),
            ) => self.routing = true,
            _ => self.links = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{in_namespace, link, sh},
        *,
    };

    #[test]
    fn links_and_rules_are_told_apart() {
        in_namespace(async || {
            link("a0");
            let mut monitor = Monitor::subscribe(false).unwrap();
            sh("ip link set a0 down");
            assert!(monitor.changed().await.links);
            sh("ip rule add pref 4711 lookup main");
            while !monitor.changed().await.routing {}
        });
    }

    #[test]
    fn only_default_routes_and_deletions_of_our_own_are_told() {
        in_namespace(async || {
            link("a0");
            sh("ip route add default dev a0 table 36501 proto 86");
            sh("ip route add 192.0.2.0/24 dev a0 proto 86");
            sh("ip -6 route add default dev a0 table 36501 proto 86");
            let mut monitor = Monitor::subscribe(false).unwrap();
            sh("ip route add 198.51.100.0/24 dev a0 proto 86");
            sh("ip route add default dev a0 table 36502 proto 86");
            sh("ip route add 203.0.113.0/24 dev a0; ip route del 203.0.113.0/24");
            // Links and rules come by another socket: what is heard of routes is there by now.
            sh("ip link set a0 mtu 1400");
            while !monitor.changed().await.links {}
            assert_eq!(
                monitor.routes.recv_from_full().now_or_never().map(drop),
                None
            );
            for ours in ["", "-6 "] {
                sh(&format!("ip {ours}route flush table 36501"));
                while !monitor.changed().await.routing {}
            }
        });
    }

    #[test]
    fn a_default_route_that_comes_or_goes_is_told() {
        in_namespace(async || {
            link("a0");
            let mut monitor = Monitor::subscribe(false).unwrap();
            for change in [
                "ip route add default dev a0 metric 1000",
                "ip route del default dev a0 metric 1000",
                "ip -6 route add default dev a0 metric 1000",
            ] {
                sh(change);
                while !monitor.changed().await.links {}
            }
        });
    }

    #[test]
    fn only_deletions_in_our_own_table_are_told() {
        in_namespace(async || {
            sh("nft add table inet steer; nft add table inet other; nft add table inet steers");
            let mut monitor = Monitor::subscribe(false).unwrap();
            sh(
                "nft delete table inet other; nft delete table inet steers; nft add chain inet steer c",
            );
            sh("ip rule add pref 4711 lookup main");
            let mut heard = Changed::default();
            while !heard.routing {
                heard = monitor.changed().await;
                assert!(!heard.table, "of another table");
            }
            sh("nft flush ruleset");
            while !monitor.changed().await.table {}
        });
    }
}
