//! `cargo xtask bench`: measures steer against what a router does without it, and how soon it leads
//! flows elsewhere.

use std::{fmt::Display, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;
use steer_tests::bench::{
    Options,
    failover::{self, FailoverOptions},
    run,
};

/// Measures steer against plain forwarding, against nftables with a mark and `ip rule`, and
/// against a redirect that classifies nothing. Exit code 1: a gate was missed.
#[derive(Parser)]
#[command(name = "steer-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Rounds; in each, every row is measured once, and ratios are made inside a round
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A look rather than a judgement: 3 rounds
    #[arg(long)]
    quick: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// How soon new flows take another way when a breakout fails, and come back. Exit code 1: a bound
    /// was missed
    Failover {
        /// Pulled cables and black holes, each
        #[arg(long, default_value_t = 100)]
        runs: u32,
        /// Changes of an interface: deleted and made again, another address, gateway, MAC
        #[arg(long, default_value_t = 200)]
        changes: u32,
        /// Seconds for which a link flaps
        #[arg(long, default_value_t = 60)]
        flapping: u32,
        /// One JSON object at the end instead of the table
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.what {
        None => {
            let rounds = if cli.quick { 3 } else { cli.rounds };
            run(&Options { rounds })
                .and_then(|report| print(&report, cli.json).map(|()| report.passed()))
        }
        Some(What::Failover {
            runs,
            changes,
            flapping,
            json,
        }) => failover::run(FailoverOptions {
            runs,
            changes,
            flapping,
        })
        .and_then(|report| print(&report, json).map(|()| report.passed())),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print(report: &(impl Display + Serialize), json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
