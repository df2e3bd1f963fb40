//! Looks at the box and says what it means for the configuration: where clients come in, what each
//! breakout needs, and why one cannot be used.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::{IpNet, Ipv6Net};
use steer_common::abi::NextHop as Hop;

use super::ControllerError;
use crate::{
    config::{Breakout, Config, Delegated, Lan, Mode, Vlan},
    datapath::{Exit, Port},
    policy::Site,
    system::{
        Family, InterfaceName, Kernel, NextHop, PathId, PathSpec, TableId, Wanted,
        delegated::Delegations,
        facts::{self, Facts, Keeper, Link, Neighbour, Reachability},
        gateway,
        xdp::XdpFeatures,
    },
};

/// What the box looks like now, in the words of the configuration.
#[derive(Clone, Debug)]
pub struct View {
    /// What steer wants in the box.
    pub wanted: Wanted,
    /// The LANs, in the order of the configuration.
    pub lans: Vec<LanView>,
    /// Where packets are classified.
    pub ports: Vec<Port>,
    /// Clients.
    pub sources: Vec<IpNet>,
    /// Those of them whose queries are steered.
    pub asking: Vec<IpNet>,
    /// Clients that are left out.
    pub left_out: Vec<IpNet>,
    /// Clients whose queries are left alone.
    pub queries_left: Vec<IpNet>,
    /// The router's own addresses.
    pub own_addresses: BTreeSet<IpAddr>,
    /// The breakouts, in the order of the configuration.
    pub breakouts: Vec<BreakoutView>,
    /// What the operator should know.
    pub problems: Vec<String>,
}

/// How redirect mode can send frames out of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sends {
    /// The driver takes frames from XDP.
    Any,
    /// The device has no such way, but the stack's: generic XDP. The kind of device.
    GenericOnly(String),
    /// Packets on it begin with the IP header: there is no frame to make.
    Nothing,
}

impl Sends {
    fn of(link: &Link) -> Self {
        if link.mac.is_none() {
            return Self::Nothing;
        }
        Self::of_kind(link.kind.as_deref(), || XdpFeatures::of(link.index))
    }

    /// By the kind of device, `None` for hardware, whose driver is asked: some take no frames, others
    /// only beside a program of their own. What they do not take is lost (`dev_map_enqueue`).
    fn of_kind(kind: Option<&str>, driver: impl FnOnce() -> Option<XdpFeatures>) -> Self {
        match kind {
            // None of these has `ndo_xdp_xmit`.
            Some(
                kind @ ("vlan" | "bridge" | "vxlan" | "geneve" | "gretap" | "ip6gretap" | "macvlan"
                | "dummy" | "team"),
            ) => Self::GenericOnly(kind.to_owned()),
            None if driver().is_some_and(|it| !it.takes_frames()) => {
                Self::GenericOnly("network card".into())
            }
            _ => Self::Any,
        }
    }
}

/// A LAN as it is now, or as it was when it was there.
#[derive(Clone, Debug)]
pub struct LanView {
    /// The interfaces on which the stack sees its packets.
    stack: Vec<InterfaceName>,
    /// Its clients.
    sources: Vec<IpNet>,
    /// Where its packets are classified.
    port: Port,
}

/// A breakout as it is now.
#[derive(Clone, Debug)]
pub struct BreakoutView {
    /// Its path.
    pub id: PathId,
    /// Why it cannot be used.
    pub trouble: Option<String>,
    /// Why IPv4 and IPv6 alone cannot be used.
    pub lacks: [Option<String>; 2],
    /// Its interface's index.
    pub ifindex: Option<u32>,
    /// Where its answers come in.
    pub exit: Option<Exit>,
    /// What redirect mode can do with it.
    pub sends: Sends,
    /// How to reach the gateways without the stack, for IPv4 and IPv6 (redirect mode).
    pub hops: [Option<Hop>; 2],
    /// A gateway that the kernel asked for and that did not answer.
    pub silent_gateway: Option<IpAddr>,
    /// The IPv6 prefixes that its provider delegated, as far as they are followed.
    pub delegated: Vec<Ipv6Net>,
    /// The IPv4 next hop, for display.
    pub gateway: Option<String>,
    /// The IPv6 next hop, for display.
    pub gateway6: Option<String>,
}

