//! The kernel programs as built, embedded in the binary.

/// Mark mode.
pub static MARK: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-mark"));
/// Redirect mode.
pub static FAST: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-fast"));
/// What hears the answers on a breakout, in both modes.
pub static BREAKOUT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-breakout"));
/// Queries and answers, in both modes.
pub static DNS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-dns"));
/// What the benchmark compares steer with.
#[cfg(feature = "bench-object")]
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-bench"));
