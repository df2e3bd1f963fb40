//! `steer detach`.

use std::process::ExitCode;

use super::{ControllerOptions, Failure, block_on};
use crate::{
    api::{Answer, Client, ClientError, Drain},
    controller,
};

/// Stops steering new flows, waits for the steered ones to end, and removes every program, map,
/// rule, route, table and sysctl of steer.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: ControllerOptions,
    /// How many seconds steered flows get to end by themselves; 0 cuts them at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drain: u64,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let (system, _) = args.options.read_system()?;
    let drain = Drain {
        seconds: args.drain,
    };
    let answer = block_on(async {
        match Client::new(&controller::socket(&system))
            .detach(drain)
            .await
        {
            // No controller: the programs may be there nevertheless.
            Err(ClientError::Absent { .. } | ClientError::Ending { .. }) => {
                let detached = controller::detach(&system, drain).await?;
                Ok::<_, Failure>(Answer::done(detached.to_string()))
            }
            answer => Ok(answer?),
        }
    })??;
    args.options.print_answer(&answer)
}
