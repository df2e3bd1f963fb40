//! `steer run`.

use std::{io::IsTerminal as _, process::ExitCode};

use tracing_subscriber::EnvFilter;

use super::{ConfigOption, Failure, block_on, read_config};
use crate::controller::{self, Ended, Options};

/// Steers until a signal comes; the programs in the kernel steer on after it.
///
/// Exit code 3 says that `steer detach` ended it: a service manager should not start it again.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigOption,
    /// Have the kernel programs log odd packets (malformed ones, foreign marks).
    #[arg(long)]
    log_packets: bool,
}

/// Of no other command: packaging/steer.service names it in `RestartPreventExitStatus=`.
const DETACHED: u8 = 3;

/// What is logged unless `STEER_LOG` says otherwise. `steer_mark` and `steer_fast` are the kernel
/// programs, which log nothing but what `--log-packets` asks for.
const LOGGED: &str = "warn,steer_user=info,steer_mark=debug,steer_fast=debug";

pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let filter = EnvFilter::try_from_env("STEER_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
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
    Ok(match block_on(controller::run(config, options))?? {
        Ended::Stopped => ExitCode::SUCCESS,
        Ended::Detached => ExitCode::from(DETACHED),
    })
}
