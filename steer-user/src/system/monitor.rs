//! Hears from the kernel that something changed, so that nobody has to wait for the next look.
//!
//! What changed is not taken from the messages: they can be lost when many come at once. They only
//! say that it is time to look. Routes are left out on purpose: a router with a full Internet table
//! would do nothing else but look.

use std::time::Duration;

use futures_util::StreamExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};
use tokio::time::Instant;

use super::SystemError;

/// The least time between two changes that are told: a link that flaps must not keep steer busy.
const PAUSE: Duration = Duration::from_millis(20);

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// A link, an address or a neighbour.
    pub links: bool,
    /// A rule of policy routing.
    pub rules: bool,
}

/// A subscription to the kernel's announcements, in the network namespace of the thread that made
/// it.
#[derive(Debug)]
pub struct Monitor {
    messages: futures_util::stream::Fuse<Messages>,
    not_before: Instant,
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
        })
    }

    /// Waits for the next change, and takes together what came at once. Dropping the future loses
    /// nothing.
    pub async fn changed(&mut self) -> Changed {
        tokio::time::sleep_until(self.not_before).await;
        let mut changed = Changed::default();
        match self.messages.next().await {
            Some((message, _)) => changed.note(&message),
            // The kernel closed the socket; the regular looks go on.
            None => std::future::pending().await,
        }
        while let Some(Some((message, _))) =
            futures_util::FutureExt::now_or_never(self.messages.next())
        {
            changed.note(&message);
        }
        self.not_before = Instant::now() + PAUSE;
        changed
    }
}

impl Changed {
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_),
            ) => self.rules = true,
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
            while !monitor.changed().await.rules {}
        });
    }
}
