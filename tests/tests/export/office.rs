//! The configuration whose plan is exported, and questions about it.

use std::{collections::BTreeSet, fs, net::IpAddr, process::Command};

use ipnet::IpNet;
use steer_common::rule::{TCP, UDP};
use steer_tests::steer::binary;
use steer_user::{
    config::Config,
    endpoints::{Feed, Ports},
    policy::{ClassRegistry, Flow, Plan, Site},
};
use tempfile::TempDir;

/// Excludes cut a half, an edge, a single address and a whole prefix out of what is selected;
/// includes overlap Microsoft's sets and each other, in category and ports, too.
const INCLUDES: [&str; 4] = [
    r#"{ name = "own", prefixes = ["198.51.100.0/24", "2001:db8:5::/48"], protocol = "tcp", ports = "443,8000-8100" }"#,
    r#"{ name = "part", prefixes = ["198.51.100.128/25", "198.51.100.0/26"], ports = "8050-8200", category = "optimize" }"#,
    r#"{ name = "same", prefixes = ["198.51.100.64/26", "52.112.1.0/24"], protocol = "tcp", ports = "8101-8150" }"#,
    r#"{ name = "low", prefixes = ["52.98.0.0/16", "203.0.113.0/24"], protocol = "udp", ports = "1-2", category = "default" }"#,
];

pub struct Office {
    pub folder: TempDir,
    pub plan: Plan,
}

/// What the command wrote.
pub struct Export {
    pub text: String,
    pub notes: String,
    file: String,
}

impl Export {
    pub fn file(&self) -> String {
        self.file.clone()
    }
}

impl Office {
    /// An office with these includes besides.
    pub fn new(more: &[&str]) -> Self {
        let include: Vec<&str> = INCLUDES.iter().chain(more).copied().collect();
        let text = format!(
            r#"
[select]
include = [{}]
exclude = ["52.96.0.0/15", "52.112.0.0/24", "13.107.128.7", "204.79.197.215", "198.51.100.130/31", "2603:1006::/41"]
[[lan]]
interface = "lan0"
[[breakout]]
name = "fiber"
interface = "brk0"
"#,
            include.join(", ")
        );
        let config = Config::parse("steer.toml", &text).unwrap();
        let plan = Plan::compile(
            Feed::builtin().unwrap(),
            config.select,
            Site::default(),
            &mut ClassRegistry::new(),
        );
        let office = Self {
            folder: tempfile::tempdir().unwrap(),
            plan: plan.unwrap(),
        };
        office.write("steer.toml", &text);
        office
    }

    /// Writes a file; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs `steer export FORMAT … -c FILE`.
    pub fn export(&self, arguments: &[&str]) -> Export {
        let output = Command::new(binary().unwrap())
            .arg("export")
            .args(arguments)
            .arg("-c")
            .arg(self.folder.path().join("steer.toml"))
            .output()
            .unwrap();
        let notes = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{notes}");
        let text = String::from_utf8(output.stdout).unwrap();
        let file = self.write("export", &text);
        Export { text, notes, file }
    }
}

/// Flows to and beside the edges of every prefix and port of the feed and the configuration.
pub fn flows(plan: &Plan) -> Vec<Flow> {
    let (select, sets) = (plan.selection(), &plan.feed().sets);
    let own = select.include.iter();
    let prefixes: BTreeSet<IpNet> = sets
        .iter()
        .flat_map(|set| &set.prefixes)
        .chain(own.clone().flat_map(|own| &own.prefixes))
        .chain(&select.exclude)
        .copied()
        .collect();
    let addresses: BTreeSet<IpAddr> = prefixes.iter().flat_map(around).collect();
    let lists = sets
        .iter()
        .flat_map(|set| [&set.tcp, &set.udp])
        .chain(own.flat_map(|own| [&own.tcp, &own.udp]));
    let ports: BTreeSet<u16> = lists
        .flat_map(Ports::ranges)
        .flat_map(|range| {
            let (lo, hi) = (range.lo(), range.hi());
            [lo.saturating_sub(1), lo, hi, hi.saturating_add(1)]
        })
        .collect();
    let mut flows = Vec::new();
    for destination in addresses {
        for port in &ports {
            flows.extend([TCP, UDP].map(|protocol| Flow {
                destination,
                protocol,
                port: *port,
                source: None,
            }));
        }
    }
    flows
}

/// The address before a prefix, its first, middle and last, and the one after it.
fn around(prefix: &IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let middle = first + (last - first) / 2;
            [
                first.wrapping_sub(1),
                first,
                middle,
                last,
                last.wrapping_add(1),
            ]
            .map(|bits| IpAddr::V4(bits.into()))
            .to_vec()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let middle = first + (last - first) / 2;
            [
                first.wrapping_sub(1),
                first,
                middle,
                last,
                last.wrapping_add(1),
            ]
            .map(|bits| IpAddr::V6(bits.into()))
            .to_vec()
        }
    }
}
