//! A breakout's gateway, whose Ethernet address the kernel keeps finding out whether there is traffic or
//! not, with or without a controller (`NTF_EXT_MANAGED`, Linux 5.16).

use std::{fmt, net::IpAddr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    link::LinkFlags,
    neighbour::{NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourState},
    route::RouteProtocol,
};
use tokio::sync::OnceCell;

use super::{
    Change, Family, InterfaceName, Kernel, PROTOCOL, Presence, SystemError,
    facts::{self, Keeper},
    kernel::errno_of,
};

/// An entry of the kernel's table of neighbours. steer's are known by their protocol number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The breakout's device.
    pub interface: InterfaceName,
    /// The gateway.
    pub address: IpAddr,
}

/// Whether this kernel keeps entries resolved. It is asked for a flag that no kernel has, on a device that
/// no box has: those that know such flags say so before they look for the device.
pub async fn can_be_kept(kernel: &Kernel) -> bool {
    static KNOWN: OnceCell<bool> = OnceCell::const_new();
    const NO_DEVICE: u32 = i32::MAX as u32;
    const NO_FLAG: NeighbourExtFlags = NeighbourExtFlags::from_bits_retain(1 << 31);
    let ask = async || {
        let neighbours = kernel.netlink().neighbours();
        let mut request = neighbours.add(NO_DEVICE, IpAddr::from([192, 0, 2, 1]));
        let attributes = &mut request.message_mut().attributes;
        attributes.push(NeighbourAttribute::ExtFlags(NO_FLAG));
        let answer = request.execute().await;
        answer.is_err_and(|error| errno_of(&error) == Some(libc::EINVAL))
    };
    *KNOWN.get_or_init(ask).await
}

impl Gateway {
    /// Every entry that bears steer's protocol number.
    pub(super) async fn ours(kernel: &Kernel, family: Family) -> Result<Vec<Self>, SystemError> {
        let mut found = Vec::new();
        for entry in facts::neighbours(kernel, family).await? {
            if entry.keeper != Keeper::Steer {
                continue;
            }
            if let Some(interface) = kernel.name_of(entry.index).await? {
                found.push(Self {
                    interface,
                    address: entry.address,
                });
            }
        }
        Ok(found)
    }

    /// On a link that is down, or that needs no Ethernet addresses, there is nothing to keep; and what
    /// somebody else wrote down stays as it is.
    pub(super) async fn present(&self, kernel: &Kernel) -> Result<Presence, SystemError> {
        let Some(index) = self.resolving_link(kernel).await? else {
            return Ok(Presence::Present);
        };
        let entry = facts::neighbour(kernel, index, self.address).await?;
        Ok(match entry {
            Some(entry) if entry.keeper == Keeper::Steer && entry.managed => Presence::Present,
            Some(entry) if entry.keeper == Keeper::Other => Presence::Present,
            _ => Presence::Absent,
        })
    }

    pub(super) async fn apply(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        if self.present(kernel).await? == Presence::Present {
            return Ok(Change::None);
        }
        let Some(index) = self.resolving_link(kernel).await? else {
            return Ok(Change::None);
        };
        let neighbours = kernel.netlink().neighbours();
        let mut request = neighbours.add(index, self.address);
        request.message_mut().attributes.extend([
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ]);
        request
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(|source| self.failed(source))?;
        Ok(Change::Made)
    }

