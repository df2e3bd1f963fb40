//! What steer puts into the box, as one list of objects: the same list is printed by `check`,
//! applied by `run`, compared by `doctor` and taken away by `detach`.
//!
//! [`objects`] is pure: it turns [`Wanted`] into the list, in the order in which it is applied.
//! Each [`Object`] can then be looked for, applied and removed; each step may be repeated, and none
//! touches what others own. Removing goes through the list backwards: rules before routes before
//! the nftables table before sysctls. (The programs, which come last, go first: no new wishes.)
//!
//! What the kernel offers is used directly: netlink for routes and rules, `/proc/sys` for sysctls.
//! nftables is driven through the `nft` program, so that its text is what an operator would read.

pub mod conntrack;
pub mod delegated;
mod error;
pub mod facts;
pub(crate) mod file;
pub mod files;
pub mod filters;
pub mod gateway;
mod interface;
mod kernel;
pub mod link_resolvers;
mod mark;
pub mod monitor;
pub mod nft;
pub mod owners;
mod route;
mod rule;
mod software;
mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod xdp;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::cut;

pub use self::{
    error::SystemError,
    gateway::Gateway,
    interface::InterfaceName,
    kernel::Kernel,
    mark::{Mark, MarkBits, PROTOCOL, PathId, RulePriority, TableId},
    nft::NftTable,
    route::Route,
    rule::{Rule, Selector},
    sysctl::Sysctl,
};

/// Everything that decides what steer puts into the box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The LAN as the IP stack sees it: the VLAN sub-interface, or the bridge of a port.
    pub lan: Vec<InterfaceName>,
    /// The breakouts, each number once.
    pub paths: Vec<PathSpec>,
    /// Tables whose more specific routes win over a breakout; normally only `main`.
    pub route_tables: Vec<TableId>,
    /// Who routes granted packets to their breakout.
    pub routes: Owner,
    /// Who translates the sources of granted packets.
    pub nat: Owner,
    /// The bits of marks that are steer's.
    pub marks: MarkBits,
    /// The LANs whose queries over TCP are for the forwarder, as long as it listens; as `lan` has them.
    pub forward_queries: Vec<InterfaceName>,
    /// Whether the kernel has IPv6: [`facts::ipv6_available`].
    pub ipv6: bool,
    /// Whether the kernel keeps gateways resolved: [`gateway::can_be_kept`].
    pub keep_gateways: bool,
}

/// One breakout, as far as the system needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSpec {
    /// Its number in marks, tables and rules.
    pub id: PathId,
    /// What the operator calls it.
    pub name: String,
    /// The device its packets leave by.
    pub interface: InterfaceName,
    /// Whether the device exists now: settings of a device come and go with it.
    pub exists: bool,
    /// The device's MTU in bytes; 0 while it does not exist.
    pub mtu: u32,
    /// How IPv4 leaves; `None` while that is not known or the link has no IPv4.
    pub next_hop4: Option<NextHop<Ipv4Addr>>,
    /// How IPv6 leaves; `None` while that is not known or the link has no IPv6.
    pub next_hop6: Option<NextHop<Ipv6Addr>>,
    /// The router's own addresses on the link; answers from them must leave by it. Link-local ones
    /// are passed over.
    pub addresses: Vec<IpAddr>,
    /// IPv4 sources that may leave untranslated: public LANs this provider routes.
    pub valid4: Vec<Ipv4Net>,
    /// IPv6 sources that may leave untranslated: prefixes this provider delegated.
    pub valid6: Vec<Ipv6Net>,
}

impl PathSpec {
    /// Whether a family's packets have a source that they may leave with: an address of the link to be
    /// translated to, or their own.
    pub fn has_source(&self, family: Family) -> bool {
        let valid = match family {
            Family::V4 => !self.valid4.is_empty(),
            Family::V6 => !self.valid6.is_empty(),
        };
        let own = |it: &IpAddr| Family::of(*it) == family && !is_link_local(*it);
        valid || self.addresses.iter().any(own)
    }
}

/// Where a path's default route points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop<A> {
    /// A gateway inside a connected prefix, or a link-local one.
    Via(A),
    /// A gateway outside every connected prefix, reached on the link nevertheless.
    ViaOnLink(A),
    /// A point-to-point device (PPP, tunnel): no gateway.
    Device,
}

impl<A> NextHop<A> {
    /// The same next hop with its address turned into another type.
    pub fn map<B>(self, f: impl FnOnce(A) -> B) -> NextHop<B> {
        match self {
            Self::Via(a) => NextHop::Via(f(a)),
            Self::ViaOnLink(a) => NextHop::ViaOnLink(f(a)),
            Self::Device => NextHop::Device,
        }
    }
}

