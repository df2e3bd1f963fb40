//! Every developer command of steer.

fn main() {}
