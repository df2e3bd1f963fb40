//! What the box has, read over netlink: links, addresses, gateways, neighbours, and the few kernel
//! settings that decide whether a breakout can work. Nothing here changes the box, except that
//! [`resolve`] makes the kernel ask for a neighbour's address.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVlan, InfoVti, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType},
};

use super::{Family, Kernel, NextHop, PROTOCOL, PathSpec, SystemError, TableId};

/// Links and addresses, read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every network device.
    pub links: Vec<Link>,
    /// Every address of the router.
    pub addresses: Vec<Address>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the kernel's own"
)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The largest IP packet, in bytes.
    pub mtu: u32,
    /// Its address; `None` for devices without Ethernet headers.
    pub mac: Option<[u8; 6]>,
    /// `veth`, `vlan`, `bridge`, `wireguard`, …; `None` for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// The device a VLAN or tunnel sits on. In another namespace it may be anything.
    pub parent: Option<u32>,
    /// The VLAN id, for a VLAN sub-interface.
    pub vlan: Option<u16>,
    /// Whether the administrator has it up.
    pub up: bool,
    /// Whether something is connected.
    pub carrier: bool,
    /// PPP and tunnels: no gateway is needed.
    pub point_to_point: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The program at XDP: its number. Driver, stack or hardware.
    pub xdp: Option<u32>,
    /// Where a tunnel's packets go; nothing for a tunnel that learns it or does not tell.
    pub remotes: Vec<IpAddr>,
}

/// One address of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device it is on.
    pub index: u32,
    /// The router's own address.
    pub address: IpAddr,
    /// What is reached directly through it; the peer's address on point-to-point links.
    pub connected: IpNet,
    /// IPv6: not yet proven unique, or proven not to be.
    pub tentative: bool,
    /// IPv6: no new connections should use it.
    pub deprecated: bool,
    /// It was given for a time: by DHCP, a router advertisement.
    pub leased: bool,
}

impl Facts {
    /// Reads links and addresses.
    pub async fn gather(kernel: &Kernel) -> Result<Self, SystemError> {
        let links: Vec<LinkMessage> = kernel
            .netlink()
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("ip link show"))?;
        let addresses: Vec<AddressMessage> = kernel
            .netlink()
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("ip address show"))?;
        Ok(Self {
            links: links.iter().filter_map(link).collect(),
            addresses: addresses.iter().filter_map(address).collect(),
        })
    }

    /// The device of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The device with this index.
    pub fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The addresses on one device.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.index == index)
    }

    /// The prefixes that are reached directly over one device; link-local ones are left out.
    pub fn connected(&self, index: u32) -> Vec<IpNet> {
        let mut prefixes: Vec<_> = self
            .addresses_of(index)
            .map(|address| address.connected.trunc())
            .filter(|prefix| !super::is_link_local(prefix.addr()))
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    /// The device as the IP stack sees a frame that comes in on it: its bridge or VRF's device for
    /// a bridge port, itself otherwise.
    pub fn as_seen_by_ip<'a>(&'a self, link: &'a Link) -> &'a Link {
        let master = link.master.and_then(|index| self.link_at(index));
        // A VRF's members keep their own identity in nftables' prerouting of the member.
        match master {
            Some(master) if matches!(master.kind.as_deref(), Some("bridge" | "bond" | "team")) => {
                self.as_seen_by_ip(master)
            }
            _ => link,
        }
    }
}

/// A default route that leaves by one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The gateway; none on point-to-point links.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway lies outside every connected prefix.
    pub on_link: bool,
    /// The table it is in.
    pub table: TableId,
    /// Lower is preferred.
    pub metric: u32,
    /// Who made it: `RTPROT_DHCP`, `RTPROT_RA`, `RTPROT_STATIC`, … of the kernel.
    pub protocol: u8,
}

/// The kernel's default routes over one device, in every table but steer's own; those in `main`
/// first, then by metric.
pub async fn default_routes(
    kernel: &Kernel,
    index: u32,
    family: Family,
) -> Result<Vec<DefaultRoute>, SystemError> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(family);
    // The kernel filters: the tables of a router can be huge.
    query.attributes.push(RouteAttribute::Oif(index));
    let routes: Vec<RouteMessage> = kernel
        .netlink()
        .route()
        .get(query)
        .execute()
        .try_collect()
        .await
        .map_err(failed("ip route show"))?;
    let mut found: Vec<_> = routes
        .iter()
        .flat_map(|route| default_route(route, index))
        .filter(|route| !route.table.is_ours())
        .collect();
    found.sort_by_key(|route| (route.table != TableId::MAIN, route.table, route.metric));
    Ok(found)
}

