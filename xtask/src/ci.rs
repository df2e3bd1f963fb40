//! What must hold before a change is merged, step by step; the first failing step ends it.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    build,
    process::{Root, Step, cargo, say},
    residue, setup, test,
};

/// Runs every step.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let mut root = None;
    step("set-up", || {
        root = Some(setup::install_missing()?);
        setup::install_component("rustfmt", &["fmt", "--version"], "ci checks the format")?;
        setup::install_component("clippy", &["clippy", "--version"], "ci runs the lints")
    })?;
    let root = root.context("set-up found no way to root")?;
    let before = residue::find(&root)?;

    step("format", || cargo(["fmt", "--all", "--check"]).run())?;
    step("lints: host", || {
        cargo([
            "clippy",
            "--locked",
            "--workspace",
            "--exclude",
            "steer-ebpf",
        ])
        .args(["--all-targets", "--", "-Dwarnings"])
        .run()
    })?;
    step("lints: kernel programs", || kernel_clippy().run())?;
    step("documentation", || {
        cargo([
            "doc",
            "--locked",
            "--no-deps",
            "--workspace",
            "--exclude",
            "steer-ebpf",
        ])
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .run()
    })?;
    // One failure must not hide the next: each costs its own run.
    let all = ["--locked", "--no-fail-fast"].map(Into::into);
    step("tests", || test(&root, &all))?;
    for mode in ["mark", "redirect"] {
        step(&format!("demonstration: {mode}"), || {
            demonstrate(&root, mode)
        })?;
    }
    step("nothing left behind", || nothing_left(&root, &before))?;
    say(&format!(
        "\nci: all steps passed in {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    say(&format!("\n== {name}"));
    let started = Instant::now();
    check().with_context(|| format!("ci stopped at \"{name}\""))?;
    say(&format!(
        "== {name}: passed in {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// What `cargo xtask run` shows, which fails when a single flow goes astray.
fn demonstrate(root: &Root, mode: &str) -> Result<()> {
    build()?;
    root.cargo_runner(cargo([
        "run",
        "--quiet",
        "--bin",
        "steer-lab",
        "--",
        "--mode",
        mode,
    ]))
    .run()
}

/// The lints of the kernel programs, on the target they are built for.
fn kernel_clippy() -> Step {
    let arch = format!("bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    cargo(["clippy", "--locked", "--release", "--package", "steer-ebpf"])
        .args(["-Zbuild-std=core", "--target", "bpfel-unknown-none"])
        .args(["--target-dir", "target/bpf", "--", "-Dwarnings"])
        // The stable toolchain builds `core` when told so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", ["--cfg", &arch].join("\x1f"))
}

fn nothing_left(root: &Root, before: &[String]) -> Result<()> {
    let mut left = residue::find(root)?;
    left.retain(|thing| !before.contains(thing));
    if left.is_empty() {
        return Ok(());
    }
    bail!("the tests left behind: {}", left.join(", "))
}
