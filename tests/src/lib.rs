//! The lab: a branch office in network namespaces, for `cargo xtask run` and for every test that
//! needs a real kernel.
#![deny(missing_docs)]

pub mod bench;
