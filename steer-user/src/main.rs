//! The binary `steer`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    steer_user::cli::main()
}
