//! What steer is doing, as one JSON object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    bypass::{Bypass, Over},
    endpoints::{ListReport, Report},
};

/// Whether packets are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SteeringState {
    /// Nothing of steer is in the kernel.
    Off,
    /// Connections that began before are watched; none is steered yet.
    Watching,
    /// New flows are steered.
    Steering,
    /// New flows are left alone while the steered ones end.
    Draining,
    /// The programs steer on by themselves; no controller is running.
    Unattended,
}

/// What steer is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether packets are steered.
    pub state: SteeringState,
    /// `mark` or `redirect`; none when off.
    pub mode: Option<String>,
    /// The version of this steer.
    pub version: String,
    /// The controller's process.
    pub pid: Option<u32>,
    /// When it started, in seconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started: Option<u64>,
    /// Seconds until the watch period is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub watching_for: Option<u64>,
    /// Where the endpoint list came from.
    pub feed: Option<FeedStatus>,
    /// Lists that are fetched from a URL.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lists: Vec<ListReport>,
    /// The active plan.
    pub plan: Option<PlanStatus>,
    /// The interfaces where packets are classified.
    pub lan: Vec<LanStatus>,
    /// The ways out.
    pub breakouts: Vec<BreakoutStatus>,
    /// Where the new flows of classes with a preference go.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub preferences: Vec<PreferenceStatus>,
    /// Packets and bytes by set and path.
    pub counters: Vec<ClassCounter>,
    /// Passes that might have been steers, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// What nftables decided (mark mode).
    pub nftables: Option<NftStatus>,
    /// What the kernel finds out about the breakouts when no controller runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dead_man: Option<DeadManStatus>,
    /// Queries and learned addresses; none while no query is touched.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dns: Option<DnsStatus>,
    /// What the operator should know.
    pub problems: Vec<String>,
}

/// Where the endpoint list came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedStatus {
    /// The file, or "built-in snapshot".
    pub source: String,
    /// The cloud.
    pub instance: String,
    /// Its version or date, if it says so.
    pub version: Option<String>,
    /// Endpoint sets in the feed.
    pub sets: usize,
    /// How it is kept current; none when the service is never asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub update: Option<Report>,
}

/// The active plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// The number of its generation.
    pub generation: u64,
    /// Endpoint sets in it.
    pub sets: usize,
    /// Prefixes in it.
    pub prefixes: usize,
}

/// An interface where packets are classified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanStatus {
    /// Its name.
    pub interface: String,
    /// How the program is attached.
    pub hook: String,
    /// How many instructions the verifier looked at.
    pub verified_instructions: Option<u32>,
}

/// Whether a path is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathHealth {
    /// It is.
    Up,
    /// It carries packets, but badly; the configuration says what that means.
    Degraded,
    /// It is not.
    Down,
}

/// A way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakoutStatus {
    /// The path id of marks, tables and counters.
    pub id: u8,
    /// The operator's name for it.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// Whether it is taken.
    pub state: PathHealth,
    /// Why not, or what is bad.
    pub reason: Option<String>,
    /// What else is known of a breakout that is down.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
    /// The same of each family. A link that has only one of them is up with that.
    #[serde(default)]
    pub families: Vec<FamilyStatus>,
    /// The IPv6 prefixes that its provider delegated: their packets leave untranslated.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub delegated: Vec<String>,
    /// The IPv4 next hop.
    pub gateway: Option<String>,
    /// The IPv6 next hop.
    pub gateway6: Option<String>,
    /// What is probed over it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub probes: Vec<ProbeStatus>,
    /// What the preferences with probes of their own find.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub preferences: Vec<PreferenceHealth>,
    /// Flows that were reset because it went down, since the controller's start.
    #[serde(default)]
    pub flows_reset: u64,
}

/// What a breakout is for one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Whether packets of it can leave by the breakout.
    pub state: PathHealth,
    /// Why not, or what is bad.
    pub reason: Option<String>,
    /// Whether new flows of it take the breakout now, all or some of them.
    #[serde(default)]
    pub takes_new_flows: bool,
}

/// What a breakout is for the classes of a preference, by that one's own probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceHealth {
    /// The preference.
    pub preference: String,
    /// Whether it would be taken.
    pub state: PathHealth,
    /// Why not, or what is bad.
    pub reason: Option<String>,
    /// What is probed.
    pub probes: Vec<ProbeStatus>,
}

/// Where the new flows of a preference's classes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceStatus {
    /// The operator's name for it.
    pub name: String,
    /// How many classes of the plan have it.
    pub classes: usize,
    /// The breakouts that IPv4 takes, by the client's hash; none: the backbone.
    pub ipv4: Vec<String>,
    /// The same for IPv6.
    pub ipv6: Vec<String>,
}

/// A target of probes over one breakout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Address and port.
    pub target: String,
    /// `tls` or `stun`.
    pub kind: String,
    /// The name that is asked for.
    pub name: Option<String>,
    /// The smoothed time to an answer, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// The smoothed deviation from it.
    pub jitter_ms: Option<f64>,
    /// The share of the latest probes without an answer, 0.0 to 1.0.
    pub loss: f64,
    /// Probes that were answered, since the breakout is probed.
    pub answered: u64,
    /// Probes that were not.
    pub lost: u64,
    /// Why the last one was not; none if it was.
    pub trouble: Option<String>,
}