/// Looks at the box. `last` is what was known of the LANs.
///
/// Fails when the kernel does not answer, or when a LAN interface is not there and never was:
/// without it there is nothing to steer.
pub async fn look(
    kernel: &Kernel,
    config: &Config,
    last: &[LanView],
) -> Result<View, ControllerError> {
    let facts = Facts::gather(kernel).await?;
    let mut view = View {
        wanted: Wanted {
            lan: Vec::new(),
            paths: Vec::new(),
            route_tables: config
                .mark
                .route_tables
                .iter()
                .copied()
                .map(TableId)
                .collect(),
            routes: config.mark.routes,
            nat: config.mark.nat,
            marks: config.mark.bits,
            forward_queries: Vec::new(),
            ipv6: facts::ipv6_available(),
            keep_gateways: gateway::can_be_kept(kernel).await,
        },
        lans: Vec::new(),
        ports: Vec::new(),
        sources: Vec::new(),
        asking: Vec::new(),
        left_out: Vec::new(),
        queries_left: Vec::new(),
        own_addresses: facts
            .addresses
            .iter()
            .map(|address| address.address)
            .collect(),
        breakouts: Vec::new(),
        problems: Vec::new(),
    };
    for lan in &config.lans {
        let seen = look_at_lan(&facts, config, lan, last, &mut view.problems)?;
        view.wanted.lan.extend(seen.stack.iter().cloned());
        if config.forwards_queries() && lan.steer_queries {
            view.wanted
                .forward_queries
                .extend(seen.stack.iter().cloned());
        }
        view.ports.push(seen.port.clone());
        view.sources.extend(&seen.sources);
        if lan.steer_queries {
            view.asking.extend(&seen.sources);
        }
        view.left_out.extend(&lan.exclude_sources);
        view.queries_left.extend(&lan.leave_queries_of);
        view.lans.push(seen);
    }
    let delegations = delegations(kernel, config, &view).await?;
    if delegations.are_ambiguous() && follows(config, &Delegated::Auto) {
        view.problems.push(format!(
            "several links have a router that advertises itself, so that it cannot be told by which \
             of them {} was delegated: its packets are translated. Name the provider's range: \
             [[breakout]] delegated_from",
            delegations.whole[0]
        ));
    }
    for breakout in &config.breakouts {
        look_at_breakout(kernel, &facts, config, breakout, &delegations, &mut view).await?;
    }
    for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        if !facts::forwarding(family) && (family == Family::V4 || view.wanted.ipv6) {
            view.problems.push(format!(
                "{name} forwarding is off: no {name} packet of the LAN goes anywhere. \
                 Switch it on: sysctl -w {}",
                match family {
                    Family::V4 => "net.ipv4.ip_forward=1",
                    Family::V6 => "net.ipv6.conf.all.forwarding=1",
                }
            ));
        }
    }
    Ok(view)
}

/// The site of those clients whose queries are steered.
pub fn asking_site(view: &View) -> Site {
    Site {
        clients: Some(view.asking.clone()),
        left_out: view.left_out.clone(),
        queries_left: view.queries_left.clone(),
        router: view.own_addresses.iter().copied().collect(),
    }
}

/// Looks at a LAN. One that is not there any more is taken as it was, so that the others and the
/// breakouts are followed meanwhile.
fn look_at_lan(
    facts: &Facts,
    config: &Config,
    lan: &Lan,
    last: &[LanView],
    problems: &mut Vec<String>,
) -> Result<LanView, ControllerError> {
    let seen = see_lan(facts, config, lan, problems);
    let known = last
        .iter()
        .find(|it| it.port.interface == lan.interface.as_str());
    match (seen, known) {
        (Err(error), Some(known)) => {
            problems.push(error.to_string());
            Ok(known.clone())
        }
        (seen, _) => seen,
    }
}

