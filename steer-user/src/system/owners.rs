//! What others have put into the box that steer must get along with: bits of marks, firewalls on
//! the forward path, translations, users of connection tracking. Read only, and as good as can be
//! read: rules that `nft` cannot show (iptables extensions) are reported as such.

use std::{collections::BTreeSet, fmt, fs};

use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use serde_json::Value;

use super::{
    Family, Kernel, Mark, MarkBits, Rule, RulePriority, SystemError,
    conntrack::Usage,
    facts::ipv6_available,
    nft, rule,
    software::{self, RuleNumbers},
};

/// Other owners' parts that matter to steer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The bits of marks that are steer's.
    marks: MarkBits,
    /// Uses of mark bits that are steer's.
    pub mark_uses: Vec<MarkUse>,
    /// Filters on the way through the box.
    pub forward_chains: Vec<ForwardChain>,
    /// Chains that translate sources on the way out.
    pub translations: BTreeSet<String>,
    /// Tables and chains that use connection tracking.
    pub conntrack_users: BTreeSet<String>,
    /// Flow tables: their packets pass steer by.
    pub flow_tables: BTreeSet<String>,
    /// Policy rules that are asked before steer's, or between them; the kernel's first is left out.
    pub early_rules: BTreeSet<String>,
    /// Routing tables that others' policy rules name, besides the kernel's own.
    pub tables: BTreeSet<u32>,
}

/// Somebody else's use of bits that are steer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkUse {
    /// The chain or rule.
    pub owner: String,
    /// Which mark.
    pub mark: MarkKind,
    /// What is done with it.
    pub access: Access,
    /// The bits, of steer's only.
    pub bits: Mark,
}

/// The mark of a packet or of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// The packet's mark. Overwritten on the way, it costs the route; steer's translation does not
    /// depend on it.
    Packet,
    /// The connection's mark: overwritten, a flow loses its path.
    Connection,
}

/// What is done with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Bits of steer's are set, cleared or replaced.
    Writes,
    /// Bits of steer's are compared: the rule does not see steered packets as it did.
    Compares,
    /// Cannot be read: an iptables extension in a table whose job is marks.
    Unknown,
}

impl fmt::Display for MarkUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            MarkKind::Packet => "packet",
            MarkKind::Connection => "connection",
        };
        let (owner, bits) = (&self.owner, self.bits);
        match self.access {
            Access::Writes => write!(f, "{owner} writes bits {bits} of the {mark} mark"),
            Access::Compares => write!(f, "{owner} compares bits {bits} of the {mark} mark"),
            Access::Unknown => write!(f, "{owner} may use marks; its rules cannot be read"),
        }
    }
}

/// A filter chain on the forward path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardChain {
    /// Family, table and chain, or the iptables program it belongs to.
    pub name: String,
    /// Whether what no rule accepts is dropped.
    pub drops_by_default: bool,
    /// How many rules it has; `None` if they cannot be read.
    pub rules: Option<usize>,
}

impl ForwardChain {
    /// Whether the chain can drop anything, so that packets must not be taken past it.
    pub fn may_drop(&self) -> bool {
        self.drops_by_default || self.rules != Some(0)
    }
}

impl Owners {
    /// Reads nftables' ruleset, iptables' table names and the policy rules. `marks` are the bits of
    /// marks that steer uses.
    pub async fn gather(kernel: &Kernel, marks: MarkBits) -> Result<Self, SystemError> {
        let mut owners = Self {
            marks,
            ..Self::default()
        };
        owners.read_ruleset(&nft::whole_ruleset().await?);
        for (family, names) in [
            (Family::V4, "/proc/thread-self/net/ip_tables_names"),
            (Family::V6, "/proc/thread-self/net/ip6_tables_names"),
        ] {
            owners.read_legacy_tables(family, &fs::read_to_string(names).unwrap_or_default());
        }
        for family in [Family::V4, Family::V6] {
            if family == Family::V4 || ipv6_available() {
                let rules = rule::dump(kernel, family).await?;
                owners.read_rules(family, &rules);
            }
        }
        Ok(owners)
    }

    /// Whether connections that began before now are known, so that no watch period is needed:
    /// somebody uses connection tracking, and it has entries. Not both: a table that was unloaded
    /// leaves entries behind, and a rule that was just loaded has seen nothing yet.
    pub fn conntrack_in_use(&self, usage: Option<Usage>) -> bool {
        !self.conntrack_users.is_empty() && usage.is_some_and(|usage| usage.entries > 0)
    }

