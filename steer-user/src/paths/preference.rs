//! Numbers for preferences: where the new flows of some classes go.

use steer_common::abi::PREFERENCES;

/// The number of a preference in the kernel: its place in the configuration, from 1; 0 is what holds for
/// every class that none names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PreferenceId(u8);

impl PreferenceId {
    /// What holds for every class that no preference names.
    pub const DEFAULT: Self = Self(0);

    /// The preference with this number; none if there are not so many.
    pub fn at(number: usize) -> Option<Self> {
        let known = u8::try_from(number).ok().filter(|_| number < PREFERENCES);
        known.map(Self)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number, as a place in a list.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
