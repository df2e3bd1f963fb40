//! `steer detach`.

use std::process::ExitCode;

use super::{ConfigOption, Failure, block_on, print_json, read_config};
use crate::{
    api::{Answer, Client, ClientError, Drain},
    controller,
};

/// Stops steering new flows, waits for the steered ones to end, and removes every program, map,
/// rule, route, table and sysctl of steer.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigOption,
    /// How many seconds steered flows get to end by themselves; 0 cuts them at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drain: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    let drain = Drain {
        seconds: args.drain,
    };
    let answer = block_on(async {
        match Client::new(&controller::socket(&config))
            .detach(drain)
            .await
        {
            // No controller: the programs may be there nevertheless.
            Err(ClientError::Absent { .. }) => {
                let detached = controller::detach(&config, drain).await?;
                Ok::<_, Failure>(Answer::done(detached.to_string()))
            }
            answer => Ok(answer?),
        }
    })??;
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
