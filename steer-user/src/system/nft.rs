//! The nftables table `inet steer`: it turns a wish into a grant for a flow's first packet only,
//! remembers grants in the connection's mark, translates, and drops what would leave a breakout
//! with a source that is not valid there. All of it is one table on purpose: whoever flushes it
//! takes the grants away together with the translation, and traffic uses the backbone.
//!
//! The text is rendered from one template and loaded in one transaction that keeps the base chains,
//! the counters and every wanted set element, so that a reload misses no packet.
//!
//! Whether the box still has what was loaded is seen by comparing listings: the same text is loaded
//! into a network namespace of its own, which vanishes at once, and `nft -j` must list both alike.
//! So a changed rule is seen after a restart, too, whatever form this version of `nft` lists it in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use serde_json::{Map, Value};
use tokio::{sync::oneshot, task};

use super::{
    Change, Family, InterfaceName, Kernel, Mark, Owner, PathId, PathSpec, Presence, SystemError,
    Wanted, sorted_paths,
};

const TABLE: &str = "inet steer";
/// Every IPv4 host takes that many bytes (RFC 791). A device that does not exist has 0.
const LEAST_MTU: u32 = 576;

/// Where the forwarder of queries listens: at addresses that nobody reaches from elsewhere.
pub const QUERIES_TO: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 13653),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 13653),
];

/// The table as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftTable {
    text: String,
    paths: usize,
    nat: Owner,
}

impl NftTable {
    pub(super) fn new(wanted: &Wanted) -> Self {
        Self {
            text: render(wanted),
            paths: wanted.paths.len(),
            nat: wanted.nat,
        }
    }

    /// Whether this box's `nft` and kernel accept the table: it is loaded into a network namespace
    /// of its own, which vanishes at once.
    pub async fn try_out(&self, kernel: &mut Kernel) -> Result<(), SystemError> {
        self.reference(kernel).await.map(drop)
    }

    /// A table that is only to be removed.
    pub(super) fn bare() -> Self {
        Self {
            text: format!("table {TABLE} {{\n}}\n"),
            paths: 0,
            nat: Owner::Steer,
        }
    }

    /// What is loaded, as one would write it into a file for `nft -f`.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) async fn exists() -> Result<bool, SystemError> {
        Ok(Listing::of_box().await?.is_some())
    }

    pub(super) async fn present(&self, kernel: &mut Kernel) -> Result<Presence, SystemError> {
        let Some(actual) = Listing::of_box().await? else {
            return Ok(Presence::Absent);
        };
        let differences = self.reference(kernel).await?.differences(&actual);
        Ok(if differences.is_empty() {
            Presence::Present
        } else {
            Presence::Different(differences.join(", "))
        })
    }

    pub(super) async fn apply(&self, kernel: &mut Kernel) -> Result<Change, SystemError> {
        let reference = self.reference(kernel).await?;
        // Somebody may change the table between the listing and the transaction, which then may
        // name a chain that is gone. What they did is in the next listing.
        let mut attempts = 0;
        loop {
            attempts += 1;
            let transaction = match Listing::of_box().await? {
                None => self.text.clone(),
                Some(actual) if reference.differences(&actual).is_empty() => {
                    return Ok(if attempts == 1 {
                        Change::None
                    } else {
                        Change::Made
                    });
                }
                Some(actual) => reference.transaction_from(&actual, &self.text),
            };
            match run(&["-f", "-"], &transaction).await {
                Ok(_) => return Ok(Change::Made),
                Err(_) if attempts < 3 => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn remove() -> Result<Change, SystemError> {
        if !Self::exists().await? {
            return Ok(Change::None);
        }
        // Adding first makes the deletion succeed even if somebody was faster.
        run(
            &["-f", "-"],
            &format!("add table {TABLE}\ndelete table {TABLE}\n"),
        )
        .await?;
        Ok(Change::Made)
    }

    async fn reference(&self, kernel: &mut Kernel) -> Result<Listing, SystemError> {
        if let Some((text, listing)) = &kernel.reference
            && *text == self.text
        {
            return Ok(listing.clone());
        }
        let listing = Listing::of_text(self.text.clone()).await?;
        kernel.reference = Some((self.text.clone(), listing.clone()));
        Ok(listing)
    }
}

impl fmt::Display for NftTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.paths == 1 { "" } else { "s" };
        write!(
            f,
            "nft add table {TABLE} (grants for {} path{s}",
            self.paths
        )?;
        f.write_str(match self.nat {
            Owner::Steer => ", translation, guard)",
            Owner::External => ", guard; translation is external)",
        })
    }
}

