//! The IPv6 prefixes that a breakout's provider delegated, as whoever asked for them left them in the
//! kernel. Packets from them are valid there, and nowhere else.
//!
//! A client of DHCPv6 prefix delegation routes the whole prefix to nowhere (`unreachable`, protocol
//! `dhcp`: systemd-networkd, dhcpcd), or makes a default route that is only for packets from it
//! (netifd), and gives parts of it to the LANs. The first says nothing of the link that it came by: it
//! is a breakout's where nobody else's router advertises itself on this box.

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};

use super::{
    Family, Kernel, SystemError, TableId,
    facts::{Facts, Link, address_family, failed},
};

/// What the kernel has of delegations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delegations {
    /// Whole prefixes that a DHCPv6 client routes to nowhere.
    pub whole: Vec<Ipv6Net>,
    /// The devices on which a router advertised itself, or DHCP named one.
    advertised: Vec<u32>,
    /// Default routes that are only for packets from a prefix: the device and the prefix.
    tied: Vec<(u32, Ipv6Net)>,
}

impl Delegations {
    /// Reads them.
    pub async fn gather(kernel: &Kernel) -> Result<Self, SystemError> {
        let mut found = Self::default();
        for protocol in [
            RouteProtocol::Ra,
            RouteProtocol::Dhcp,
            RouteProtocol::Static,
        ] {
            let mut query = RouteMessage::default();
            query.header.address_family = address_family(Family::V6);
            // The kernel filters: the tables of a router can be huge.
            query.header.protocol = protocol;
            let mut routes = kernel.netlink().route().get(query).execute();
            while let Some(route) = routes
                .try_next()
                .await
                .map_err(failed("ip -6 route show proto"))?
            {
                found.note(&route);
            }
        }
        Ok(found)
    }

    fn note(&mut self, route: &RouteMessage) {
        let header = &route.header;
        let mut table = TableId(u32::from(header.table));
        let (mut destination, mut source, mut device) = (None, None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    destination = Some(*address);
                }
                RouteAttribute::Source(RouteAddress::Inet6(address)) => source = Some(*address),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Table(id) => table = TableId(*id),
                _ => {}
            }
        }
        if table.is_ours() {
            return;
        }
        let prefix = |address, length| {
            let prefix = Ipv6Net::new(address, length).ok()?.trunc();
            is_global(&prefix).then_some(prefix)
        };
        let nowhere = matches!(
            header.kind,
            RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit
        );
        if nowhere {
            // A static one may be anybody's aggregate.
            let by_dhcp = header.protocol == RouteProtocol::Dhcp;
            let prefix = destination.and_then(|it| prefix(it, header.destination_prefix_length));
            self.whole.extend(prefix.filter(|_| by_dhcp));
            return;
        }
        let (Some(device), 0, RouteType::Unicast) =
            (device, header.destination_prefix_length, header.kind)
        else {
            return;
        };
        match source.and_then(|it| prefix(it, header.source_prefix_length)) {
            Some(source) => self.tied.push((device, source)),
            None if header.protocol != RouteProtocol::Static => self.advertised.push(device),
            None => {}
        }
    }

    /// The prefixes that came by this link, as far as the kernel can tell.
    pub fn of(&self, link: &Link) -> Vec<Ipv6Net> {
        let tied = self.tied.iter().filter(|(device, _)| *device == link.index);
        let mut found: Vec<Ipv6Net> = tied.map(|(_, prefix)| *prefix).collect();
        if !self.are_ambiguous() && self.advertised.contains(&link.index) {
            found.extend(&self.whole);
        }
        outermost(found)
    }

    /// Whether prefixes were delegated and it cannot be told by which link.
    pub fn are_ambiguous(&self) -> bool {
        !self.whole.is_empty() && self.advertised.iter().any(|it| *it != self.advertised[0])
    }

    /// The prefixes inside those that a provider gives out: delegated as a whole, or on a LAN of these
    /// devices as long as its addresses are not deprecated.
    pub fn within(&self, ranges: &[IpNet], facts: &Facts, lans: &[u32]) -> Vec<Ipv6Net> {
        let on_lan = facts.addresses.iter().filter_map(|it| {
            let current = lans.contains(&it.index) && !it.deprecated;
            match it.connected.trunc() {
                IpNet::V6(prefix) if current && is_global(&prefix) => Some(prefix),
                _ => None,
            }
        });
        let all = self.whole.iter().copied().chain(on_lan);
        let given = all.filter(|prefix| ranges.iter().any(|it| it.contains(&IpNet::V6(*prefix))));
        outermost(given.collect())
    }
}

/// Whether a prefix may be a provider's: of 2000::/3, and no default route's.
fn is_global(prefix: &Ipv6Net) -> bool {
    prefix.prefix_len() >= 16 && prefix.network().segments()[0] >> 13 == 1
}