/// A default route, and the device it leaves by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultOnLink {
    /// The device.
    pub interface: String,
    /// IPv4 or IPv6.
    pub family: Family,
    /// The route.
    pub route: DefaultRoute,
}

/// The default routes over every device that is up, in every table but steer's own.
pub async fn all_default_routes(
    kernel: &Kernel,
    facts: &Facts,
) -> Result<Vec<DefaultOnLink>, SystemError> {
    let families: &[Family] = if ipv6_available() {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    let mut found = Vec::new();
    // By device, because the kernel filters by device: the tables of a router can be huge.
    for link in facts.links.iter().filter(|it| it.up && !it.loopback) {
        for &family in families {
            let routes = default_routes(kernel, link.index, family).await?;
            found.extend(routes.into_iter().map(|route| DefaultOnLink {
                interface: link.name.clone(),
                family,
                route,
            }));
        }
    }
    Ok(found)
}

/// Completes what the configuration says of a breakout with what the box has now: the addresses of
/// its link, next hops that are not configured (from the kernel's best default route over the link,
/// or the device itself if it is point-to-point), and whether a configured gateway lies outside
/// every connected prefix.
///
/// A family gets no next hop if nothing could leave by it: the link has no address to translate to,
/// and no source may leave untranslated. Packets then keep the route they had.
pub async fn observe(
    kernel: &Kernel,
    facts: &Facts,
    configured: &PathSpec,
) -> Result<PathSpec, SystemError> {
    let mut path = configured.clone();
    path.addresses.clear();
    let Some(link) = facts.link(path.interface.as_str()) else {
        (path.next_hop4, path.next_hop6) = (None, None);
        return Ok(path);
    };
    let addresses = facts.addresses_of(link.index).filter(|it| !it.tentative);
    path.addresses = addresses.map(|it| it.address).collect();
    path.next_hop4 = if path.has_source(Family::V4) {
        match configured_gateway(facts, link, path.next_hop4) {
            None => next_hop(kernel, link, Family::V4).await?.and_then(only_v4),
            configured => configured,
        }
    } else {
        None
    };
    path.next_hop6 = if path.has_source(Family::V6) {
        match configured_gateway(facts, link, path.next_hop6) {
            None => next_hop(kernel, link, Family::V6).await?.and_then(only_v6),
            configured => configured,
        }
    } else {
        None
    };
    Ok(path)
}

fn configured_gateway<A: Copy + Into<IpAddr>>(
    facts: &Facts,
    link: &Link,
    hop: Option<NextHop<A>>,
) -> Option<NextHop<A>> {
    let (NextHop::Via(gateway) | NextHop::ViaOnLink(gateway)) = hop? else {
        return hop;
    };
    let address = gateway.into();
    let reached = super::is_link_local(address)
        || facts
            .addresses_of(link.index)
            .any(|it| it.connected.contains(&address));
    Some(if reached {
        NextHop::Via(gateway)
    } else {
        NextHop::ViaOnLink(gateway)
    })
}

fn only_v4(hop: NextHop<IpAddr>) -> Option<NextHop<Ipv4Addr>> {
    match hop {
        NextHop::Via(IpAddr::V4(gateway)) => Some(NextHop::Via(gateway)),
        NextHop::ViaOnLink(IpAddr::V4(gateway)) => Some(NextHop::ViaOnLink(gateway)),
        NextHop::Device => Some(NextHop::Device),
        _ => None,
    }
}

fn only_v6(hop: NextHop<IpAddr>) -> Option<NextHop<Ipv6Addr>> {
    match hop {
        NextHop::Via(IpAddr::V6(gateway)) => Some(NextHop::Via(gateway)),
        NextHop::ViaOnLink(IpAddr::V6(gateway)) => Some(NextHop::ViaOnLink(gateway)),
        NextHop::Device => Some(NextHop::Device),
        _ => None,
    }
}

/// Where the kernel's own best default route over the link points; to the device itself if there is
/// none and the link is point-to-point.
pub async fn next_hop(
    kernel: &Kernel,
    link: &Link,
    family: Family,
) -> Result<Option<NextHop<IpAddr>>, SystemError> {
    let routes = default_routes(kernel, link.index, family).await?;
    let gateway = routes.iter().find_map(|route| {
        let gateway = route.gateway?;
        Some(if route.on_link {
            NextHop::ViaOnLink(gateway)
        } else {
            NextHop::Via(gateway)
        })
    });
    Ok(gateway.or(link.point_to_point.then_some(NextHop::Device)))
}

/// What the kernel knows about a directly connected host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device it is on.
    pub index: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its Ethernet address, while it is one to send to.
    pub mac: Option<[u8; 6]>,
    /// How sure the kernel is.
    pub state: Reachability,
    /// Who made the entry what it is.
    pub keeper: Keeper,
    /// Whether the kernel keeps it resolved without being asked.
    pub managed: bool,
}

