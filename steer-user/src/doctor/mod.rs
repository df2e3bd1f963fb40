//! The doctor: looks at the box and says what keeps steer from working well here, why it matters and
//! what to do.
//!
//! [`Patient::examine`] reads everything and changes nothing; each check is a pure function of what
//! was read; [`fix`] applies the safe remedies. [`CHECKS`] is the list, and the page `docs/doctor.md`
//! is made from it.

mod devices;
mod firewall;
mod kernel;
mod neighbours;
mod own;
mod patient;
mod remedy;
mod routing;
mod services;
mod synthetic;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::{
    patient::Patient,
    remedy::{Fix, fix},
};

/// One thing the doctor looks at.
#[derive(Debug)]
pub struct Check {
    /// A word, the same in every version.
    pub name: &'static str,
    /// The part of the box.
    pub area: Area,
    /// What it finds.
    pub finds: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// What to do, in general; a finding names the exact command.
    pub remedy: &'static str,
    look: fn(&Patient) -> Vec<Verdict>,
}

/// A part of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// What the kernel and the tools can do.
    Kernel,
    /// Network devices.
    Devices,
    /// Addresses, routes and rules.
    Routing,
    /// Firewalls, programs and services of others.
    Neighbours,
    /// What steer needs besides.
    Services,
    /// What steer itself has put into the box.
    Steer,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Devices => "devices",
            Self::Routing => "routing",
            Self::Neighbours => "neighbours",
            Self::Services => "services",
            Self::Steer => "steer",
        })
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// To be known; steer works.
    Note,
    /// Traffic is lost or not steered as configured.
    Wrong,
}

/// What a check says.
#[derive(Clone, Debug)]
struct Verdict {
    state: State,
    found: String,
    /// The exact command; without one the check's general remedy is shown.
    remedy: Option<String>,
    fix: Option<Fix>,
}

impl Verdict {
    fn new(state: State, found: impl Into<String>) -> Self {
        Self {
            state,
            found: found.into(),
            remedy: None,
            fix: None,
        }
    }

    fn ok(found: impl Into<String>) -> Self {
        Self::new(State::Ok, found)
    }

    fn note(found: impl Into<String>) -> Self {
        Self::new(State::Note, found)
    }

    fn wrong(found: impl Into<String>) -> Self {
        Self::new(State::Wrong, found)
    }

    fn remedy(mut self, command: impl Into<String>) -> Self {
        self.remedy = Some(command.into());
        self
    }

    fn fix(mut self, fix: Fix) -> Self {
        self.fix = Some(fix);
        self
    }
}

/// What was found by one check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The check.
    pub check: &'static Check,
    /// How bad it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; nothing when all is well.
    pub remedy: Option<String>,
    /// What `--fix` would do, where that is safe.
    pub fix: Option<Fix>,
}

/// What the checks say, in their order.
pub fn diagnose(patient: &Patient) -> Vec<Finding> {
    CHECKS
        .iter()
        .flat_map(|check| {
            (check.look)(patient).into_iter().map(move |verdict| {
                let general = (verdict.state != State::Ok).then(|| check.remedy.to_owned());
                Finding {
                    check,
                    state: verdict.state,
                    found: verdict.found,
                    remedy: verdict.remedy.or(general),
                    fix: verdict.fix,
                }
            })
        })
        .collect()
}

/// The list as a page for operators: `docs/doctor.md`.
pub fn page() -> String {
    let mut page = PAGE_HEAD.to_owned();
    let mut area = None;
    for check in CHECKS {
        if area != Some(check.area) {
            area = Some(check.area);
            page.extend([
                "\n## ",
                &check.area.to_string(),
                "\n\n| check | finds | why it matters | remedy |\n|---|---|---|---|\n",
            ]);
        }
        let cells = [check.finds, check.why, check.remedy].map(|text| text.replace('|', "\\|"));
        page.extend(["| `", check.name, "` | ", &cells.join(" | "), " |\n"]);
    }
    page
}

const PAGE_HEAD: &str = "# What `steer doctor` looks at

