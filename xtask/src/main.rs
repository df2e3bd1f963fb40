//! Every developer command of steer, so that a fresh clone needs cargo and nothing else.
//!
//! The commands set up what they need themselves. Everything is built with the development
//! profile: the kernel programs are optimised in any case (their build script asks for it), the
//! rest is not worth the minutes that an optimised build takes, and one profile for all commands
//! means that only the first of them has to build.

mod ci;
mod dist;
mod kernels;
mod process;
mod residue;
mod setup;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::process::{Root, cargo, say};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Developer commands of steer")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    Setup,
    /// Show steer at work in a branch office of network namespaces
    ///
    /// With arguments after `--`, run the real `steer` with them instead, as root.
    Run {
        /// How steer takes packets to the breakout [default: mark]
        #[arg(long, value_parser = ["mark", "redirect"])]
        mode: Option<String>,
        /// End with one JSON object on standard output
        #[arg(long)]
        json: bool,
        /// Leave the office up, and say how to look around
        #[arg(long)]
        keep: bool,
        /// Arguments for `steer` itself
        #[arg(last = true, value_name = "ARGS", conflicts_with_all = ["mode", "json", "keep"])]
        steer: Vec<OsString>,
    },
    /// Run every test; further arguments go to `cargo test`
    Test {
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Measure steer against what a router does without it
    Bench {
        /// Options of the benchmark: --rounds N, --quick, --json, …
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTION"
        )]
        args: Vec<OsString>,
    },
    /// Feed the endpoint list's parser and validator made-up, mutated and random answers
    Fuzz {
        /// How many
        #[arg(default_value_t = 10_000_000)]
        answers: u64,
    },
    /// Boot Debian's kernels in an emulator and run steer in each
    Kernels {
        /// Minor versions, such as 6.1 [default: all that the archive has]
        #[arg(value_name = "VERSION")]
        versions: Vec<String>,
    },
    /// Regenerate the built-in snapshot of Microsoft's endpoints from their JSON
    Snapshot {
        /// The answer of the endpoint web service
        file: PathBuf,
    },
    /// Build a .deb and an .rpm into target/dist
    Dist {
        /// Install, upgrade, remove and purge them in a throw-away copy of this machine, too
        #[arg(long = "try")]
        try_them: bool,
    },
    /// Check everything that must hold before a change is merged
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => {
            setup::install_missing()?;
            say("set up: `cargo build`, `cargo xtask run` and `cargo xtask test` will work");
            Ok(())
        }
        Command::Run {
            mode,
            json,
            keep,
            steer,
        } => {
            let root = setup::install_missing()?;
            if !steer.is_empty() {
                return run_binary(&root, "steer", steer);
            }
            let mut args: Vec<OsString> = Vec::new();
            if let Some(mode) = mode {
                args.extend(["--mode".into(), mode.into()]);
            }
            if json {
                args.push("--json".into());
            }
            if keep {
                args.push("--keep".into());
            }
            run_binary(&root, "steer-lab", args)
        }
        Command::Test { args } => {
            let root = setup::install_missing()?;
            test(&root, &args)
        }
        Command::Bench { args } => {
            let root = setup::install_missing()?;
            run_binary(&root, "steer-bench", args)
        }
        Command::Fuzz { answers } => {
            setup::install_for_building()?;
            cargo(["test", "--quiet", "--package", "steer-user", "--lib"])
                .args(["fuzz::", "--", "--nocapture"])
                .env("STEER_FUZZ", answers.to_string())
                .run()
        }
        Command::Kernels { versions } => kernels::run(&versions),
        Command::Snapshot { file } => {
            setup::install_for_building()?;
            build()?;
            cargo(["run", "--quiet", "--bin", "steer"])
                .args(["--", "endpoints", "snapshot"])
                .arg(std::path::absolute(file)?)
                .args(["--write", "steer-user/src/endpoints/snapshot.txt"])
                .become_it()
        }
        Command::Dist { try_them } => {
            dist::build()?;
            if try_them {
                dist::try_them(&setup::install_missing()?)?;
            }
            Ok(())
        }
        Command::Ci => ci::run(),
    }
}

/// Runs every test of the workspace, with root's rights for those that need the kernel.
fn test(root: &Root, args: &[OsString]) -> Result<()> {
    root.cargo_runner(cargo(["test", "--workspace", "--exclude", "steer-ebpf"]))
        .args(args)
        .run()
}

/// Builds every binary of the workspace at once: the demonstration starts `steer` from beside
/// itself, and packages that are built one by one get other features and are built again.
fn build() -> Result<()> {
    cargo(["build", "--bins"]).run()
}

/// Builds the binary and becomes it, so that signals and the exit code are its own.
fn run_binary(root: &Root, binary: &str, args: Vec<OsString>) -> Result<()> {
    build()?;
    root.cargo_runner(cargo(["run", "--quiet", "--bin", binary]))
        .arg("--")
        .args(args)
        .become_it()
}
