//! The numbers steer uses inside the kernel: bits of the packet and connection mark (where they stand
//! is configured), rule priorities, table ids. They were chosen clear of mwan3, Tailscale, Kubernetes, pbr and FRR, and
//! every one is a type of its own, so that a mark cannot be passed where a table id is meant.

use std::fmt;

use steer_common::mark;
pub use steer_common::mark::Bits as MarkBits;

/// The routing protocol number steer writes on its routes and rules, by which it knows its own.
pub const PROTOCOL: u8 = 86;

/// A path's number, 1 to 15: the breakout's `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(u8);

impl PathId {
    /// The highest number that fits into the mark's four bits.
    pub const MAX: u8 = 15;

    /// `None` unless `id` is between 1 and [`PathId::MAX`]; 0 means "no path is up" in a wish.
    pub const fn new(id: u8) -> Option<Self> {
        match id {
            1..=Self::MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The number, 1 to 15.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The mark the fast path writes: "this packet should leave by this path".
    pub const fn wish(self, marks: MarkBits) -> Mark {
        Mark(marks.wish() | marks.id(self.0))
    }

    /// The mark nftables answers with, the only one that is routed and translated.
    pub const fn grant(self, marks: MarkBits) -> Mark {
        Mark(marks.grant() | marks.id(self.0))
    }

    /// The routing table that holds nothing but this path's default routes.
    pub const fn table(self) -> TableId {
        TableId(TableId::PATHS.0 + self.0 as u32)
    }

    /// The number at its place in a mark.
    pub const fn at_its_place(self, marks: MarkBits) -> Mark {
        Mark(marks.id(self.0))
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bits of a packet's or a connection's mark, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u32);

impl Mark {
    /// All bits steer owns; the rest of every mark belongs to others.
    pub const fn mask(marks: MarkBits) -> Self {
        Self(marks.mask())
    }

    /// The path number's bits.
    pub const fn id(marks: MarkBits) -> Self {
        Self(marks.id_mask())
    }

    /// "Should leave by path n"; in a connection mark: "asked for, not yet seen leaving".
    pub const fn wish(marks: MarkBits) -> Self {
        Self(marks.wish())
    }

    /// "Is for this router, whatever its destination": connections that the forwarder of queries
    /// answers. Neither a wish nor a grant, so no other rule means it.
    pub const fn here(marks: MarkBits) -> Self {
        Self::kind(marks)
    }

    /// "May leave by path n."
    pub const fn grant(marks: MarkBits) -> Self {
        Self(marks.grant())
    }

    /// Wish and grant: which of the two a mark of ours is.
    pub const fn kind(marks: MarkBits) -> Self {
        Self(marks.wish() | marks.grant())
    }

    /// Any 32 bits, as read from the kernel.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits as the kernel has them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The other owners' part of the 32 bits.
    pub const fn others(self) -> Self {
        Self(!self.0)
    }

    /// The path that a connection with this mark was granted; `None` if it is not a grant.
    pub const fn granted_path(self, marks: MarkBits) -> Option<PathId> {
        if self.0 & Self::kind(marks).0 == marks.grant() {
            PathId::new(marks.id_of(self.0))
        } else {
            None
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// A routing table's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u32);

impl TableId {
    /// The kernel's main table.
    pub const MAIN: Self = Self(254);
    /// Path n has the table with this number plus n.
    const PATHS: Self = Self(36500);
    /// Everything is delivered to this router.
    pub const HERE: Self = Self(Self::PATHS.0 + PathId::MAX as u32 + 1);

    /// Whether this is one of the tables that steer keeps.
    pub const fn is_ours(self) -> bool {
        self.0 > Self::PATHS.0 && self.0 <= Self::HERE.0
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MAIN => f.write_str("main"),
            Self(id) => id.fmt(f),
        }
    }
}

/// A policy rule's priority; the lowest is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RulePriority(u32);

impl RulePriority {
    /// Before the next: the check of a source's way back looks as packets of the router's own do,
    /// and with their mark (`src_valid_mark`).
    pub const NOT_HERE: Self = Self(595);
    /// Packets that are for this router whatever their destination.
    pub const HERE: Self = Self(596);
    /// Before the next two: what `main` knows better than a default route wins.
    pub const LINK_SPECIFIC: Self = Self(597);
    /// The router's own packets from a breakout's address.
    pub const FROM: Self = Self(598);
    /// The router's own packets bound to a breakout's device (probes).
    pub const DEVICE: Self = Self(599);
    /// Granted packets: more specific routes of `main` and of the operator's tables win.
    pub const SPECIFIC: Self = Self(600);
    /// The last path's rule; what others have after it is asked after steer.
    pub const LAST: Self = Self(Self::SPECIFIC.0 + PathId::MAX as u32);

    /// The rule that sends a path's granted packets to its table: 601 to 615.
    pub const fn path(id: PathId) -> Self {
        Self(Self::SPECIFIC.0 + id.0 as u32)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// `None` unless `priority` lies in the range steer uses.
    pub const fn of_ours(priority: u32) -> Option<Self> {
        if priority >= Self::NOT_HERE.0 && priority <= Self::SPECIFIC.0 + PathId::MAX as u32 {
            Some(Self(priority))
        } else {
            None
        }
    }
}

impl fmt::Display for RulePriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const _: () = assert!(mark::PATHS == PathId::MAX as usize + 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_inside_our_mask_and_name_their_path() {
        for (id, shift) in (1..=PathId::MAX).zip([24, 0, 8, 26].into_iter().cycle()) {
            let (id, marks) = (PathId::new(id).unwrap(), MarkBits::at(shift));
            let others = Mark::mask(marks).others().bits();
            for mark in [id.wish(marks), id.grant(marks)] {
                assert_eq!(mark.bits() & others, 0, "{mark}");
            }
            let among_others = Mark::from_bits(id.grant(marks).bits() | others);
            assert_eq!(among_others.granted_path(marks), Some(id));
            assert_eq!(id.wish(marks).granted_path(marks), None);
            assert!(id.table().is_ours());
            assert_eq!(
                RulePriority::of_ours(RulePriority::path(id).get()),
                Some(RulePriority::path(id))
            );
        }
        assert_eq!(PathId::new(0), None);
        assert_eq!(PathId::new(16), None);
        assert!(!TableId::MAIN.is_ours());
        assert_eq!(RulePriority::of_ours(616), None);
    }
}
