//! The dead-man: while no controller watches, a small judge in the kernel takes a path for down when
//! first packets go out on it and nothing comes back, and tries it again from time to time. It judges
//! the packets of each family by themselves: one may be dead on a link where the other works.
//!
//! It only counts packets that must be answered: TCP's pure SYN and QUIC's Initial. What comes in by
//! the breakout from an address of the plan is an answer, whoever asked. A path is opened (taken for
//! down) when, since the last answer, [`PACKETS`] of them went out, and a second address has been
//! silent for [`SILENCE`]: a client that hammers one dead address does not provoke it, nor does
//! one-way UDP. An open path gets one first packet each [`RETRY`]; the first answer closes it.
//!
//! A path that is opened by mistake costs a detour until the next trial is answered, so the
//! thresholds are lenient. A branch that talks to a single address never opens one.

use bytemuck::{Pod, Zeroable};

use crate::{abi::Ways, flow, mark};

/// Without a heartbeat for this long nobody watches: 10 s, in nanoseconds.
pub const STALE: u64 = 10_000_000_000;
/// Unanswered first packets that open a path.
pub const PACKETS: u32 = 8;
/// How long the first one to a second address has waited by then: 3 s, in nanoseconds.
pub const SILENCE: u64 = 3_000_000_000;
/// How often an open path is tried: each 5 s, in nanoseconds.
pub const RETRY: u64 = 5_000_000_000;
/// How many paths are judged for one packet; a router with more dead breakouts than this takes the
/// next one as it is.
pub const CANDIDATES: u32 = 3;

/// What the controller says: that it is there, and which paths may be judged. Nobody else writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Heartbeat {
    /// When it last said so, in nanoseconds of the monotonic clock; 0: never.
    pub at: u64,
    /// Bit n: a program hears the answers on path n. Without one the path cannot be judged.
    pub heard: u64,
}

impl Heartbeat {
    /// Whether a controller watches the paths.
    #[inline(always)]
    pub const fn is_fresh(&self, now: u64) -> bool {
        now.saturating_sub(self.at) < STALE
    }
}

/// How many lives there are: one for each path and family.
pub const LIVES: usize = 2 * mark::PATHS;

/// The place of a path's life in a family (0: IPv4, 1: IPv6).
#[inline(always)]
pub const fn life(path: u8, family: usize) -> u32 {
    (family as u32 & 1) * mark::PATHS as u32 + (path & 0x0f) as u32
}

/// Which paths are open for the packets of a family: a byte for each, since bytes are stored one by one: two processors that open
/// two paths at once do not undo each other's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Open(pub [u8; 16]);

impl Open {
    /// Bit n: path n is open.
    #[inline(always)]
    pub const fn paths(&self) -> u32 {
        let (mut bits, mut path) = (0, 0);
        while path < self.0.len() {
            bits |= ((self.0[path] & 1) as u32) << path;
            path += 1;
        }
        bits
    }
}

/// What is known of a family's answers on one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Life {
    /// 1: an answer came in since the wait began. The program on the breakout only ever writes 1, and
    /// the one on the LAN only 0, so neither undoes what the other knows.
    pub answered: u64,
    /// What the program on the LAN counts.
    pub waiting: Waiting,
}

impl Life {
    /// Nothing is waited for.
    pub const fn rested(self) -> Self {
        Self {
            answered: 1,
            waiting: self.waiting,
        }
    }
}

/// The first packets that wait for an answer. Processors may lose each other's counts; that opens a
/// path a packet later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Waiting {
    /// When the first of them to a second address went out, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// When the path was opened or last tried.
    pub tried: u64,
    /// A bit for each destination, by a hash of its address.
    pub destinations: u64,
    /// How many there are.
    pub packets: u32,
    /// How often the path was opened so far.
    pub openings: u32,
}

/// What the judge has to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whether it must be answered.
    pub first: bool,
    /// A number made from its destination's address.
    pub destination: u64,
    /// The time, in nanoseconds of the monotonic clock.
    pub now: u64,
}

/// What becomes of a packet and of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the packet takes the path.
    pub take: bool,
    /// Whether the path is open from now on.
    pub open: bool,
    /// Whether a new wait begins, so that answers from before do not count.
    pub begins: bool,
    /// The new count.
    pub waiting: Waiting,
}

