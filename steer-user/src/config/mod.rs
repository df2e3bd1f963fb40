//! The configuration file: its schema, its defaults, and the mistakes it can hold.
//!
//! [`Config`] is what the rest of steer works with: everything in it has been checked, so nothing
//! downstream has to ask again whether an interface name fits or a prefix has host bits.

#[cfg(any(test, feature = "test-cases"))]
pub mod cases;
mod checker;
mod classes;
mod defaults;
mod dns;
mod error;
mod feed;
mod health;
mod list;
mod locate;
mod preference;
mod schema;
mod validate;
mod values;
mod written;

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

pub use self::{
    classes::ClassSelection,
    dns::{DnsConfig, NameSelection, ResolverChoice, Shared, TcpQueries},
    error::{ConfigError, ConfigProblem},
    feed::FeedConfig,
    health::{HealthConfig, Identity, OnPathLoss, ProbeKind, Target, WhenDegraded, WhenDown},
    list::{BuiltIn, List, ListSource},
    preference::Preference,
    written::{Difference, Written},
};
use crate::endpoints::{Category, Instance, NamePattern, Ports, ServiceArea, SetId};
pub use crate::{
    datapath::{Mode, Order, XdpChoice},
    system::{Family, InterfaceName, MarkBits, Owner},
};

/// A commented sample that names every key.
pub const SAMPLE: &str = include_str!("../../steer.toml");

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Whether the running controller reads it again by itself when the file changes.
    pub reload_on_change: bool,
    /// How packets reach a breakout.
    pub mode: Mode,
    /// Where the endpoint list comes from.
    pub feed: FeedConfig,
    /// What of it is steered.
    pub select: Selection,
    /// More lists; [`Config::read`] has laid their services into `select.include`.
    pub lists: Vec<List>,
    /// Where clients are; at least one.
    pub lans: Vec<Lan>,
    /// The way everything else takes, for display and checks.
    pub backbone: Option<InterfaceName>,
    /// The ways out, at least one and at most 15; in the order of the file.
    pub breakouts: Vec<Breakout>,
    /// Which breakouts the new flows of some classes take; a class has the first that names it.
    pub preferences: Vec<Preference>,
    /// Mark mode.
    pub mark: MarkConfig,
    /// Redirect mode.
    pub redirect: RedirectConfig,
    /// How breakouts are watched.
    pub health: HealthConfig,
    /// How queries are asked.
    pub dns: DnsConfig,
    /// Metrics for a monitoring system.
    pub metrics: MetricsConfig,
    /// Where steer keeps things on this machine.
    pub system: SystemConfig,
    /// The file itself, to say what changed.
    pub written: Written,
}

/// What of the endpoint list is steered, and what besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The categories.
    pub categories: BTreeSet<Category>,
    /// The service areas.
    pub service_areas: BTreeSet<ServiceArea>,
    /// Sets that are left out although category and area are selected.
    pub exclude_sets: BTreeSet<SetId>,
    /// The operator's own destinations, and those of lists.
    pub include: Vec<OwnInclude>,
    /// Destinations that are never steered, whatever else says so.
    pub exclude: Vec<IpNet>,
    /// What happens to queries for names.
    pub names: NameSelection,
}

/// A destination of the operator's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnInclude {
    /// The name, unique; the class of its counters hangs on it. `LIST/SERVICE` for a list's.
    pub name: String,
    /// Where. Only a service of a list may have none, and is then known by its names.
    pub prefixes: Vec<IpNet>,
    /// Names of it; those of a list's service.
    pub names: Vec<NamePattern>,
    /// Ports over TCP; empty: TCP is not steered.
    pub tcp: Ports,
    /// Ports over UDP; empty: UDP is not steered.
    pub udp: Ports,
    /// How it ranks against Microsoft's sets.
    pub category: Category,
}

/// An interface behind which clients are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// The interface.
    pub interface: InterfaceName,
    /// Whose frames are steered; empty: only those without a tag.
    pub vlans: Vec<Vlan>,
    /// The clients; empty: the prefixes the interface is connected to.
    pub sources: Vec<IpNet>,
    /// Clients that are left out.
    pub exclude_sources: Vec<IpNet>,
    /// Whether queries of its clients are steered.
    pub steer_queries: bool,
    /// Clients whose queries are left alone.
    pub leave_queries_of: Vec<IpNet>,
}

/// A tag, or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vlan {
    /// 802.1Q, 1 to 4094.
    Single(u16),
    /// 802.1ad around 802.1Q: outer and inner id.
    Stacked(u16, u16),
}

