//! The demo of `cargo xtask run`: see [`steer_tests::demo`].

use std::process::ExitCode;

use steer_tests::demo::{self, Options};

fn main() -> ExitCode {
    match Options::parse().and_then(|options| demo::run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
