//! A first configuration from what is on the box. [`Survey::take`] reads, [`Survey::proposal`] is
//! pure: what is sure becomes a section, what is not a comment with a question.
//!
//! - The **backbone** has the best default route of the main table; a tunnel goes before all others,
//!   because nobody puts a default route on a tunnel by accident.
//! - **Breakouts** are the other links with a default route, in any table, and links whose address was
//!   leased.
//! - **LANs** are links with private addresses of their own that lead nowhere else.

use std::fmt;

use crate::{
    controller::preflight::is_private,
    system::{
        Family, InterfaceName, Kernel, MarkBits, PathId, SystemError, TableId,
        facts::{self, DefaultOnLink, Facts, Link},
        owners::Owners,
    },
};

/// Routes of these origins follow the provider by themselves (linux/rtnetlink.h).
const RTPROT_RA: u8 = 9;
const RTPROT_DHCP: u8 = 16;

/// What was read of the box.
#[derive(Clone, Debug)]
pub struct Survey {
    facts: Facts,
    defaults: Vec<DefaultOnLink>,
    /// Tables that others' rules name.
    tables: Vec<u32>,
    /// Whether packets on bridges pass the firewall before TC sees them.
    bridge_netfilter: bool,
}

/// A configuration to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The file.
    pub text: String,
    /// What was not found and must be written by hand; the file can be used when it is empty.
    pub missing: Vec<&'static str>,
}

/// What a link is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    Backbone,
    Breakout,
    Lan,
    /// A LAN whose packets are steered at the ports of its bridge.
    BridgedLan,
    /// May be a breakout, may be a LAN; why it is not sure.
    Unsure(Section, &'static str),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Lan,
    Breakout,
}

impl Survey {
    /// Reads the box; changes nothing. Fails if the kernel does not answer.
    pub async fn take() -> Result<Self, SystemError> {
        // Nothing is applied, so no undo record is written.
        let kernel = Kernel::open(std::path::Path::new("/nonexistent"))?;
        let facts = Facts::gather(&kernel).await?;
        Ok(Self {
            defaults: facts::all_default_routes(&kernel, &facts).await?,
            // Without `nft` the tables are not known; `steer doctor` will say that it is missing.
            tables: Owners::gather(&kernel, MarkBits::DEFAULT)
                .await
                .map_or_else(|_| Vec::new(), |it| it.tables.into_iter().collect()),
            bridge_netfilter: facts::bridge_netfilter(),
            facts,
        })
    }