/// Whose an entry of the table of neighbours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The kernel's own, as any that was found out.
    Kernel,
    /// steer wanted it kept.
    Steer,
    /// An operator wrote it down, or a daemon's.
    Other,
}

/// How sure the kernel is of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Can be sent to; checked again when it is used.
    Usable,
    /// Being asked for.
    Asking,
    /// Asked for, did not answer.
    Failed,
    /// Never asked for.
    Unknown,
}

/// Every neighbour that the kernel knows.
pub async fn neighbours(kernel: &Kernel, family: Family) -> Result<Vec<Neighbour>, SystemError> {
    let entries: Vec<NeighbourMessage> = kernel
        .netlink()
        .neighbours()
        .get()
        .set_address_family(address_family(family))
        .execute()
        .try_collect()
        .await
        .map_err(failed("ip neighbour show"))?;
    Ok(entries.iter().filter_map(known_neighbour).collect())
}

/// Looks a neighbour up; `None` if the kernel has no entry for it.
pub async fn neighbour(
    kernel: &Kernel,
    index: u32,
    address: IpAddr,
) -> Result<Option<Neighbour>, SystemError> {
    let known = neighbours(kernel, Family::of(address)).await?;
    let mut known = known.into_iter();
    Ok(known.find(|it| (it.index, it.address) == (index, address)))
}

/// Makes the kernel ask for a neighbour's address, as a packet to it would; the answer is seen by
/// [`neighbour`] later. `managed` is what the entry is and remains.
///
/// Not for an entry that somebody wrote down: Linux 5.16 and newer forget what it said.
pub async fn resolve(
    kernel: &Kernel,
    index: u32,
    address: IpAddr,
    managed: bool,
) -> Result<(), SystemError> {
    let mut request = kernel.netlink().neighbours().add(index, address);
    if managed {
        let flag = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        request.message_mut().attributes.push(flag);
    }
    request
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute()
        .await
        .map_err(|source| SystemError::Netlink {
            what: format!("ip neighbour replace {address} dev (index {index}) use"),
            source,
        })
}

/// Whether the kernel has IPv6.
pub fn ipv6_available() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether packets are forwarded at all.
pub fn forwarding(family: Family) -> bool {
    match family {
        Family::V4 => sysctl("net/ipv4/ip_forward"),
        Family::V6 => sysctl("net/ipv6/conf/all/forwarding"),
    }
    .is_some_and(|value| value != 0)
}

/// The reverse path filter that takes effect on an interface: 0 off, 1 strict, 2 loose. The larger
/// of the interface's own value and that for all counts.
pub fn reverse_path_filter(interface: &str) -> u32 {
    let own = sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"));
    own.max(sysctl("net/ipv4/conf/all/rp_filter")).unwrap_or(0)
}

/// Whether packets on bridges pass the firewall, which then sees them before TC on the bridge does.
pub fn bridge_netfilter() -> bool {
    ["iptables", "ip6tables"]
        .iter()
        .any(|it| sysctl(&format!("net/bridge/bridge-nf-call-{it}")).is_some_and(|on| on != 0))
}

/// Whether the reverse path filter asks with the packet's mark; one of the interface's own value and
/// that for all is enough.
pub fn reverse_path_with_mark(interface: &str) -> bool {
    [interface, "all"]
        .iter()
        .any(|it| sysctl(&format!("net/ipv4/conf/{it}/src_valid_mark")).is_some_and(|on| on != 0))
}