/// Packets and bytes of one set on one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCounter {
    /// `microsoft` or `own`.
    pub list: String,
    /// The set's id.
    pub set: u16,
    /// Its category.
    pub category: Option<String>,
    /// Its service area.
    pub service_area: Option<String>,
    /// The breakout's name; none while no path was up.
    pub path: Option<String>,
    /// Packets: wished for that path in mark mode, sent there in redirect mode.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// What nftables decided about wishes since the table was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftStatus {
    /// Flows granted, by breakout.
    pub granted: BTreeMap<String, u64>,
    /// Packets whose flow began elsewhere and stayed there.
    pub refused: u64,
    /// Unanswered flows that followed their wish to another path.
    pub rewish: u64,
    /// Packets stopped because their source was not valid on the breakout.
    pub guard: u64,
}

/// The dead-man: what takes a dead breakout for down while no controller runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadManStatus {
    /// Whether it acts: no controller has given a sign of life for 10 s.
    pub acts: bool,
    /// The breakouts.
    pub breakouts: Vec<DeadManBreakout>,
}

/// What the dead-man knows of one breakout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadManBreakout {
    /// The operator's name for it.
    pub breakout: String,
    /// Whether answers are heard there; without that it is never taken for down.
    pub heard: bool,
    /// How the program that hears them is attached, as far as this controller knows.
    pub hook: Option<String>,
    /// How many of its instructions the verifier looked at.
    pub verified_instructions: Option<u32>,
    /// What it says of IPv4 and IPv6 by themselves.
    pub families: Vec<DeadManFamily>,
}

/// What the dead-man knows of a family on one breakout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadManFamily {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Whether the dead-man takes it for down now.
    pub down: bool,
    /// How often it did since steer's maps were made.
    pub openings: u32,
}

/// Queries and learned addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Names and patterns of the plan.
    pub names: usize,
    /// Addresses that answers taught and that are not forgotten yet.
    pub learned: usize,
    /// The resolvers, in the order of the file.
    pub resolvers: Vec<ResolverStatus>,
    /// What became of queries and answers, counted by event.
    pub events: BTreeMap<String, u64>,
    /// Queries over TCP; none where they are not read.
    #[serde(default)]
    pub tcp: Option<TcpQueryStatus>,
    /// Clients that ask resolvers past the office's; none where connections are not tracked.
    #[serde(default)]
    pub bypass: Option<BypassStatus>,
}

/// Clients whose queries cannot be read, in the connections of the last minute or two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassStatus {
    /// Clients that ask over TLS or QUIC, on port 853.
    pub tls: usize,
    /// Clients that ask a known public resolver over HTTPS.
    pub https: usize,
    /// Whom they ask.
    pub resolvers: Vec<BypassedTo>,
}

/// A resolver that clients ask past the office's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassedTo {
    /// Its address.
    pub address: String,
    /// Whose it is, if that is known.
    pub operator: Option<String>,
    /// `TLS` or `HTTPS`.
    pub over: String,
    /// Who asks it; the first twenty.
    pub clients: Vec<String>,
}

impl From<&Bypass> for BypassStatus {
    fn from(bypass: &Bypass) -> Self {
        const MOST: usize = 20;
        let resolvers = bypass.resolvers().into_iter();
        Self {
            tls: bypass.clients(Over::Tls),
            https: bypass.clients(Over::Https),
            resolvers: resolvers
                .map(|it| BypassedTo {
                    address: it.resolver.to_string(),
                    operator: it.operator.map(str::to_owned),
                    over: it.over.to_string(),
                    clients: it
                        .clients
                        .iter()
                        .take(MOST)
                        .map(ToString::to_string)
                        .collect(),
                })
                .collect(),
        }
    }
}

/// Queries over TCP, since the controller's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpQueryStatus {
    /// Connections of clients that were read.
    pub connections: u64,
    /// Queries that a breakout's resolver answered.
    pub near: u64,
    /// Queries that it left unanswered or failed, and that went where the client sent them.
    pub fell_back: u64,
    /// Other messages, which went where the client sent them.
    pub passed: u64,
    /// Connections of clients with too many at a time, which were closed.
    pub turned_away: u64,
    /// Addresses that were learned from answers.
    #[serde(default)]
    pub learned: u64,
}

impl From<crate::forwarder::Count> for TcpQueryStatus {
    fn from(count: crate::forwarder::Count) -> Self {
        let crate::forwarder::Count {
            connections,
            near,
            fell_back,
            passed,
            turned_away,
            learned,
        } = count;
        Self {
            connections,
            near,
            fell_back,
            passed,
            turned_away,
            learned,
        }
    }
}

/// A resolver of a breakout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverStatus {
    /// The breakout's name.
    pub breakout: String,
    /// Its address.
    pub address: String,
    /// Where steer knows it from: the configuration, a file of the link's, or `[dns] public`.
    #[serde(default)]
    pub origin: String,
    /// Whether queries go to it now, as long as it is not taken for dead.
    pub active: bool,
    /// Whether it is taken for dead: it left queries unanswered.
    pub dead: bool,
    /// Queries sent to it.
    pub queries: u64,
    /// Answers from it.
    pub answers: u64,
    /// Those of them that say SERVFAIL, REFUSED or the like.
    pub failures: u64,
    /// Queries since the last answer.
    pub unanswered: u32,
    /// The mean time to its answers, in microseconds.
    pub mean_us: Option<u64>,
}

impl Status {
    /// Nothing of steer is in the kernel.
    pub fn off() -> Self {
        Self {
            state: SteeringState::Off,
            mode: None,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: None,
            started: None,
            watching_for: None,
            feed: None,
            lists: Vec::new(),
            plan: None,
            lan: Vec::new(),
            breakouts: Vec::new(),
            preferences: Vec::new(),
            counters: Vec::new(),
            reasons: BTreeMap::new(),
            nftables: None,
            dead_man: None,
            dns: None,
            problems: Vec::new(),
        }
    }
}
