//! `cargo xtask bench`: measures steer against what a router does without it.

use std::process::ExitCode;

use clap::Parser;
use steer_tests::bench::{Options, Report, run};

/// Measures steer against plain forwarding, against nftables with a mark and `ip rule`, and
/// against a redirect that classifies nothing. Exit code 1: a gate was missed.
#[derive(Parser)]
#[command(name = "steer-bench")]
struct Cli {
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    let options = Options {
        rounds: if cli.quick { 3 } else { cli.rounds },
    };
    match run(&options).and_then(|report| print(&report, cli.json).map(|()| report)) {
        Ok(report) if report.passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
