//! The office: its namespaces, addresses, routes and front ends.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path as FilePath, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    m365,
    namespace::{Namespace, execute},
    server::{Server, Site, authority},
    wan::{Conditions, Wan},
    wire::{Capture, Captures},
};

/// The addresses that the office's LAN uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanKind {
    /// RFC 1918 and unique local addresses: the breakout must translate them.
    Private,
    /// Addresses that the ISP routes to the office: nothing is translated.
    Public,
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    /// The LAN's addresses.
    pub lan: LanKind,
    /// How many Internet links the office has: 1 or 2.
    pub breakouts: u8,
    /// The WAN between backbone and headquarters.
    pub wan: Conditions,
    /// The ISP's way to the near front door.
    pub internet: Conditions,
    /// Whether the router's owner runs a stateful firewall, which puts conntrack in use.
    pub firewall: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            lan: LanKind::Private,
            breakouts: 1,
            wan: Conditions::delay(Duration::from_millis(40)),
            internet: Conditions::delay(Duration::from_millis(4)),
            firewall: true,
        }
    }
}

/// Addresses of one breakout link.
#[derive(Clone, Copy, Debug)]
pub struct Breakout {
    /// The router's interface.
    pub interface: &'static str,
    /// The ISP's interface at the other end.
    pub isp_interface: &'static str,
    /// The router's addresses.
    pub address: (Ipv4Addr, Ipv6Addr),
    /// The ISP's router.
    pub gateway: (Ipv4Addr, Ipv6Addr),
}

/// The links that a lab may have, in order. Documentation addresses (RFC 5737, RFC 3849).
pub const BREAKOUTS: [Breakout; 2] = [
    Breakout {
        interface: "brk0",
        isp_interface: "wan0",
        address: (
            Ipv4Addr::new(192, 0, 2, 2),
            Ipv6Addr::new(0x2001, 0xdb8, 0xb0, 0, 0, 0, 0, 2),
        ),
        gateway: (
            Ipv4Addr::new(192, 0, 2, 1),
            Ipv6Addr::new(0x2001, 0xdb8, 0xb0, 0, 0, 0, 0, 1),
        ),
    },
    Breakout {
        interface: "brk1",
        isp_interface: "wan1",
        address: (
            Ipv4Addr::new(198, 51, 100, 2),
            Ipv6Addr::new(0x2001, 0xdb8, 0xb1, 0, 0, 0, 0, 2),
        ),
        gateway: (
            Ipv4Addr::new(198, 51, 100, 1),
            Ipv6Addr::new(0x2001, 0xdb8, 0xb1, 0, 0, 0, 0, 1),
        ),
    },
];

/// The client's addresses end in these: the first is what it uses unless told.
const HOSTS: [u8; 3] = [10, 11, 12];