/// A way out of the office.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breakout {
    /// The path id of marks, routing tables and counters, 1 to 15; the position in the file unless
    /// it is written.
    pub id: u8,
    /// The operator's name for it.
    pub name: String,
    /// The interface.
    pub interface: InterfaceName,
    /// The IPv4 next hop; none: as the kernel's routes on that link have it.
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 next hop; none: as the kernel's routes on that link have it.
    pub gateway6: Option<Ipv6Addr>,
    /// Sources that may leave untranslated.
    pub valid_sources: Vec<IpNet>,
    /// Which IPv6 prefixes are followed as ones that its provider delegated.
    pub delegated: Delegated,
    /// Lower is taken first, 1 to 100.
    pub priority: u8,
    /// The share among breakouts of equal priority, 1 to 100.
    pub weight: u8,
    /// What it being down means for new flows.
    pub when_down: WhenDown,
    /// How often its targets are probed; none: as [`HealthConfig::interval`] has it.
    pub probe_interval: Option<Duration>,
    /// The resolvers near the office that are asked over it, the preferred one first; none: queries
    /// of this path are left alone.
    pub resolvers: Vec<ResolverChoice>,
}

/// Which IPv6 prefixes are followed as ones that a breakout's provider delegated; packets from them
/// leave untranslated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Delegated {
    /// Those that the kernel ties to the breakout's link.
    #[default]
    Auto,
    /// Those inside the provider's ranges.
    From(Vec<IpNet>),
    /// None.
    Off,
}

/// Mark mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkConfig {
    /// The bits of marks that are steer's.
    pub bits: MarkBits,
    /// Where among others' programs ours is.
    pub order: Order,
    /// How long flows are only watched where conntrack was not in use before.
    pub watch_period: Duration,
    /// Who keeps rules and routes.
    pub routes: Owner,
    /// Who keeps the nftables table.
    pub nat: Owner,
    /// Tables whose more specific routes win over a breakout.
    pub route_tables: Vec<u32>,
}

/// Redirect mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Where in the receive path the program sits.
    pub xdp: XdpChoice,
}

/// Metrics for a monitoring system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsConfig {
    /// Where `/metrics` is answered; none: nowhere. A loopback address unless the operator allowed
    /// others.
    pub listen: Option<SocketAddr>,
}

/// Where steer keeps things on this machine; absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemConfig {
    /// Pinned maps and links, on a bpffs.
    pub pin_dir: PathBuf,
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// Fails with everything that is wrong in it, each mistake with line, column, key and remedy.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::unreadable(&name, &error))?;
        let mut config = Self::parse(&name, &text)?;
        if let (Some(file), Some(folder)) = (&mut config.feed.file, path.parent()) {
            *file = folder.join(&*file);
        }
        for list in &mut config.lists {
            if let (ListSource::File(file), Some(folder)) = (&mut list.source, path.parent()) {
                *file = folder.join(&*file);
            }
            let services = list.services(&config.system.state_dir)?;
            config.select.include.extend(services);
        }
        Ok(config)
    }

    /// The files besides itself that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let lists = self.lists.iter().filter_map(|list| match &list.source {
            ListSource::File(file) => Some(file),
            ListSource::BuiltIn(_) | ListSource::Url { .. } => None,
        });
        lists.chain(&self.feed.file).map(PathBuf::as_path)
    }

    /// Checks a configuration, without the lists that it names. `name` is what errors call it.
    ///
    /// Fails with everything that is wrong in it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|error| vec![ConfigProblem::of_the_syntax(text, &error)])
            .and_then(|raw| validate::config(text, raw))
            .map_err(|problems| ConfigError::new(name, problems))
    }

    /// Whether queries over TCP are read and forwarded.
    pub fn forwards_queries(&self) -> bool {
        self.dns.tcp == TcpQueries::Forward && self.select.names.steer && self.mode == Mode::Mark
    }

    /// The breakout with this path id.
    pub fn breakout(&self, id: u8) -> Option<&Breakout> {
        self.breakouts.iter().find(|breakout| breakout.id == id)
    }
}

impl SystemConfig {
    /// The directories of a file that may have mistakes, so that what runs can be asked and ended
    /// nevertheless; none if the file cannot be read or is no TOML.
    pub fn salvage(path: &Path) -> Option<Self> {
        let file: toml::Table = std::fs::read_to_string(path).ok()?.parse().ok()?;
        let folder = |key, default: &str| {
            let named = file
                .get("system")
                .and_then(|system| system.get(key)?.as_str());
            PathBuf::from(named.unwrap_or(default))
        };
        Some(Self {
            pin_dir: folder("pin_dir", defaults::PIN_DIR),
            state_dir: folder("state_dir", defaults::STATE_DIR),
            run_dir: folder("run_dir", defaults::RUN_DIR),
        })
    }
}

impl Selection {
    /// The services of a list from now on.
    pub fn replace_list(&mut self, name: &str, services: Vec<OwnInclude>) {
        self.include.retain(|it| !list::is_of(&it.name, name));
        self.include.extend(services);
    }

    /// What is steered when the configuration does not say: Optimize and Allow of every area,
    /// without mail transport.
    pub fn default_for(instance: Instance) -> Self {
        Self {
            categories: defaults::CATEGORIES.into(),
            service_areas: ServiceArea::KNOWN.into(),
            exclude_sets: instance.sets_off_by_default().iter().copied().collect(),
            include: Vec::new(),
            exclude: Vec::new(),
            names: NameSelection::default(),
        }
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(id) => write!(f, "{id}"),
            Self::Stacked(outer, inner) => write!(f, "{outer}.{inner}"),
        }
    }
}

#[cfg(test)]
mod tests;
