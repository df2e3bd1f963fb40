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
    let counter = budgets.get_ptr_mut(Budget::place(who))?;
    // SAFETY: an aligned load of a valid map value.
    let known = unsafe { counter.read_volatile() };
    known.allows(budget, window).then_some(Left(counter))
}

impl Left {
    /// Takes one. Two CPUs that take at once may take the same one.
    #[inline(always)]
    pub fn spend(self, window: u64) {
        // SAFETY: aligned accesses of a valid map value.
        unsafe { self.0.write_volatile(self.0.read_volatile().spent(window)) }
    }
}
