//! `steer reload`.

use std::process::ExitCode;

use super::{ControllerOptions, Failure, block_on};
use crate::{api::Client, controller};

/// Has the running controller read configuration and feed again: whole, or not at all.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: ControllerOptions,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let config = args.options.read_config()?;
    let answer = block_on(Client::new(&controller::socket(&config.system)).reload())??;
    args.options.print_answer(&answer)
}
