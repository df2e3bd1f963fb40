//! The library behind `steer`: from Microsoft's endpoint list and the operator's configuration to
//! packets that leave by the office's own Internet connection.
#![deny(missing_docs)]

pub mod api;
pub mod cli;
pub mod config;
pub mod controller;
pub mod datapath;
pub mod endpoints;
pub mod policy;
pub mod system;

/// The reference programs of the benchmark.
#[cfg(feature = "bench-object")]
pub mod bench_object {
    /// The object with the generator, the sinks and the redirect without classifier.
    pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-bench"));
}
