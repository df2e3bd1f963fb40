//! The values of the maps other than a generation: counters, the state of the paths, next hops.

use bytemuck::{Pod, Zeroable};

use crate::mark;

/// The most classes, the unused class 0 included.
pub const CLASSES: u32 = 512;
/// The counters of one CPU: one for each class and path.
pub const COUNTERS: u32 = CLASSES * mark::PATHS as u32;
/// The next hops: more than paths and families, so that one is never changed while in use.
pub const NEXT_HOPS: u8 = 128;

/// The index of the counter of a class on a path.
#[inline(always)]
pub const fn counter(class: u16, path: u8) -> u32 {
    (class as u32 & (CLASSES - 1)) * mark::PATHS as u32 + (path & 0x0f) as u32
}

/// The class and the path that a counter is for.
pub const fn counted(counter: u32) -> (u16, u8) {
    (
        (counter / mark::PATHS as u32) as u16,
        (counter % mark::PATHS as u32) as u8,
    )
}

/// Packets and bytes (of the IP packets).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// The preferences: which paths the new flows of a class take, and in which order. 0 is that of every
/// class that no other was given to.
pub const PREFERENCES: usize = 8;

/// Bit of [`FamilyTable::state`]: new flows are steered. Without it none is, and those that are
/// steered already stay where they are: by their grant in mark mode, by the flow table in
/// redirect mode.
pub const STEERING: u32 = 1 << (16 + NEXT as u32);

/// Whether this build's maps have another layout than a release's: a test of upgrades that confused
/// two layouts would take a path that is up for the word to steer, or nothing for it.
pub(crate) const NEXT: bool = cfg!(feature = "next-abi");

/// The state of the paths: its own lifetime, apart from plan and learned addresses. IPv4 and IPv6
/// have each their own, since one may be dead on a link where the other works.
///
/// Every field is read by itself and changes by itself; none needs another to be of the same
/// moment, since a packet is of one family and one class, and reads each of them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PathTable {
    /// For IPv4 (0) and IPv6 (1).
    pub families: [FamilyTable; 2],
    /// The next hop of each path in each family, an index of the next-hop map; 0: not resolved.
    pub next_hops: [[u8; 2]; mark::PATHS],
    /// The preference of each class.
    pub preferences: [u8; CLASSES as usize],
}

/// The state of the paths for the packets of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FamilyTable {
    /// Bit n (1 to 15): path n carries the flows that it has. Bit 16: [`STEERING`].
    pub state: u32,
    /// Where new flows go, for each preference.
    pub choices: [Choice; PREFERENCES],
}

/// Where the new flows of a preference go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Choice {
    /// Bit n (1 to 15): they may take path n.
    pub paths: u32,
    /// Which path a client takes, by a hash of its address; 0: none.
    pub buckets: [u8; 64],
}

impl PathTable {
    /// Every class has preference 0.
    pub const fn of(families: [FamilyTable; 2], next_hops: [[u8; 2]; mark::PATHS]) -> Self {
        Self {
            families,
            next_hops,
            preferences: [0; CLASSES as usize],
        }
    }

    /// What a client's flow of a class chooses from, by the hash of the client's address (family 0:
    /// IPv4, 1: IPv6).
    #[inline(always)]
    pub fn ways(&self, family: usize, class: u16, client: u64) -> Ways {
        let preference = self.preferences[usize::from(class) & (CLASSES as usize - 1)];
        let table = &self.families[family & 1];
        table.ways(usize::from(preference), client)
    }
}

impl FamilyTable {
    /// New flows may take every path that carries flows, whatever their class; `home` is every client's
    /// own.
    pub const fn of(state: u32, home: u8) -> Self {
        let choice = Choice {
            paths: state & 0xfffe,
            buckets: [home; 64],
        };
        Self {
            state,
            choices: [choice; PREFERENCES],
        }
    }

    /// What a client chooses from, by the hash of its address.
    #[inline(always)]
    pub fn ways(&self, preference: usize, client: u64) -> Ways {
        let choice = &self.choices[preference & (PREFERENCES - 1)];
        let home = choice.buckets[(client & 63) as usize] & 0x0f;
        Ways(
            u64::from(self.state & 0x000f_ffff)
                | u64::from(home) << HOME_SHIFT
                | u64::from(choice.paths) << CHOICE_SHIFT,
        )
    }
}

/// What a flow chooses from: the [state](FamilyTable::state) of the paths in bits 0 to 19, the
/// client's own path in bits 20 to 23, those it [may take](Choice::paths) from bit 32 on. One number,
/// so that it fits where a program's stack is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways(pub u64);