/// The index of the device by which the router's own packets to an address leave; none without a
/// route.
pub async fn device_towards(kernel: &Kernel, address: IpAddr) -> Result<Option<u32>, SystemError> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(Family::of(address));
    query.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    query
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    let mut answers = kernel.netlink().route().get(query).execute();
    match answers.try_next().await {
        Ok(route) => Ok(route.and_then(|route| {
            route.attributes.iter().find_map(|it| match it {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        })),
        Err(rtnetlink::Error::NetlinkError(error))
            if matches!(
                -error.raw_code(),
                libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed(&format!("ip route get {address}"))(error)),
    }
}

fn sysctl(key: &str) -> Option<u32> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?;
    text.trim().parse().ok()
}

fn link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        kind: None,
        master: None,
        parent: None,
        vlan: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        point_to_point: flags.contains(LinkFlags::Pointopoint),
        loopback: flags.contains(LinkFlags::Loopback),
        xdp: None,
        remotes: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = address[..].try_into().ok();
            }
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            link.vlan = data.iter().find_map(|item| match item {
                                InfoVlan::Id(id) => Some(*id),
                                _ => None,
                            });
                        }
                        LinkInfo::Data(data) => link.remotes = remotes(data),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => link.xdp = xdp_program(attributes),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<u32> {
    attributes.iter().find_map(|it| match it {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    })
}

/// Where a tunnel's own packets go.
fn remotes(data: &InfoData) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    match data {
        InfoData::GreTap(list) | InfoData::GreTun(list) => {
            found.extend(list.iter().filter_map(|it| match it {
                InfoGre::Remote(address) => Some(IpAddr::V4(*address)),
                _ => None,
            }));
        }
        InfoData::GreTap6(list) | InfoData::GreTun6(list) => {
            found.extend(list.iter().filter_map(|it| match it {
                InfoGre6::Remote(address) => Some(IpAddr::V6(*address)),
                _ => None,
            }));
        }
        InfoData::IpTunnel(list) => {
            found.extend(list.iter().filter_map(|it| match it {
                InfoIpTunnel::Remote(address) => Some(*address),
                _ => None,
            }));
        }
        InfoData::Vti(list) => found.extend(list.iter().filter_map(|it| match it {
            InfoVti::Remote(address) => Some(*address),
            _ => None,
        })),
        InfoData::Geneve(list) => found.extend(list.iter().filter_map(|it| match it {
            InfoGeneve::Remote(address) => Some(IpAddr::V4(*address)),
            InfoGeneve::Remote6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        })),
        InfoData::Vxlan(list) => found.extend(list.iter().filter_map(|it| match it {
            InfoVxlan::Group(address) => Some(IpAddr::V4(*address)),
            InfoVxlan::Group6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        })),
        _ => {}
    }
    found.retain(|address| !address.is_unspecified());
    found
}

fn address(message: &AddressMessage) -> Option<Address> {
    use netlink_packet_route::address::AddressHeaderFlags as Flags;

    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    let flags = message.header.flags;
    Some(Address {
        index: message.header.index,
        address: local.or(peer)?,
        connected: IpNet::new(peer.or(local)?, message.header.prefix_len).ok()?,
        tentative: flags.intersects(Flags::Tentative | Flags::Dadfailed),
        deprecated: flags.contains(Flags::Deprecated),
        leased: !flags.contains(Flags::Permanent),
    })
}

