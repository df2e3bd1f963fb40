//! Lookups in a generation: an address gives a value, an entry and a port give a rule.
//!
//! IPv4 is a direct table of 16, 8 and 8 bits; IPv6 is a guard of 16 bits before a binary search
//! over ranges. Both were measured far faster than the kernel's LPM trie.

use crate::{
    abi,
    chunk::{
        Boundary, CLASSES, Chunks, DYNAMIC, ENTRIES, ENTRIES_PER_CHUNK, LEARNS, POINTER,
        RULES_PER_ENTRY, SEARCH_STEPS, SEGMENTS, SEGMENTS_PER_CHUNK,
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
    // The last boundary that is not above the address; the segment's first one never is. Nothing
    // branches on a comparison: the verifier would follow both ways of every step.
    let mut base = 0;
    let mut count = u32::from(segment.count);
    let mut step = 0;
    while step < SEARCH_STEPS && count > 1 {
        let half = count >> 1;
        let middle = base + half;
        let Some(chunk) = chunks.chunk(boundaries + (middle >> 5)) else {
            return 0;
        };
        let boundary = &chunk.boundaries()[(middle & 31) as usize];
        let right = below(high, low, boundary).wrapping_sub(1);
        base += half & right;
        count = half + ((count & 1) & right);
        step += 1;
    }
    self::cell(chunks, values + (base >> 8), base)
}

/// 1 if the address lies below the boundary, else 0: the borrow of a 128-bit subtraction.
#[inline(always)]
fn below(high: u64, low: u64, boundary: &Boundary) -> u32 {
    let borrow = |a: u64, b: u64, difference: u64| ((!a & b) | ((!a | b) & difference)) >> 63;
    let carry = borrow(low, boundary.low, low.wrapping_sub(boundary.low));
    let difference = high.wrapping_sub(boundary.high).wrapping_sub(carry);
    borrow(high, boundary.high, difference) as u32
}

/// The entry with the rules of a class, for addresses that are not in the plan themselves; 0 when
/// nothing is steered as that class.
#[inline(always)]
pub fn class<C: Chunks>(chunks: &C, class: u16) -> u16 {
    let class = u32::from(class) & (abi::CLASSES - 1);
    cell(chunks, CLASSES + (class >> 8), class)
}

/// Whether names of this plan teach addresses.
#[inline(always)]
pub fn learns<C: Chunks>(chunks: &C) -> bool {
    chunks
        .chunk(0)
        .is_some_and(|first| first.header().flags & LEARNS != 0)
}

/// The first rule of `entry` that speaks of `protocol` and `port`, and whether the entry has any
/// rule for the protocol at all.
#[inline(always)]
pub fn rule<C: Chunks>(chunks: &C, entry: u16, protocol: u8, port: u16) -> Option<Rule> {
    let entry = u32::from(entry);
    let chunk = chunks.chunk(ENTRIES + entry / ENTRIES_PER_CHUNK)?;
    let first = (entry % ENTRIES_PER_CHUNK) * RULES_PER_ENTRY;
    let mut offset = 0;
    while offset < RULES_PER_ENTRY {
        // One load of the whole rule: behind the loop the verifier sees a number that can be anything,
        // whichever rule it was, and does not follow every rule to the end of the program.
        let rule = chunk.rule((first | offset) & 63);
        if rule.action() == Action::End {
            return None;
        }
        if rule.matches(protocol, port) {
            return Some(rule);
        }
        offset += 1;
    }
    None
}

/// The rule of an entry at a place, none past its end.
#[cfg(feature = "user")]
pub fn rule_at<C: Chunks>(chunks: &C, entry: u16, place: u32) -> Option<Rule> {
    let entry = u32::from(entry);
    let chunk = chunks.chunk(ENTRIES + entry / ENTRIES_PER_CHUNK)?;
    let rule = chunk.rule(entry % ENTRIES_PER_CHUNK * RULES_PER_ENTRY + place);
    (place < RULES_PER_ENTRY && rule.action() != Action::End).then_some(rule)
}

#[inline(always)]
fn cell<C: Chunks>(chunks: &C, chunk: u32, index: u32) -> u16 {
    match chunks.chunk(chunk) {
        Some(chunk) => chunk.cells()[(index & 255) as usize],
        None => 0,
    }
}
