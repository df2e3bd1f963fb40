//! `steer reload`.

use std::process::ExitCode;

use super::{ConfigOption, Failure, block_on, print_json, read_config};
use crate::{api::Client, controller};

/// Has the running controller read configuration and feed again: whole, or not at all.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigOption,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    let answer = block_on(Client::new(&controller::socket(&config)).reload())??;
    if args.json {
        print_json(&answer)?;
    } else {
        println!("{}", answer.message);
    }
    Ok(if answer.done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