/// Who looks after a part of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    /// steer applies and repairs it.
    #[default]
    Steer,
    /// The box's own configuration has it; steer leaves it out.
    External,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// IPv4, then IPv6.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Its place in [`Family::BOTH`], and in the maps of the fast path.
    pub const fn index(self) -> usize {
        match self {
            Self::V4 => 0,
            Self::V6 => 1,
        }
    }

    /// The one that this is not.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Routes at least this much longer than nothing win over a breakout: `suppress_prefixlength`
    /// lets longer ones only. A "default" is often written as 0.0.0.0/1 + 128.0.0.0/1, or as
    /// 2000::/3, and must not win.
    const fn suppress(self) -> u32 {
        match self {
            Self::V4 => 1,
            Self::V6 => 3,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        })
    }
}

/// One thing steer has put, or would put, into the box. [`fmt::Display`] shows it as the command it
/// equals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// One value below `/proc/sys`, with an undo record.
    Sysctl(Sysctl),
    /// The nftables table that grants, translates and guards.
    NftTable(NftTable),
    /// A path's default route in its own table.
    Route(Route),
    /// A policy rule.
    Rule(Rule),
    /// A gateway whose Ethernet address is kept known.
    Gateway(Gateway),
}

/// Whether an object is in the box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing of it.
    Absent,
    /// Exactly as wanted.
    Present,
    /// There, but changed; the text says what.
    Different(String),
}

/// What applying or removing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it was so already.
    None,
    /// It was changed.
    Made,
}

impl Object {
    /// Looks for the object; changes nothing. Fails if the kernel or `nft` cannot be asked.
    pub async fn present(&self, kernel: &mut Kernel) -> Result<Presence, SystemError> {
        match self {
            Self::Sysctl(it) => it.present(),
            Self::NftTable(it) => it.present(kernel).await,
            Self::Route(it) => it.present(kernel).await,
            Self::Rule(it) => it.present(kernel).await,
            Self::Gateway(it) => it.present(kernel).await,
        }
    }

    /// Makes the object be as wanted, if it is not. May be repeated.
    pub async fn apply(&self, kernel: &mut Kernel) -> Result<Change, SystemError> {
        match self {
            Self::Sysctl(it) => it.apply(kernel),
            Self::NftTable(it) => it.apply(kernel).await,
            Self::Route(it) => it.apply(kernel).await,
            Self::Rule(it) => it.apply(kernel).await,
            Self::Gateway(it) => it.apply(kernel).await,
        }
    }

    /// Takes the object away, if it is there; a sysctl gets its previous value back if it still has
    /// ours. May be repeated.
    pub async fn remove(&self, kernel: &mut Kernel) -> Result<Change, SystemError> {
        match self {
            Self::Sysctl(it) => it.remove(kernel),
            Self::NftTable(_) => NftTable::remove().await,
            Self::Route(it) => it.remove(kernel).await,
            Self::Rule(it) => it.remove(kernel).await,
            Self::Gateway(it) => it.remove(kernel).await,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(it) => it.fmt(f),
            Self::NftTable(it) => it.fmt(f),
            Self::Route(it) => it.fmt(f),
            Self::Rule(it) => it.fmt(f),
            Self::Gateway(it) => it.fmt(f),
        }
    }
}

/// Everything the box needs, in the order in which it is applied.
///
/// With external routes, rules, routes and the sysctls that go with them (reverse path, link state)
/// are the box's own. With external translation only the `nat` chain is left out: the guard stays,
/// and what the box translates to must be an address of the breakout or listed as a valid source.
pub fn objects(wanted: &Wanted) -> Vec<Object> {
    let mut list = Vec::new();
    let paths = sorted_paths(wanted);
    if wanted.routes == Owner::Steer {
        let existing = paths.iter().filter(|path| path.exists);
        list.extend(existing.flat_map(|path| sysctls(path, wanted.ipv6)));
    }
    list.push(Object::NftTable(NftTable::new(wanted)));
    if wanted.routes == Owner::Steer {
        list.extend(paths.iter().flat_map(|path| routes(path, wanted.ipv6)));
        list.extend(gateways(wanted));
        // Rules last: until they are there, a granted packet takes the way it always took.
        list.extend(rules(&paths, wanted).into_iter().map(Object::Rule));
    }
    if !wanted.forward_queries.is_empty() {
        list.extend(deliver_here(wanted));
    }
    list
}

