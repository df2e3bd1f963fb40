//! The dead-man's maps, and the two places that ask it: first packets on the LAN, answers on the
//! breakouts. What it decides is in `steer_common::deadman`.
//!
//! While a controller watches, all of this is one look at a map for an ordinary packet, one look at
//! the clock for a first packet, and one look at a flag for a packet that comes in by a breakout.

use core::hint::black_box;

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};
use steer_common::{
    abi::Ways,
    deadman::{self, Heartbeat, Judgement, Life, Lives, Open, Packet},
    mark,
};

use crate::classify::Match;

#[btf_map]
static HEARTBEAT: Array<Heartbeat, 1> = Array::new();

#[btf_map]
static OPEN: Array<Open, 1> = Array::new();

#[btf_map]
static LIVES: Array<Life, { mark::PATHS }> = Array::new();

/// The path of a packet.
#[inline(always)]
pub fn choose(ways: Ways, packet: &Match) -> Option<u8> {
    if !packet.first && !is_any_open() {
        return ways.choose_without(0);
    }
    let path = choose_unattended(ways.0, packet.destination, packet.first.into());
    // The compiler has seen what the function returns and would leave the mask out; the verifier takes
    // every number for possible.
    match black_box(path) as u8 & 0x0f {
        0 => None,
        path => Some(path),
    }
}

/// The path of a client's query: that of its flows. It judges no path, because nobody hears what
/// answers it; and it calls no function, because the stack of its program has no room for another.
#[inline(always)]
pub fn choose_for_query(ways: Ways, now: u64) -> Option<u8> {
    if !is_any_open() {
        return ways.choose_without(0);
    }
    let heartbeat = HEARTBEAT.get(0)?;
    let down = if heartbeat.is_fresh(now) {
        0
    } else {
        OPEN.get(0)?.paths() & heartbeat.heard as u32
    };
    ways.choose_without(down)
}

/// Whether the dead-man takes a path for down.
#[inline(always)]
pub fn is_open(path: u8) -> bool {
    open_byte(path).is_some_and(|byte| {
        // SAFETY: an aligned load of a byte of a valid map value.
        unsafe { byte.read_volatile() != 0 }
    })
}

#[inline(always)]
fn is_any_open() -> bool {
    OPEN.get_ptr(0).is_some_and(|open| {
        let words = open.cast::<u64>();
        // SAFETY: aligned loads of a valid map value of two words.
        unsafe { words.read_volatile() | words.add(1).read_volatile() != 0 }
    })
}

/// The path of a packet when somebody may have to be judged; 0 for none.
///
/// A function that the verifier looks at by itself, once: so it must be global (`no_mangle`) and take
/// numbers only.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn choose_unattended(ways: u64, destination: u64, first: u64) -> u64 {
    let ways = Ways(ways);
    let Some(heartbeat) = HEARTBEAT.get(0) else {
        return 0;
    };
    // SAFETY: the helper has no arguments and always succeeds.
    let now = unsafe { bpf_ktime_get_ns() };
    let path = if heartbeat.is_fresh(now) {
        ways.choose_without(0)
    } else {
        let packet = Packet {
            first: first != 0,
            destination,
            now,
        };
        deadman::choose(
            ways,
            &Maps {
                heard: heartbeat.heard,
            },
            packet,
        )
    };
    path.unwrap_or(0).into()
}

/// An answer came in on a path, if `is_answer`; the question is only asked when that is news.
#[inline(always)]
pub fn hear(path: u8, is_answer: impl Fn() -> bool) {
    let Some(life) = LIVES.get_ptr_mut(path.into()) else {
        return;
    };
    // SAFETY: aligned loads and stores of one word of a valid map value.
    unsafe {
        let answered = &raw mut (*life).answered;
        if answered.read_volatile() == 0 && is_answer() {
            answered.write_volatile(1);
        }
    }
}

struct Maps {
    heard: u64,
}

impl Lives for Maps {
    #[inline(always)]
    fn load(&self, path: u8) -> Option<(Life, bool)> {
        if self.heard & (1 << (path & 0x0f)) == 0 {
            return None;
        }
        let life = LIVES.get_ptr(path.into())?;
        // SAFETY: a valid map value; every word of it is right by itself.
        Some((unsafe { life.read_volatile() }, is_open(path)))
    }

    #[inline(always)]
    fn store(&self, path: u8, was_open: bool, judgement: &Judgement) {
        let (Some(life), Some(open)) = (LIVES.get_ptr_mut(path.into()), open_byte(path)) else {
            return;
        };
        // SAFETY: valid map values; every word of them is right by itself.
        unsafe {
            (&raw mut (*life).waiting).write_volatile(judgement.waiting);
            if judgement.begins {
                (&raw mut (*life).answered).write_volatile(0);
            }
            if judgement.open != was_open {
                open.write_volatile(judgement.open.into());
            }
        }
    }
}

#[inline(always)]
fn open_byte(path: u8) -> Option<*mut u8> {
    let open = OPEN.get_ptr_mut(0)?;
    // SAFETY: 16 bytes, and the index is below 16.
    Some(unsafe {
        (&raw mut (*open).0)
            .cast::<u8>()
            .add(usize::from(path & 0x0f))
    })
}