const HOME_SHIFT: u32 = 20;
const CHOICE_SHIFT: u32 = 32;

impl Ways {
    /// Whether new flows are steered.
    #[inline(always)]
    pub const fn is_steering(self) -> bool {
        self.0 & STEERING as u64 != 0
    }

    /// Whether a path carries the flows that it has.
    #[inline(always)]
    pub const fn carries(self, path: u8) -> bool {
        self.0 & (1 << (path & 0x0f)) != 0
    }

    /// The client's own path if its flows may take it, else the one with the lowest id that they may
    /// take, else none. Bit n of `without` leaves path n out.
    #[inline(always)]
    pub fn choose_without(self, without: u32) -> Option<u8> {
        let paths = (self.0 >> CHOICE_SHIFT) as u32 & 0xfffe & !without;
        let home = (self.0 >> HOME_SHIFT) as u8 & 0x0f;
        if paths & (1 << home) != 0 {
            return Some(home);
        }
        if paths == 0 {
            None
        } else {
            Some(lowest_bit(paths))
        }
    }
}

/// The number of the lowest bit of 16 that is set: a count of the bits below it, without branches
/// (the verifier would follow every outcome to the end of the program).
#[inline(always)]
const fn lowest_bit(bits: u32) -> u8 {
    let below = (bits & bits.wrapping_neg()).wrapping_sub(1);
    let pairs = (below & 0x5555) + ((below >> 1) & 0x5555);
    let fours = (pairs & 0x3333) + ((pairs >> 2) & 0x3333);
    let bytes = (fours & 0x0f0f) + ((fours >> 4) & 0x0f0f);
    ((bytes + (bytes >> 8)) & 0x0f) as u8
}

/// How to reach a path's gateway without the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NextHop {
    /// Destination and source address of the Ethernet header.
    pub macs: [u8; 12],
    /// The key in the map of devices.
    pub device: u32,
    /// The largest IP packet, in bytes.
    pub mtu: u32,
}

const _: () = assert!(size_of::<Count>() == 16 && align_of::<Count>() == 8);
const _: () = assert!(size_of::<PathTable>() == 1640 && align_of::<PathTable>() == 4);
const _: () = assert!(size_of::<NextHop>() == 20 && align_of::<NextHop>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(paths: u32, home: u8) -> Ways {
        FamilyTable::of(STEERING | paths, home).ways(0, 7)
    }

    #[test]
    fn a_client_takes_its_own_path_while_its_flows_may() {
        assert_eq!(ways(0b110, 2).choose_without(0), Some(2));
    }

    #[test]
    fn a_client_whose_own_path_is_none_for_its_flows_takes_another() {
        assert_eq!(ways(0b010, 2).choose_without(0), Some(1));
        assert_eq!(ways(1 << 15, 2).choose_without(0), Some(15));
        assert_eq!(ways(0b110, 2).choose_without(0b100), Some(1));
    }

    #[test]
    fn a_class_takes_the_paths_of_its_preference_and_flows_stay_where_they_are() {
        let mut table: PathTable = Zeroable::zeroed();
        for (family, paths) in table.families.iter_mut().zip([1_u32, 4]) {
            *family = FamilyTable::of(STEERING | 0xfffe, 1);
            family.choices[PREFERENCES - 1] = Choice {
                paths: paths << 1,
                buckets: [9; 64],
            };
        }
        table.preferences[511] = PREFERENCES as u8 - 1;
        for (family, class, chosen) in [(0, 510, 1), (1, 510, 1), (0, 511, 1), (1, 511, 3)] {
            let ways = table.ways(family, class, 7);
            assert!(ways.is_steering() && ways.carries(15));
            assert_eq!(ways.choose_without(0), Some(chosen), "{family} {class}");
        }
    }

    #[test]
    fn a_counter_knows_its_class_and_path() {
        for (class, path) in [(0, 0), (1, 0), (1, 15), (511, 15)] {
            assert_eq!(counted(counter(class, path)), (class, path));
        }
    }

    #[test]
    fn the_lowest_bit_is_found() {
        for bits in 1_u32..=0xffff {
            assert_eq!(
                u32::from(lowest_bit(bits)),
                bits.trailing_zeros(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn no_path_is_chosen_when_flows_may_take_none() {
        assert_eq!(ways(1, 2).choose_without(0), None);
        assert_eq!(ways(0, 0).choose_without(0), None);
    }
}
