//! Per-CPU counters by class and path, and of the reasons for passes.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use steer_common::{
    abi::{self, Count},
    reason::{self, Reason},
};

#[btf_map]
static COUNTS: PerCpuArray<Count, { abi::COUNTERS as usize }> = PerCpuArray::new();

#[btf_map]
static REASONS: PerCpuArray<u64, { reason::REASONS as usize }> = PerCpuArray::new();

/// Counts packets of a class on a path.
#[inline(always)]
pub fn steered(class: u16, path: u8, packets: u64, bytes: usize) {
    if let Some(count) = COUNTS.get_ptr_mut(abi::counter(class, path)) {
        // SAFETY: the value is this CPU's own, and softirqs do not interrupt each other.
        unsafe {
            (*count).packets += packets;
            (*count).bytes += bytes as u64;
        }
    }
}

/// Counts a pass.
#[inline(always)]
pub fn passed(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: as above.
        unsafe { *count += 1 }
    }
}