    /// The configuration that fits.
    pub fn proposal(&self) -> Proposal {
        let backbone = self.backbone();
        let mut links: Vec<(&Link, Role)> = self
            .facts
            .links
            .iter()
            .filter(|link| InterfaceName::new(&link.name).is_ok())
            .map(|link| (link, self.role(link, backbone)))
            .collect();
        // Breakouts in the order of their metrics, which becomes their priority.
        links.sort_by_key(|(link, _)| self.metric(link));
        let of = |role: &Role| -> Vec<&Link> {
            let these = links.iter().filter(|(_, it)| it == role);
            these.map(|(link, _)| *link).collect()
        };
        let lans = of(&Role::Lan);
        let mut breakouts = of(&Role::Breakout);
        let too_many = breakouts.split_off(breakouts.len().min(PathId::MAX.into()));
        let unsure = |wanted: Section| {
            links.iter().filter_map(move |(link, role)| match role {
                Role::Unsure(section, why) if *section == wanted => Some((*link, *why)),
                _ => None,
            })
        };

        let mut page = Page::default();
        page.comment(HEAD);
        page.line("mode = \"mark\"");
        page.gap();
        page.comment("Where clients are.");
        for lan in &lans {
            self.lan(&mut page, lan);
        }
        for (lan, why) in unsure(Section::Lan) {
            page.comment(&format!(
                "Question: is {} a LAN?\n{why}",
                self.describe(lan)
            ));
            page.commented_out("[[lan]]");
            page.commented_out(&format!("interface = \"{}\"", lan.name));
            page.gap();
        }
        self.backbone_section(&mut page, backbone);
        page.comment(
            "The office's own Internet links. The position in this file is the path's id.",
        );
        for (place, breakout) in breakouts.iter().enumerate() {
            let name = name_of(breakout, &breakouts[..place]);
            self.breakout(&mut page, breakout, &name, place + 1, &lans);
        }
        let too_many = too_many
            .iter()
            .map(|link| (*link, "There are 15 before it."));
        for (breakout, why) in unsure(Section::Breakout).chain(too_many) {
            page.comment(&format!(
                "Question: is {} an Internet link of the office?\n{why}",
                self.describe(breakout)
            ));
            page.commented_out("[[breakout]]");
            let name = name_of(breakout, &breakouts);
            page.commented_out(&format!("name = \"{name}\""));
            page.commented_out(&format!("interface = \"{}\"", breakout.name));
            page.commented_out("gateway = \"ADDRESS\"");
            page.gap();
        }
        if !self.tables.is_empty() {
            let tables: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
            page.comment(
                "Question: do these tables of other software hold routes that must win over a breakout?",
            );
            page.commented_out("[mark]");
            page.commented_out(&format!("route_tables = [\"main\", {}]", tables.join(", ")));
        }
        let mut missing = Vec::new();
        if lans.is_empty() {
            missing.push("no LAN is certain: no interface has a private address of its own without leading further");
        }
        if breakouts.is_empty() {
            missing.push("no breakout is certain: no interface besides the backbone has a default route or a leased address");
        }
        Proposal {
            text: page.text,
            missing,
        }
    }

    /// The link with the best default route of the main table; a tunnel before all others.
    fn backbone(&self) -> Option<&Link> {
        let main = self
            .defaults
            .iter()
            .filter(|it| it.route.table == TableId::MAIN);
        let best = main.min_by_key(|it| {
            let tunnel = self.facts.link(&it.interface).is_some_and(is_tunnel);
            (!tunnel, it.family != Family::V4, it.route.metric)
        })?;
        self.facts.link(&best.interface)
    }

    fn role(&self, link: &Link, backbone: Option<&Link>) -> Role {
        let ports_role = || {
            // A bridge whose packets meet the firewall first is steered at its ports.
            let bridge = link.master.and_then(|index| self.facts.link_at(index))?;
            (self.bridge_netfilter && is_bridge(bridge))
                .then(|| self.role(bridge, backbone))
                .filter(|role| *role == Role::BridgedLan)
                .map(|_| Role::Lan)
        };
        if link.loopback || !link.up {
            return Role::None;
        }
        if backbone.is_some_and(|it| it.index == link.index) {
            return Role::Backbone;
        }
        if link.master.is_some_and(|index| {
            self.facts
                .link_at(index)
                .is_some_and(|it| it.kind.as_deref() != Some("vrf"))
        }) {
            return ports_role().unwrap_or(Role::None);
        }
        let prefixes = self.facts.connected(link.index);
        let leased = self
            .facts
            .addresses_of(link.index)
            .any(|it| it.leased && it.address.is_ipv4());
        if self.defaults.iter().any(|it| it.interface == link.name) {
            return if is_tunnel(link) {
                Role::Unsure(
                    Section::Breakout,
                    "It is a tunnel with a default route: through it the Internet is not local.",
                )
            } else {
                Role::Breakout
            };
        }
        if is_tunnel(link) {
            return Role::None;
        }
        if leased {
            return Role::Breakout;
        }
        if prefixes.is_empty() {
            return if link.point_to_point {
                Role::Unsure(Section::Breakout, "It has no address now.")
            } else {
                Role::None
            };
        }
        let private = prefixes.iter().any(is_private);
        if !private || link.point_to_point {
            return Role::Unsure(
                Section::Breakout,
                "It has an address, but no route says where its gateway is.",
            );
        }
        if is_of_containers(link) {
            return Role::Unsure(
                Section::Lan,
                "It looks like a bridge of containers or virtual machines.",
            );
        }
        if is_bridge(link) && self.bridge_netfilter {
            Role::BridgedLan
        } else {
            Role::Lan
        }
    }

