//! `cargo xtask kernels`: steer in Debian's kernels, each booted in an emulator.
//!
//! The emulator is QEMU without hardware virtualisation: it needs no rights and gives the same
//! result everywhere. What runs in the guest is `steer-guest` of the lab's package.

mod archive;
mod guest;

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build,
    process::{say, workspace},
    setup::{self, Tool},
};
use archive::{Archive, Candidate, Minor};
use guest::{Check, Report};

/// Fewer kernels than this prove nothing.
const FEWEST: usize = 2;

const TOOLS: &[Tool] = &[
    Tool {
        command: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "it boots the kernels",
    },
    Tool {
        command: "busybox",
        package: "busybox-static",
        why: "the first process of the guest needs a shell",
    },
    Tool {
        command: "cpio",
        package: "cpio",
        why: "it packs the guest's files",
    },
    Tool {
        command: "modprobe",
        package: "kmod",
        why: "it finds the modules that the guest needs",
    },
];

/// Runs the checks in the newest kernel of each minor version that was asked for; of every one
/// that the archive has, when none was.
pub fn run(versions: &[String]) -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the kernels are run on x86-64 only"
    );
    let wanted: Vec<Minor> = versions
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_>>()?;
    let root = setup::install_missing()?;
    setup::install(&root, TOOLS)?;
    build()?;
    let directory = workspace().join("target/kernels");
    fs::create_dir_all(&directory)?;
    let archive = Archive::open(&directory.join("apt"))?;
    let offered = archive.kernels()?;

    let mut ran: Vec<Row> = Vec::new();
    let minors: Vec<Minor> = if wanted.is_empty() {
        offered.keys().copied().collect()
    } else {
        wanted
    };
    for minor in minors {
        match one(&archive, offered.get(&minor), minor) {
            Ok(row) => ran.push(row),
            Err(error) => say(&format!("{minor}: skipped: {error:#}")),
        }
    }
    print(&ran);
    let failed = ran.iter().filter(|row| !row.report.passed()).count();
    let fewest = if versions.is_empty() {
        FEWEST
    } else {
        FEWEST.min(versions.len())
    };
    ensure!(
        ran.len() >= fewest,
        "{} kernels ran, which proves nothing",
        ran.len()
    );
    if failed > 0 {
        bail!("{failed} of {} kernels failed", ran.len());
    }
    Ok(())
}

struct Row {
    release: String,
    report: Report,
    seconds: u64,
}

/// Fetches the newest kernel of a minor version that is still in the archive, and runs the guest
/// in it. An error is a kernel that could not be had; what went wrong in the guest is in the row.
fn one(archive: &Archive, candidates: Option<&Vec<Candidate>>, minor: Minor) -> Result<Row> {
    let candidates = candidates.context("the archive has no such kernel")?;
    let directory = workspace().join("target/kernels").join(minor.to_string());
    let candidate = archive.fetch(candidates, &directory)?;
    say(&format!("{minor}: {} boots", candidate.release));
    let started = Instant::now();
    let report = guest::prepare(&directory, &candidate.release)?.boot()?;
    let seconds = started.elapsed().as_secs();
    for check in &report.checks {
        say(&format!("{minor}: {check}"));
    }
    Ok(Row {
        release: candidate.release.clone(),
        report,
        seconds,
    })
}

/// The table, as Markdown.
fn print(rows: &[Row]) {
    const COLUMNS: [&str; 12] = [
        "mark program",
        "redirect program",
        "breakout program",
        "query program",
        "answer program",
        "mark mode",
        "neighbour",
        "redirect mode",
        "redirect, generic",
        "queries",
        "queries, redirect",
        "kinds of links",
    ];
    println!("| kernel | {} | seconds |", COLUMNS.join(" | "));
    println!("|---|{}---|", "---|".repeat(COLUMNS.len()));
    for row in rows {
        let found: BTreeMap<&str, &Check> = row
            .report
            .checks
            .iter()
            .map(|check| (check.name.as_str(), check))
            .collect();
        let cells = COLUMNS.map(|column| match found.get(column) {
            None => "did not run".to_owned(),
            Some(check) if check.passed => check.detail.clone(),
            Some(_) => "**FAILED**".to_owned(),
        });
        println!(
            "| {} | {} | {} |",
            row.release,
            cells.join(" | "),
            row.seconds
        );
    }
}
