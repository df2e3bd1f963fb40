//! The flow table of redirect mode: which path a connection began on.
//!
//! A bucket is one cache line of eight entries of 64 bits; an entry is a fingerprint of the
//! connection, the time it was last seen, and its path. One entry is one store, so readers never
//! see half of one. Buckets and fingerprints come from disjoint bits of a seeded 64-bit hash: two
//! connections share both with probability 2^-62.

/// The buckets of the table; 131,072 connections, 1 MiB.
pub const BUCKETS: u32 = 16_384;
/// The entries of a bucket.
pub const WAYS: usize = 8;

/// One cache line of connections.
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(8))]
pub struct Bucket {
    /// The entries; 0 is an empty one.
    pub entries: [u64; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

const FINGERPRINT: u64 = 0xffff_ffff_ffff << 16;
const USED: u64 = 0x80;

/// The places of the flow table's clock: the epoch, and the seed of the hashes. The seed stays with
/// the table: with another one no connection would be found again.
pub const CLOCK_EPOCH: u32 = 0;
/// See [`CLOCK_EPOCH`].
pub const CLOCK_SEED: u32 = 1;
/// The places of the clock.
pub const CLOCK_PLACES: u32 = 2;

/// How long an epoch lasts, as a shift of nanoseconds: 2^33 ns, 8.6 s.
pub const EPOCH_SHIFT: u32 = 33;
/// The epoch of a moment, in nanoseconds of the monotonic clock; wraps after 36 min.
#[inline(always)]
pub const fn epoch(nanoseconds: u64) -> u8 {
    (nanoseconds >> EPOCH_SHIFT) as u8
}

/// UDP that was silent for this many epochs (3 min) is a new flow, as in conntrack's stream timeout.
pub const UDP_EPOCHS: u8 = 21;

/// Mixes the words of a connection into a hash. Not cryptographic, but seeded: somebody who does
/// not know the seed cannot aim at a bucket.
#[inline(always)]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// The last step of a hash: spreads every input bit over all output bits (MurmurHash3's fmix64).
#[inline(always)]
pub const fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Counts up when the table keeps its sizes but an entry, a hash or the clock changes its meaning.
const REVISION: u64 = 1;

/// Names the layout of the table and its clock. It is part of their pins' names: a new version of
/// steer takes the table of the old one over when both read it alike, whatever else is different.
pub const LAYOUT: u64 = {
    let parts = [
        REVISION,
        size_of::<Bucket>() as u64,
        BUCKETS as u64,
        CLOCK_PLACES as u64,
        EPOCH_SHIFT as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < parts.len() {
        hash = mix(hash, parts[index]);
        index += 1;
    }
    finish(hash)
};

/// The bucket where a connection belongs.
#[inline(always)]
pub const fn bucket(hash: u64) -> u32 {
    hash as u32 & (BUCKETS - 1)
}

/// The way where a connection lies unless another one was there first, so that most are found with
/// one look.
#[inline(always)]
pub const fn preferred(hash: u64) -> usize {
    // Neither bits of the bucket nor, but for their top, of the fingerprint.
    (hash >> 14) as usize & (WAYS - 1)
}

/// What the newest change of the plan means for a packet's flow, if the table does not know it.
///
/// The table is asked only about packets of a class. So whatever comes into a plan is not settled
/// at once, and what goes out of it leaves slowly (`image::Image::after`).
///
/// Bits, not variants: the verifier would follow each variant to the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing(u8);

impl Standing {
    /// The plan had it before.
    pub const SETTLED: Self = Self(0);
    /// It is new in the plan: a flow whose beginning was not seen began on the kernel's way.
    pub const ENTERING: Self = Self(1);
    /// It is in the plan no more: only flows that the table knows are led on.
    pub const LEAVING: Self = Self(2);

    /// Where a rule's action and a source's kind have it: above these bits.
    const SHIFT: u32 = 3;

    /// The standing in an action or a kind.
    #[inline(always)]
    pub const fn of(value: u16) -> Self {
        Self((value >> Self::SHIFT) as u8)
    }

    /// An action or a kind with this standing.
    pub const fn on(self, value: u8) -> u8 {
        value | self.0 << Self::SHIFT
    }

    /// An action or a kind without its standing.
    #[inline(always)]
    pub const fn strip(value: u16) -> u16 {
        value & ((1 << Self::SHIFT) - 1)
    }

    /// What a destination's and a source's standing come to.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it is in the plan no more.
    #[inline(always)]
    pub const fn is_leaving(self) -> bool {
        self.0 & Self::LEAVING.0 != 0
    }

    /// Whether a flow that the table does not know stays with the kernel's own routing. `first`: the
    /// packet is one that begins a flow, TCP's SYN or QUIC's Initial.
    #[inline(always)]
    pub const fn is_elsewhere(self, tcp: bool, first: bool) -> bool {
        let began = (tcp as u8 | self.0) & !(first as u8) & 1;
        began | (self.0 & Self::LEAVING.0) != 0
    }
}

/// An entry as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// An entry for a connection on `path` (0: the kernel's own routing), seen in `epoch`.
    #[inline(always)]
    pub const fn new(hash: u64, epoch: u8, path: u8) -> Self {
        Self((hash & FINGERPRINT) | ((epoch as u64) << 8) | USED | (path & 0x0f) as u64)
    }

    /// An entry as it lies in a bucket.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits to store.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether the entry is that of the connection.
    #[inline(always)]
    pub const fn is_for(self, hash: u64) -> bool {
        self.0 & USED != 0 && (self.0 ^ hash) & FINGERPRINT == 0
    }

    /// Whether there is no connection here.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & USED == 0
    }

    /// The path: 0 is the kernel's own routing.
    #[inline(always)]
    pub const fn path(self) -> u8 {
        self.0 as u8 & 0x0f
    }

    /// When the connection was last seen.
    #[inline(always)]
    pub const fn epoch(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Epochs since then; wraps after 36 min.
    #[inline(always)]
    pub const fn age(self, now: u8) -> u8 {
        now.wrapping_sub(self.epoch())
    }

    /// The same connection, seen now.
    #[inline(always)]
    pub const fn seen(self, now: u8) -> Self {
        Self((self.0 & !0xff00) | ((now as u64) << 8))
    }
}

/// The search for a connection among the entries of a bucket.
///
/// It does not branch: the verifier would follow both ways at every entry, 2^8 in all.
#[derive(Clone, Copy)]
pub struct Search {
    found: u64,
    raw: u64,
}

impl Search {
    /// Nothing found yet.
    pub const START: Self = Self { found: 0, raw: 0 };

    /// Looks at the entry of one way.
    #[inline(always)]
    pub const fn look(self, way: usize, entry: Entry, hash: u64) -> Self {
        let difference = (entry.0 ^ ((hash & FINGERPRINT) | USED)) & (FINGERPRINT | USED);
        let same = is_zero(difference) & is_zero(self.found);
        let mask = same.wrapping_neg();
        Self {
            found: self.found | ((way as u64 + 1) & mask),
            raw: self.raw | (entry.0 & mask),
        }
    }

    /// The way and the entry of the connection.
    #[inline(always)]
    pub const fn result(self) -> Option<(usize, Entry)> {
        if self.found == 0 {
            None
        } else {
            Some((self.found as usize - 1, Entry(self.raw)))
        }
    }
}

/// The search for the entry that a new connection replaces: an empty one, or else the one that was
/// silent for the longest time. Without branches, as [`Search`].
#[derive(Clone, Copy)]
pub struct Oldest(u64);

impl Oldest {
    /// Nothing seen yet.
    pub const START: Self = Self(0);

    /// Looks at the entry of one way.
    #[inline(always)]
    pub const fn look(self, way: usize, entry: Entry, now: u8) -> Self {
        let empty = is_zero(entry.0 & USED) << 8;
        let candidate = ((empty | entry.age(now) as u64) << 8) | way as u64;
        let difference = self.0.wrapping_sub(candidate);
        // All ones where the candidate is older.
        let mask = (difference.cast_signed() >> 63).cast_unsigned();
        Self(self.0.wrapping_sub(difference & mask))
    }

    /// The way to replace.
    #[inline(always)]
    pub const fn way(self) -> usize {
        self.0 as usize & (WAYS - 1)
    }
}

/// 1 for 0, 0 for everything else.
#[inline(always)]
const fn is_zero(value: u64) -> u64 {
    ((value | value.wrapping_neg()) >> 63) ^ 1
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_first_entry_of_a_connection_is_found(
            hashes: [u64; WAYS], used: [bool; WAYS], pick in 0_usize..16, other: u64,
        ) {
            let entry = |way: usize| if used[way] { Entry::new(hashes[way], 1, 2) } else { Entry(0) };
            let hash = *hashes.get(pick).unwrap_or(&other);
            let expected = (0..WAYS).find(|&way| entry(way).is_for(hash)).map(|way| (way, entry(way)));
            let found = (0..WAYS).fold(Search::START, |search, way| search.look(way, entry(way), hash));
            proptest::prop_assert_eq!(found.result(), expected);
        }

        #[test]
        fn the_oldest_entry_is_replaced(epochs: [u8; WAYS], used: [bool; WAYS], now: u8) {
            let entry = |way: usize| if used[way] { Entry::new(9, epochs[way], 1) } else { Entry(0) };
            let age = |way| if used[way] { u32::from(entry(way).age(now)) } else { 256 };
            let expected = (0..WAYS).max_by_key(|&way| (age(way), way)).unwrap();
            let oldest = (0..WAYS).fold(Oldest::START, |oldest, way| oldest.look(way, entry(way), now));
            proptest::prop_assert_eq!(oldest.way(), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn an_entry_keeps_what_it_was_given(hash: u64, other: u64, epoch: u8, path in 0_u8..16) {
            let entry = Entry::new(hash, epoch, path);
            proptest::prop_assert!(!entry.is_empty());
            proptest::prop_assert!(entry.is_for(hash));
            proptest::prop_assert_eq!(entry.is_for(other), hash >> 16 == other >> 16);
            proptest::prop_assert_eq!((entry.epoch(), entry.path()), (epoch, path));
            let later = entry.seen(epoch.wrapping_add(9));
            proptest::prop_assert_eq!((later.age(epoch.wrapping_add(9)), later.path()), (0, path));
            proptest::prop_assert!(later.is_for(hash));
        }
    }

    #[test]
    fn an_unknown_flow_is_new_only_where_its_beginning_counts() {
        let (settled, entering, leaving) =
            (Standing::SETTLED, Standing::ENTERING, Standing::LEAVING);
        for (standing, tcp, first, elsewhere) in [
            (settled, true, true, false),
            (settled, true, false, true),
            (settled, false, false, false),
            (entering, true, true, false),
            (entering, false, true, false),
            (entering, false, false, true),
            (leaving, true, true, true),
            (leaving, false, false, true),
            (entering.and(leaving), false, true, true),
        ] {
            let what = (standing, tcp, first);
            assert_eq!(standing.is_elsewhere(tcp, first), elsewhere, "{what:?}");
        }
    }

    #[test]
    fn an_empty_entry_belongs_to_nobody() {
        assert!(Entry::from_raw(0).is_empty());
        assert!(!Entry::from_raw(0).is_for(0));
    }
}