fn see_lan(
    facts: &Facts,
    config: &Config,
    lan: &Lan,
    problems: &mut Vec<String>,
) -> Result<LanView, ControllerError> {
    let name = lan.interface.as_str();
    let link = facts
        .link(name)
        .ok_or_else(|| ControllerError::LanMissing {
            interface: name.into(),
        })?;
    let seen = stack_interfaces(facts, link, &lan.vlans);
    if seen.is_empty() {
        return Err(ControllerError::VlanMissing {
            interface: name.into(),
        });
    }
    let stack = seen
        .iter()
        .map(|interface| InterfaceName::new(&interface.name));
    let connected = || {
        seen.iter()
            .flat_map(|interface| facts.connected(interface.index))
    };
    let sources: Vec<IpNet> = if lan.sources.is_empty() {
        connected().collect()
    } else {
        lan.sources.clone()
    };
    if sources.is_empty() {
        problems.push(format!(
            "{name} has no address, so no client of it is known. Give it one, or name the \
             clients: [[lan]] sources"
        ));
    }
    Ok(LanView {
        stack: stack.collect::<Result<_, _>>()?,
        sources,
        port: Port {
            interface: name.into(),
            ifindex: link.index,
            // On the port of a bridge clients send to the bridge's address.
            mac: link
                .mac
                .map(|own| facts.as_seen_by_ip(link).mac.unwrap_or(own)),
            vlans: lan.vlans.iter().map(|vlan| vlan_key(*vlan)).collect(),
            marks: config.mark.bits,
            order: config.mark.order,
        },
    })
}

/// The interfaces on which the stack sees the LAN's packets: the VLANs' own ones, the bridge of a
/// port, or the interface itself.
fn stack_interfaces<'a>(facts: &'a Facts, link: &'a Link, vlans: &[Vlan]) -> Vec<&'a Link> {
    if vlans.is_empty() {
        return vec![facts.as_seen_by_ip(link)];
    }
    let below = |parent: &Link, id: u16| {
        facts
            .links
            .iter()
            .find(|it| it.parent == Some(parent.index) && it.vlan == Some(id))
    };
    vlans
        .iter()
        .filter_map(|vlan| match *vlan {
            Vlan::Single(id) => below(link, id),
            Vlan::Stacked(outer, inner) => below(link, outer).and_then(|it| below(it, inner)),
        })
        .collect()
}

/// A VLAN as the fast path compares it.
fn vlan_key(vlan: Vlan) -> u32 {
    match vlan {
        Vlan::Single(id) => u32::from(id) << 16,
        Vlan::Stacked(outer, inner) => u32::from(outer) << 16 | u32::from(inner),
    }
}

/// What was delegated, if anybody wants to know.
async fn delegations(
    kernel: &Kernel,
    config: &Config,
    view: &View,
) -> Result<Delegations, ControllerError> {
    let off = config
        .breakouts
        .iter()
        .all(|it| it.delegated == Delegated::Off);
    Ok(if off || !view.wanted.ipv6 {
        Delegations::default()
    } else {
        Delegations::gather(kernel).await?
    })
}

/// Whether a breakout's delegations are followed in this way.
fn follows(config: &Config, how: &Delegated) -> bool {
    config.breakouts.iter().any(|it| it.delegated == *how)
}

/// The prefixes that a breakout's provider delegated.
fn delegated(
    facts: &Facts,
    breakout: &Breakout,
    link: Option<&Link>,
    delegations: &Delegations,
    view: &View,
) -> Vec<Ipv6Net> {
    match &breakout.delegated {
        Delegated::Off => Vec::new(),
        Delegated::Auto => link.map_or(Vec::new(), |link| delegations.of(link)),
        Delegated::From(ranges) => {
            let lans = view.wanted.lan.iter();
            let lans = lans.filter_map(|name| Some(facts.link(name.as_str())?.index));
            delegations.within(ranges, facts, &lans.collect::<Vec<_>>())
        }
    }
}