/// What the table has counted since it was first loaded; reloads keep it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows granted, by path: the first packet of each, seen leaving by the breakout.
    pub granted: BTreeMap<PathId, Count>,
    /// Wishes refused because the flow began elsewhere: not a first packet. They went on unsteered.
    pub refused: Count,
    /// Flows without an answer yet that followed their wish to another path.
    pub rewish: Count,
    /// Packets dropped because they would have left a breakout with an invalid source.
    pub guard: Count,
    /// Connections that were handed to the forwarder of queries.
    pub queries: Count,
}

/// One counter's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// Reads the table's counters; `None` if there is no table.
pub async fn counters() -> Result<Option<Counters>, SystemError> {
    const ARGUMENTS: [&str; 5] = ["-j", "list", "counters", "table", TABLE];
    let Some(objects) = list(&ARGUMENTS).await? else {
        return Ok(None);
    };
    let mut counters = Counters::default();
    for counter in objects.iter().filter_map(|object| object.get("counter")) {
        let number = |key| counter.get(key).and_then(Value::as_u64).unwrap_or(0);
        let count = Count {
            packets: number("packets"),
            bytes: number("bytes"),
        };
        match name_of(counter) {
            "refused" => counters.refused = count,
            "rewish" => counters.rewish = count,
            "guard" => counters.guard = count,
            "queries" => counters.queries = count,
            name => {
                let id = name.strip_prefix("granted_").and_then(|id| id.parse().ok());
                if let Some(id) = id.and_then(PathId::new) {
                    counters.granted.insert(id, count);
                }
            }
        }
    }
    Ok(Some(counters))
}

/// The version that `nft` says it has.
pub async fn version() -> Result<String, SystemError> {
    Ok(run(&["--version"], "").await?.trim().to_owned())
}

/// The box's whole ruleset as text that `nft -f` reads, other owners' tables included.
pub async fn ruleset_text() -> Result<String, SystemError> {
    run(&["list", "ruleset"], "").await
}

/// Loads text into the ruleset of the calling thread's network namespace. Blocks.
pub fn load(text: &str) -> Result<(), SystemError> {
    run_blocking(&["-f", "-"], text).map(drop)
}

/// Everything `nft -j list ruleset` lists, other owners' tables included.
pub(super) async fn whole_ruleset() -> Result<Vec<Value>, SystemError> {
    Ok(list(&["-j", "list", "ruleset"]).await?.unwrap_or_default())
}

/// Whether a listed chain or rule is in steer's table.
pub(super) fn is_ours(object: &Value) -> bool {
    let text = |key| object.get(key).and_then(Value::as_str);
    text("family") == Some("inet") && text("table") == Some("steer")
}

