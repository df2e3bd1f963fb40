//! Next hops of redirect mode: which place of the kernel's table holds which.
//!
//! An entry is 20 bytes and cannot be replaced at once under a packet that reads it. So a changed
//! next hop goes to a place that no path names, and the path table, one byte a path, names it then.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::abi::{NEXT_HOPS, NextHop};

use crate::system::PathId;

/// A path and a family: 0 is IPv4, 1 is IPv6.
pub type Key = (PathId, usize);

/// The places of the table.
#[derive(Debug)]
pub struct NextHops {
    placed: BTreeMap<Key, (u8, NextHop)>,
    /// Named by the controller before this one: packets may still read them.
    inherited: BTreeSet<u8>,
    next: u8,
}

/// Places run from 1: 0 means "not resolved".
const LAST: u8 = NEXT_HOPS - 1;

impl NextHops {
    /// Nothing placed. `in_use` are the places that a controller before this one named.
    pub fn new(in_use: impl IntoIterator<Item = u8>) -> Self {
        let inherited: BTreeSet<u8> = in_use.into_iter().collect();
        let highest = inherited.last().copied().unwrap_or(0);
        Self {
            placed: BTreeMap::new(),
            inherited,
            next: if highest >= LAST { 1 } else { highest + 1 },
        }
    }

    /// The place of a next hop, and whether it has to be written there first.
    pub fn place(&mut self, key: Key, hop: NextHop) -> (u8, bool) {
        if let Some(&(place, placed)) = self.placed.get(&key)
            && placed == hop
        {
            return (place, false);
        }
        // Going around the ring, a place comes back only after every other one was used: no packet
        // holds an old one for that long.
        while self.inherited.contains(&self.next)
            || self.placed.values().any(|&(place, _)| place == self.next)
        {
            self.advance();
        }
        let place = self.next;
        self.advance();
        self.placed.insert(key, (place, hop));
        (place, true)
    }

    fn advance(&mut self) {
        self.next = if self.next == LAST { 1 } else { self.next + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(mtu: u32) -> NextHop {
        NextHop {
            macs: [1; 12],
            device: 1,
            mtu,
        }
    }

    fn key(id: u8) -> Key {
        (PathId::new(id).unwrap(), 0)
    }

    #[test]
    fn a_next_hop_that_stays_is_written_once() {
        let mut hops = NextHops::new([]);
        assert_eq!(hops.place(key(1), hop(1500)), (1, true));
        assert_eq!(hops.place(key(1), hop(1500)), (1, false));
    }

    #[test]
    fn a_place_that_is_in_use_is_never_written() {
        let mut hops = NextHops::new([3, 7]);
        let (stays, _) = hops.place(key(2), hop(9000));
        assert_eq!(stays, 8);
        let mut hops_at_the_end = NextHops::new([1, LAST]);
        assert_eq!(hops_at_the_end.place(key(1), hop(1500)), (2, true));
        let mut previous = 0;
        for mtu in 1..1000 {
            let (place, write) = hops.place(key(1), hop(mtu));
            assert!(write && place != 0 && place != stays && place != previous);
            previous = place;
        }
    }
}