impl Waiting {
    /// Judges a packet that would take the path, which was `open` or not, and `answered` or not since
    /// the wait began.
    #[inline(always)]
    pub const fn judge(mut self, open: bool, answered: bool, packet: Packet) -> Judgement {
        let (mut take, mut now_open, mut begins) = (true, false, false);
        if open && !answered {
            take = packet.first && packet.now.saturating_sub(self.tried) >= RETRY;
            now_open = true;
            if take {
                self.tried = packet.now;
            }
        } else if packet.first {
            let destination = 1 << (flow::mix(0, packet.destination) >> 58);
            if answered || self.packets == 0 {
                begins = true;
                self.packets = 1;
                self.destinations = destination;
            } else {
                if self.destinations.is_power_of_two() && self.destinations != destination {
                    self.since = packet.now;
                }
                self.packets = self.packets.saturating_add(1);
                self.destinations |= destination;
                if self.packets >= PACKETS
                    && !self.destinations.is_power_of_two()
                    && packet.now.saturating_sub(self.since) >= SILENCE
                {
                    take = false;
                    now_open = true;
                    self.tried = packet.now;
                    self.openings = self.openings.wrapping_add(1);
                }
            }
        }
        Judgement {
            take,
            open: now_open,
            begins,
            waiting: self,
        }
    }
}

/// Where the lives of the paths are: maps in the kernel, memory on the host.
pub trait Lives {
    /// Judges a packet by what is known of a path, keeps what that changes, and says whether the packet
    /// takes the path; none for a path that cannot be judged.
    fn judge(&self, path: u8, packet: Packet) -> Option<bool>;
}

/// The path of a client's packet when nobody watches: the one it would take, or the next one that is
/// not open.
#[inline(always)]
pub fn choose<L: Lives>(ways: Ways, lives: &L, packet: Packet) -> Option<u8> {
    let mut without = 0;
    let mut candidate = 0;
    while candidate < CANDIDATES {
        let path = ways.choose_without(without)?;
        if lives.judge(path, packet).unwrap_or(true) {
            return Some(path);
        }
        without |= 1 << path;
        candidate += 1;
    }
    ways.choose_without(without)
}

const _: () = assert!(size_of::<Heartbeat>() == 16 && align_of::<Heartbeat>() == 8);
const _: () = assert!(size_of::<Open>() == 16 && align_of::<Open>() == 8);
const _: () = assert!(size_of::<Life>() == 40 && align_of::<Life>() == 8);

