//! Lookups in a generation: an address gives a value, an entry and a port give a rule.
//!
//! IPv4 is a direct table of 16, 8 and 8 bits; IPv6 is a guard of 16 bits before a binary search
//! over ranges. Both were measured far faster than the kernel's LPM trie.

use crate::{
    chunk::{
        Boundary, Chunks, DYNAMIC, ENTRIES, ENTRIES_PER_CHUNK, POINTER, RULES_PER_ENTRY,
        SEARCH_STEPS, SEGMENTS, SEGMENTS_PER_CHUNK,
    },
    rule::{Action, Rule},
};

/// The value of an IPv4 address (host byte order) in the table that begins at chunk `root`;
/// 0 when there is none.
#[inline(always)]
pub fn v4<C: Chunks>(chunks: &C, root: u32, address: u32) -> u16 {
    let cell = cell(chunks, root + (address >> 24), address >> 16);
    if cell & POINTER == 0 {
        return cell;
    }
    let cell = self::cell(chunks, DYNAMIC + u32::from(cell & !POINTER), address >> 8);
    if cell & POINTER == 0 {
        return cell;
    }
    self::cell(chunks, DYNAMIC + u32::from(cell & !POINTER), address)
}

/// The value of an IPv6 address (two halves, host byte order) in the table that begins at chunk
/// `root`; 0 when there is none.
#[inline(always)]
pub fn v6<C: Chunks>(chunks: &C, root: u32, high: u64, low: u64) -> u16 {
    let top = (high >> 48) as u32;
    let cell = cell(chunks, root + (top >> 8), top);
    if cell & POINTER == 0 {
        return cell;
    }
    let index = u32::from(cell & !POINTER);
    let Some(chunk) = chunks.chunk(SEGMENTS + index / SEGMENTS_PER_CHUNK) else {
        return 0;
    };
    let segment = &chunk.segments()[(index & 63) as usize];
    let (boundaries, values) = (u32::from(segment.boundaries), u32::from(segment.values));
    let key = Boundary { high, low };

    // The last boundary that is not above the key; the segment's first one never is.
    let mut base = 0;
    let mut count = u32::from(segment.count);
    for _ in 0..=SEARCH_STEPS {
        if count <= 1 {
            break;
        }
        let half = count >> 1;
        let middle = base + half;
        let Some(chunk) = chunks.chunk(boundaries + (middle >> 5)) else {
            return 0;
        };
        let boundary = &chunk.boundaries()[(middle & 31) as usize];
        if boundary.high < key.high || (boundary.high == key.high && boundary.low <= key.low) {
            base = middle;
            count -= half;
        } else {
            count = half;
        }
    }
    self::cell(chunks, values + (base >> 8), base)
}

/// The first rule of `entry` that speaks of `protocol` and `port`, and whether the entry has any
/// rule for the protocol at all.
#[inline(always)]
pub fn rule<C: Chunks>(chunks: &C, entry: u16, protocol: u8, port: u16) -> Option<Rule> {
    let entry = u32::from(entry);
    let chunk = chunks.chunk(ENTRIES + entry / ENTRIES_PER_CHUNK)?;
    let first = (entry % ENTRIES_PER_CHUNK) * RULES_PER_ENTRY;
    for offset in 0..RULES_PER_ENTRY {
        let rule = &chunk.rules()[((first | offset) & 63) as usize];
        if rule.action() == Action::End {
            return None;
        }
        if rule.matches(protocol, port) {
            return Some(*rule);
        }
    }
    None
}

#[inline(always)]
fn cell<C: Chunks>(chunks: &C, chunk: u32, index: u32) -> u16 {
    match chunks.chunk(chunk) {
        Some(chunk) => chunk.cells()[(index & 255) as usize],
        None => 0,
    }
}