/// A branch office. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: what lives in the namespaces goes before them.
    _servers: [Server; 2],
    /// The WAN between backbone and headquarters; its conditions can be changed.
    pub wan: Wan,
    /// The Internet between the ISP and the near front door.
    pub internet: Wan,
    /// The office's computers, on `eth0`.
    pub client: Namespace,
    /// The edge router: `lan0`, `bb0`, `brk0` and perhaps `brk1`.
    pub router: Namespace,
    /// The WAN provider: `branch0` to the router.
    pub backbone: Namespace,
    /// Headquarters.
    pub hq: Namespace,
    /// The Internet provider: `wan0` (and `wan1`) to the router.
    pub isp: Namespace,
    /// The near front door, reached by the ISP.
    pub near: Namespace,
    /// The far front door, reached by headquarters.
    pub far: Namespace,
    /// What was built.
    pub options: LabOptions,
    /// `steer-<pid>-<n>`: the beginning of every name.
    pub prefix: String,
    directory: PathBuf,
    leaks_expected: AtomicBool,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Builds an office and waits until every way works.
    pub fn start(options: LabOptions) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces: run it as root"
        );
        ensure!(
            (1..=2).contains(&options.breakouts),
            "an office has 1 or 2 breakouts"
        );
        sweep()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("steer-{}-{number}", std::process::id());
        let namespace = |role| Namespace::create(&format!("{prefix}-{role}"));
        let [client, router, backbone, hq, isp, near, far] = [
            namespace("client")?,
            namespace("router")?,
            namespace("backbone")?,
            namespace("hq")?,
            namespace("isp")?,
            namespace("near")?,
            namespace("far")?,
        ];
        let directory = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(AUTHORITY), &authority()?.pem)?;
        for transit in [&router, &backbone, &hq, &isp] {
            transit.sysctl("net.ipv4.ip_forward", 1)?;
            transit.sysctl("net.ipv6.conf.all.forwarding", 1)?;
        }
        for front in [&near, &far] {
            // They answer from any address of a local prefix, not only from configured ones.
            front.sysctl("net.ipv6.ip_nonlocal_bind", 1)?;
        }
        connect(&prefix, options)?;
        let wan = Wan::start((&backbone, "wan0"), (&hq, "wan0"), options.wan)?;
        let internet = Wan::start((&isp, "near0"), (&near, "isp0"), options.internet)?;
        address(
            options,
            [&client, &router, &backbone, &hq, &isp, &near, &far],
        )?;
        let servers = [
            Server::start(&near, Site::Near, m365::TCP_PORTS, m365::UDP_PORTS)?,
            Server::start(&far, Site::Far, m365::TCP_PORTS, m365::UDP_PORTS)?,
        ];
        if options.firewall {
            router.nft(FIREWALL)?;
        }
        let lab = Self {
            _servers: servers,
            wan,
            internet,
            client,
            router,
            backbone,
            hq,
            isp,
            near,
            far,
            options,
            prefix,
            directory,
            leaks_expected: AtomicBool::new(false),
        };
        lab.judge_sources()?;
        lab.wait_for_links()?;
        Ok(lab)
    }

    /// Starts a capture on every way out.
    pub fn capture(&self) -> Result<Captures> {
        let breakouts = self.breakouts().iter().map(|breakout| {
            let capture = Capture::start(&self.isp, breakout.isp_interface)?;
            Ok((capture, self.valid_sources(breakout)))
        });
        Ok(Captures {
            backbone: Capture::start(&self.backbone, "branch0")?,
            breakouts: breakouts.collect::<Result<_>>()?,
        })
    }

    /// The links to the Internet.
    pub fn breakouts(&self) -> &'static [Breakout] {
        &BREAKOUTS[..usize::from(self.options.breakouts)]
    }

    /// The sources that an ISP accepts: the router's address on that link, and a public LAN.
    pub fn valid_sources(&self, breakout: &Breakout) -> Vec<IpNet> {
        let (v4, v6) = breakout.address;
        let mut valid = vec![IpNet::from(IpAddr::V4(v4)), IpNet::from(IpAddr::V6(v6))];
        if self.options.lan == LanKind::Public {
            let (lan4, lan6) = self.lan();
            valid.extend([IpNet::V4(lan4), IpNet::V6(lan6)]);
        }
        valid
    }

    /// The LAN's prefixes.
    pub fn lan(&self) -> (Ipv4Net, Ipv6Net) {
        lan(self.options.lan)
    }

    /// The addresses of the office's `number`-th computer (0 to 2), IPv4 and IPv6. They are all on
    /// the client's `eth0`; the first is used unless a flow asks for another.
    pub fn host(&self, number: usize) -> (IpAddr, IpAddr) {
        let (v4, v6) = self.lan();
        let last = u32::from(HOSTS[number]);
        (
            IpAddr::V4(Ipv4Addr::from_bits(v4.network().to_bits() + last)),
            IpAddr::V6(Ipv6Addr::from_bits(
                v6.network().to_bits() + u128::from(last),
            )),
        )
    }

    /// A directory of this lab alone, removed with it.
    pub fn directory(&self) -> &FilePath {
        &self.directory
    }

    /// The certificate of who issued those of the front doors, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.directory.join(AUTHORITY)
    }

    /// Where a steer of this lab pins its kernel objects.
    pub fn pin_directory(&self) -> PathBuf {
        FilePath::new(BPF_FS).join(&self.prefix)
    }

    /// Deletes the LAN's link and makes it anew, as a driver that is loaded again does: the same
    /// name and addresses, another index.
    pub fn renew_lan(&self) -> Result<()> {
        self.router.ip("link del lan0\n")?;
        // The old index must not come back with the new link.
        self.router
            .ip("link add spare0 type veth peer name spare1\nlink del spare0\n")?;
        connect_lan(&self.prefix)?;
        address_lan(self.options, &self.client, &self.router)
    }

    /// Deletes a breakout's link and makes it anew: the same names, other indexes and Ethernet
    /// addresses, nothing else on either end yet.
    pub fn renew_breakout(&self, breakout: &Breakout) -> Result<()> {
        let Breakout {
            interface,
            isp_interface,
            ..
        } = breakout;
        self.router.ip(&format!("link del {interface}\n"))?;
        // The old index must not come back with the new link.
        self.router
            .ip("link add spare0 type veth peer name spare1\nlink del spare0\n")?;
        connect_breakout(&self.prefix, breakout)?;
        self.isp
            .output("ethtool", &["-K", isp_interface, "gro", "on"])?;
        Ok(())
    }

    /// Takes a breakout down as `ip link set down` does (the kernel removes its routes).
    pub fn link_down(&self, breakout: &Breakout) -> Result<()> {
        self.router
            .ip(&format!("link set {} down", breakout.interface))
    }

    /// Brings a breakout back with the addresses that its owner's network scripts would add.
    pub fn link_up(&self, breakout: &Breakout) -> Result<()> {
        let Breakout {
            interface,
            address: (v4, v6),
            ..
        } = breakout;
        self.router.ip(&format!(
            "link set {interface} up\naddr replace {v4}/30 dev {interface}\n\
             addr replace {v6}/64 dev {interface} nodad\n"
        ))
    }

    /// Pulls a breakout's cable (`plugged` = false): no carrier, the interface stays up.
    pub fn cable(&self, breakout: &Breakout, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        let Breakout {
            isp_interface,
            gateway: (_, v6),
            ..
        } = breakout;
        self.isp
            .ip(&format!("link set {isp_interface} {state}\n"))?;
        if plugged {
            // Setting a link down removes its static IPv6 addresses.
            self.isp
                .ip(&format!("addr replace {v6}/64 dev {isp_interface} nodad\n"))?;
            self.isp.ip(&self.isp_routes(breakout))?;
        }
        Ok(())
    }

    /// From now on the ISP drops all that it would forward from and to these links, which stay up;
    /// others it forwards again. It brings what is for a public LAN by the first link that is left.
    pub fn black_hole(&self, breakouts: &[Breakout]) -> Result<()> {
        let mut table = String::from("table inet hole { }\ndelete table inet hole\n");
        if !breakouts.is_empty() {
            let links: Vec<_> = breakouts.iter().map(|it| it.isp_interface).collect();
            let links = links.join(", ");
            write!(
                table,
                "table inet hole {{ chain forward {{ type filter hook forward priority 0;\n\
                 iifname {{ {links} }} drop\noifname {{ {links} }} drop\n}}\n}}\n"
            )?;
        }
        let left = |link: &&Breakout| !breakouts.iter().any(|it| it.interface == link.interface);
        if let Some(left) = self.breakouts().iter().find(left) {
            self.isp.ip(&self.isp_routes(left))?;
        }
        self.isp.nft(&table)
    }

    fn isp_routes(&self, breakout: &Breakout) -> String {
        isp_routes(self.options.lan, breakout)
    }
}

