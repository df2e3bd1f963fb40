//! Everything the doctor reads, so that judging it is pure. Nothing here changes the box.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tokio::{net::UdpSocket, time::timeout};

use super::synthetic::{self, Proof};
use crate::{
    api::Client,
    bypass::Bypass,
    config::{Config, Mode},
    controller::{self, look, report},
    datapath::{self, Order, PinDir, Port, Trial},
    system::{
        self, Family, Kernel, MarkBits, Object, Presence, TableId,
        conntrack::{self, Usage},
        facts::{self, DefaultOnLink, Facts, Link},
        filters::{self, Filter},
        nft,
        owners::Owners,
        xdp::XdpFeatures,
    },
};

/// What was read. A text in place of a fact says why it could not be read.
#[derive(Debug)]
pub struct Patient {
    pub(super) config: Config,
    pub(super) facts: Facts,
    pub(super) view: Result<look::View, String>,
    pub(super) owners: Result<Owners, String>,
    pub(super) release: String,
    pub(super) capabilities: u64,
    pub(super) trial: Result<Trial, String>,
    pub(super) kernel_btf: bool,
    pub(super) bpffs: Bpffs,
    /// Whether links are pinned: steer steers, with or without a controller.
    pub(super) steering: bool,
    /// The running controller's process.
    pub(super) controller: Option<u32>,
    pub(super) nft: Result<String, String>,
    /// Whether steer's table was accepted; none if it is not known what it would be.
    pub(super) table: Option<Result<(), String>>,
    pub(super) ports: Vec<PortFacts>,
    /// Of LAN devices and breakouts, by name; none where the kernel does not tell.
    pub(super) drivers: BTreeMap<String, Option<XdpFeatures>>,
    /// Default routes of the main table.
    pub(super) defaults: Vec<DefaultOnLink>,
    pub(super) reverse_path: BTreeMap<String, ReversePath>,
    /// Whether packets on bridges pass the firewall.
    pub(super) bridge_netfilter: bool,
    pub(super) overlay: Overlay,
    pub(super) conntrack: Option<Usage>,
    pub(super) now: SystemTime,
    pub(super) built: Option<SystemTime>,
    pub(super) resolvers: Vec<Resolver>,
    /// Clients that ask resolvers past the office's; none where connections are not tracked, or no
    /// query is steered.
    pub(super) bypass: Option<Bypass>,
    pub(super) managers: Vec<Manager>,
    pub(super) objects: Vec<(Object, Result<Presence, String>)>,
    pub(super) leftovers: Vec<Object>,
    pub(super) proofs: Vec<Proof>,
}

/// Where pins go.
#[derive(Debug)]
pub(super) struct Bpffs {
    pub(super) pin_dir: PathBuf,
    /// Whether the directory, or the first one above it that exists, is on a BPF file system.
    pub(super) mounted: bool,
}

/// A LAN device, as far as packets meet others on it.
#[derive(Debug)]
pub(super) struct PortFacts {
    pub(super) interface: String,
    /// None where the kernel does not tell.
    pub(super) features: Option<BTreeSet<String>>,
    /// The name of the XDP program.
    pub(super) xdp: Option<String>,
    /// The names of TCX programs; none without TCX.
    pub(super) tcx: Option<Vec<String>>,
    pub(super) filters: Vec<Filter>,
    pub(super) bridge: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ReversePath {
    /// 0 off, 1 strict, 2 loose.
    pub(super) filter: u32,
    pub(super) with_mark: bool,
}

/// The backbone, if it is a tunnel.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) interface: Option<String>,
    /// Where the tunnel's packets go, and the device they leave by.
    pub(super) peers: Vec<(IpAddr, Option<String>)>,
    /// A tunnel whose peers cannot be read.
    pub(super) unknown: bool,
}

#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) address: IpAddr,
    pub(super) leaves_by: Option<String>,
    pub(super) answered: bool,
}

/// A service that may delete what it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Networkd {
        keeps_rules: bool,
        keeps_routes: bool,
    },
    DesktopNetwork,
    FlushingNftables,
}

