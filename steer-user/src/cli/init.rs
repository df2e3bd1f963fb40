//! `steer init`.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::{Failure, block_on, output, source::DEFAULT_CONFIG};
use crate::init::{Proposal, Survey};

/// Writes a commented configuration from what is found on this box: LANs, breakouts, the backbone.
/// What is not sure is commented out, with a question.
///
/// Exit code 1 when no LAN or no breakout was found.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to write; a file that exists is never touched. Absent: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let survey = block_on(Survey::take())??;
    let Proposal { text, missing } = survey.proposal();
    match &args.output {
        None => output::print(&text)?,
        Some(path) => {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .with_context(|| format!("{} was not written", path.display()))
                .map_err(Failure::Usage)?;
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .with_context(|| format!("{} was not written whole", path.display()))?;
            eprintln!(
                "wrote {0}: read it, answer its questions, then: steer check -c {0}; steer doctor -c {0}",
                path.display()
            );
        }
    }
    for what in &missing {
        eprintln!("steer: {what}");
    }
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "steer: answer the questions in the file before it goes to {DEFAULT_CONFIG}; `steer check --sample` names every key"
    );
    Ok(ExitCode::from(1))
}
