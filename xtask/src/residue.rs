//! What steer and its lab leave on a machine when something does not clean up.

use std::fs;

use anyhow::Result;

use crate::process::Root;

/// Every trace found, named so that a person can go and look.
pub fn find(root: &Root) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let namespaces = root.program("ip").args(["netns", "list"]).output()?;
    for name in namespaces
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        if name.starts_with("steer") {
            found.push(format!("namespace {name}"));
        }
    }
    let pins = root
        .program("find")
        .args([
            "/sys/fs/bpf",
            "-mindepth",
            "1",
            "-maxdepth",
            "1",
            "-name",
            "steer*",
        ])
        .output()?;
    found.extend(pins.lines().map(|pin| format!("pin {pin}")));
    for family in ["-4", "-6"] {
        let rules = root.program("ip").args([family, "rule", "show"]).output()?;
        let ours = rules.lines().filter(|rule| is_our_rule(rule));
        found.extend(ours.map(|rule| format!("rule {family} {rule}")));
    }
    let tables = root.program("nft").args(["list", "tables"]).output()?;
    let ours = tables.lines().filter(|table| table.ends_with(" steer"));
    found.extend(ours.map(|table| format!("nftables {table}")));
    let links = root.program("ip").args(["-o", "link", "show"]).output()?;
    for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
        if name.starts_with("steer") {
            found.push(format!("link {name}"));
        }
    }
    found.extend(processes()?);
    Ok(found)
}

/// Rule preferences 595 to 615 are steer's.
fn is_our_rule(rule: &str) -> bool {
    let pref = rule
        .split(':')
        .next()
        .and_then(|pref| pref.parse::<u32>().ok());
    pref.is_some_and(|pref| (595..=615).contains(&pref))
}

fn processes() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Gone since the directory was read: not left behind.
        let Ok(comm) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        let comm = comm.trim();
        if matches!(comm, "steer" | "steer-lab" | "steer-bench") {
            found.push(format!("process {comm} {name}"));
        }
    }
    Ok(found)
}
