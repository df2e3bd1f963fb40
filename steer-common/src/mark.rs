//! The bits of a packet mark and a conntrack mark that steer owns.
//!
//! The fast path sets a *wish*; nftables turns it into a *grant*; `ip rule` matches grants only.
//! The mask keeps clear of mwan3 (0x3f00), Tailscale and pbr (0xff0000), Kubernetes (0xc000) and
//! CNI portmap (0x2000).

/// Every bit that steer may read or write in a mark.
pub const MASK: u32 = 0x3f00_0000;
/// "This packet should leave by the path in the id bits."
pub const WISH: u32 = 0x1000_0000;
/// "This flow may leave by the path in the id bits."
pub const GRANT: u32 = 0x2000_0000;
/// Where the path id stands.
pub const ID_SHIFT: u32 = 24;
/// The bits of the path id.
pub const ID_MASK: u32 = 0x0f00_0000;

/// The number of path ids, 0 ("matched, but no path is up") included.
pub const PATHS: usize = 16;

/// The mark of a packet that should leave by path `id` (0 to 15), keeping everybody else's bits
/// of `mark`.
#[inline(always)]
pub const fn with_wish(mark: u32, id: u8) -> u32 {
    (mark & !MASK) | WISH | (((id & 0x0f) as u32) << ID_SHIFT)
}

/// Whether a mark carries bits of ours already.
#[inline(always)]
pub const fn is_ours(mark: u32) -> bool {
    mark & MASK != 0
}

const _: () = assert!(MASK == WISH | GRANT | ID_MASK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_keeps_the_bits_of_other_owners() {
        assert_eq!(with_wish(0xc0ff_ffff, 1), 0xd1ff_ffff);
        assert_eq!(with_wish(0x0000_3f00, 15), 0x1f00_3f00);
    }

    #[test]
    fn a_wish_replaces_what_stood_in_our_bits() {
        assert_eq!(with_wish(0x2f00_0001, 2), 0x1200_0001);
    }
}
