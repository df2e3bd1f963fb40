//! The binary `steer`.

fn main() {}