    fn read_ruleset(&mut self, objects: &[Value]) {
        for object in objects {
            if let Some(chain) = object.get("chain").filter(|it| !nft::is_ours(it)) {
                self.read_chain(chain);
            }
            if let Some(table) = object.get("flowtable") {
                self.flow_tables
                    .insert(format!("flowtable {}", place(table, "name")));
            }
        }
        for object in objects {
            if let Some(rule) = object.get("rule").filter(|it| !nft::is_ours(it)) {
                self.read_rule(rule, objects);
            }
        }
    }

    fn read_chain(&mut self, chain: &Value) {
        if text(chain, "hook") == "forward" && text(chain, "type") == "filter" {
            self.forward_chains.push(ForwardChain {
                name: place(chain, "name"),
                drops_by_default: text(chain, "policy") == "drop",
                rules: Some(0),
            });
        }
    }

    fn read_rule(&mut self, rule: &Value, objects: &[Value]) {
        let place = place(rule, "chain");
        let forward = self.forward_chains.iter_mut().find(|it| it.name == place);
        if let Some(chain) = forward {
            chain.rules = chain.rules.map(|rules| rules + 1);
        }
        let Some(statements) = rule.get("expr").and_then(Value::as_array) else {
            return;
        };
        let mut uses = RuleUses::default();
        for statement in statements {
            uses.read_statement(statement, text(rule, "table"));
        }
        if uses.conntrack {
            self.conntrack_users.insert(format!("chain {place}"));
        }
        if uses.translates && !is_destination_chain(rule, objects) {
            self.translations.insert(format!("chain {place}"));
        }
        let maker = software::of_chain(text(rule, "table"), text(rule, "chain"));
        for (mark, access, bits) in uses.marks {
            self.note_mark(named(format!("chain {place}"), maker), mark, access, bits);
        }
    }

    fn read_legacy_tables(&mut self, family: Family, names: &str) {
        let program = match family {
            Family::V4 => "iptables-legacy",
            Family::V6 => "ip6tables-legacy",
        };
        for table in names.lines() {
            let name = format!("{program} table {table}");
            match table {
                "filter" => self.forward_chains.push(ForwardChain {
                    name,
                    drops_by_default: false,
                    rules: None,
                }),
                "nat" => {
                    self.conntrack_users.insert(name.clone());
                    self.translations.insert(name);
                }
                "mangle" => {
                    self.note_mark(name, MarkKind::Packet, Access::Unknown, u32::MAX);
                }
                _ => {}
            }
        }
    }

    fn read_rules(&mut self, family: Family, rules: &[RuleMessage]) {
        for message in rules {
            if Rule::from_message(family, message).is_some() {
                continue;
            }
            let (mut priority, mut mark, mut compared) = (0, None, u32::MAX);
            let mut table = u32::from(message.header.table);
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Table(value) => table = *value,
                    RuleAttribute::Priority(value) => priority = *value,
                    RuleAttribute::FwMark(value) => mark = Some(*value),
                    RuleAttribute::FwMask(value) => compared = *value,
                    _ => {}
                }
            }
            // 253 to 255: default, main and local.
            if !matches!(table, 0 | 253..=255) {
                self.tables.insert(table);
            }
            let maker = software::of_rule(RuleNumbers {
                priority,
                mark: mark.map(|mark| (mark, compared)),
                table,
            });
            let owner = named(format!("ip {family} rule pref {priority}"), maker);
            // The kernel's own first rule has priority 0.
            if priority != 0 && priority <= RulePriority::LAST.get() {
                self.early_rules.insert(owner.clone());
            }
            if mark.is_some() {
                self.note_mark(owner, MarkKind::Packet, Access::Compares, compared);
            }
        }
    }

    fn note_mark(&mut self, owner: String, mark: MarkKind, access: Access, bits: u32) {
        let found = MarkUse {
            owner,
            mark,
            access,
            bits: Mark::from_bits(bits & self.marks.mask()),
        };
        if found.bits.bits() != 0 && !self.mark_uses.contains(&found) {
            self.mark_uses.push(found);
        }
    }
}

/// What one rule does, as far as steer cares.
#[derive(Default)]
struct RuleUses {
    marks: Vec<(MarkKind, Access, u32)>,
    conntrack: bool,
    translates: bool,
}

