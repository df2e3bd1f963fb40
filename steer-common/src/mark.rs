//! The bits of a packet mark and a connection mark that steer owns.
//!
//! The fast path sets a *wish*; nftables turns it into a *grant*; `ip rule` matches grants only.
//! There are six of them, next to each other, from the lowest: four of the path id, the wish, the
//! grant. Where they stand is the operator's choice; the default keeps clear of mwan3 (0x3f00),
//! Tailscale and pbr (0xff0000), Kubernetes (0xc000) and CNI portmap (0x2000).

/// The number of path ids, 0 ("matched, but no path is up") included.
pub const PATHS: usize = 16;

/// Where steer's six bits stand in a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits {
    shift: u8,
}

impl Bits {
    /// 0x3f000000
    pub const DEFAULT: Self = Self { shift: 24 };
    /// The highest place: the six upper bits.
    pub const HIGHEST: u8 = 26;

    /// The six bits from bit `shift` on, which is at most [`Bits::HIGHEST`]; what is above counts
    /// as that.
    #[inline(always)]
    pub const fn at(shift: u8) -> Self {
        Self {
            shift: if shift > Self::HIGHEST {
                Self::HIGHEST
            } else {
                shift
            },
        }
    }

    /// The bits of a mask, if it has six and they stand next to each other.
    pub const fn of_mask(mask: u32) -> Option<Self> {
        if mask == 0 {
            return None;
        }
        let shift = mask.trailing_zeros();
        if mask >> shift == 0x3f {
            // At most 26: there are six bits from here on.
            Some(Self::at(shift.to_le_bytes()[0]))
        } else {
            None
        }
    }

    /// The lowest of the bits.
    #[inline(always)]
    pub const fn shift(self) -> u8 {
        self.shift
    }

    /// Every bit that steer may read or write in a mark.
    #[inline(always)]
    pub const fn mask(self) -> u32 {
        0x3f << self.shift
    }

    /// The bits of the path id.
    #[inline(always)]
    pub const fn id_mask(self) -> u32 {
        0x0f << self.shift
    }

    /// "This packet should leave by the path in the id bits."
    #[inline(always)]
    pub const fn wish(self) -> u32 {
        0x10 << self.shift
    }

    /// "This flow may leave by the path in the id bits."
    #[inline(always)]
    pub const fn grant(self) -> u32 {
        0x20 << self.shift
    }

    /// A path id (0 to 15) at its place.
    #[inline(always)]
    pub const fn id(self, id: u8) -> u32 {
        ((id & 0x0f) as u32) << self.shift
    }

    /// The path id of a mark.
    #[inline(always)]
    pub const fn id_of(self, mark: u32) -> u8 {
        ((mark >> self.shift) & 0x0f) as u8
    }

    /// The mark of a packet that should leave by path `id` (0 to 15), keeping everybody else's
    /// bits of `mark`.
    #[inline(always)]
    pub const fn with_wish(self, mark: u32, id: u8) -> u32 {
        (mark & !self.mask()) | self.wish() | self.id(id)
    }

    /// Whether a mark carries bits of ours already.
    #[inline(always)]
    pub const fn are_in(self, mark: u32) -> bool {
        mark & self.mask() != 0
    }

    /// The mark of a packet that leaves by path `id` where nothing turns wishes into grants.
    #[inline(always)]
    pub const fn with_grant(self, mark: u32, id: u8) -> u32 {
        (mark & !self.mask()) | self.grant() | self.id(id)
    }
}

impl Default for Bits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_keeps_the_bits_of_other_owners() {
        let bits = Bits::DEFAULT;
        assert_eq!(bits.with_wish(0xc0ff_ffff, 1), 0xd1ff_ffff);
        assert_eq!(bits.with_wish(0x0000_3f00, 15), 0x1f00_3f00);
        assert_eq!(Bits::at(8).with_wish(0xffff_c0ff, 1), 0xffff_d1ff);
    }

    #[test]
    fn a_wish_replaces_what_stood_in_our_bits() {
        assert_eq!(Bits::DEFAULT.with_wish(0x2f00_0001, 2), 0x1200_0001);
    }

    #[test]
    fn six_bits_next_to_each_other_are_a_place_and_nothing_else_is() {
        for shift in 0..=Bits::HIGHEST {
            let bits = Bits::at(shift);
            assert_eq!(Bits::of_mask(bits.mask()), Some(bits));
            assert_eq!(bits.mask(), bits.id_mask() | bits.wish() | bits.grant());
            assert_eq!(bits.id_of(bits.with_wish(u32::MAX, 11)), 11);
        }
        for mask in [0, 0x1f, 0x7f, 0x3f00_0001, 0xf800_0000, u32::MAX] {
            assert_eq!(Bits::of_mask(mask), None, "{mask:#x}");
        }
        assert_eq!(Bits::of_mask(0x3f00_0000), Some(Bits::default()));
        assert_eq!(Bits::at(31), Bits::at(Bits::HIGHEST));
    }
}