impl Patient {
    /// Reads the box. `root` is where `/etc`, `/run` and `/usr/lib` are: `/`.
    ///
    /// Fails only when the kernel does not answer netlink at all.
    pub async fn examine(config: &Config, root: &Path) -> Result<Self, system::SystemError> {
        let mut kernel = Kernel::open(&config.system.state_dir)?;
        let facts = Facts::gather(&kernel).await?;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let view = look::look(&kernel, config, &[]).await.map_err(|e| text(&e));
        let owners = Owners::gather(&kernel, config.mark.bits)
            .await
            .map_err(|e| text(&e));
        let wanted = view
            .as_ref()
            .map_or_else(|_| Vec::new(), |view| report::objects(config, view));
        let mut objects = Vec::new();
        for object in &wanted {
            let presence = object.present(&mut kernel).await.map_err(|e| text(&e));
            objects.push((object.clone(), presence));
        }
        let table = wanted.iter().find_map(|object| match object {
            Object::NftTable(table) => Some(table),
            _ => None,
        });
        let tried = match table {
            Some(table) => Some(table.try_out(&mut kernel).await.map_err(|e| text(&e))),
            None => None,
        };
        let pins = PinDir::new(&config.system.pin_dir);
        let status = Client::new(&controller::socket(&config.system))
            .status()
            .await;
        let proofs = match (&view, &owners, config.mode, table) {
            (Ok(view), Ok(owners), Mode::Mark, Some(table))
                if !owners.forward_chains.is_empty() =>
            {
                synthetic::prove(config, view, &facts, table.text()).await
            }
            _ => Vec::new(),
        };
        let ports: &[Port] = view.as_ref().map_or(&[], |view| &view.ports);
        Ok(Self {
            trial: datapath::try_out(config.mode, &any_port(ports)).map_err(|e| text(&e)),
            drivers: drivers(config, &facts, ports),
            ports: ports_facts(&kernel, &facts, ports).await?,
            defaults: facts::all_default_routes(&kernel, &facts)
                .await?
                .into_iter()
                .filter(|it| it.route.table == TableId::MAIN)
                .collect(),
            overlay: overlay(&kernel, &facts, config).await?,
            resolvers: resolvers(&kernel, &facts, root).await?,
            bypass: match &view {
                Ok(view) if config.select.names.steer => {
                    Bypass::look(look::asking_site(view)).await?
                }
                _ => None,
            },
            reverse_path: config
                .breakouts
                .iter()
                .map(|it| {
                    let name = it.interface.as_str();
                    let filter = facts::reverse_path_filter(name);
                    let with_mark = facts::reverse_path_with_mark(name);
                    (name.to_owned(), ReversePath { filter, with_mark })
                })
                .collect(),
            leftovers: system::leftovers(&mut kernel, &wanted)
                .await
                .unwrap_or_default(),
            release: nix::sys::utsname::uname()
                .map(|it| it.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            capabilities: effective_capabilities(),
            kernel_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpffs: Bpffs {
                pin_dir: config.system.pin_dir.clone(),
                mounted: on_bpffs(&config.system.pin_dir),
            },
            steering: pins.link_pins().is_ok_and(|pins| !pins.is_empty()) || filter_is_there(ports),
            controller: status.ok().and_then(|status| status.pid),
            nft: nft::version().await.map_err(|e| text(&e)),
            table: tried,
            bridge_netfilter: facts::bridge_netfilter(),
            conntrack: conntrack::usage(),
            now: SystemTime::now(),
            built: built(config),
            managers: managers(root),
            objects,
            config: config.clone(),
            facts,
            view,
            owners,
            proofs,
        })
    }

    /// Whether a breakout leaves by this interface.
    pub(super) fn is_breakout(&self, interface: &str) -> bool {
        self.config
            .breakouts
            .iter()
            .any(|it| it.interface.as_str() == interface)
    }

    /// The backbone's interface: the configured one, or that of the best other default route.
    pub(super) fn backbone(&self) -> Option<&str> {
        match &self.config.backbone {
            Some(interface) => Some(interface.as_str()),
            None => self
                .defaults
                .iter()
                .filter(|it| !self.is_breakout(&it.interface))
                .min_by_key(|it| (it.family != Family::V4, it.route.metric))
                .map(|it| it.interface.as_str()),
        }
    }
}

/// When the built-in list was made, and steer soon after.
fn built(config: &Config) -> Option<SystemTime> {
    let feed = controller::read_feed(&builtin(config)).ok()?;
    match feed.origin {
        crate::endpoints::Origin::Snapshot { date } => {
            humantime::parse_rfc3339_weak(&format!("{date} 00:00:00")).ok()
        }
        crate::endpoints::Origin::File(_) | crate::endpoints::Origin::Service { .. } => None,
    }
}

/// The configuration with the snapshot as its feed.
fn builtin(config: &Config) -> Config {
    let mut config = config.clone();
    config.feed.file = None;
    config
}

/// A port to try the program with: the first, or an Ethernet one.
fn any_port(ports: &[Port]) -> Port {
    ports.first().cloned().unwrap_or_else(|| Port {
        interface: "lan".into(),
        ifindex: 0,
        mac: Some([2, 0, 0, 0, 0, 1]),
        vlans: Vec::new(),
        marks: MarkBits::DEFAULT,
        order: Order::Last,
    })
}

/// Whether steer's clsact filter is there, which has no pin.
fn filter_is_there(ports: &[Port]) -> bool {
    ports.iter().any(|port| {
        datapath::attached_at(&port.interface)
            .is_some_and(|names| names.iter().any(|name| datapath::is_ours(name)))
    })
}

/// What the drivers of LAN devices and breakouts do with XDP.
fn drivers(
    config: &Config,
    facts: &Facts,
    ports: &[Port],
) -> BTreeMap<String, Option<XdpFeatures>> {
    let lan = ports.iter().map(|port| port.interface.as_str());
    let breakouts = config.breakouts.iter().map(|it| it.interface.as_str());
    let links = lan.chain(breakouts).filter_map(|name| facts.link(name));
    links
        .map(|link| (link.name.clone(), XdpFeatures::of(link.index)))
        .collect()
}

async fn ports_facts(
    kernel: &Kernel,
    facts: &Facts,
    ports: &[Port],
) -> Result<Vec<PortFacts>, system::SystemError> {
    let mut found = Vec::new();
    for port in ports {
        let link = facts.link_at(port.ifindex);
        let xdp = link.and_then(|link| link.xdp).filter(|&id| id != 0);
        found.push(PortFacts {
            interface: port.interface.clone(),
            features: filters::features(&port.interface).await,
            xdp: xdp.map(|id| datapath::program_name(id).unwrap_or_else(|| format!("number {id}"))),
            tcx: datapath::attached_at(&port.interface),
            filters: filters::ingress_filters(kernel, port.ifindex).await?,
            bridge: link.is_some_and(|link| link.kind.as_deref() == Some("bridge")),
        });
    }
    Ok(found)
}

async fn overlay(
    kernel: &Kernel,
    facts: &Facts,
    config: &Config,
) -> Result<Overlay, system::SystemError> {
    let Some(link) = config
        .backbone
        .as_ref()
        .and_then(|name| facts.link(name.as_str()))
    else {
        return Ok(Overlay::default());
    };
    let (addresses, unknown) = peers(link);
    let mut peers = Vec::new();
    for address in addresses {
        let device = facts::device_towards(kernel, address).await?;
        let name = device.and_then(|index| Some(facts.link_at(index)?.name.clone()));
        peers.push((address, name));
    }
    Ok(Overlay {
        interface: Some(link.name.clone()),
        peers,
        unknown,
    })
}

/// Where a tunnel's packets go, and whether that is unknown.
fn peers(link: &Link) -> (Vec<IpAddr>, bool) {
    match link.kind.as_deref() {
        // The kernel tells WireGuard's peers to its own tool only.
        Some("wireguard") => match wireguard_endpoints(&link.name) {
            Some(found) => (found, false),
            None => (Vec::new(), true),
        },
        Some("tun") => (Vec::new(), true),
        _ => (link.remotes.clone(), false),
    }
}

fn wireguard_endpoints(interface: &str) -> Option<Vec<IpAddr>> {
    let output = Command::new("wg")
        .args(["show", interface, "endpoints"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let endpoint = |line: &str| -> Option<IpAddr> {
        let address: SocketAddr = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(address.ip())
    };
    output
        .status
        .success()
        .then(|| text.lines().filter_map(endpoint).collect())
}

async fn resolvers(
    kernel: &Kernel,
    facts: &Facts,
    root: &Path,
) -> Result<Vec<Resolver>, system::SystemError> {
    let text = fs::read_to_string(root.join("etc/resolv.conf")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            continue;
        };
        let device = facts::device_towards(kernel, address).await?;
        found.push(Resolver {
            address,
            leaves_by: device.and_then(|index| Some(facts.link_at(index)?.name.clone())),
            answered: answers(address).await,
        });
    }
    Ok(found)
}

/// Whether a resolver answers a question, whatever it says. Asked twice, 2 s each.
async fn answers(resolver: IpAddr) -> bool {
    const QUESTION: &[u8] = b"\x36\x50\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
        \x07outlook\x09office365\x03com\x00\x00\x01\x00\x01";
    let from: IpAddr = match resolver {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let ask = async || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((from, 0)).await?;
        socket.connect((resolver, 53)).await?;
        socket.send(QUESTION).await?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await?;
        Ok(length >= 12 && answer[..2] == QUESTION[..2] && answer[2] & 0x80 != 0)
    };
    for _ in 0..2 {
        if let Ok(Ok(true)) = timeout(Duration::from_secs(2), ask()).await {
            return true;
        }
    }
    false
}

fn effective_capabilities() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

fn on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|it| it.exists());
    existing.is_some_and(|it| statfs(it).is_ok_and(|it| it.filesystem_type() == BPF_FS_MAGIC))
}