    /// The lowest metric of the link's default routes, those of the main table first.
    fn metric(&self, link: &Link) -> (bool, u32) {
        let routes = self.defaults.iter().filter(|it| it.interface == link.name);
        routes
            .map(|it| (it.route.table != TableId::MAIN, it.route.metric))
            .min()
            .unwrap_or((true, u32::MAX))
    }

    fn backbone_section(&self, page: &mut Page, backbone: Option<&Link>) {
        if let Some(link) = backbone {
            page.comment(&format!(
                "The way everything else takes: {}.",
                self.describe(link)
            ));
            page.line("[backbone]");
            page.line(format!("interface = \"{}\"", link.name));
        } else {
            page.comment(
                "Question: which interface leads to the headquarters? No default route was found.",
            );
            page.commented_out("[backbone]");
            page.commented_out("interface = \"INTERFACE\"");
        }
        page.gap();
    }

    fn lan(&self, page: &mut Page, link: &Link) {
        page.comment(&format!("{}.", self.describe(link)));
        page.line("[[lan]]");
        page.line(format!("interface = \"{}\"", link.name));
        page.comment("To begin with a few clients, name them: sources = [\"10.1.0.10/32\"]");
        page.gap();
    }

    fn breakout(&self, page: &mut Page, link: &Link, name: &str, place: usize, lans: &[&Link]) {
        page.comment(&format!("{}.", self.describe(link)));
        page.line("[[breakout]]");
        page.line(format!("name = \"{name}\""));
        page.line(format!("interface = \"{}\"", link.name));
        self.gateway(page, link, Family::V4, "gateway");
        self.gateway(page, link, Family::V6, "gateway6");
        let public: Vec<String> = lans
            .iter()
            .flat_map(|lan| self.facts.connected(lan.index))
            .filter(|net| !is_private(net))
            .map(|net| format!("\"{net}\""))
            .collect();
        if !public.is_empty() {
            page.comment(
                "Question: does this provider route these prefixes to you? Then they need no translation.",
            );
            page.commented_out(&format!("valid_sources = [{}]", public.join(", ")));
        }
        page.comment("Lower is taken first.");
        page.line(format!("priority = {place}"));
        page.gap();
    }

    fn gateway(&self, page: &mut Page, link: &Link, family: Family, key: &str) {
        let routes = self
            .defaults
            .iter()
            .filter(|it| it.interface == link.name && it.family == family);
        let route = routes.map(|it| it.route).find(|it| it.gateway.is_some());
        match route {
            Some(route) => {
                let gateway = route.gateway.map_or_else(String::new, |it| it.to_string());
                if matches!(route.protocol, RTPROT_DHCP | RTPROT_RA) {
                    page.comment(&format!(
                        "The provider says {gateway} now; without the key steer follows it."
                    ));
                    page.commented_out(&format!("{key} = \"{gateway}\""));
                } else {
                    page.line(format!("{key} = \"{gateway}\""));
                }
            }
            None if link.point_to_point || family == Family::V6 => {}
            None => {
                page.comment("Question: which router of the provider is the gateway?");
                page.commented_out(&format!("{key} = \"ADDRESS\""));
            }
        }
    }

    /// `eth0 (vlan, 192.0.2.0/28)`
    fn describe(&self, link: &Link) -> String {
        let mut parts: Vec<String> = link.kind.iter().cloned().collect();
        let prefixes = self.facts.connected(link.index);
        parts.extend(prefixes.iter().map(ToString::to_string));
        if parts.is_empty() {
            return link.name.clone();
        }
        format!("{} ({})", link.name, parts.join(", "))
    }
}

const HEAD: &str = "steer: local Internet breakout for Microsoft 365. Written by `steer init` from what was found on
this box. Lines that are commented out after a question need an answer.
Next: steer check, then steer doctor; they change nothing. `steer check --sample` names every key.
";

