//! `steer run`.

use std::{io::IsTerminal as _, process::ExitCode};

use tracing_subscriber::EnvFilter;

use super::{ConfigOption, Failure, block_on, read_config};
use crate::controller::{self, Options};

/// Steers until a signal comes; the programs in the kernel steer on after it.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigOption,
    /// Have the kernel programs log odd packets (malformed ones, foreign marks).
    #[arg(long)]
    log_packets: bool,
}

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let level = if args.log_packets { "debug" } else { "info" };
    let filter = EnvFilter::try_from_env("STEER_LOG").unwrap_or_else(|_| EnvFilter::new(format!("warn,steer_user={level},steer_mark={level},steer_fast={level},mark={level},fast={level}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let config = read_config(&args.config.config)?;
    let options = Options {
        config: args.config.config,
        log_packets: args.log_packets,
    };
    block_on(controller::run(config, options))??;
    Ok(ExitCode::SUCCESS)
}
