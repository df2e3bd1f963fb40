//! What names and clients may have in a window of time.
//!
//! Counters in an array, by a hash: nothing is evicted, so that a flood of names or clients gives nobody
//! a new budget. Who meets in a counter shares it.

use aya_ebpf::btf_maps::Array;
use steer_common::dns::{self, Budget};

/// The counters of one kind of budget.
pub type Budgets = Array<Budget, { dns::BUDGETS as usize }>;

/// A counter with something left: a valid value of a map.
pub struct Left(*mut Budget);

/// The budget of somebody in a window, if any is left.
#[inline(always)]
pub fn left(budgets: &Budgets, who: u64, budget: u32, window: u64) -> Option<Left> {
    let counter = budgets.get_ptr_mut(who as u32 & (dns::BUDGETS - 1))?;
    // SAFETY: aligned loads of single fields of a valid map value.
    let (known, used) = unsafe {
        (
            (&raw const (*counter).window).read_volatile(),
            (&raw const (*counter).used).read_volatile(),
        )
    };
    (known != window as u32 || used < budget).then_some(Left(counter))
}

impl Left {
    /// Takes one. Two CPUs that take at once may take the same one.
    #[inline(always)]
    pub fn spend(self, window: u64) {
        // SAFETY: aligned accesses of single fields of a valid map value.
        unsafe {
            let known = (&raw const (*self.0).window).read_volatile();
            let used = if known == window as u32 {
                (&raw const (*self.0).used).read_volatile()
            } else {
                0
            };
            (&raw mut (*self.0).used).write_volatile(used.saturating_add(1));
            (&raw mut (*self.0).window).write_volatile(window as u32);
        }
    }
}

const _: () = assert!(dns::BUDGETS.is_power_of_two());