/// The text as it grows.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, line: impl fmt::Display) {
        self.text += &line.to_string();
        self.text.push('\n');
    }

    fn comment(&mut self, text: &str) {
        for line in text.lines() {
            self.line(format!("# {line}").trim_end());
        }
    }

    /// Without a blank, so that it is told from words.
    fn commented_out(&mut self, line: &str) {
        self.line(format!("#{line}"));
    }

    fn gap(&mut self) {
        self.text.push('\n');
    }
}

/// A name for counters and messages: the interface's, with its number where another has it.
fn name_of(link: &Link, others: &[&Link]) -> String {
    let name = plain(&link.name);
    if others.iter().any(|other| plain(&other.name) == name) {
        format!("{name}-{}", link.index)
    } else {
        name
    }
}

/// Names hold letters, digits, `-` and `_`.
fn plain(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    name.chars()
        .map(|c| if fits(c) { c } else { '-' })
        .collect()
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

/// Devices that carry packets inside others'. PPP is none: it is how many providers deliver.
fn is_tunnel(link: &Link) -> bool {
    const KINDS: [&str; 14] = [
        "wireguard",
        "gre",
        "gretap",
        "ip6gre",
        "ip6gretap",
        "ipip",
        "ip6tnl",
        "sit",
        "vti",
        "vti6",
        "xfrm",
        "vxlan",
        "geneve",
        "tun",
    ];
    link.kind
        .as_deref()
        .is_some_and(|kind| KINDS.contains(&kind))
}

/// Bridges that Docker, libvirt, LXC and Kubernetes make.
fn is_of_containers(link: &Link) -> bool {
    const NAMES: [&str; 8] = [
        "docker", "br-", "virbr", "lxcbr", "lxdbr", "incusbr", "cni", "podman",
    ];
    NAMES.iter().any(|name| link.name.starts_with(name)) && is_bridge(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        system::testing::{in_namespace, link, sh},
    };

    async fn proposal() -> Proposal {
        Survey::take().await.unwrap().proposal()
    }

    /// What the file says: LANs, backbone, breakouts with their gateways.
    fn read(proposal: &Proposal) -> (Vec<String>, Option<String>, Vec<String>) {
        let config = Config::parse("proposal", &proposal.text)
            .unwrap_or_else(|error| panic!("{error}\n{}", proposal.text));
        let lans = config.lans.iter().map(|it| it.interface.to_string());
        let breakouts = config.breakouts.iter().map(|it| {
            let gateway = it.gateway.map_or("-".into(), |it| it.to_string());
            format!("{} {} {gateway}", it.name, it.interface)
        });
        (
            lans.collect(),
            config.backbone.as_ref().map(ToString::to_string),
            breakouts.collect(),
        )
    }

    #[test]
    fn an_office_gets_a_configuration_that_names_its_interfaces() {
        in_namespace(async || {
            for name in ["lan0", "lan1", "bb0", "brk0", "brk1", "spare0"] {
                link(name);
            }
            sh(
                "ip addr add 10.1.0.1/24 dev lan0; ip addr add 2001:db8:1::1/64 dev lan0 nodad
                ip addr add 192.168.5.1/24 dev lan1
                ip addr add 10.9.0.2/30 dev bb0; ip addr add 203.0.113.2/28 dev brk0
                ip addr add 192.168.1.7/24 dev brk1 valid_lft 3600 preferred_lft 3600
                ip addr add 198.51.100.2/28 dev spare0
                ip route add default via 10.9.0.1 dev bb0
                ip route add default via 203.0.113.1 dev brk0 metric 500
                ip route add default via 192.168.1.1 dev brk1 metric 200 proto dhcp
                ip rule add pref 5270 lookup 52",
            );
            let proposal = proposal().await;
            assert_eq!(proposal.missing, [""; 0]);
            let expected = (
                vec!["lan0".to_owned(), "lan1".into()],
                Some("bb0".to_owned()),
                // The better metric first; what DHCP said is not written down.
                vec!["brk1 brk1 -".to_owned(), "brk0 brk0 203.0.113.1".into()],
            );
            assert_eq!(read(&proposal), expected);
            for part in [
                "#gateway = \"192.168.1.1\"",
                "Question: is spare0 (veth, 198.51.100.0/28) an Internet link",
                "#valid_sources = [\"2001:db8:1::/64\"]",
                "#route_tables = [\"main\", 52]",
            ] {
                assert!(proposal.text.contains(part), "{part}:\n{}", proposal.text);
            }
            assert!(!proposal.text.contains("lan0-p"), "{}", proposal.text);
        });
    }

    #[test]
    fn bridges_tunnels_and_containers_are_told_apart() {
        in_namespace(async || {
            for name in ["port0", "eth0", "brk0"] {
                link(name);
            }
            let bridge_netfilter = |on: u8| {
                sh(&format!(
                    "for it in iptables ip6tables; do
                         echo {on} > /proc/sys/net/bridge/bridge-nf-call-$it
                     done"
                ));
            };
            sh(
                "ip link add br0 type bridge; ip link set br0 up; ip link set port0 master br0
                ip link add docker0 type bridge; ip link set docker0 up
                ip addr add 172.17.0.1/16 dev docker0; ip addr add 10.1.0.1/24 dev br0
                ip link add vx0 type vxlan id 7 remote 192.0.2.9 dstport 4789; ip link set vx0 up
                ip addr add 10.8.0.2/30 dev vx0; ip addr add 192.0.2.2/28 dev eth0
                ip route add default via 10.8.0.1 dev vx0 metric 900
                ip route add default via 192.0.2.1 dev eth0 metric 100
                ip addr add 100.64.0.9/24 dev brk0 valid_lft 3600 preferred_lft 3600",
            );
            bridge_netfilter(0);
            let first = proposal().await;
            let (lans, backbone, breakouts) = read(&first);
            assert_eq!(lans, ["br0"]);
            assert_eq!(backbone.as_deref(), Some("vx0"), "a tunnel goes first");
            assert_eq!(breakouts, ["eth0 eth0 192.0.2.1", "brk0 brk0 -"]);
            assert!(
                first.text.contains("Question: is docker0"),
                "{}",
                first.text
            );

            bridge_netfilter(1);
            assert_eq!(
                read(&proposal().await).0,
                ["port0"],
                "see doctor's bridge-netfilter"
            );
        });
    }

    #[test]
    fn what_is_missing_is_said_and_what_is_there_is_written() {
        in_namespace(async || {
            let nothing = proposal().await;
            assert_eq!(nothing.missing.len(), 2);
            assert!(Config::parse("nothing", &nothing.text).is_err());
            link("lan0");
            sh("ip addr add 10.1.0.1/24 dev lan0");
            let half = proposal().await;
            assert_eq!(half.missing.len(), 1);
            assert!(
                half.missing[0].contains("no breakout"),
                "{:?}",
                half.missing
            );
            assert!(half.text.contains("interface = \"lan0\""), "{}", half.text);
        });
    }

    #[test]
    fn more_breakouts_than_steer_can_have_are_asked_about() {
        in_namespace(async || {
            link("lan0");
            sh("ip addr add 10.1.0.1/24 dev lan0");
            for number in 1..=17 {
                sh(&format!(
                    "ip link add w.{number} type veth peer name p{number}; ip link set w.{number} up
                     ip addr add 198.18.{number}.2/24 dev w.{number}
                     ip route add default via 198.18.{number}.1 dev w.{number} metric {number}"
                ));
            }
            let proposal = proposal().await;
            // The first is the backbone.
            let (_, backbone, breakouts) = read(&proposal);
            assert_eq!(backbone.as_deref(), Some("w.1"));
            assert_eq!(breakouts.len(), 15);
            assert_eq!(breakouts[0], "w-2 w.2 198.18.2.1");
            assert!(proposal.text.contains("There are 15 before it."));
        });
    }
}
