//! What a router's configuration looks like, before and after: `detach` must leave no trace.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Result;

use crate::{lab::Lab, namespace::Namespace};

/// Everything of a router that steer could have changed, as text by heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    parts: BTreeMap<String, String>,
}

impl Snapshot {
    /// Takes rules, routes of all tables, the nftables ruleset, sysctls of interfaces, qdiscs and
    /// programs on interfaces, and pins.
    pub fn take(lab: &Lab) -> Result<Self> {
        let router = &lab.router;
        let commands: [(&str, &[&str]); 10] = [
            ("rules", &["ip", "-4", "rule", "show"]),
            ("rules, IPv6", &["ip", "-6", "rule", "show"]),
            ("routes", &["ip", "-4", "route", "show", "table", "all"]),
            (
                "routes, IPv6",
                &["ip", "-6", "route", "show", "table", "all"],
            ),
            // Whatever is found out by itself has no owner.
            (
                "neighbours of an owner",
                &["ip", "neighbour", "show", "nud", "all", "proto", "86"],
            ),
            ("nftables", &["nft", "-s", "list", "ruleset"]),
            ("qdiscs", &["tc", "qdisc", "show"]),
            ("programs on interfaces", &["bpftool", "net", "show"]),
            ("addresses", &["ip", "-o", "address", "show"]),
            ("links", &["ip", "-o", "link", "show"]),
        ];
        let mut parts = BTreeMap::new();
        for (heading, command) in commands {
            let text = router.output(command[0], &command[1..])?;
            parts.insert(heading.to_owned(), settled(&text));
        }
        parts.insert("sysctls".into(), sysctls(router)?);
        parts.insert("pins".into(), pins(&lab.pin_directory()));
        Ok(Self { parts })
    }

    /// What is different in `after`, as lines with `-` (gone) and `+` (new); empty when nothing.
    pub fn difference(&self, after: &Self) -> String {
        let mut text = String::new();
        for (heading, before) in &self.parts {
            let now = after.parts.get(heading).map_or("", String::as_str);
            let gone = before
                .lines()
                .filter(|line| !now.lines().any(|other| other == *line));
            let new = now
                .lines()
                .filter(|line| !before.lines().any(|other| other == *line));
            for (sign, line) in gone
                .map(|line| ('-', line))
                .chain(new.map(|line| ('+', line)))
            {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{sign} {heading}: {line}");
            }
        }
        text
    }
}

/// Without what changes by itself: lifetimes, neighbour-dependent flags, attachment ids.
fn settled(text: &str) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let words = line.split_ascii_whitespace();
            let mut kept = vec![];
            let mut skip = false;
            for word in words {
                if std::mem::take(&mut skip) {
                    continue;
                }
                if matches!(word, "expires" | "valid_lft" | "preferred_lft") {
                    skip = true;
                    continue;
                }
                kept.push(word);
            }
            kept.join(" ")
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn sysctls(router: &Namespace) -> Result<String> {
    router.run(|| {
        let mut text = String::new();
        for family in ["ipv4", "ipv6"] {
            let base = Path::new("/proc/sys/net").join(family);
            read_sysctls(&base.join("conf"), &mut text);
            for name in ["ip_forward", "tcp_l3mdev_accept", "fwmark_reflect"] {
                read_sysctls(&base.join(name), &mut text);
            }
        }
        read_sysctls(Path::new("/proc/sys/net/netfilter"), &mut text);
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    })
}

fn read_sysctls(path: &Path, text: &mut String) {
    if path.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            read_sysctls(&entry.path(), text);
        }
    } else if let Ok(value) = fs::read_to_string(path) {
        // The number of entries is no setting.
        if !path.ends_with("nf_conntrack_count") {
            let _ = writeln!(text, "{} = {}", path.display(), value.trim());
        }
    }
}

fn pins(directory: &Path) -> String {
    let mut text = String::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.exists() {
            let _ = writeln!(text, "{}", path.display());
        }
        open.extend(
            fs::read_dir(&path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path()),
        );
    }
    text
}