`steer doctor` reads the box and changes nothing; it works with and without a running controller. \
Each finding is *ok*, a *note* (to be known; steer works) or *wrong* (traffic is lost, or not \
steered as configured), with why it matters and the remedy as a command. The exit code is 1 when \
anything is wrong. `--json` prints the same for machines.

`--fix` applies the safe remedies and says what it did: it mounts the BPF file system, sets the \
breakouts' own sysctls (with the undo record that `steer detach` uses), and puts back objects of \
steer's that somebody removed while no controller runs. It never touches what others own.

The forward policy is not judged by reading rules: the box's ruleset is loaded into a network \
namespace of its own, between a client and a server, and real connections are tried through it. \
Only where the copy cannot be loaded (iptables extensions) are the chains read, and the finding \
says so.

This page is made from the code; a test compares them.
";

/// Every check, in the order of the findings: what everything else rests on comes first.
pub static CHECKS: &[Check] = &[
    Check {
        name: "privileges",
        area: Area::Kernel,
        finds: "capabilities that steer needs and does not have",
        why: "without them programs, routes, rules and nftables cannot be read or changed; what follows may be wrong, too",
        remedy: "run it as root, or as the packaged unit does",
        look: kernel::privileges,
    },
    Check {
        name: "programs",
        area: Area::Kernel,
        finds: "a kernel that does not load steer's program (it is tried)",
        why: "without the program nothing is steered",
        remedy: "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, 5.10 or newer",
        look: kernel::programs,
    },
    Check {
        name: "jit",
        area: Area::Kernel,
        finds: "a kernel that interprets programs instead of compiling them",
        why: "every packet of the LAN costs many times the processor time",
        remedy: "sysctl -w net.core.bpf_jit_enable=1",
        look: kernel::jit,
    },
    Check {
        name: "hook",
        area: Area::Kernel,
        finds: "no TCX, so that the program goes to a clsact qdisc",
        why: "whoever deletes the qdisc deletes the program with it, and a restart has a short gap",
        remedy: "Linux 6.6 or newer has TCX",
        look: kernel::hook,
    },
    Check {
        name: "btf",
        area: Area::Kernel,
        finds: "a kernel without its own type information",
        why: "steer does not need it; tools that look into its maps and programs do",
        remedy: "a kernel with CONFIG_DEBUG_INFO_BTF",
        look: kernel::btf,
    },
    Check {
        name: "bpffs",
        area: Area::Kernel,
        finds: "a pin directory that is not on a BPF file system",
        why: "programs and maps live there when the controller does not; without it nothing starts",
        remedy: "mount -t bpf bpf /sys/fs/bpf",
        look: kernel::bpffs,
    },
    Check {
        name: "nftables",
        area: Area::Kernel,
        finds: "an `nft` that is missing or does not accept steer's table (it is tried in a namespace of its own)",
        why: "the table grants, translates and guards; without it nothing is steered",
        remedy: "install the package nftables, 1.0 or newer; the kernel needs nf_tables, nft_ct, nft_fib and nft_masq",
        look: kernel::nftables,
    },
    Check {
        name: "offloads",
        area: Area::Devices,
        finds: "LRO or TC hardware offload on a LAN device",
        why: "LRO merges packets so that they cannot be forwarded as they came; hardware offload takes packets past the program",
        remedy: "ethtool -K LAN lro off hw-tc-offload off",
        look: devices::offloads,
    },
    Check {
        name: "driver",
        area: Area::Devices,
        finds: "a driver that does not do what redirect mode asks of it: run XDP programs on the LAN, take frames from them on a breakout (Linux 6.3 and newer tell)",
        why: "without native XDP a packet costs more; what is redirected to a driver that does not take it is lost",
        remedy: "[redirect] xdp = \"generic\", or mode = \"mark\"",
        look: devices::driver,
    },
    Check {
        name: "mtu",
        area: Area::Devices,
        finds: "a breakout whose MTU is far below the LAN's, or too small for IPv6",
        why: "large packets must be cut or refused on the way; where ICMP is filtered, connections hang",
        remedy: "ip link set dev BREAKOUT mtu 1500, or what the provider carries",
        look: devices::mtu,
    },
    Check {
        name: "bridge-netfilter",
        area: Area::Devices,
        finds: "a bridge as LAN interface while bridged packets pass the firewall (bridge-nf-call-iptables)",
        why: "the firewall sees packets before steer marks them, so that nothing is granted: nothing is steered",
        remedy: "name the bridge's ports as [[lan]] interfaces, or: sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        look: devices::bridge_netfilter,
    },
    Check {
        name: "lan",
        area: Area::Routing,
        finds: "a LAN interface that is missing, down, or has no known clients",
        why: "only packets of known clients that come in there are steered",
        remedy: "correct [[lan]] interface, vlans or sources",
        look: routing::lan,
    },
    Check {
        name: "breakouts",
        area: Area::Routing,
        finds: "a breakout without interface, carrier, address or gateway",
        why: "what should leave by it takes another breakout, or the backbone",
        remedy: "ip link set BREAKOUT up; name the gateway in [[breakout]] gateway",
        look: routing::breakouts,
    },
    Check {
        name: "backbone",
        area: Area::Routing,
        finds: "a backbone that is missing or has no default route",
        why: "everything that is not steered goes there, and steered traffic when every breakout is down",
        remedy: "ip route add default dev BACKBONE",
        look: routing::backbone,
    },
    Check {
        name: "forwarding",
        area: Area::Routing,
        finds: "forwarding switched off",
        why: "no packet of the LAN goes anywhere",
        remedy: "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        look: routing::forwarding,
    },
    Check {
        name: "reverse-path",
        area: Area::Routing,
        finds: "a reverse path filter on a breakout that drops answers (the larger of `all` and the interface counts)",
        why: "the main table points to the backbone, so answers on the breakout look forged unless the filter asks with the packet's mark",
        remedy: "sysctl -w net.ipv4.conf.BREAKOUT.src_valid_mark=1",
        look: routing::reverse_path,
    },
    Check {
        name: "default-routes",
        area: Area::Routing,
        finds: "a default route of a breakout in the main table that competes with the backbone's (DHCP, RA)",
        why: "everything would leave by the breakout, not only what is steered, and without steer's translation",
        remedy: "give it a higher metric: RouteMetric= of systemd-networkd, ipv4.route-metric of NetworkManager",
        look: routing::default_routes,
    },
    Check {
        name: "shared-link",
        area: Area::Routing,
        finds: "a backbone tunnel whose own packets leave by a breakout",
        why: "one cable carries both: when it fails there is no other way out, and both share its bandwidth",
        remedy: "plan a second link; know it when you read the state of the paths",
        look: routing::shared_link,
    },
    Check {
        name: "ipv6",
        area: Area::Routing,
        finds: "IPv6 on the LAN that no breakout carries",
        why: "clients prefer IPv6: half of the traffic stays on the backbone, silently",
        remedy: "give the breakout an IPv6 address and gateway ([[breakout]] gateway6), or a delegated prefix (valid_sources)",
        look: routing::ipv6,
    },
    Check {
        name: "rules",
        area: Area::Routing,
        finds: "policy rules of others that are asked before or among steer's (priority up to 615)",
        why: "what they match is routed by them, whatever steer granted",
        remedy: "ip rule show; move them behind 615 if they match Microsoft 365",
        look: routing::rules,
    },
    Check {
        name: "xdp",
        area: Area::Neighbours,
        finds: "an XDP program of somebody else on a LAN device",
        why: "it sees packets first and may take them away; redirect mode cannot start beside it",
        remedy: "ip link show dev LAN; use mode = \"mark\" there",
        look: neighbours::xdp,
    },
    Check {
        name: "tc-programs",
        area: Area::Neighbours,
        finds: "TC programs or filters of others at the ingress of a LAN device",
        why: "one that gives a final verdict keeps packets from steer",
        remedy: "tc filter show dev LAN ingress; bpftool net show dev LAN",
        look: neighbours::tc_programs,
    },
    Check {
        name: "marks",
        area: Area::Neighbours,
        finds: "others that write or compare steer's bits of marks",
        why: "whoever writes them moves steer's flows; steer refuses to start",
        remedy: "[mark] mask: six bits next to each other that nobody else uses; or move the other owner's marks",
        look: neighbours::marks,
    },
    Check {
        name: "flow-tables",
        area: Area::Neighbours,
        finds: "flow tables of others (software or hardware flow offload)",
        why: "established flows in them pass steer by: they are not counted and follow no change",
        remedy: "nft list flowtables; leave the LAN and the breakouts out of it",
        look: neighbours::flow_tables,
    },
    Check {
        name: "translation",
        area: Area::Neighbours,
        finds: "nobody who translates, where steer was told that somebody does",
        why: "the guard stops untranslated packets at the breakout: what is steered is lost",
        remedy: "[mark] nat = \"steer\", or a masquerade rule on the breakout, or [[breakout]] valid_sources",
        look: neighbours::translation,
    },
    Check {
        name: "redirect-mode",
        area: Area::Neighbours,
        finds: "a box on which redirect mode would bypass a firewall or leak private addresses",
        why: "redirected packets pass the stack by; steer refuses to start",
        remedy: "mode = \"mark\"",
        look: neighbours::redirect_mode,
    },
    Check {
        name: "forward-policy",
        area: Area::Neighbours,
        finds: "a firewall that drops what steer grants, proved by connections through a copy of the ruleset",
        why: "the first packet leaves the backbone's way and dies at the firewall: Microsoft 365 hangs for everyone",
        remedy: "nft insert rule inet filter forward iifname LAN oifname BREAKOUT accept",
        look: firewall::forward_policy,
    },
    Check {
        name: "managers",
        area: Area::Neighbours,
        finds: "services that delete rules or routes of others (systemd-networkd, a flushing nftables.service)",
        why: "after their restart steer's objects are gone until the controller puts them back, up to 10 s later",
        remedy: "systemd-networkd: ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no",
        look: neighbours::managers,
    },
    Check {
        name: "conntrack",
        area: Area::Services,
        finds: "a connection tracking table that is nearly full",
        why: "steer's table puts all traffic of the box through it; a full table drops new connections. steer does not start above 85 %",
        remedy: "sysctl -w net.netfilter.nf_conntrack_max=262144",
        look: services::conntrack,
    },
    Check {
        name: "clock",
        area: Area::Services,
        finds: "a clock that cannot be right",
        why: "certificates look expired or not yet valid, so that lists cannot be fetched and probes fail",
        remedy: "start a time service: timedatectl set-ntp true",
        look: services::clock,
    },
    Check {
        name: "dns",
        area: Area::Services,
        finds: "resolvers that do not answer this router",
        why: "lists cannot be fetched and probes find no front door",
        remedy: "correct /etc/resolv.conf",
        look: services::dns,
    },
    Check {
        name: "bypass",
        area: Area::Services,
        finds: "clients that ask resolvers past the office's: over TLS or QUIC (port 853), or over HTTPS at a public resolver that is known (seen in the connections of the last minute or two; only where queries are steered)",
        why: "nobody on the way can read what they ask: names without prefixes stay on the backbone, and split-brain zones are asked outside",
        remedy: "canary names in the resolver that clients ask: steer export dnsmasq --canary, steer export unbound --canary; policies: DnsOverHttpsMode=off (Chrome, Edge), DNSOverHTTPS (Firefox), Private DNS off (Android)",
        look: services::bypass,
    },
    Check {
        name: "controller",
        area: Area::Steer,
        finds: "programs that steer on without a controller",
        why: "nobody watches the breakouts or repairs what others remove",
        remedy: "steer run",
        look: own::controller,
    },
    Check {
        name: "attachments",
        area: Area::Steer,
        finds: "a LAN device that steer's program is not attached to",
        why: "its clients are not steered",
        remedy: "steer run",
        look: own::attachments,
    },
    Check {
        name: "objects",
        area: Area::Steer,
        finds: "sysctls, nftables, routes and rules of steer's that are absent or altered",
        why: "a granted packet without its route or rule takes the backbone; without the table nothing is granted",
        remedy: "steer run",
        look: own::objects,
    },
    Check {
        name: "leftovers",
        area: Area::Steer,
        finds: "objects of steer's that this configuration does not need",
        why: "an earlier configuration or a failed start left them; they may route what should not be",
        remedy: "steer detach, or steer run with this configuration",
        look: own::leftovers,
    },
];