/// What brings packets to this router's own sockets whatever their destination: a route that delivers
/// all, and the rule for those that nftables has marked.
fn deliver_here(wanted: &Wanted) -> Vec<Object> {
    let families: &[Family] = if wanted.ipv6 {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    let (here, all) = (Mark::here(wanted.marks), Mark::mask(wanted.marks));
    let each = families.iter().flat_map(|&family| {
        let rule = |priority, selector, table| {
            Object::Rule(Rule {
                family,
                priority,
                selector,
                table,
                suppress: None,
            })
        };
        let back = Selector::OwnMark {
            mark: here,
            mask: all,
        };
        let marked = Selector::Mark {
            mark: here,
            mask: all,
        };
        [
            Object::Route(Route {
                family,
                table: TableId::HERE,
                interface: InterfaceName::loopback(),
                next_hop: None,
            }),
            rule(RulePriority::NOT_HERE, back, TableId::MAIN),
            rule(RulePriority::HERE, marked, TableId::HERE),
        ]
    });
    each.collect()
}

/// What packets need to leave by a breakout: routes, and the rules for grants, for the router's
/// addresses and for its devices.
pub fn routing(wanted: &Wanted) -> Vec<Object> {
    let paths = sorted_paths(wanted);
    let routes = paths.iter().flat_map(|path| routes(path, wanted.ipv6));
    let rules = rules(&paths, wanted).into_iter().map(Object::Rule);
    routes.chain(rules).collect()
}

/// What the router's own packets need, and nothing for those of clients.
pub fn own_routing(wanted: &Wanted) -> Vec<Object> {
    let is_own = |object: &Object| match object {
        Object::Rule(rule) => !matches!(rule.selector, Selector::Mark { .. }),
        _ => true,
    };
    routing(wanted).into_iter().filter(is_own).collect()
}

fn sorted_paths(wanted: &Wanted) -> Vec<&PathSpec> {
    let mut paths: Vec<_> = wanted.paths.iter().collect();
    paths.sort_by_key(|path| path.id);
    paths
}

fn sysctls(path: &PathSpec, ipv6: bool) -> Vec<Object> {
    let v4 = [
        // Loose, and asked with the restored mark: answers arrive although `main` points to the
        // backbone, or has no default route at all.
        ("rp_filter", 2),
        ("src_valid_mark", 1),
        // Without it a pulled cable leaves the default route in place, as a black hole.
        ("ignore_routes_with_linkdown", 1),
    ];
    let v6 = [
        ("ignore_routes_with_linkdown", 1),
        // The kernel removes static IPv6 addresses with the link otherwise.
        ("keep_addr_on_down", 1),
        // Masquerade would pick a temporary address and end every flow when it expires.
        ("use_tempaddr", 0),
    ];
    let of = |family, values: [(&str, u32); 3]| {
        values.map(|(key, value)| {
            Object::Sysctl(Sysctl::of_interface(family, &path.interface, key, value))
        })
    };
    let mut list = Vec::from(of(Family::V4, v4));
    if ipv6 {
        list.extend(of(Family::V6, v6));
    }
    list
}

fn routes(path: &PathSpec, ipv6: bool) -> Vec<Object> {
    let v4 = path
        .next_hop4
        .map(|hop| (Family::V4, hop.map(IpAddr::from)));
    let v6 = path
        .next_hop6
        .filter(|_| ipv6)
        .map(|hop| (Family::V6, hop.map(IpAddr::from)));
    [v4, v6]
        .into_iter()
        .flatten()
        .map(|(family, next_hop)| {
            Object::Route(Route {
                family,
                table: path.id.table(),
                interface: path.interface.clone(),
                next_hop: Some(next_hop),
            })
        })
        .collect()
}

/// The gateways, where the kernel can keep them resolved.
pub fn gateways(wanted: &Wanted) -> Vec<Object> {
    let paths = sorted_paths(wanted);
    let paths = paths.iter().filter(|it| it.exists && wanted.keep_gateways);
    let list = paths.flat_map(|path| {
        let hops = [
            path.next_hop4.map(|hop| hop.map(IpAddr::from)),
            path.next_hop6
                .filter(|_| wanted.ipv6)
                .map(|hop| hop.map(IpAddr::from)),
        ];
        hops.into_iter().flatten().filter_map(|hop| match hop {
            NextHop::Via(address) | NextHop::ViaOnLink(address) => Some(Object::Gateway(Gateway {
                interface: path.interface.clone(),
                address,
            })),
            NextHop::Device => None,
        })
    });
    list.collect()
}

/// In the order of their priorities, IPv4 before IPv6.
fn rules(paths: &[&PathSpec], wanted: &Wanted) -> Vec<Rule> {
    let families: &[Family] = if wanted.ipv6 {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    let mut list = Vec::new();
    for &family in families {
        for path in paths {
            let from = path
                .addresses
                .iter()
                .copied()
                .filter(|&address| Family::of(address) == family && !is_link_local(address))
                .map(|address| (RulePriority::FROM, Selector::From(address)));
            let device = (
                RulePriority::DEVICE,
                Selector::Device(path.interface.clone()),
            );
            for (priority, selector) in from.chain([device]) {
                // Its twin, asked first: on-link and link-local destinations of the breakout, and
                // what `main` knows better, are not sent to the gateway.
                list.push(Rule {
                    family,
                    priority: RulePriority::LINK_SPECIFIC,
                    selector: selector.clone(),
                    table: TableId::MAIN,
                    suppress: Some(family.suppress()),
                });
                list.push(Rule {
                    family,
                    priority,
                    selector,
                    table: path.id.table(),
                    suppress: None,
                });
            }
            list.push(Rule {
                family,
                priority: RulePriority::path(path.id),
                selector: Selector::Mark {
                    mark: path.id.grant(wanted.marks),
                    mask: Mark::mask(wanted.marks),
                },
                table: path.id.table(),
                suppress: None,
            });
        }
        list.extend(wanted.route_tables.iter().map(|&table| Rule {
            family,
            priority: RulePriority::SPECIFIC,
            selector: Selector::Mark {
                mark: Mark::grant(wanted.marks),
                mask: Mark::kind(wanted.marks),
            },
            table,
            suppress: Some(family.suppress()),
        }));
    }
    list.sort_by_key(|rule| (rule.family, rule.priority));
    list
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Applies the list in order and stops at the first failure. The caller decides whether to take
/// back what was applied ([`remove_all`]) or to try again.
pub async fn apply_all(kernel: &mut Kernel, objects: &[Object]) -> Result<Change, SystemError> {
    let mut change = Change::None;
    for object in objects {
        if object.apply(kernel).await? == Change::Made {
            change = Change::Made;
        }
    }
    Ok(change)
}

/// Removes the list from its end. Goes on after a failure, so that as little as possible stays, and
/// returns every object that could not be removed.
pub async fn remove_all(kernel: &mut Kernel, objects: &[Object]) -> Vec<(Object, SystemError)> {
    let mut failed = Vec::new();
    for object in objects.iter().rev() {
        if let Err(error) = object.remove(kernel).await {
            failed.push((object.clone(), error));
        }
        cut::point();
    }
    failed
}

/// What one round of [`reconcile`] found and did.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// What was absent or changed, how it was found, and is now as wanted.
    pub repaired: Vec<(Object, Presence)>,
    /// What could not be looked at or repaired; the next round tries again.
    pub failed: Vec<(Object, SystemError)>,
}

/// Applies again what others removed or changed. Never stops half-way: a breakout without its
/// device must not keep the others from being repaired.
pub async fn reconcile(kernel: &mut Kernel, objects: &[Object]) -> Reconciled {
    let mut result = Reconciled::default();
    for object in objects {
        match repair(kernel, object).await {
            Ok(Presence::Present) => {}
            Ok(found) => result.repaired.push((object.clone(), found)),
            Err(error) => result.failed.push((object.clone(), error)),
        }
    }
    result
}

async fn repair(kernel: &mut Kernel, object: &Object) -> Result<Presence, SystemError> {
    let found = object.present(kernel).await?;
    if found != Presence::Present {
        object.apply(kernel).await?;
        cut::point();
    }
    Ok(found)
}

/// Everything in the box that is steer's by its number and is not in `keep`, in the order of
/// applying: what an earlier configuration, a killed controller or a failed start left behind. With
/// an empty `keep`, everything of steer's: what `detach` passes to [`remove_all`].
pub async fn leftovers(kernel: &mut Kernel, keep: &[Object]) -> Result<Vec<Object>, SystemError> {
    let mut found: Vec<Object> = kernel
        .recorded_sysctls()?
        .into_iter()
        .map(Object::Sysctl)
        .collect();
    if NftTable::exists().await? && !keep.iter().any(|o| matches!(o, Object::NftTable(_))) {
        found.push(Object::NftTable(NftTable::bare()));
    }
    let families: &[Family] = if facts::ipv6_available() {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    };
    for &family in families {
        found.extend(
            Route::ours(kernel, family)
                .await?
                .into_iter()
                .map(Object::Route),
        );
    }
    for &family in families {
        let ours = Gateway::ours(kernel, family).await?;
        found.extend(ours.into_iter().map(Object::Gateway));
    }
    for &family in families {
        found.extend(
            Rule::ours(kernel, family)
                .await?
                .into_iter()
                .map(Object::Rule),
        );
    }
    found.retain(|object| match object {
        // Another value for the same key is no leftover: its record is the way back.
        Object::Sysctl(it) => !keep
            .iter()
            .any(|o| matches!(o, Object::Sysctl(kept) if kept.same_key(it))),
        it => !keep.contains(it),
    });
    Ok(found)
}
