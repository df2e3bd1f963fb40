//! The command line: one file for each subcommand, presentation only.
//!
//! Exit codes: 0 fine, 1 found something wrong, 2 usage or configuration; `steer run` ends with 3 after `steer detach`.

mod check;
mod detach;
mod dns;
mod doctor;
mod endpoints;
mod explain;
mod export;
mod feed;
mod init;
mod learned;
mod output;
mod reload;
mod run;
mod source;
mod status;
mod ways;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    api::Answer,
    config::{Breakout, Config, SystemConfig},
};

/// Local Internet breakout for Microsoft 365 on Linux edge routers.
#[derive(Parser)]
#[command(name = "steer", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Steer: put programs, rules and routes into the box and look after them.
    Run(run::Args),
    /// Show what steer is doing.
    Status(status::Args),
    /// Have the running controller read configuration and feed again.
    Reload(reload::Args),
    /// Stop steering and leave no trace.
    Detach(detach::Args),
    /// Check a configuration and show what it would do; change nothing.
    Check(check::Args),
    /// Write a commented configuration from what is found on this box.
    Init(init::Args),
    /// Say what on this box keeps steer from working well, and what to do.
    Doctor(doctor::Args),
    /// Say what happens to traffic to a destination, and why.
    Explain(explain::Args),
    /// Write the plan for other tools.
    Export(export::Args),
    /// Show pending queries and learned addresses.
    Dns(dns::Args),
    /// Look at Microsoft's endpoint list, and decide which version is in use.
    Endpoints(endpoints::Args),
}

/// The configuration file, the same option for every command.
#[derive(clap::Args, Clone, Debug)]
struct ConfigOption {
    /// The configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = source::DEFAULT_CONFIG
    )]
    config: PathBuf,
}

/// The options of a command that talks to the controller.
#[derive(clap::Args, Clone, Debug)]
struct ControllerOptions {
    #[command(flatten)]
    config: ConfigOption,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl ControllerOptions {
    fn read_config(&self) -> Result<Config, Failure> {
        read_config(&self.config.config)
    }

    /// The directories and the breakouts of the configuration: a mistake elsewhere in the file must
    /// not keep the operator from asking what runs, or from ending it.
    fn read_system(&self) -> Result<(SystemConfig, Vec<Breakout>), Failure> {
        let error = match Config::read(&self.config.config) {
            Ok(config) => return Ok((config.system, config.breakouts)),
            Err(error) => error,
        };
        match SystemConfig::salvage(&self.config.config) {
            None => Err(Failure::Usage(error.into())),
            Some(system) => {
                eprintln!(
                    "steer: {} has mistakes, which `steer check` names; only its directories are used",
                    self.config.config.display()
                );
                Ok((system, Vec::new()))
            }
        }
    }

    /// Prints what became of a command; 0 when it was carried out, else 1.
    fn print_answer(&self, answer: &Answer) -> Result<ExitCode, Failure> {
        if self.json {
            print_json(answer)?;
        } else {
            println!("{}", answer.message);
        }
        Ok(ExitCode::from(u8::from(!answer.done)))
    }
}

/// What went wrong, and what that means for the exit code.
pub(crate) enum Failure {
    /// Usage or configuration: exit code 2.
    Usage(anyhow::Error),
    /// Something is wrong: exit code 1.
    Wrong(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Wrong(error.into())
    }
}

/// The definition of the command line, for man pages and shell completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Status(args) => status::main(&args),
        Command::Reload(args) => reload::main(&args),
        Command::Detach(args) => detach::main(&args),
        Command::Check(args) => offline(check::run(&args)),
        Command::Doctor(args) => doctor::main(&args),
        Command::Init(args) => init::main(&args),
        Command::Dns(args) => dns::main(&args),
        Command::Explain(args) => offline(explain::run(&args)),
        Command::Export(args) => offline(export::run(args)),
        Command::Endpoints(args) => endpoints::main(&args),
    };
    match result {
        Ok(code) => code,
        Err(Failure::Usage(error)) => {
            eprintln!("steer: {}", told(&error));
            ExitCode::from(2)
        }
        Err(Failure::Wrong(error)) => {
            eprintln!("steer: {}", told(&error));
            ExitCode::from(1)
        }
    }
}

/// An error with its causes, each said once: some say theirs themselves.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The end of a command that only reads files: what it cannot use is usage or configuration.
fn offline(outcome: anyhow::Result<ExitCode>) -> Result<ExitCode, Failure> {
    match outcome {
        // `steer explain … | head` ends well.
        Err(error) if output::is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        outcome => outcome.map_err(Failure::Usage),
    }
}

fn read_config(path: &Path) -> Result<Config, Failure> {
    Config::read(path).map_err(|error| Failure::Usage(error.into()))
}

/// Runs a command's asynchronous part. One thread: `/proc/sys` and netlink follow the namespace of
/// the calling thread.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// Prints an object as JSON, on one line.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_names_itself_is_not_said_again() {
        let cause = || std::io::Error::other("the disk is gone");
        let silent = anyhow::Error::new(cause()).context("the list was not written");
        assert_eq!(told(&silent), "the list was not written: the disk is gone");
        let naming = anyhow::Error::new(cause()).context("the disk is gone, nothing was written");
        assert_eq!(told(&naming), "the disk is gone, nothing was written");
    }
}