/// The text of the whole table.
#[expect(
    clippy::too_many_lines,
    reason = "one template, to be read from top to bottom"
)]
fn render(wanted: &Wanted) -> String {
    let paths = sorted_paths(wanted);
    let each = |line: &dyn Fn(&PathSpec) -> String| -> String {
        paths.iter().map(|path| line(path)).collect()
    };
    let marks = wanted.marks;
    let mask = Mark::mask(marks);
    let kind = Mark::kind(marks);
    let id_bits = Mark::id(marks);
    let wish = Mark::wish(marks);
    let grant = Mark::grant(marks);
    let others = mask.others();

    let lan = elements(wanted.lan.iter().map(quoted));
    let brk = elements(paths.iter().map(|p| quoted(&p.interface)));
    let valid_sets = each(&|p| {
        let v4 = elements(ipnet::Ipv4Net::aggregate(&p.valid4).iter());
        let v6 = elements(ipnet::Ipv6Net::aggregate(&p.valid6).iter());
        format!(
            "\tset valid4_{id} {{ type ipv4_addr; flags interval; {v4}}}\n\
             \tset valid6_{id} {{ type ipv6_addr; flags interval; {v6}}}\n",
            id = p.id
        )
    });
    // For answers `rt mtu` looks at the way to the client, and for the way back without a mark: that
    // of the backbone. The kernel never makes a value larger.
    let answers = each(&|p| {
        let line = |family: Family, headers: u32| {
            let size = p.mtu.saturating_sub(headers).min(0xffff);
            format!(
                "\t\tiifname {dev} meta nfproto {family} tcp option maxseg size set {size}\n",
                dev = quoted(&p.interface),
                family = match family {
                    Family::V4 => "ipv4",
                    Family::V6 => "ipv6",
                },
            )
        };
        if p.mtu < LEAST_MTU {
            return String::new();
        }
        line(Family::V4, 40) + &line(Family::V6, 60)
    });
    let granted_counters = each(&|p| format!("\tcounter granted_{} {{ }}\n", p.id));
    let to_pinned = vmap(
        paths
            .iter()
            .map(|p| (p.id.grant(marks), format!("pinned{}", p.id))),
    );
    let to_wish = vmap(
        paths
            .iter()
            .map(|p| (p.id.wish(marks), format!("wish{}", p.id))),
    );
    let (to_pinned, to_wish) = (
        to_pinned.map_or(String::new(), |map| format!("\t\tct mark & {mask} {map}\n")),
        to_wish.map_or(String::new(), |map| {
            format!("\t\tmeta mark & {mask} {map}\n")
        }),
    );
    let pinned = each(&|p| {
        format!(
            "\tchain pinned{id} {{
		# translated, never answered, and the wish now names another path (or none): follow it. The
		# kernel drops this one packet and the entry; the next retransmission is a first packet again
		ct state new ct status & (seen-reply|snat) == snat meta mark & {kind} == {wish} meta mark & {id_bits} != {bits} counter name rewish goto follow
		meta mark set meta mark & {others} | {grant}
	}}\n",
            id = p.id,
            bits = p.id.at_its_place(marks),
            grant = p.id.grant(marks),
        )
    });
    let inbound = each(&|p| {
        format!(
            "\t\tiifname \"{dev}\" ct mark set ct mark & {others} | {grant} meta mark set meta mark & {others} | {grant}\n",
            dev = p.interface,
            grant = p.id.grant(marks),
        )
    });
    let wishes = each(&|p| {
        format!(
            "\tchain wish{id} {{
		ct status & confirmed == 0 ct mark set ct mark & {others} | {wish}
		meta mark set meta mark & {others} | {grant}
	}}\n",
            id = p.id,
            wish = p.id.wish(marks),
            grant = p.id.grant(marks),
        )
    });
    let post = each(&|p| {
        format!(
            "\t\toifname \"{dev}\" ct status & confirmed == 0 ct mark set ct mark & {others} | {grant} counter name granted_{id} return\n",
            dev = p.interface,
            id = p.id,
            grant = p.id.grant(marks),
        )
    });
    let out = each(&|p| {
        format!(
            "\t\tct mark & {mask} == {grant} meta mark set meta mark & {others} | {grant}\n",
            grant = p.id.grant(marks),
        )
    });
    let masquerade = each(&|p| {
        format!(
            "\t\toifname \"{dev}\" ct mark & {mask} == {grant} ip saddr != @valid4_{id} masquerade\n\
             \t\toifname \"{dev}\" ct mark & {mask} == {grant} ip6 saddr != @valid6_{id} masquerade\n",
            dev = p.interface,
            id = p.id,
            grant = p.id.grant(marks),
        )
    });
    let nat = match wanted.nat {
        Owner::Steer => format!(
            "\tchain nat {{
		type nat hook postrouting priority 105; policy accept;
		rt ipsec exists return
{masquerade}	}}\n"
        ),
        Owner::External => String::new(),
    };
    let (queries_counter, queries) = if wanted.forward_queries.is_empty() {
        (String::new(), String::new())
    } else {
        queries(&wanted.forward_queries, others, Mark::here(marks))
    };
    let valid = each(&|p| {
        format!(
            "\t\toifname \"{dev}\" ip saddr @valid4_{id} return\n\
             \t\toifname \"{dev}\" ip6 saddr @valid6_{id} return\n",
            dev = p.interface,
            id = p.id,
        )
    });

    format!(
        "# id {id_bits}, wish {wish}, grant {grant}, mask {mask}. A wish with id 0: matched, but every path is down.
# Packet mark: wish (fast path) -> grant (here). Connection mark: wish = asked, not yet routed; grant = left (or came in) by that breakout.
table {TABLE} {{
	set lan {{ type ifname; {lan}}}
	set brk {{ type ifname; {brk}}}
	# sources that may leave path N untranslated; empty = all are translated
{valid_sets}{granted_counters}	counter refused {{ }}
	counter rewish {{ }}
	counter guard {{ }}
{queries_counter}	chain pre {{
		type filter hook prerouting priority -145; policy accept;
		meta mark & {mask} != 0 iifname != @lan meta mark set meta mark & {others}
		# flows that own a path keep it: both directions, with or without a wish
{to_pinned}		# begun from outside on a breakout: answers leave where the question came in
		ct state new ct status & confirmed == 0 ct mark & {mask} == 0 iifname @brk goto inbound
		meta mark & {mask} == 0 return
		meta mark & {kind} == {wish} goto fresh
		meta mark set meta mark & {others}
	}}
{queries}{pinned}	chain inbound {{
		meta secpath exists return
{inbound}	}}
	chain fresh {{
		ct state != new counter name refused meta mark set meta mark & {others} return
		ct status & confirmed != 0 counter name refused meta mark set meta mark & {others} return
		meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn counter name refused meta mark set meta mark & {others} return
		goto follow
	}}
	chain follow {{
{to_wish}		meta mark set meta mark & {others}
	}}
{wishes}	chain post {{
		# what routing did, not what was asked
		type filter hook postrouting priority 90; policy accept;
		ct mark & {kind} != {wish} return
{post}		ct mark set ct mark & {others}
	}}
	chain out {{
		# the router's own answers and ICMP errors of flows that own a path
		type route hook output priority -145; policy accept;
{out}	}}
	chain mss {{
		type filter hook forward priority -140; policy accept;
		# an answer whose way to the LAN is missing (a rule flushed, a LAN prefix gone) would go back out
		ct direction reply ct mark & {kind} == {grant} iifname @brk oifname @brk counter name guard drop
		ct mark & {kind} != 0 tcp flags & (syn|rst) == syn goto clamp
	}}
	chain clamp {{
		oifname @brk tcp option maxseg size set rt mtu
		iifname @brk tcp option maxseg size set rt mtu
{answers}	}}
{nat}	chain guard {{
		type filter hook postrouting priority 350; policy accept;
		ct mark & {kind} == {grant} goto check
		meta mark & {kind} == {grant} goto check
	}}
	chain check {{
		oifname != @brk return
		rt ipsec exists return
		# the provider addressed the question to it
		ct direction reply return
		fib saddr . oif type local return
{valid}		counter name guard drop
	}}
}}
"
    )
}

