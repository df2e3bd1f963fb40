//! The shape of a generation: one array of equal chunks.
//!
//! A whole plan is one inner map, immutable once published, so that replacing it is one write and
//! a packet that read the pointer sees one plan from its first lookup to its last.
//!
//! | chunks | what |
//! |---|---|
//! | 0 | [`Header`] |
//! | [`DST4`] | IPv4 destinations: 65,536 cells, by the upper 16 bits |
//! | [`DST6`] | IPv6 destinations: the same, by the upper 16 bits |
//! | [`SRC4`], [`SRC6`] | sources |
//! | [`SEGMENTS`] | IPv6 segments: where the boundaries below a /16 are |
//! | [`ENTRIES`] | rules, [`RULES_PER_ENTRY`] an entry |
//! | [`CLASSES`] | the entry of each class, for learned addresses |
//! | [`DYNAMIC`] | blocks of IPv4, boundaries and values of IPv6, as many as the plan needs |
//!
//! A cell is 0 ("nothing here"), a value (an entry, or [`SourceKind`]), or, with [`POINTER`] set,
//! where to look next.

use bytemuck::{Pod, Zeroable};

use crate::{abi, flow::Standing, rule::Rule};

/// The size of a chunk, in bytes.
pub const CHUNK_BYTES: u32 = 512;
/// The cells of a chunk.
pub const CELLS: usize = 256;
/// Set in a cell that points onwards: to chunk [`DYNAMIC`] + the rest (IPv4), or to a segment (IPv6).
pub const POINTER: u16 = 0x8000;

/// The chunks that a table's first level takes: 65,536 cells.
pub const ROOT_CHUNKS: u32 = 256;
/// The first chunk of the IPv4 destinations.
pub const DST4: u32 = 1;
/// The first chunk of the IPv6 destinations.
pub const DST6: u32 = DST4 + ROOT_CHUNKS;
/// The first chunk of the IPv4 sources.
pub const SRC4: u32 = DST6 + ROOT_CHUNKS;
/// The first chunk of the IPv6 sources.
pub const SRC6: u32 = SRC4 + ROOT_CHUNKS;
/// The first chunk of the segments.
pub const SEGMENTS: u32 = SRC6 + ROOT_CHUNKS;
/// The most segments.
pub const MAX_SEGMENTS: u32 = 512;
/// The segments of a chunk.
pub const SEGMENTS_PER_CHUNK: u32 = 64;
/// The first chunk of the entries.
pub const ENTRIES: u32 = SEGMENTS + MAX_SEGMENTS / SEGMENTS_PER_CHUNK;
/// The most entries, the empty entry 0 included.
pub const MAX_ENTRIES: u32 = 2048;
/// The rules of an entry.
pub const RULES_PER_ENTRY: u32 = 32;
/// The entries of a chunk.
pub const ENTRIES_PER_CHUNK: u32 = 2;
/// The first chunk of the classes' entries.
pub const CLASSES: u32 = ENTRIES + MAX_ENTRIES / ENTRIES_PER_CHUNK;
/// The first chunk of what the plan needs as many of as it needs.
pub const DYNAMIC: u32 = CLASSES + abi::CLASSES / CELLS as u32;
/// All chunks of a generation: 4 MiB.
pub const CHUNKS: u32 = 8192;

/// The boundaries of a chunk.
pub const BOUNDARIES_PER_CHUNK: u32 = 32;
/// The most boundaries of one segment; bounds the steps of the search.
pub const MAX_BOUNDARIES: u32 = 8192;
/// Halving [`MAX_BOUNDARIES`] this often leaves one.
pub const SEARCH_STEPS: u32 = 13;

const _: () = assert!(1 << SEARCH_STEPS == MAX_BOUNDARIES);
const _: () = assert!(CHUNKS - DYNAMIC <= POINTER as u32);
const _: () = assert!(MAX_ENTRIES <= POINTER as u32);
const _: () = assert!(MAX_SEGMENTS <= POINTER as u32);

/// 512 bytes of a generation.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Chunk {
    cells: [u16; CELLS],
}

const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES as usize && align_of::<Chunk>() == 8);

impl Chunk {
    /// A chunk of zeroes.
    pub const EMPTY: Self = Self { cells: [0; CELLS] };