/// In order, without those that lie in another.
fn outermost(mut prefixes: Vec<Ipv6Net>) -> Vec<Ipv6Net> {
    prefixes.sort_unstable();
    let mut found: Vec<Ipv6Net> = Vec::new();
    for prefix in prefixes {
        if found.last().is_none_or(|last| !last.contains(&prefix)) {
            found.push(prefix);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{in_namespace, link, sh},
        *,
    };

    struct Seen {
        delegations: Delegations,
        facts: Facts,
    }

    async fn see() -> Seen {
        let state = tempfile::tempdir().unwrap();
        let kernel = Kernel::open(state.path()).unwrap();
        Seen {
            delegations: Delegations::gather(&kernel).await.unwrap(),
            facts: Facts::gather(&kernel).await.unwrap(),
        }
    }

    impl Seen {
        fn of(&self, name: &str) -> Vec<String> {
            let found = self.delegations.of(self.facts.link(name).unwrap());
            found.iter().map(ToString::to_string).collect()
        }

        fn within(&self, range: &str) -> Vec<String> {
            let lan = self.facts.link("lan0").unwrap().index;
            let ranges = [range.parse().unwrap()];
            let found = self.delegations.within(&ranges, &self.facts, &[lan]);
            found.iter().map(ToString::to_string).collect()
        }
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn a_whole_prefix_belongs_to_the_only_link_with_an_advertised_router() {
        in_namespace(async || {
            for name in ["lan0", "brk0", "brk1", "bb0"] {
                link(name);
            }
            sh("ip -6 route add default via fe80::1 dev bb0 proto bgp
                ip -6 route add unreachable 2001:db8:7::/56 dev lo proto dhcp metric 1024
                ip -6 route add blackhole 2001:db8:ff::/48 proto static
                ip -6 route add unreachable fd00:1::/48 dev lo proto dhcp");
            assert_eq!(see().await.of("brk0"), NONE, "nobody advertised a router");
            sh("ip -6 route add default via fe80::2 dev brk0 proto ra metric 512");
            let seen = see().await;
            assert_eq!(seen.of("brk0"), ["2001:db8:7::/56"]);
            assert_eq!(seen.of("bb0"), NONE);
            // The lease changes.
            sh(
                "ip -6 route del unreachable 2001:db8:7::/56 dev lo proto dhcp metric 1024
                ip -6 route add unreachable 2001:db8:8::/56 dev lo proto dhcp metric 1024",
            );
            assert_eq!(see().await.of("brk0"), ["2001:db8:8::/56"]);
            // A second one: whose it is cannot be told.
            sh("ip -6 route add default via fe80::3 dev brk1 proto ra metric 600");
            let seen = see().await;
            assert_eq!(seen.of("brk0"), NONE);
            assert!(seen.delegations.are_ambiguous());
        });
    }

    #[test]
    fn what_lies_within_the_provider_s_range_is_taken_from_the_lan_until_it_is_deprecated() {
        in_namespace(async || {
            link("lan0");
            sh("ip addr add 2001:db8:7:1::1/64 dev lan0 nodad
                ip addr add 2001:db8:9:1::1/64 dev lan0 nodad
                ip addr add fd00:1::1/64 dev lan0 nodad
                ip -6 route add unreachable 2001:db8:8::/56 dev lo proto dhcp");
            sh("ip addr add 2001:db8:8:0::1/64 dev lan0 nodad");
            let seen = see().await;
            assert_eq!(seen.within("2001:db8:7::/48"), ["2001:db8:7:1::/64"]);
            assert_eq!(
                seen.within("2001:db8:8::/48"),
                ["2001:db8:8::/56"],
                "all of it"
            );
            assert_eq!(seen.within("fd00::/8"), NONE);
            sh("ip addr change 2001:db8:7:1::1/64 dev lan0 preferred_lft 0 valid_lft 600");
            assert_eq!(see().await.within("2001:db8:7::/48"), NONE);
        });
    }

    #[test]
    fn a_default_route_for_one_source_ties_its_prefix_to_the_link() {
        // As the kernel writes `default from 2001:db8:7::/56 via fe80::1 dev brk0 proto static`, which
        // not every kernel can (CONFIG_IPV6_SUBTREES).
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.protocol = RouteProtocol::Static;
        route.header.source_prefix_length = 56;
        let prefix: Ipv6Net = "2001:db8:7::/56".parse().unwrap();
        route.attributes = vec![
            RouteAttribute::Source(RouteAddress::Inet6(prefix.network())),
            RouteAttribute::Oif(7),
        ];
        let mut found = Delegations::default();
        found.note(&route);
        assert_eq!(found.tied, [(7, prefix)]);
        assert!(found.advertised.is_empty() && !found.are_ambiguous());
    }
}