/// Hands queries over TCP to the forwarder, from a connection's first packet on. `tproxy` finds its
/// socket, or the rule ends there: when nobody listens, connections go on as if it were not there, and
/// those that began so are not moved.
fn queries(lans: &[InterfaceName], others: Mark, here: Mark) -> (String, String) {
    let lans: Vec<String> = lans.iter().map(quoted).collect();
    let lans = lans.join(", ");
    let to_here = format!("meta mark set meta mark & {others} | {here}");
    let (v4, v6) = (QUERIES_TO[0], QUERIES_TO[1]);
    let chain = format!(
        "\tchain queries {{
		type filter hook prerouting priority -144; policy accept;
		# what servers send the forwarder, which asks them in the name of its clients
		iifname != @lan tcp sport 53 socket transparent 1 socket wildcard 0 {to_here}
		iifname {{ {lans} }} tcp dport 53 socket transparent 1 {to_here}
		iifname {{ {lans} }} meta nfproto ipv4 tcp dport 53 tcp flags & (fin|syn|rst|ack) == syn tproxy ip to {v4} {to_here} counter name queries
		iifname {{ {lans} }} meta nfproto ipv6 tcp dport 53 tcp flags & (fin|syn|rst|ack) == syn tproxy ip6 to {v6} {to_here} counter name queries
	}}\n"
    );
    ("\tcounter queries { }\n".to_owned(), chain)
}