async fn look_at_breakout(
    kernel: &Kernel,
    facts: &Facts,
    config: &Config,
    breakout: &Breakout,
    delegations: &Delegations,
    view: &mut View,
) -> Result<(), ControllerError> {
    let Some(id) = PathId::new(breakout.id) else {
        return Err(ControllerError::TooManyBreakouts);
    };
    let interface = breakout.interface.clone();
    let link = facts.link(interface.as_str());
    let mut configured = PathSpec {
        id,
        name: breakout.name.clone(),
        interface,
        exists: link.is_some(),
        mtu: link.map_or(0, |link| link.mtu),
        next_hop4: breakout.gateway.map(NextHop::Via),
        next_hop6: breakout.gateway6.map(NextHop::Via),
        addresses: Vec::new(),
        valid4: Vec::new(),
        valid6: Vec::new(),
    };
    for source in &breakout.valid_sources {
        match source {
            IpNet::V4(net) => configured.valid4.push(*net),
            IpNet::V6(net) => configured.valid6.push(*net),
        }
    }
    let delegated = delegated(facts, breakout, link, delegations, view);
    configured.valid6.extend(&delegated);
    let spec = facts::observe(kernel, facts, &configured).await?;
    let via4 = spec.next_hop4.map(|hop| hop.map(IpAddr::V4));
    let via6 = spec.next_hop6.map(|hop| hop.map(IpAddr::V6));
    let mut hops = [None, None];
    if let (Mode::Redirect, Some(link)) = (config.mode, link) {
        for (place, hop) in hops.iter_mut().zip([via4, via6]) {
            *place = resolved(kernel, link, id, hop).await?;
        }
    }
    let describe = |hop| match hop {
        NextHop::Via(address) | NextHop::ViaOnLink(address) => IpAddr::to_string(&address),
        NextHop::Device => format!("on {}", breakout.interface),
    };
    let silent_gateway = match link {
        Some(link) => silent_gateway(kernel, link, [via4, via6]).await?,
        None => None,
    };
    let lacks = Family::BOTH.map(|family| {
        let place = family.index();
        let route = [via4, via6][place].is_some();
        let hop = config.mode == Mode::Mark || hops[place].is_some();
        lack(&spec, family, view.wanted.ipv6, route, hop)
    });
    view.breakouts.push(BreakoutView {
        id,
        silent_gateway,
        trouble: trouble(config.mode, breakout, link, &spec, hops),
        lacks,
        ifindex: link.map(|link| link.index),
        exit: link.map(|link| Exit {
            path: id.get(),
            interface: link.name.clone(),
            ifindex: link.index,
            bare_ip: link.mac.is_none(),
        }),
        sends: match link {
            Some(link) if config.mode == Mode::Redirect => Sends::of(link),
            _ => Sends::Any,
        },
        delegated,
        hops,
        gateway: via4.map(describe),
        gateway6: via6.map(describe),
    });
    view.wanted.paths.push(spec);
    Ok(())
}

/// The first gateway that the kernel gave up on.
async fn silent_gateway(
    kernel: &Kernel,
    link: &Link,
    hops: [Option<NextHop<IpAddr>>; 2],
) -> Result<Option<IpAddr>, ControllerError> {
    for hop in hops.into_iter().flatten() {
        if let NextHop::Via(gateway) | NextHop::ViaOnLink(gateway) = hop
            && let Some(known) = facts::neighbour(kernel, link.index, gateway).await?
            && known.state == Reachability::Failed
        {
            return Ok(Some(gateway));
        }
    }
    Ok(None)
}

/// The Ethernet header to a next hop; asks the kernel to find it out when it is not known.
async fn resolved(
    kernel: &Kernel,
    link: &Link,
    id: PathId,
    hop: Option<NextHop<IpAddr>>,
) -> Result<Option<Hop>, ControllerError> {
    let (Some(own), Some(NextHop::Via(gateway) | NextHop::ViaOnLink(gateway))) = (link.mac, hop)
    else {
        return Ok(None);
    };
    if !(link.up && link.carrier) {
        return Ok(None);
    }
    let Some(mac) = gateway_mac(kernel, link.index, gateway).await? else {
        return Ok(None);
    };
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&mac);
    macs[6..].copy_from_slice(&own);
    Ok(Some(Hop {
        macs,
        device: id.get().into(),
        mtu: link.mtu,
    }))
}