impl RuleUses {
    fn read_statement(&mut self, statement: &Value, table: &str) {
        let Some((kind, value)) = statement.as_object().and_then(|it| it.iter().next()) else {
            return;
        };
        match kind.as_str() {
            "mangle" => {
                let key = value.get("key").unwrap_or(&Value::Null);
                let source = value.get("value").unwrap_or(&Value::Null);
                if let Some(mark) = mark_kind(key) {
                    self.marks
                        .push((mark, Access::Writes, written_bits(key, source)));
                    self.conntrack |= mark == MarkKind::Connection || mentions_ct(source);
                }
            }
            "masquerade" | "snat" => {
                self.conntrack = true;
                self.translates = true;
            }
            "dnat" | "redirect" | "flow" | "synproxy" => self.conntrack = true,
            "xt" => self.read_extension(text(value, "name"), table),
            _ => self.read_expression(value),
        }
    }

    /// An iptables rule in nftables' clothes. Old versions of `nft` do not even tell its name; then
    /// the table's name has to say what such rules are for.
    fn read_extension(&mut self, name: &str, table: &str) {
        let known = !name.is_empty();
        match name {
            "MARK" | "mark" => self.unknown_mark(MarkKind::Packet),
            "CONNMARK" | "connmark" => {
                self.unknown_mark(MarkKind::Connection);
                self.conntrack = true;
            }
            "MASQUERADE" | "SNAT" | "NETMAP" => {
                self.conntrack = true;
                self.translates = true;
            }
            "conntrack" | "state" | "DNAT" | "REDIRECT" | "CT" => self.conntrack = true,
            _ => {}
        }
        if !known && table == "mangle" {
            self.unknown_mark(MarkKind::Packet);
        }
        if !known && table == "nat" {
            self.conntrack = true;
            self.translates = true;
        }
    }

    fn unknown_mark(&mut self, mark: MarkKind) {
        self.marks.push((mark, Access::Unknown, u32::MAX));
    }

    /// Looks for marks that are compared, however deep.
    fn read_expression(&mut self, value: &Value) {
        if let Some(mark) = mark_kind(value) {
            self.marks.push((mark, Access::Compares, u32::MAX));
            self.conntrack |= mark == MarkKind::Connection;
            return;
        }
        match value {
            Value::Object(object) => {
                for (kind, inner) in object {
                    self.conntrack |= kind == "ct";
                    match (kind.as_str(), inner.get(0), inner.get(1)) {
                        ("&", Some(key), Some(compared)) if mark_kind(key).is_some() => {
                            let bits = number(compared).unwrap_or(u32::MAX);
                            self.marks
                                .extend(mark_kind(key).map(|mark| (mark, Access::Compares, bits)));
                        }
                        _ => self.read_expression(inner),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.read_expression(item)),
            _ => {}
        }
    }
}

/// `{"meta": {"key": "mark"}}` or `{"ct": {"key": "mark"}}`
fn mark_kind(value: &Value) -> Option<MarkKind> {
    let is_mark = |kind| value.get(kind).is_some_and(|it| text(it, "key") == "mark");
    if is_mark("meta") {
        Some(MarkKind::Packet)
    } else if is_mark("ct") {
        Some(MarkKind::Connection)
    } else {
        None
    }
}

/// Which bits of `key` change when it is set to `source`: those that are not taken over from
/// itself.
fn written_bits(key: &Value, source: &Value) -> u32 {
    if source == key {
        return 0;
    }
    let Some((operator, operands)) = source.as_object().and_then(|it| it.iter().next()) else {
        return u32::MAX;
    };
    let (Some(left), Some(right)) = (operands.get(0), operands.get(1).and_then(number)) else {
        return u32::MAX;
    };
    match operator.as_str() {
        "&" => written_bits(key, left) | !right,
        "|" | "^" => written_bits(key, left) | right,
        _ => u32::MAX,
    }
}

/// The owner by place and, if known, by the name of the software.
fn named(place: String, maker: Option<&str>) -> String {
    match maker {
        Some(maker) => format!("{place} ({maker})"),
        None => place,
    }
}

fn mentions_ct(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(k, v)| k == "ct" || mentions_ct(v)),
        Value::Array(items) => items.iter().any(mentions_ct),
        _ => false,
    }
}