    /// The chunk as 256 cells.
    #[inline(always)]
    pub fn cells(&self) -> &[u16; CELLS] {
        &self.cells
    }

    /// The chunk as 64 rules: two entries.
    #[inline(always)]
    pub fn rules(&self) -> &[Rule; 64] {
        bytemuck::must_cast_ref(self)
    }

    /// One of the chunk's rules, read with one load; of `index` the lowest 6 bits count.
    #[inline(always)]
    pub fn rule(&self, index: u32) -> Rule {
        let words: &[u64; 64] = bytemuck::must_cast_ref(self);
        // SAFETY: a reference to an element of the array. Volatile only so that the compiler does not
        // make several loads of it.
        bytemuck::cast(unsafe { (&raw const words[(index & 63) as usize]).read_volatile() })
    }

    /// The chunk as 64 segments.
    #[inline(always)]
    pub fn segments(&self) -> &[Segment; 64] {
        bytemuck::must_cast_ref(self)
    }

    /// The chunk as 32 boundaries.
    #[inline(always)]
    pub fn boundaries(&self) -> &[Boundary; 32] {
        bytemuck::must_cast_ref(self)
    }

    /// The chunk as the header of its generation.
    #[inline(always)]
    pub fn header(&self) -> &Header {
        &bytemuck::must_cast_ref::<Self, [Header; 8]>(self)[0]
    }
}

#[cfg(feature = "user")]
impl Chunk {
    /// The chunk as 256 cells to write.
    pub fn cells_mut(&mut self) -> &mut [u16; CELLS] {
        &mut self.cells
    }

    /// The chunk as 64 rules to write.
    pub fn rules_mut(&mut self) -> &mut [Rule; 64] {
        bytemuck::must_cast_mut(self)
    }

    /// The chunk as 64 segments to write.
    pub fn segments_mut(&mut self) -> &mut [Segment; 64] {
        bytemuck::must_cast_mut(self)
    }

    /// The chunk as 32 boundaries to write.
    pub fn boundaries_mut(&mut self) -> &mut [Boundary; 32] {
        bytemuck::must_cast_mut(self)
    }

    /// The header to write.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut bytemuck::must_cast_mut::<Self, [Header; 8]>(self)[0]
    }
}

/// Bit of [`Header::flags`]: names teach addresses, so the learned ones are asked, too.
pub const LEARNS: u64 = 1;

/// What a generation says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// The number of the generation, counted by the controller.
    pub number: u64,
    /// A checksum of the plan it was made from.
    pub fingerprint: u64,
    /// [`LEARNS`].
    pub flags: u64,
    /// Reserved, 0.
    pub reserved: [u64; 5],
}

/// Where the boundaries of one /16 of IPv6 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Segment {
    /// The chunk of the first boundary.
    pub boundaries: u16,
    /// The chunk of the first value.
    pub values: u16,
    /// How many there are, at least 1.
    pub count: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

/// The first address of a range of IPv6, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Boundary {
    /// The upper 64 bits.
    pub high: u64,
    /// The lower 64 bits.
    pub low: u64,
}

/// The value of a cell in the tables of sources. Those of clients are odd; of two for the same prefix
/// the greater one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SourceKind {
    /// A client of the LAN.
    Client = 1,
    /// A client whose queries are left alone.
    QueriesLeft = 3,
    /// A client that the operator leaves out.
    LeftOut = 4,
    /// A client since a moment ago: its flows are [entering](Standing::ENTERING).
    Entering = Standing::ENTERING.on(Self::Client as u8) as u16,
    /// A client no more: its flows are [leaving](Standing::LEAVING).
    Leaving = Standing::LEAVING.on(Self::Client as u8) as u16,
}

impl SourceKind {
    /// Whether the flows of a source with this value are steered, some of them at least.
    #[inline(always)]
    pub const fn is_client(value: u16) -> bool {
        Standing::strip(value) & 1 != 0
    }

    /// Whether the queries of a source with this value are steered.
    #[inline(always)]
    pub const fn may_ask(value: u16) -> bool {
        Standing::strip(value) == Self::Client as u16 && !Standing::of(value).is_leaving()
    }
}

/// Where the chunks of a generation come from: a map in the kernel, memory on the host.
pub trait Chunks {
    /// Chunk `index`, or none past the end.
    fn chunk(&self, index: u32) -> Option<&Chunk>;
}