#[cfg(test)]
mod tests {
    extern crate std;
    use core::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{FamilyTable, STEERING},
        mark,
    };

    const SECOND: u64 = 1_000_000_000;
    /// A controller died long ago.
    const START: u64 = 1000 * SECOND;

    /// The maps, on the host.
    struct Memory {
        lives: RefCell<[(Life, bool); mark::PATHS]>,
        heard: u32,
    }

    impl Lives for Memory {
        fn judge(&self, path: u8, packet: Packet) -> Option<bool> {
            if self.heard & 1 << path == 0 {
                return None;
            }
            let (life, open) = &mut self.lives.borrow_mut()[usize::from(path)];
            let judgement = life.waiting.judge(*open, life.answered != 0, packet);
            life.waiting = judgement.waiting;
            if judgement.begins {
                life.answered = 0;
            }
            *open = judgement.open;
            Some(judgement.take)
        }
    }

    /// An office with paths of falling priority.
    struct Office {
        table: FamilyTable,
        memory: Memory,
        now: u64,
    }

    impl Office {
        fn with(paths: u8) -> Self {
            let up = (1..=paths).fold(STEERING, |bits, path| bits | 1 << path);
            Self {
                table: FamilyTable::of(up, 1),
                memory: Memory {
                    lives: RefCell::new([(Life::default().rested(), false); mark::PATHS]),
                    heard: up & 0xfffe,
                },
                now: START,
            }
        }

        fn send(&self, first: bool, destination: u64) -> Option<u8> {
            let packet = Packet {
                first,
                destination,
                now: self.now,
            };
            choose(self.table.ways(0, 7), &self.memory, packet)
        }

        /// Two connects a second to two addresses, for some seconds; where each one went.
        fn connects(&mut self, seconds: u64) -> std::vec::Vec<Option<u8>> {
            let sent = (0..2 * seconds).map(|number| {
                self.now += SECOND / 2;
                self.send(true, number % 2)
            });
            sent.collect()
        }

        fn answer(&self, path: u8) {
            self.memory.lives.borrow_mut()[usize::from(path)].0.answered = 1;
        }

        fn is_open(&self, path: u8) -> bool {
            self.memory.lives.borrow()[usize::from(path)].1
        }
    }

    #[test]
    fn open_paths_are_bits() {
        let mut open = Open::default();
        assert_eq!(open.paths(), 0);
        for path in [0, 3, 15] {
            open.0[path] = 1;
        }
        assert_eq!(open.paths(), 0x8009);
    }

    #[test]
    fn a_black_hole_is_left_after_eight_packets_and_three_seconds() {
        let mut office = Office::with(1);
        let went = office.connects(4);
        assert_eq!(went, [[Some(1); 7].as_slice(), &[None]].concat());
        let mut office = Office::with(1);
        for number in 0..100 {
            assert_eq!(office.send(true, number), Some(1), "a burst is no silence");
        }
        office.now += SILENCE;
        assert_eq!(office.send(true, 0), None);
    }

    #[test]
    fn the_next_path_is_taken_and_judged_too() {
        let mut office = Office::with(2);
        assert_eq!(office.connects(4).last(), Some(&Some(2)));
        // The second one is dead, too; trials of the first one go on.
        let went = office.connects(5);
        assert!(went[7..].iter().all(|path| *path != Some(2)), "{went:?}");
        assert!(office.is_open(1) && office.is_open(2));
        office.answer(2);
        let went = office.connects(3);
        assert!(went.contains(&Some(2)), "{went:?}");
        assert!(!office.is_open(2));
    }

    #[test]
    fn an_open_path_is_tried_now_and_then_and_an_answer_closes_it() {
        let mut office = Office::with(1);
        office.connects(4);
        let went = office.connects(60);
        let trials = went.iter().filter(|path| path.is_some()).count();
        assert_eq!(trials, 12, "one each 5 s");
        office.answer(1);
        assert_eq!(office.send(false, 0), Some(1));
        assert!(!office.is_open(1));
        // What was sent before the answer counts no more.
        assert_eq!(office.connects(3), [Some(1); 6]);
    }

    #[test]
    fn one_dead_address_provokes_nothing() {
        let mut office = Office::with(1);
        for _ in 0..1000 {
            office.now += SECOND / 10;
            assert_eq!(office.send(true, 4711), Some(1));
        }
    }

    #[test]
    fn another_client_beside_one_that_hammers_a_dead_address_has_its_chance() {
        let mut office = Office::with(1);
        for _ in 0..1000 {
            office.now += SECOND / 10;
            office.send(true, 4711);
        }
        assert_eq!(office.send(true, 1), Some(1));
        office.now += SILENCE - 1;
        assert_eq!(office.send(true, 1), Some(1));
        office.now += 1;
        assert_eq!(office.send(true, 1), None);
    }

    #[test]
    fn one_way_packets_provoke_nothing() {
        let mut office = Office::with(1);
        for number in 0..1000 {
            office.now += SECOND / 10;
            assert_eq!(office.send(false, number), Some(1));
        }
    }

    #[test]
    fn answers_to_others_keep_a_path_up() {
        let mut office = Office::with(1);
        for number in 0..1000 {
            office.now += SECOND / 4;
            assert_eq!(office.send(true, number % 2), Some(1));
            if number % 8 == 0 {
                office.answer(1);
            }
        }
    }

    #[test]
    fn a_path_that_nobody_hears_is_not_judged() {
        let mut office = Office::with(2);
        office.memory.heard = 0b100;
        assert_eq!(office.connects(60), [Some(1); 120]);
    }

    #[test]
    fn a_sign_of_life_is_fresh_for_ten_seconds() {
        let heartbeat = Heartbeat {
            at: START,
            heard: 0,
        };
        assert!(heartbeat.is_fresh(START - 1) && heartbeat.is_fresh(START + STALE - 1));
        assert!(!heartbeat.is_fresh(START + STALE));
    }

    proptest! {
        /// Whatever happens: a path opens only after enough unanswered first packets and time, an open
        /// path is tried at most once in 5 s, and never without a first packet.
        #[test]
        fn no_path_opens_without_cause(
            events in proptest::collection::vec((0_u64..2 * SECOND, 0_u8..8, 0_u64..4), 1..400)
        ) {
            let mut office = Office::with(1);
            let (mut unanswered, mut since, mut tried) = (0, 0, 0);
            for (pause, kind, destination) in events {
                office.now += pause;
                if kind == 0 {
                    office.answer(1);
                    unanswered = 0;
                    continue;
                }
                let (was_open, first) = (office.is_open(1), kind > 2);
                let answered = office.memory.lives.borrow()[1].0.answered == 1;
                let went = office.send(first, destination);
                if first && (answered || !was_open) {
                    if unanswered == 0 {
                        since = office.now;
                    }
                    unanswered += 1;
                }
                if office.is_open(1) && !was_open {
                    prop_assert!(unanswered >= PACKETS && office.now - since >= SILENCE);
                    tried = office.now;
                }
                if office.is_open(1) && went == Some(1) {
                    prop_assert!(first && office.now - tried >= RETRY);
                    tried = office.now;
                }
                prop_assert!(office.is_open(1) || went == Some(1));
            }
        }
    }
}
