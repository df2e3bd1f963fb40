//! The state of the paths, read once for a packet.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use steer_common::abi::PathTable;

#[btf_map]
static PATHS: Array<PathTable, 1> = Array::new();

/// The state of the paths; none only before the controller wrote it, which cannot be told from a
/// table that says "not steering".
#[inline(always)]
pub fn table() -> Option<&'static PathTable> {
    PATHS.get(0)
}