    /// Deletes the entry: an owner cannot be taken from it. The kernel asks again when it needs it.
    pub(super) async fn remove(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        let Some(index) = kernel.index_of(&self.interface).await? else {
            return Ok(Change::None);
        };
        let entry = facts::neighbour(kernel, index, self.address).await?;
        if entry.is_none_or(|it| it.keeper != Keeper::Steer) {
            return Ok(Change::None);
        }
        let neighbours = kernel.netlink().neighbours();
        let mut message = neighbours.add(index, self.address).message_mut().clone();
        message.header.state = NeighbourState::None;
        match neighbours.del(message).execute().await {
            Ok(()) => Ok(Change::Made),
            Err(error) if errno_of(&error) == Some(libc::ENOENT) => Ok(Change::None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The index of the device, while it is one on which addresses are found out.
    async fn resolving_link(&self, kernel: &Kernel) -> Result<Option<u32>, SystemError> {
        let Some(index) = kernel.index_of(&self.interface).await? else {
            return Ok(None);
        };
        let mut links = kernel.netlink().link().get().match_index(index).execute();
        let link = match links.try_next().await {
            Ok(link) => link,
            Err(error) if errno_of(&error) == Some(libc::ENODEV) => None,
            Err(source) => return Err(self.failed(source)),
        };
        let resolves = |flags: LinkFlags| {
            flags.contains(LinkFlags::Up | LinkFlags::LowerUp) && !flags.contains(LinkFlags::Noarp)
        };
        Ok(link.and_then(|it| resolves(it.header.flags).then_some(index)))
    }

    fn failed(&self, source: rtnetlink::Error) -> SystemError {
        SystemError::Netlink {
            what: self.to_string(),
            source,
        }
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ip neighbour replace {} dev {} use managed protocol {PROTOCOL}",
            self.address, self.interface
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        super::testing::{Peer, in_namespace, link, sh},
        *,
    };

    /// A router with two gateways, each in IPv4 and IPv6, whose timers are short.
    fn router() -> (Peer, Kernel, tempfile::TempDir) {
        link("brk0");
        let peer = Peer::of(
            "brk0",
            "02:00:00:00:00:01",
            &["192.0.2.1/28", "192.0.2.3/28", "2001:db8::1/64"],
        );
        sh(
            "ip addr add 192.0.2.2/28 dev brk0; ip addr add 2001:db8::2/64 dev brk0 nodad
            ip addr add fe80::2/64 dev brk0 nodad
            for neigh in /proc/sys/net/ipv4/neigh/brk0 /proc/sys/net/ipv6/neigh/brk0; do
                echo 100 > $neigh/base_reachable_time_ms; echo 1 > $neigh/delay_first_probe_time
                echo 20 > $neigh/retrans_time_ms; echo 1 > $neigh/mcast_resolicit
                echo 0 > $neigh/locktime
            done",
        );
        let state = tempfile::tempdir().unwrap();
        let kernel = Kernel::open(state.path()).unwrap();
        (peer, kernel, state)
    }

    fn gateway(address: &str) -> Gateway {
        Gateway {
            interface: InterfaceName::new("brk0").unwrap(),
            address: address.parse().unwrap(),
        }
    }

    async fn entry(kernel: &Kernel, gateway: &Gateway) -> Option<facts::Neighbour> {
        let index = kernel.index_of(&gateway.interface).await.unwrap().unwrap();
        facts::neighbour(kernel, index, gateway.address)
            .await
            .unwrap()
    }

    async fn wait_for_mac(kernel: &Kernel, gateway: &Gateway, last: u8) {
        let begin = Instant::now();
        while entry(kernel, gateway).await.and_then(|it| it.mac) != Some([2, 0, 0, 0, 0, last]) {
            let neighbours = || sh("ip neighbour show nud all");
            assert!(begin.elapsed() < Duration::from_mins(1), "{}", neighbours());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[test]
    fn a_gateway_that_is_kept_is_found_again_without_a_packet_to_it() {
        in_namespace(async || {
            let (peer, kernel, _state) = router();
            if !can_be_kept(&kernel).await {
                println!("skipped: this kernel keeps no neighbours resolved (Linux 5.16 does)");
                return;
            }
            let kept = ["192.0.2.1", "2001:db8::1"].map(gateway);
            for gateway in &kept {
                assert_eq!(gateway.present(&kernel).await.unwrap(), Presence::Absent);
                assert_eq!(gateway.apply(&kernel).await.unwrap(), Change::Made);
                assert_eq!(gateway.present(&kernel).await.unwrap(), Presence::Present);
                assert_eq!(gateway.apply(&kernel).await.unwrap(), Change::None);
                wait_for_mac(&kernel, gateway, 1).await;
            }
            // One that nobody keeps.
            let other = gateway("192.0.2.3");
            sh("ip neighbour add 192.0.2.3 dev brk0 lladdr 02:00:00:00:00:01 nud stale");

            // It does not announce its new address.
            peer.ip("link set brk0-p address 02:00:00:00:00:02");
            for gateway in &kept {
                wait_for_mac(&kernel, gateway, 2).await;
            }
            let stale = entry(&kernel, &other).await.unwrap();
            assert_eq!(stale.mac, Some([2, 0, 0, 0, 0, 1]));
            // Asking at once leaves it kept.
            let index = kernel.index_of(&other.interface).await.unwrap().unwrap();
            facts::resolve(&kernel, index, kept[0].address, true)
                .await
                .unwrap();
            assert_eq!(kept[0].present(&kernel).await.unwrap(), Presence::Present);

            for family in Family::BOTH {
                let ours = Gateway::ours(&kernel, family).await.unwrap();
                assert_eq!(ours, [kept[family.index()].clone()]);
                assert_eq!(ours[0].remove(&kernel).await.unwrap(), Change::Made);
                assert_eq!(ours[0].remove(&kernel).await.unwrap(), Change::None);
                assert_eq!(Gateway::ours(&kernel, family).await.unwrap(), []);
            }
            assert!(entry(&kernel, &other).await.is_some());
        });
    }

    #[test]
    fn what_somebody_wrote_down_stays_as_it_is() {
        in_namespace(async || {
            let (_peer, kernel, _state) = router();
            if !can_be_kept(&kernel).await {
                println!("skipped: this kernel keeps no neighbours resolved (Linux 5.16 does)");
                return;
            }
            let of_others = [
                ("192.0.2.1", "lladdr 02:00:00:00:00:07 nud permanent"),
                (
                    "192.0.2.4",
                    "lladdr 02:00:00:00:00:07 nud reachable extern_learn",
                ),
                ("192.0.2.5", "managed protocol 99"),
                ("2001:db8::1", "managed"),
            ];
            for (address, words) in of_others {
                sh(&format!("ip neighbour add {address} dev brk0 {words}"));
                let gateway = gateway(address);
                let keeper = entry(&kernel, &gateway).await.map(|it| it.keeper);
                assert_eq!(keeper, Some(Keeper::Other), "{words}");
                assert_eq!(gateway.apply(&kernel).await.unwrap(), Change::None);
                assert_eq!(gateway.remove(&kernel).await.unwrap(), Change::None);
                let after = entry(&kernel, &gateway).await.map(|it| it.keeper);
                assert_eq!(after, Some(Keeper::Other), "{words}");
            }
            // An operator who writes down what steer kept takes it over.
            let taken = gateway("192.0.2.3");
            taken.apply(&kernel).await.unwrap();
            sh("ip neighbour replace 192.0.2.3 dev brk0 lladdr 02:00:00:00:00:07 nud permanent");
            assert_eq!(taken.apply(&kernel).await.unwrap(), Change::None);
            assert_eq!(taken.remove(&kernel).await.unwrap(), Change::None);
            let mac = entry(&kernel, &taken).await.and_then(|it| it.mac);
            assert_eq!(mac, Some([2, 0, 0, 0, 0, 7]));
            assert_eq!(Gateway::ours(&kernel, Family::V4).await.unwrap(), []);
        });
    }

    #[test]
    fn a_link_that_is_down_or_gone_has_nothing_to_keep() {
        in_namespace(async || {
            let (_peer, kernel, _state) = router();
            let gateway = gateway("192.0.2.1");
            for change in ["ip link set brk0 down", "ip link del brk0"] {
                sh(change);
                assert_eq!(gateway.present(&kernel).await.unwrap(), Presence::Present);
                assert_eq!(gateway.apply(&kernel).await.unwrap(), Change::None);
                assert_eq!(gateway.remove(&kernel).await.unwrap(), Change::None);
            }
        });
    }
}
