//! `steer` with another layout of the maps (feature `next-abi`): what a later release may be, for
//! tests of upgrades.

use std::process::ExitCode;

fn main() -> ExitCode {
    steer_user::cli::main()
}