impl Lab {
    /// Waits until the kernel has taken notice of every carrier, which it does up to a second later
    /// and in its own time: until then routes are dead, and a picture of the router still changes.
    fn wait_for_links(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_mins(1);
        let started = Instant::now();
        for namespace in [&self.router, &self.client, &self.isp, &self.backbone] {
            loop {
                let routes = namespace.output("ip", &["-4", "route", "show", "table", "all"])?;
                let dead = routes.contains("linkdown");
                let addresses = namespace.output("ip", &["-6", "-o", "address", "show"])?;
                if !dead && !addresses.contains("tentative") {
                    break;
                }
                ensure!(
                    started.elapsed() < PATIENCE,
                    "the links of {} do not come up:\n{routes}{addresses}",
                    namespace.name()
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

/// The ISP as a judge: whoever sends from a source that it never gave out is written down.
impl Lab {
    fn judge_sources(&self) -> Result<()> {
        let mut table = String::from(
            "table inet lab_judge {\n\
             set leaks4 { type ipv4_addr . ipv4_addr; size 4096; flags dynamic; }\n\
             set leaks6 { type ipv6_addr . ipv6_addr; size 4096; flags dynamic; }\n",
        );
        let mut rules = String::new();
        // Who has no address yet says so: IGMP (RFC 3376, 4.2.13), DHCP, neighbour discovery.
        for breakout in self.breakouts() {
            let name = breakout.isp_interface;
            write!(
                table,
                "set {name}4 {{ type ipv4_addr; flags interval; auto-merge; elements = {{ 0.0.0.0 }}; }}\n\
                 set {name}6 {{ type ipv6_addr; flags interval; auto-merge; \
                 elements = {{ ::, fe80::/10 }}; }}\n"
            )?;
            write!(
                rules,
                "iifname {name} ip saddr != @{name}4 update @leaks4 {{ ip saddr . ip daddr }}\n\
                 iifname {name} ip6 saddr != @{name}6 update @leaks6 {{ ip6 saddr . ip6 daddr }}\n"
            )?;
        }
        self.isp.nft(&format!(
            "{table}chain judge {{ type filter hook prerouting priority -400;\n{rules}}}\n}}\n"
        ))?;
        for breakout in self.breakouts() {
            for source in self.valid_sources(breakout) {
                self.accept_source(breakout, source)?;
            }
        }
        Ok(())
    }

    /// From now on the ISP accepts this source, too.
    pub fn accept_source(&self, breakout: &Breakout, source: IpNet) -> Result<()> {
        let name = breakout.isp_interface;
        let family = if source.addr().is_ipv4() { 4 } else { 6 };
        self.isp.nft(&format!(
            "add element inet lab_judge {name}{family} {{ {source} }}\n"
        ))
    }

    /// Dropping this lab will not fail for packets with invalid sources on a breakout's wire.
    pub fn expect_leaks(&self) {
        self.leaks_expected.store(true, Ordering::Relaxed);
    }

    /// Sources and destinations of packets that left a breakout with a source that is not valid
    /// there, over this lab's whole life; empty when there was none.
    pub fn leaks(&self) -> Result<String> {
        let mut leaks = String::new();
        for set in ["leaks4", "leaks6"] {
            let text = self
                .isp
                .output("nft", &["list", "set", "inet", "lab_judge", set])?;
            if let Some((_, elements)) = text.split_once("elements = ") {
                leaks += elements.trim_end_matches(['}', '\n', '\t']);
            }
        }
        Ok(leaks)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that fails already says why.
        if !std::thread::panicking() && !self.leaks_expected.load(Ordering::Relaxed) {
            let leaks = self.leaks().unwrap_or_else(|error| format!("{error:#}"));
            assert_eq!(leaks, "", "packets left a breakout with invalid sources");
        }
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir_all(self.pin_directory());
    }
}

/// The router owner's firewall: stateful, as most are.
const FIREWALL: &str = r#"
table inet office_firewall {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "lan0" accept
	}
}
"#;

fn lan(kind: LanKind) -> (Ipv4Net, Ipv6Net) {
    let (v4, v6) = match kind {
        LanKind::Private => (
            (Ipv4Addr::new(10, 20, 0, 0), 16),
            Ipv6Addr::new(0xfd20, 0, 0, 1, 0, 0, 0, 0),
        ),
        LanKind::Public => (
            (Ipv4Addr::new(203, 0, 113, 0), 24),
            Ipv6Addr::new(0x2001, 0xdb8, 0x20, 1, 0, 0, 0, 0),
        ),
    };
    (Ipv4Net::new_assert(v4.0, v4.1), Ipv6Net::new_assert(v6, 64))
}

/// A veth pair between two namespaces, each end by the namespace's role and the interface's name.
fn pair(prefix: &str, a: (&str, &str), b: (&str, &str)) -> Result<()> {
    let (ends, peer) = ([a.0, a.1], [b.0, b.1]);
    execute(
        Command::new("ip")
            .args(["link", "add", ends[1], "netns"])
            .args([
                &format!("{prefix}-{}", ends[0]),
                "type",
                "veth",
                "peer",
                "name",
                peer[1],
                "netns",
                &format!("{prefix}-{}", peer[0]),
            ]),
    )
    .map(drop)
}

/// The LAN's link.
fn connect_lan(prefix: &str) -> Result<()> {
    pair(prefix, ("router", "lan0"), ("client", "eth0"))
}

/// A breakout's link.
fn connect_breakout(prefix: &str, breakout: &Breakout) -> Result<()> {
    pair(
        prefix,
        ("router", breakout.interface),
        ("isp", breakout.isp_interface),
    )
}

/// The veth pairs.
fn connect(prefix: &str, options: LabOptions) -> Result<()> {
    let pair = |a, b| pair(prefix, a, b);
    connect_lan(prefix)?;
    pair(("router", "bb0"), ("backbone", "branch0"))?;
    pair(("hq", "far0"), ("far", "hq0"))?;
    for breakout in &BREAKOUTS[..usize::from(options.breakouts)] {
        connect_breakout(prefix, breakout)?;
    }
    Ok(())
}

/// Addresses and routes of the LAN, on both ends of its link.
fn address_lan(options: LabOptions, client: &Namespace, router: &Namespace) -> Result<()> {
    let (lan4, lan6) = lan(options.lan);
    let gateway4 = Ipv4Addr::from_bits(lan4.network().to_bits() + 1);
    let gateway6 = Ipv6Addr::from_bits(lan6.network().to_bits() + 1);
    let (length4, length6) = (lan4.prefix_len(), lan6.prefix_len());

    router.ip(&format!(
        "link set lan0 up\naddr add {gateway4}/{length4} dev lan0\n\
         addr add {gateway6}/{length6} dev lan0 nodad\n"
    ))?;
    let mut text = String::from("link set eth0 up\n");
    for host in HOSTS {
        let v4 = Ipv4Addr::from_bits(lan4.network().to_bits() + u32::from(host));
        let v6 = Ipv6Addr::from_bits(lan6.network().to_bits() + u128::from(host));
        writeln!(text, "addr add {v4}/{length4} dev eth0")?;
        // Preferred lifetime 0: only flows that ask for them use the other hosts' addresses.
        let life = if host == HOSTS[0] {
            ""
        } else {
            "preferred_lft 0"
        };
        writeln!(text, "addr add {v6}/{length6} dev eth0 nodad {life}")?;
    }
    write!(
        text,
        "route add default via {gateway4}\nroute add default via {gateway6}\n"
    )?;
    client.ip(&text)?;
    // Finished checksums, as a network card would hand to the router: those that a veth leaves
    // open would be lost when XDP redirects a frame.
    client.output("ethtool", &["-K", "eth0", "tx", "off"])?;
    Ok(())
}

/// Addresses and routes of every namespace.
fn address(options: LabOptions, namespaces: [&Namespace; 7]) -> Result<()> {
    let [client, router, backbone, hq, isp, near, far] = namespaces;
    let (lan4, lan6) = lan(options.lan);
    address_lan(options, client, router)?;

    let mut text = String::from(
        "link set bb0 up\naddr add 10.99.0.2/30 dev bb0\naddr add fd99::2/64 dev bb0 nodad\n\
         route add default via 10.99.0.1\nroute add default via fd99::1\n",
    );
    for breakout in &BREAKOUTS[..usize::from(options.breakouts)] {
        let Breakout {
            interface,
            address: (v4, v6),
            ..
        } = breakout;
        write!(
            text,
            "link set {interface} up\naddr add {v4}/30 dev {interface}\n\
             addr add {v6}/64 dev {interface} nodad\n"
        )?;
    }
    router.ip(&text)?;

    backbone.ip(&format!(
        "link set branch0 up\naddr add 10.99.0.1/30 dev branch0\naddr add fd99::1/64 dev branch0 nodad\n\
         addr add 10.99.1.1/30 dev wan0\naddr add fd99:1::1/64 dev wan0 nodad\n\
         route add default dev wan0\nroute add ::/0 dev wan0\n\
         route add {lan4} via 10.99.0.2\nroute add {lan6} via fd99::2\n"
    ))?;
    hq.ip(&format!(
        "addr add 10.99.1.2/30 dev wan0\naddr add fd99:1::2/64 dev wan0 nodad\n\
         link set far0 up\naddr add 10.99.2.1/30 dev far0\naddr add fd99:2::1/64 dev far0 nodad\n\
         route add default via 10.99.2.2\nroute add ::/0 via fd99:2::2\n\
         route add {lan4} dev wan0\nroute add {lan6} dev wan0\n\
         route add 10.99.0.0/30 dev wan0\nroute add fd99::/64 dev wan0\n"
    ))?;
    let mut held = String::new();
    for prefix in m365::FRONT_END_PREFIXES {
        writeln!(held, "route add local {prefix} dev lo table local")?;
    }
    far.ip(&format!(
        "link set hq0 up\naddr add 10.99.2.2/30 dev hq0\naddr add fd99:2::2/64 dev hq0 nodad\n\
         route add default via 10.99.2.1\nroute add ::/0 via fd99:2::1\n{held}"
    ))?;

    let mut text = String::from(
        "addr add 192.88.99.1/30 dev near0\naddr add 2001:db8:ff::1/64 dev near0 nodad\n",
    );
    text += "route add default dev near0\nroute add ::/0 dev near0\n";
    for breakout in &BREAKOUTS[..usize::from(options.breakouts)] {
        let Breakout {
            isp_interface,
            gateway: (v4, v6),
            ..
        } = breakout;
        write!(
            text,
            "link set {isp_interface} up\naddr add {v4}/30 dev {isp_interface}\n\
             addr add {v6}/64 dev {isp_interface} nodad\n"
        )?;
    }
    // The first link's routes win where both would carry a public LAN.
    text += &isp_routes(options.lan, &BREAKOUTS[0]);
    isp.ip(&text)?;
    for breakout in &BREAKOUTS[..usize::from(options.breakouts)] {
        // A veth hands over frames that XDP redirected only when its end polls (GRO).
        isp.output("ethtool", &["-K", breakout.isp_interface, "gro", "on"])?;
    }
    near.ip(&format!(
        "addr add 192.88.99.2/30 dev isp0\naddr add 2001:db8:ff::2/64 dev isp0 nodad\n\
         route add default dev isp0\nroute add ::/0 dev isp0\n{held}"
    ))?;
    Ok(())
}

/// The ISP routes a public LAN to the office; private addresses are unreachable, as on the
/// Internet.
fn isp_routes(kind: LanKind, breakout: &Breakout) -> String {
    let (lan4, lan6) = lan(kind);
    let (v4, v6) = breakout.address;
    match kind {
        LanKind::Public => {
            format!("route replace {lan4} via {v4}\nroute replace {lan6} via {v6}\n")
        }
        LanKind::Private => {
            "route replace blackhole 10.0.0.0/8\nroute replace blackhole fc00::/7\n".into()
        }
    }
}

/// The file of the front doors' authority.
const AUTHORITY: &str = "authority.pem";

const BPF_FS: &str = "/sys/fs/bpf";

/// Removes what labs of dead processes left.
pub fn sweep() -> Result<()> {
    for name in names_in("/run/netns")?.filter(|name| is_stale(name)) {
        // Another lab may sweep at the same time.
        let _ = execute(Command::new("ip").args(["netns", "del", &name]));
    }
    let temporary = std::env::temp_dir();
    for directory in [FilePath::new(BPF_FS), &temporary] {
        for name in names_in(directory)?.filter(|name| is_stale(name)) {
            let _ = fs::remove_dir_all(directory.join(name));
        }
    }
    Ok(())
}

fn names_in(directory: impl AsRef<FilePath>) -> Result<impl Iterator<Item = String>> {
    let directory = directory.as_ref();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => bail!("read {}: {error}", directory.display()),
    };
    Ok(entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok()))
}

/// Whether a name is `steer-<pid>-…` of a process that is gone.
fn is_stale(name: &str) -> bool {
    let Some((pid, _)) = name
        .strip_prefix("steer-")
        .and_then(|rest| rest.split_once('-'))
    else {
        return false;
    };
    pid.parse::<u32>().is_ok() && !FilePath::new("/proc").join(pid).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_stale() {
        assert!(!is_stale(&format!("steer-{}-0-client", std::process::id())));
        assert!(is_stale("steer-4294967295-0-client"));
        assert!(!is_stale("steer"));
        assert!(!is_stale("steer-client-1"));
        assert!(!is_stale("other-4294967295-0"));
    }
}
