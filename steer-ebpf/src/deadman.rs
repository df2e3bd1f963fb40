//! The dead-man's maps, and the two places that ask it: first packets on the LAN, answers on the
//! breakouts. What it decides is in `steer_common::deadman`.
//!
//! While a controller watches, all of this is one look at a map for an ordinary packet, one look at
//! the clock for a first packet, and one look at a flag for a packet that comes in by a breakout.

use core::hint::black_box;

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};
use steer_common::{
    abi::Ways,
    deadman::{self, Heartbeat, Life, Lives, Open, Packet},
};

use crate::classify::Match;

#[btf_map]
static HEARTBEAT: Array<Heartbeat, 1> = Array::new();

#[btf_map]
static OPEN: Array<Open, 2> = Array::new();

#[btf_map]
static LIVES: Array<Life, { deadman::LIVES }> = Array::new();

/// The path of a packet.
#[inline(always)]
pub fn choose(ways: Ways, packet: &Match) -> Option<u8> {
    if !packet.first && !is_any_open(packet.family) {
        return ways.choose_without(0);
    }
    let (first, family) = (packet.first.into(), packet.family as u64);
    let path = choose_unattended(ways.0, packet.destination, first, family);
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
pub fn choose_for_query(ways: Ways, family: usize, now: u64) -> Option<u8> {
    if !is_any_open(family) {
        return ways.choose_without(0);
    }
    let heartbeat = HEARTBEAT.get(0)?;
    let down = if heartbeat.is_fresh(now) {
        0
    } else {
        OPEN.get(family as u32 & 1)?.paths() & heartbeat.heard as u32
    };
    ways.choose_without(down)
}

/// Whether the dead-man takes a path for down for the packets of a family.
#[inline(always)]
pub fn is_open(path: u8, family: usize) -> bool {
    open_byte(path, family).is_some_and(|byte| {
        // SAFETY: an aligned load of a byte of a valid map value.
        unsafe { byte.read_volatile() != 0 }
    })
}

#[inline(always)]
fn is_any_open(family: usize) -> bool {
    OPEN.get_ptr(family as u32 & 1).is_some_and(|open| {
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
extern "C" fn choose_unattended(ways: u64, destination: u64, first: u64, family: u64) -> u64 {
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
                family: family as usize,
            },
            packet,
        )
    };
    path.unwrap_or(0).into()
}

/// An answer of a family came in on a path, if `is_answer`; the question is only asked when that is
/// news.
#[inline(always)]
pub fn hear(path: u8, family: usize, is_answer: impl Fn() -> bool) {
    let Some(life) = LIVES.get_ptr_mut(deadman::life(path, family)) else {
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
    family: usize,
}

impl Lives for Maps {
    #[inline(always)]
    fn judge(&self, path: u8, packet: Packet) -> Option<bool> {
        if self.heard & (1 << (path & 0x0f)) == 0 {
            return None;
        }
        let life = LIVES.get_ptr_mut(deadman::life(path, self.family))?;
        let open = open_byte(path, self.family)?;
        // SAFETY: aligned loads and stores of valid map values; every word of them is right by itself.
        unsafe {
            let (answered, waiting) = (&raw mut (*life).answered, &raw mut (*life).waiting);
            let was_open = open.read_volatile() != 0;
            let judgement =
                waiting
                    .read_volatile()
                    .judge(was_open, answered.read_volatile() != 0, packet);
            waiting.write_volatile(judgement.waiting);
            if judgement.begins {
                answered.write_volatile(0);
            }
            if judgement.open != was_open {
                open.write_volatile(judgement.open.into());
            }
            Some(judgement.take)
        }
    }
}

#[inline(always)]
fn open_byte(path: u8, family: usize) -> Option<*mut u8> {
    let open = OPEN.get_ptr_mut(family as u32 & 1)?;
    // SAFETY: 16 bytes, and the index is below 16.
    Some(unsafe {
        (&raw mut (*open).0)
            .cast::<u8>()
            .add(usize::from(path & 0x0f))
    })
}