fn quoted(interface: &InterfaceName) -> String {
    format!("\"{interface}\"")
}

/// `elements = { a, b }; `, or nothing: nft has no empty braces.
fn elements(items: impl Iterator<Item = impl fmt::Display>) -> String {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    if items.is_empty() {
        return String::new();
    }
    format!("elements = {{ {} }}; ", items.join(", "))
}

fn vmap(items: impl Iterator<Item = (Mark, String)>) -> Option<String> {
    let items: Vec<_> = items
        .map(|(mark, chain)| format!("{mark} : goto {chain}"))
        .collect();
    (!items.is_empty()).then(|| format!("vmap {{ {} }}", items.join(", ")))
}

/// One table as the kernel has it, without what changes by itself (handles, counts) and without the
/// order in which its parts came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Listing {
    table: Value,
    sets: BTreeMap<String, Set>,
    counters: BTreeSet<String>,
    chains: BTreeMap<String, Chain>,
    /// Kinds of parts that we never make: maps, flow tables, quotas.
    foreign: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Set {
    definition: Value,
    /// As nft writes them in a transaction; for what it cannot, as JSON.
    elements: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Chain {
    definition: Value,
    rules: Vec<Value>,
}

impl Listing {
    const ARGUMENTS: [&str; 4] = ["-j", "list", "table", TABLE];

    /// The table in this network namespace; `None` if there is none.
    async fn of_box() -> Result<Option<Self>, SystemError> {
        Ok(list(&Self::ARGUMENTS).await?.map(Self::from_objects))
    }

    /// What the table would look like if `text` were loaded into an empty box.
    async fn of_text(text: String) -> Result<Self, SystemError> {
        let (sender, receiver) = oneshot::channel();
        // A thread of its own: its network namespace is not the caller's any more, and goes with it.
        thread::spawn(move || sender.send(list_in_new_namespace(&text)));
        let objects = receiver
            .await
            .map_err(|_| SystemError::Namespace(io::Error::other("the thread ended")))??;
        Ok(Self::from_objects(objects))
    }

    fn from_objects(objects: Vec<Value>) -> Self {
        let mut listing = Self::default();
        for object in objects {
            let Value::Object(object) = object else {
                continue;
            };
            for (kind, mut value) in object {
                forget(&mut value, "handle");
                let name = name_of(&value).to_owned();
                match kind.as_str() {
                    "metainfo" => {}
                    "table" => listing.table = value,
                    "set" => {
                        let elements = forget(&mut value, "elem");
                        let elements = elements.as_ref().and_then(Value::as_array);
                        listing.sets.insert(
                            name,
                            Set {
                                elements: elements.into_iter().flatten().map(element).collect(),
                                definition: value,
                            },
                        );
                    }
                    "counter" => {
                        listing.counters.insert(name);
                    }
                    "chain" => listing.chains.entry(name).or_default().definition = value,
                    "rule" => {
                        let chain = value.get("chain").and_then(Value::as_str);
                        let chain = chain.unwrap_or_default().to_owned();
                        let rules = &mut listing.chains.entry(chain).or_default().rules;
                        rules.push(value);
                    }
                    _ => {
                        listing.foreign.insert(format!("{kind} {name}"));
                    }
                }
            }
        }
        listing
    }

    /// What is not in `actual` as it is here, for people to read.
    fn differences(&self, actual: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.table != actual.table {
            found.push("the table's flags are changed".to_owned());
        }
        compare(&self.sets, &actual.sets, "set", &mut found);
        compare(&self.chains, &actual.chains, "chain", &mut found);
        let missing = self.counters.difference(&actual.counters);
        found.extend(missing.map(|name| format!("counter {name} is missing")));
        let extra = actual.counters.difference(&self.counters);
        found.extend(extra.map(|name| format!("counter {name} is not wanted")));
        found.extend(
            actual
                .foreign
                .iter()
                .map(|what| format!("{what} is not wanted")),
        );
        found
    }

    /// The one transaction that leads from `actual` to this listing, whose text is `text`. Base
    /// chains, counters and wanted set elements stay where they are.
    fn transaction_from(&self, actual: &Self, text: &str) -> String {
        if self.needs_rebuild(actual) {
            return format!("delete table {TABLE}\n{text}");
        }
        let mut lines = Vec::new();
        for chain in actual.chains.keys() {
            lines.push(format!("flush chain {TABLE} {chain}"));
        }
        for (name, set) in &self.sets {
            let have = actual.sets.get(name).map(|set| &set.elements);
            for surplus in have.into_iter().flatten() {
                if !set.elements.contains(surplus) {
                    lines.push(format!("delete element {TABLE} {name} {{ {surplus} }}"));
                }
            }
        }
        lines.push(text.to_owned());
        let surplus_chains = actual
            .chains
            .keys()
            .filter(|n| !self.chains.contains_key(*n));
        lines.extend(surplus_chains.map(|name| format!("delete chain {TABLE} {name}")));
        let surplus_sets = actual.sets.keys().filter(|n| !self.sets.contains_key(*n));
        lines.extend(surplus_sets.map(|name| format!("delete set {TABLE} {name}")));
        let surplus_counters = actual.counters.difference(&self.counters);
        lines.extend(surplus_counters.map(|name| format!("delete counter {TABLE} {name}")));
        lines.push(String::new());
        lines.join("\n")
    }

    /// A chain's hook or a set's type cannot be changed in place. Only damage leads here.
    fn needs_rebuild(&self, actual: &Self) -> bool {
        let set_changed = |(name, set): (&String, &Set)| {
            actual.sets.get(name).is_some_and(|have| {
                have.definition != set.definition
                    || have.elements.iter().any(|e| e.starts_with(['{', '[']))
            })
        };
        let chain_changed = |(name, chain): (&String, &Chain)| {
            let have = actual.chains.get(name);
            have.is_some_and(|have| have.definition != chain.definition)
        };
        !actual.foreign.is_empty()
            || self.sets.iter().any(set_changed)
            || self.chains.iter().any(chain_changed)
    }
}

fn compare<T: PartialEq>(
    wanted: &BTreeMap<String, T>,
    actual: &BTreeMap<String, T>,
    kind: &str,
    found: &mut Vec<String>,
) {
    for (name, part) in wanted {
        match actual.get(name) {
            None => found.push(format!("{kind} {name} is missing")),
            Some(other) if other != part => found.push(format!("{kind} {name} is changed")),
            Some(_) => {}
        }
    }
    let extra = actual.keys().filter(|name| !wanted.contains_key(*name));
    found.extend(extra.map(|name| format!("{kind} {name} is not wanted")));
}

fn name_of(value: &Value) -> &str {
    value
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn forget(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut()?.remove(key)
}

/// A set element as one writes it in a command; as JSON if it is of a form we never make.
fn element(value: &Value) -> String {
    let part = |object: &Map<String, Value>, outer: &str| object.get(outer).cloned();
    match value {
        Value::String(text) if text.parse::<IpAddr>().is_ok() => text.clone(),
        Value::String(text) => format!("\"{text}\""),
        Value::Object(object) => {
            if let Some(prefix) = part(object, "prefix")
                && let Some(address) = prefix.get("addr").and_then(Value::as_str)
                && let Some(length) = prefix.get("len").and_then(Value::as_u64)
            {
                return format!("{address}/{length}");
            }
            if let Some(range) = part(object, "range")
                && let Some(first) = range.get(0).and_then(Value::as_str)
                && let Some(last) = range.get(1).and_then(Value::as_str)
            {
                return format!("{first}-{last}");
            }
            value.to_string()
        }
        _ => value.to_string(),
    }
}

/// The objects of an `nft -j list …`; `None` if what is to be listed does not exist.
async fn list(arguments: &[&str]) -> Result<Option<Vec<Value>>, SystemError> {
    match run(arguments, "").await {
        Ok(json) => parse_objects(arguments, &json).map(Some),
        // nft is run in the C locale, so this is what the kernel's ENOENT looks like.
        Err(SystemError::Nft { message, .. }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn parse_objects(arguments: &[&str], json: &str) -> Result<Vec<Value>, SystemError> {
    let wrong = |message: String| SystemError::NftJson {
        command: command_line(arguments),
        message,
    };
    // An empty ruleset may be listed as nothing at all.
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_str::<Value>(json).map_err(|e| wrong(e.to_string()))? {
        Value::Object(mut object) => match object.remove("nftables") {
            Some(Value::Array(objects)) => Ok(objects),
            _ => Err(wrong("there is no list `nftables`".into())),
        },
        _ => Err(wrong("it is not an object".into())),
    }
}

async fn run(arguments: &[&str], input: &str) -> Result<String, SystemError> {
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let input = input.to_owned();
    let nft = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run_blocking(&arguments, &input)
    };
    task::spawn_blocking(nft)
        .await
        .map_err(|ended| SystemError::NftMissing(ended.into()))?
}

fn list_in_new_namespace(text: &str) -> Result<Vec<Value>, SystemError> {
    let json = match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            run_blocking(&["-f", "-"], text)?;
            run_blocking(&Listing::ARGUMENTS, "")?
        }
        Err(Errno::EPERM) => list_in_new_user_namespace(text)?,
        Err(error) => return Err(SystemError::Namespace(error.into())),
    };
    parse_objects(&Listing::ARGUMENTS, &json)
}

/// Without CAP_SYS_ADMIN a network namespace can only be made within a user namespace. A process
/// with threads cannot make one, so `unshare` (util-linux) does.
fn list_in_new_user_namespace(text: &str) -> Result<String, SystemError> {
    let mut unshare = Command::new("unshare");
    let script = format!("nft -f - && exec nft {}", Listing::ARGUMENTS.join(" "));
    unshare.args(["--user", "--keep-caps", "--net", "--", "sh", "-c", &script]);
    match feed(unshare, text) {
        Ok(Ok(json)) => Ok(json),
        Ok(Err(message)) => Err(SystemError::Namespace(io::Error::other(message))),
        Err(error) => Err(SystemError::Namespace(error)),
    }
}

fn run_blocking(arguments: &[&str], input: &str) -> Result<String, SystemError> {
    let mut nft = Command::new("nft");
    nft.args(arguments);
    feed(nft, input)
        .map_err(SystemError::NftMissing)?
        .map_err(|message| SystemError::Nft {
            command: command_line(arguments),
            message,
        })
}

/// Runs a program to its end: what it writes, or what it complains about.
fn feed(mut program: Command, input: &str) -> io::Result<Result<String, String>> {
    let mut child = program
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failure to write is the program's early end; it says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}

fn command_line(arguments: &[&str]) -> String {
    format!("nft {}", arguments.join(" "))
}