fn managers(root: &Path) -> Vec<Manager> {
    let mut found = Vec::new();
    // Both make these directories when they start.
    if root.join("run/systemd/netif/state").exists() {
        let setting = |key| networkd_setting(root, key).unwrap_or(true);
        found.push(Manager::Networkd {
            keeps_rules: !setting("ManageForeignRoutingPolicyRules"),
            keeps_routes: !setting("ManageForeignRoutes"),
        });
    }
    if root.join("run/NetworkManager").exists() {
        found.push(Manager::DesktopNetwork);
    }
    let enabled = "etc/systemd/system/sysinit.target.wants/nftables.service";
    let text = fs::read_to_string(root.join("etc/nftables.conf")).unwrap_or_default();
    let flushes = text.lines().any(|line| line.trim() == "flush ruleset");
    if flushes && root.join(enabled).symlink_metadata().is_ok() {
        found.push(Manager::FlushingNftables);
    }
    found
}

/// A boolean of networkd.conf; later files win: the main file, then the drop-ins by name.
fn networkd_setting(root: &Path, key: &str) -> Option<bool> {
    let mut files = BTreeMap::new();
    for folder in ["usr/lib", "run", "etc"] {
        let entries = fs::read_dir(root.join(folder).join("systemd/networkd.conf.d"));
        for entry in entries.into_iter().flatten().flatten() {
            files.insert(entry.file_name(), entry.path());
        }
    }
    let main = ["etc", "usr/lib"].map(|it| root.join(it).join("systemd/networkd.conf"));
    let main = main.into_iter().find(|it| it.exists());
    let texts = main
        .into_iter()
        .chain(files.into_values())
        .filter_map(|path| fs::read_to_string(path).ok());
    let mut found = None;
    for text in texts {
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('=')
                && name.trim() == key
            {
                let value = value.trim().to_ascii_lowercase();
                found = Some(matches!(&*value, "yes" | "true" | "on" | "1"));
            }
        }
    }
    found
}