/// The Ethernet address of a gateway; gives one that was never asked for a moment to answer.
async fn gateway_mac(
    kernel: &Kernel,
    ifindex: u32,
    gateway: IpAddr,
) -> Result<Option<[u8; 6]>, ControllerError> {
    let mut known = facts::neighbour(kernel, ifindex, gateway).await?;
    // Redirected packets do not tell the kernel that the gateway is in use: it would never check again
    // whether it still has this address, unless somebody told it to.
    let needs_no_question = |it: Neighbour| {
        it.keeper == Keeper::Other || it.managed && it.state == Reachability::Usable
    };
    if !known.is_some_and(needs_no_question) {
        let managed = known.is_some_and(|it| it.managed);
        facts::resolve(kernel, ifindex, gateway, managed).await?;
        known = facts::neighbour(kernel, ifindex, gateway).await?;
    }
    for _ in 0..3 {
        match known.map(|it| (it.state, it.mac)) {
            Some((Reachability::Usable, mac)) => return Ok(mac),
            Some((Reachability::Failed, _)) => return Ok(None),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        known = facts::neighbour(kernel, ifindex, gateway).await?;
    }
    Ok(known.and_then(|it| it.mac))
}

/// Why one family cannot be used on a breakout now, where the other may be: `route` says whether its
/// way is known, `hop` whether whoever is there answers.
fn lack(spec: &PathSpec, family: Family, ipv6: bool, route: bool, hop: bool) -> Option<String> {
    let (interface, name) = (&spec.interface, family.name());
    if family == Family::V6 && !ipv6 {
        return Some("this kernel has no IPv6".into());
    }
    if !spec.has_source(family) {
        return Some(format!(
            "{interface} has no {name} address, and no {name} source is valid there as it is"
        ));
    }
    if !route {
        return Some(format!(
            "no {name} gateway is known on {interface}: the configuration names none, and the \
             kernel has no {name} default route there"
        ));
    }
    (!hop).then(|| format!("the {name} gateway on {interface} does not answer"))
}

/// Why a breakout cannot be used now.
fn trouble(
    mode: Mode,
    breakout: &Breakout,
    link: Option<&Link>,
    spec: &PathSpec,
    hops: [Option<Hop>; 2],
) -> Option<String> {
    let name = breakout.interface.as_str();
    let Some(link) = link else {
        return Some(format!("there is no interface {name}"));
    };
    if !link.up {
        return Some(format!("{name} is switched off (ip link set {name} up)"));
    }
    if !link.carrier {
        return Some(format!("{name} has no carrier: is the cable in?"));
    }
    if spec.next_hop4.is_none() && spec.next_hop6.is_none() {
        return Some(if spec.addresses.is_empty() {
            format!("{name} has no address")
        } else {
            format!(
                "no gateway is known on {name}: the configuration names none, and the kernel has \
                 no default route there"
            )
        });
    }
    if mode == Mode::Redirect && link.mac.is_none() {
        return Some(format!(
            "{name} carries IP packets without Ethernet headers, which redirect mode cannot send: use \
             mode = \"mark\""
        ));
    }
    if mode == Mode::Redirect && hops == [None, None] {
        return Some(format!(
            "the gateway on {name} does not answer (ARP, neighbour discovery)"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_xdp_sends_where_the_driver_takes_frames_or_does_not_tell() {
        let card = |features| Sends::of_kind(None, || features);
        let nothing = XdpFeatures::NONE;
        assert_eq!(
            card(Some(nothing)),
            Sends::GenericOnly("network card".into())
        );
        assert_eq!(card(Some(XdpFeatures::ALL)), Sends::Any);
        assert_eq!(card(None), Sends::Any);
        // A veth's depend on its peer's at the moment, and are not asked for.
        assert_eq!(Sends::of_kind(Some("veth"), || Some(nothing)), Sends::Any);
    }
}
