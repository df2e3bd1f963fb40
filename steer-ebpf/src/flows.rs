//! Redirect mode's memory: a connection stays on the path it began on.

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};
use steer_common::{
    abi::Ways,
    flow::{self, Bucket, Entry, Oldest, Search},
    reason::Reason,
};

use crate::{classify::Match, deadman};

#[btf_map]
static FLOWS: Array<Bucket, { flow::BUCKETS as usize }> = Array::new();

/// The current epoch. New flows move it on, so that it needs no controller.
#[btf_map]
static CLOCK: Array<u64, { flow::CLOCK_PLACES as usize }> = Array::new();

/// The path of a packet's connection: the one it began on, or, for a new one, the one that is
/// chosen now. `usable` tells whether a path can be taken at once.
#[inline(always)]
pub fn path(ways: Ways, packet: &Match, usable: impl Fn(u8) -> bool) -> Result<u8, Reason> {
    let Some(bucket) = FLOWS.get_ptr_mut(flow::bucket(packet.flow)) else {
        return Err(Reason::FlowTable);
    };
    let now = clock();
    let known = find(bucket, packet.flow);
    if let Some((slot, entry)) = known
        && !packet.syn
        // QUIC asks again; nobody answered on a path that the dead-man opened.
        && !(packet.first && deadman::is_open(entry.path(), packet.family))
        && (packet.tcp || entry.age(now) <= flow::UDP_EPOCHS)
    {
        if entry.epoch() != now {
            store(bucket, slot, entry.seen(now));
        }
        return match entry.path() {
            0 => Err(Reason::FlowPinned),
            path if ways.carries(path) => Ok(path),
            _ => Err(Reason::NoPath),
        };
    }

    let now = tick();
    let (chosen, result) = if !ways.is_steering() {
        (0, Err(Reason::NotSteering))
    } else if packet.standing.is_elsewhere(packet.tcp, packet.first) {
        (0, Err(Reason::FlowPinned))
    } else {
        match deadman::choose(ways, packet) {
            Some(path) if usable(path) => (path, Ok(path)),
            Some(_) => (0, Err(Reason::NextHop)),
            None => (0, Err(Reason::NoPath)),
        }
    };
    let slot = match known {
        Some((slot, _)) => slot,
        None => place(bucket, packet.flow, now),
    };
    store(bucket, slot, Entry::new(packet.flow, now, chosen));
    result
}

/// The way and the entry of a connection.
#[inline(always)]
fn find(bucket: *mut Bucket, flow: u64) -> Option<(usize, Entry)> {
    let preferred = flow::preferred(flow);
    let entry = load(bucket, preferred);
    if entry.is_for(flow) {
        return Some((preferred, entry));
    }
    let mut search = Search::START;
    let mut way = 0;
    while way < flow::WAYS {
        search = search.look(way, load(bucket, way), flow);
        way += 1;
    }
    search.result()
}

/// The way that a new connection takes.
#[inline(always)]
fn place(bucket: *mut Bucket, flow: u64, now: u8) -> usize {
    let preferred = flow::preferred(flow);
    if load(bucket, preferred).is_empty() {
        return preferred;
    }
    let mut oldest = Oldest::START;
    let mut way = 0;
    while way < flow::WAYS {
        oldest = oldest.look(way, load(bucket, way), now);
        way += 1;
    }
    oldest.way()
}

#[inline(always)]
fn clock() -> u8 {
    CLOCK.get(flow::CLOCK_EPOCH).map_or(0, |epoch| *epoch as u8)
}

/// Reads the time and moves the epoch on.
#[inline(always)]
fn tick() -> u8 {
    // SAFETY: the helper has no arguments and always succeeds.
    let epoch = unsafe { bpf_ktime_get_ns() } >> flow::EPOCH_SHIFT;
    if let Some(clock) = CLOCK.get_ptr_mut(flow::CLOCK_EPOCH) {
        // SAFETY: one aligned store of a valid map value.
        unsafe { clock.write_volatile(epoch) }
    }
    epoch as u8
}

#[inline(always)]
fn load(bucket: *mut Bucket, way: usize) -> Entry {
    // SAFETY: `way` is below `WAYS` (masked for the verifier); one aligned load. Other CPUs may
    // store at the same time: an entry is one word, so it is the old one or the new one.
    Entry::from_raw(unsafe {
        (&raw const (*bucket).entries[way & (flow::WAYS - 1)]).read_volatile()
    })
}

#[inline(always)]
fn store(bucket: *mut Bucket, way: usize, entry: Entry) {
    // SAFETY: as for `load`.
    unsafe { (&raw mut (*bucket).entries[way & (flow::WAYS - 1)]).write_volatile(entry.raw()) }
}