/// The next hops over `index` of a usable default route; several if it is a multipath route.
fn default_route(route: &RouteMessage, index: u32) -> Vec<DefaultRoute> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut common = DefaultRoute {
        gateway: None,
        on_link: route.header.flags.contains(RouteFlags::Onlink),
        table: TableId(u32::from(route.header.table)),
        metric: 0,
        protocol: route.header.protocol.into(),
    };
    let (mut device, mut hops) = (None, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(table) => common.table = TableId(*table),
            RouteAttribute::Priority(metric) => common.metric = *metric,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::MultiPath(several) => hops.extend(several),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if device == Some(index) {
        common.gateway = gateway(&route.attributes);
        found.push(common);
    }
    found.extend(
        hops.iter()
            .filter(|hop| hop.interface_index == index)
            .map(|hop| DefaultRoute {
                gateway: gateway(&hop.attributes),
                on_link: hop.flags.contains(RouteNextHopFlags::Onlink),
                ..common
            }),
    );
    found
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn known_neighbour(entry: &NeighbourMessage) -> Option<Neighbour> {
    let state = match entry.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Noarp
        | NeighbourState::Permanent => Reachability::Usable,
        NeighbourState::Incomplete => Reachability::Asking,
        NeighbourState::Failed => Reachability::Failed,
        _ => Reachability::Unknown,
    };
    let (mut address, mut mac, mut maker, mut managed) = (None, None, 0, false);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => {
                address = Some(IpAddr::V4(*it));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => {
                address = Some(IpAddr::V6(*it));
            }
            NeighbourAttribute::LinkLayerAddress(it) => mac = it[..].try_into().ok(),
            NeighbourAttribute::Protocol(it) => maker = u8::from(*it),
            NeighbourAttribute::ExtFlags(it) => managed = it.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    let written_down = matches!(
        entry.header.state,
        NeighbourState::Permanent | NeighbourState::Noarp
    ) || entry.header.flags.contains(NeighbourFlags::ExtLearned);
    let keeper = match maker {
        _ if written_down => Keeper::Other,
        PROTOCOL => Keeper::Steer,
        0 if !managed => Keeper::Kernel,
        _ => Keeper::Other,
    };
    Some(Neighbour {
        index: entry.header.ifindex,
        address: address?,
        mac: mac.filter(|_| state == Reachability::Usable),
        state,
        keeper,
        managed,
    })
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

pub(super) fn failed(what: &str) -> impl FnOnce(rtnetlink::Error) -> SystemError {
    move |source| SystemError::Netlink {
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        super::testing::{Peer, in_namespace, link, sh},
        *,
    };

    #[test]
    fn links_addresses_and_gateways_are_what_the_box_has() {
        in_namespace(async || {
            link("lan0");
            link("brk0");
            sh("ip link set lan0 address 02:00:00:00:00:07 mtu 1400
                ip link set brk0-p down
                ip addr add 10.1.0.1/24 dev lan0; ip addr add 10.1.0.9/24 dev lan0
                ip addr add 2001:db8::1/64 dev lan0 nodad; ip addr add fe80::7/64 dev lan0 nodad
                ip addr add 192.0.2.2/28 dev brk0
                ip tuntap add ppp0 mode tun; ip addr add 10.9.0.1 peer 10.9.0.2 dev ppp0
                ip link set ppp0 up
                ip route add default via 192.0.2.3 dev brk0 metric 300
                ip route add default via 192.0.2.1 dev brk0 metric 100
                ip route add default via 192.0.2.4 dev brk0 table 36501
                ip route add default via 192.0.2.5 dev brk0 table 99
                ip route add 198.51.100.0/24 via 192.0.2.6 dev brk0
                ip route add default via 203.0.113.1 dev lan0 onlink metric 900
                ip -6 route add default metric 77 nexthop via fe80::1 dev lan0 \
                    nexthop via 2001:db8::2 dev lan0");
            let state = tempfile::tempdir().unwrap();
            let kernel = Kernel::open(state.path()).unwrap();
            let facts = Facts::gather(&kernel).await.unwrap();

            let lan = facts.link("lan0").unwrap();
            assert_eq!(lan.mac, Some([2, 0, 0, 0, 0, 7]));
            assert_eq!((lan.mtu, lan.up, lan.carrier), (1400, true, true));
            assert_eq!(lan.kind.as_deref(), Some("veth"));
            assert_eq!(
                facts.connected(lan.index),
                ["10.1.0.0/24", "2001:db8::/64"].map(|p| p.parse().unwrap())
            );
            assert_eq!(facts.addresses_of(lan.index).count(), 4);
            let brk = facts.link("brk0").unwrap();
            assert!(brk.up && !brk.carrier);
            let ppp = facts.link("ppp0").unwrap();
            assert!(ppp.point_to_point && ppp.mac.is_none());
            assert_eq!(facts.connected(ppp.index), ["10.9.0.2/32".parse().unwrap()]);
            assert!(facts.link("lo").unwrap().loopback);
            assert_eq!(facts.link("none"), None);

            let routes = default_routes(&kernel, brk.index, Family::V4)
                .await
                .unwrap();
            let gateways: Vec<_> = routes
                .iter()
                .map(|r| r.gateway.unwrap().to_string())
                .collect();
            assert_eq!(gateways, ["192.0.2.1", "192.0.2.3", "192.0.2.5"]);
            let hop = |link: &Link, family| {
                let link = link.clone();
                let kernel = &kernel;
                async move { next_hop(kernel, &link, family).await.unwrap() }
            };
            let via = |text: &str| Some(NextHop::Via(text.parse().unwrap()));
            assert_eq!(hop(brk, Family::V4).await, via("192.0.2.1"));
            assert_eq!(hop(brk, Family::V6).await, None);
            assert_eq!(
                hop(lan, Family::V4).await,
                Some(NextHop::ViaOnLink("203.0.113.1".parse().unwrap()))
            );
            assert_eq!(hop(lan, Family::V6).await, via("fe80::1"));
            assert_eq!(hop(ppp, Family::V4).await, Some(NextHop::Device));
        });
    }

    #[test]
    fn a_breakout_is_completed_with_what_its_link_has() {
        in_namespace(async || {
            link("brk0");
            sh(
                "ip addr add 192.0.2.2/28 dev brk0; ip addr add fe80::2/64 dev brk0 nodad
                ip route add default via 192.0.2.1 dev brk0 metric 500
                ip -6 route add default via fe80::1 dev brk0 metric 500
                ip tuntap add ppp0 mode tun; ip addr add 10.9.0.1 peer 10.9.0.2 dev ppp0
                ip link set ppp0 up",
            );
            let state = tempfile::tempdir().unwrap();
            let kernel = Kernel::open(state.path()).unwrap();
            let see = async |path: &PathSpec| {
                let facts = Facts::gather(&kernel).await.unwrap();
                observe(&kernel, &facts, path).await.unwrap()
            };
            let mut brk = super::super::tests::path(1);
            (brk.next_hop4, brk.next_hop6) = (None, None);
            let seen = see(&brk).await;
            assert_eq!(seen.next_hop4, Some(NextHop::Via([192, 0, 2, 1].into())));
            assert_eq!(seen.next_hop6, None, "no address to translate to");
            assert_eq!(seen.addresses.len(), 2);

            brk.valid6 = vec!["2001:db8:7::/56".parse().unwrap()];
            brk.next_hop4 = Some(NextHop::Via([203, 0, 113, 1].into()));
            let seen = see(&brk).await;
            assert_eq!(
                seen.next_hop4,
                Some(NextHop::ViaOnLink([203, 0, 113, 1].into()))
            );
            assert_eq!(
                seen.next_hop6,
                Some(NextHop::Via("fe80::1".parse().unwrap()))
            );

            brk.interface = super::super::InterfaceName::new("ppp0").unwrap();
            (brk.next_hop4, brk.valid6) = (None, Vec::new());
            let seen = see(&brk).await;
            assert_eq!(
                (seen.next_hop4, seen.next_hop6),
                (Some(NextHop::Device), None)
            );

            sh("ip link del ppp0");
            let seen = see(&brk).await;
            assert_eq!((seen.next_hop4, seen.next_hop6), (None, None));
            assert!(seen.addresses.is_empty());
        });
    }

    #[test]
    fn a_silent_neighbour_is_asked_for_and_an_answering_one_is_found() {
        in_namespace(async || {
            link("brk0");
            let _peer = Peer::of(
                "brk0",
                "02:00:00:00:00:99",
                &["192.0.2.1/28", "2001:db8::1/64"],
            );
            sh(
                "ip addr add 192.0.2.2/28 dev brk0; ip addr add 2001:db8::2/64 dev brk0 nodad
                ip addr add fe80::2/64 dev brk0 nodad",
            );
            let state = tempfile::tempdir().unwrap();
            let kernel = Kernel::open(state.path()).unwrap();
            let facts = Facts::gather(&kernel).await.unwrap();
            let index = facts.link("brk0").unwrap().index;
            for address in ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()) {
                assert_eq!(neighbour(&kernel, index, address).await.unwrap(), None);
                let found = asked(&kernel, index, address, Reachability::Usable).await;
                assert_eq!(found.mac, Some([2, 0, 0, 0, 0, 0x99]));
            }
            let silent = "192.0.2.9".parse().unwrap();
            let found = asked(&kernel, index, silent, Reachability::Failed).await;
            assert_eq!(found.mac, None);
        });
    }

    async fn asked(
        kernel: &Kernel,
        index: u32,
        address: IpAddr,
        wanted: Reachability,
    ) -> Neighbour {
        let begin = Instant::now();
        resolve(kernel, index, address, false).await.unwrap();
        loop {
            let found = neighbour(kernel, index, address).await.unwrap();
            match found {
                Some(found) if found.state == wanted => return found,
                _ if begin.elapsed() > Duration::from_secs(30) => {
                    panic!("{address} is {found:?}, not {wanted:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