/// Whether the rule's chain is a base chain that translates destinations, where an extension whose
/// name is unknown cannot be a source translation.
fn is_destination_chain(rule: &Value, objects: &[Value]) -> bool {
    objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .any(|chain| {
            place(chain, "name") == place(rule, "chain")
                && matches!(text(chain, "hook"), "prerouting" | "output")
        })
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|value| value.try_into().ok())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// `inet filter forward`
fn place(value: &Value, name: &str) -> String {
    [
        text(value, "family"),
        text(value, "table"),
        text(value, name),
    ]
    .join(" ")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Object,
            testing::{in_namespace, sh},
            tests::wanted,
        },
        *,
    };

    async fn gather(ruleset: &str) -> Owners {
        sh(&format!("nft -f - <<'END'\n{ruleset}\nEND"));
        let state = tempfile::tempdir().unwrap();
        Owners::gather(&Kernel::open(state.path()).unwrap(), MarkBits::DEFAULT)
            .await
            .unwrap()
    }

    #[test]
    fn uses_of_our_mark_bits_are_found_and_others_are_not() {
        in_namespace(async || {
            for (rule, expected) in [
                (
                    "meta mark set 0x21000000",
                    "chain inet t c writes bits 0x3f000000 of the packet mark",
                ),
                (
                    "meta mark set 0x1",
                    "chain inet t c writes bits 0x3f000000 of the packet mark",
                ),
                (
                    "meta mark set meta mark & 0xff",
                    "chain inet t c writes bits 0x3f000000 of the packet mark",
                ),
                (
                    "meta mark set meta mark ^ 0x11000001",
                    "chain inet t c writes bits 0x11000000 of the packet mark",
                ),
                (
                    "meta mark set meta mark & 0xefffffff | 0x20000000",
                    "chain inet t c writes bits 0x30000000 of the packet mark",
                ),
                (
                    "meta mark set ct mark",
                    "chain inet t c writes bits 0x3f000000 of the packet mark",
                ),
                (
                    "meta mark set numgen random mod 2",
                    "chain inet t c writes bits 0x3f000000 of the packet mark",
                ),
                (
                    "ct mark set meta mark",
                    "chain inet t c writes bits 0x3f000000 of the connection mark",
                ),
                (
                    "ct mark set ct mark | 0x10000000",
                    "chain inet t c writes bits 0x10000000 of the connection mark",
                ),
                (
                    "meta mark 0x1 accept",
                    "chain inet t c compares bits 0x3f000000 of the packet mark",
                ),
                (
                    "meta mark & 0x20000000 != 0 accept",
                    "chain inet t c compares bits 0x20000000 of the packet mark",
                ),
                (
                    "ct mark { 1, 2 } accept",
                    "chain inet t c compares bits 0x3f000000 of the connection mark",
                ),
                (
                    "meta mark vmap { 1 : accept }",
                    "chain inet t c compares bits 0x3f000000 of the packet mark",
                ),
                ("meta mark set meta mark & 0xffff00ff | 0x100", ""),
                ("meta mark set meta mark | 0xc0000001", ""),
                ("ct mark set ct mark & 0xffffff00", ""),
                ("meta mark & 0xff00 == 0x100 accept", ""),
                ("ip dscp set cs1", ""),
            ] {
                let owners = gather(&format!(
                    "flush ruleset; table inet t {{ chain c {{ {rule}; }}; }}"
                ))
                .await;
                let found: Vec<_> = owners.mark_uses.iter().map(ToString::to_string).collect();
                assert_eq!(found.join(", "), expected, "{rule}");
            }
        });
    }

    #[test]
    fn policy_rules_with_our_bits_are_found() {
        in_namespace(async || {
            sh("ip rule add pref 32764 not fwmark 0xca6c lookup 51820
                ip rule add pref 1001 fwmark 0x100/0x3f00 lookup 1
                ip -6 rule add pref 5 fwmark 0x8000000/0x8000000 lookup 1");
            let owners = gather("").await;
            let found: Vec<_> = owners.mark_uses.iter().map(ToString::to_string).collect();
            assert_eq!(
                found,
                [
                    "ip -4 rule pref 32764 (wg-quick) compares bits 0x3f000000 of the packet mark",
                    "ip -6 rule pref 5 compares bits 0x08000000 of the packet mark",
                ]
            );
        });
    }

    /// What well-known software puts into a box by default, and what of it touches steer's bits.
    #[test]
    fn the_defaults_of_known_software_are_told_apart_by_name() {
        let mangle = |table: &str, chain: &str, rule: &str| {
            format!(
                "nft add table {table}; nft add chain {table} {chain}; nft add rule {table} {chain} {rule}"
            )
        };
        let cases = [
            // mwan3 2.11: mmx_mask 0x3F00.
            (
                "ip rule add pref 2001 fwmark 0x100/0x3f00 lookup 1".to_owned(),
                "",
            ),
            ("ip rule add pref 1001 iif lo lookup 1".into(), ""),
            (
                mangle(
                    "ip mangle",
                    "mwan3_hook",
                    "'meta mark set meta mark & 0xffffc0ff | 0x100'",
                ),
                "",
            ),
            (
                mangle("ip mangle", "mwan3_hook", "'ct mark set meta mark'"),
                "chain ip mangle mwan3_hook (mwan3) writes bits 0x3f000000 of the connection mark",
            ),
            // OpenWrt pbr 1.1: fwmask 00ff0000, in the table of fw4.
            (
                "ip rule add pref 29998 fwmark 0x10000/0xff0000 lookup 256".into(),
                "",
            ),
            (
                mangle(
                    "inet fw4",
                    "pbr_mark_0x010000",
                    "'meta mark set meta mark & 0xff00ffff ^ 0x10000'",
                ),
                "",
            ),
            // Docker marks nothing.
            (mangle("ip filter", "DOCKER-USER", "return"), ""),
            // Tailscale: 0x40000 and 0x80000 of 0xff0000.
            (
                "ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main".into(),
                "",
            ),
            ("ip rule add pref 5270 lookup 52".into(), ""),
            (
                mangle(
                    "ip filter",
                    "ts-forward",
                    "'meta mark set meta mark & 0xff00ffff ^ 0x40000'",
                ),
                "",
            ),
            // FRR's pbrd compares the whole mark.
            (
                "ip rule add pref 301 fwmark 0x21000000 lookup 10000".into(),
                "ip -4 rule pref 301 (FRR pbrd) compares bits 0x3f000000 of the packet mark",
            ),
            // wg-quick with AllowedIPs = 0.0.0.0/0 takes the mark of every datagram away.
            (
                "ip rule add pref 32764 not fwmark 0xca6c lookup 51820".into(),
                "ip -4 rule pref 32764 (wg-quick) compares bits 0x3f000000 of the packet mark",
            ),
            (
                mangle(
                    "ip wg-quick-wg0",
                    "premangle",
                    "'meta l4proto udp meta mark set ct mark'",
                ),
                "chain ip wg-quick-wg0 premangle (wg-quick) writes bits 0x3f000000 of the packet mark",
            ),
            // Kubernetes: 0x4000 and 0x8000; Calico: 0xffff0000.
            (
                mangle(
                    "ip nat",
                    "KUBE-MARK-MASQ",
                    "'meta mark set meta mark | 0x4000'",
                ),
                "",
            ),
            (
                mangle(
                    "ip filter",
                    "cali-FORWARD",
                    "'meta mark set meta mark & 0xffff | 0x10000'",
                ),
                "chain ip filter cali-FORWARD (Calico) writes bits 0x3f000000 of the packet mark",
            ),
            (
                "ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004".into(),
                "",
            ),
            (
                "ip rule add pref 100 fwmark 0x8000000/0x8000000 lookup 2023".into(),
                "ip -4 rule pref 100 (dae) compares bits 0x08000000 of the packet mark",
            ),
        ];
        in_namespace(async || {
            for (commands, expected) in cases {
                sh("nft flush ruleset; ip rule flush; ip rule add pref 32766 lookup main");
                sh(&commands);
                let owners = gather("").await;
                let found: Vec<_> = owners.mark_uses.iter().map(ToString::to_string).collect();
                assert_eq!(found.join(", "), expected, "{commands}");
            }
        });
    }

    #[test]
    fn rules_before_ours_and_tables_of_others_are_named() {
        in_namespace(async || {
            sh("ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004
                ip rule add pref 301 iif lo lookup 10000
                ip rule add pref 5270 lookup 52");
            let owners = gather("").await;
            let early: Vec<_> = owners.early_rules.iter().map(String::as_str).collect();
            assert_eq!(
                early,
                [
                    "ip -4 rule pref 301 (FRR pbrd)",
                    "ip -4 rule pref 9 (Cilium)"
                ]
            );
            assert_eq!(owners.tables, BTreeSet::from([52, 2004, 10_000]));
        });
    }

    #[test]
    fn with_other_bits_other_uses_conflict() {
        in_namespace(async || {
            sh("ip rule add pref 2001 fwmark 0x100/0x3f00 lookup 1
                ip rule add pref 600 fwmark 0x20000000/0x30000000 lookup 1");
            let state = tempfile::tempdir().unwrap();
            let kernel = Kernel::open(state.path()).unwrap();
            let owners = Owners::gather(&kernel, MarkBits::at(8)).await.unwrap();
            let found: Vec<_> = owners.mark_uses.iter().map(ToString::to_string).collect();
            assert_eq!(
                found,
                ["ip -4 rule pref 2001 (mwan3) compares bits 0x00003f00 of the packet mark"]
            );
        });
    }

    #[test]
    fn firewalls_translations_and_users_of_conntrack_are_found() {
        in_namespace(async || {
            let owners = gather(
                "table inet fw {
                    chain empty { type filter hook forward priority -10; }
                    chain through { type filter hook forward priority 0; policy drop; ct state new; }
                    chain inp { type filter hook input priority 0; policy drop; }
                 }
                 table ip nat {
                    chain out { type nat hook postrouting priority 100; masquerade; }
                    chain pre { type nat hook prerouting priority -100; tcp dport 80 redirect to 81; }
                 }",
            )
            .await;
            let chains: Vec<_> = owners
                .forward_chains
                .iter()
                .map(|c| (c.name.as_str(), c.drops_by_default, c.rules, c.may_drop()))
                .collect();
            assert_eq!(
                chains,
                [
                    ("inet fw empty", false, Some(0), false),
                    ("inet fw through", true, Some(1), true),
                ]
            );
            let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
            assert_eq!(names(&owners.translations), "chain ip nat out");
            assert_eq!(
                names(&owners.conntrack_users),
                "chain inet fw through, chain ip nat out, chain ip nat pre"
            );
            let some = |entries| Some(Usage { entries, max: 10 });
            assert!(owners.conntrack_in_use(some(1)));
            assert!(!owners.conntrack_in_use(some(0)));
            assert!(!owners.conntrack_in_use(None));
        });
    }

    #[test]
    fn our_own_objects_are_nobody_elses() {
        in_namespace(async || {
            let state = tempfile::tempdir().unwrap();
            let mut kernel = Kernel::open(state.path()).unwrap();
            for object in super::super::objects(&wanted(2)) {
                if matches!(object, Object::NftTable(_) | Object::Rule(_)) {
                    object.apply(&mut kernel).await.unwrap();
                }
            }
            assert_eq!(
                Owners::gather(&kernel, MarkBits::DEFAULT).await.unwrap(),
                Owners::default()
            );
            let some = Some(Usage {
                entries: 7,
                max: 10,
            });
            assert!(!Owners::default().conntrack_in_use(some));
        });
    }

    #[test]
    fn iptables_extensions_are_judged_by_name_or_table() {
        let uses = |table, xt: &str| {
            let mut uses = RuleUses::default();
            let xt: Value = serde_json::from_str(xt).unwrap();
            uses.read_statement(&serde_json::json!({ "xt": xt }), table);
            (uses.marks.len(), uses.conntrack, uses.translates)
        };
        assert_eq!(
            uses("mangle", r#"{"type": "target", "name": "MARK"}"#),
            (1, false, false)
        );
        assert_eq!(
            uses("mangle", r#"{"type": "target", "name": "TCPMSS"}"#),
            (0, false, false)
        );
        assert_eq!(
            uses("filter", r#"{"type": "match", "name": "conntrack"}"#),
            (0, true, false)
        );
        assert_eq!(
            uses("nat", r#"{"type": "target", "name": "MASQUERADE"}"#),
            (0, true, true)
        );
        assert_eq!(uses("mangle", "null"), (1, false, false));
        assert_eq!(uses("nat", "null"), (0, true, true));
        assert_eq!(uses("filter", "null"), (0, false, false));
    }

    #[test]
    fn legacy_tables_count_by_their_name() {
        let mut owners = Owners::default();
        owners.read_legacy_tables(Family::V4, "filter\nnat\nmangle\nraw\n");
        assert!(owners.forward_chains[0].may_drop());
        assert_eq!(owners.translations.len(), 1);
        assert_eq!(owners.conntrack_users.len(), 1);
        assert_eq!(owners.mark_uses[0].access, Access::Unknown);
    }
}
