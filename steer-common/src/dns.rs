//! What queries and answers leave in the maps: resolvers, pending queries, learned addresses.
//!
//! Addresses are 16 octets in network order, IPv4 as `::ffff:a.b.c.d`. Times are nanoseconds of the
//! monotonic clock.

use bytemuck::{Pod, Zeroable};

use crate::{flow, mark, names::KEY_OCTETS};

/// An address in network order, IPv4 mapped into IPv6.
pub type Address = [u8; 16];

/// Resolvers that the kernel can know at a time; 0 is never used.
pub const RESOLVERS: u32 = 64;
/// Queries whose answer is awaited.
pub const PENDING: u32 = 16_384;
/// Learned addresses of both families.
pub const LEARNED: u32 = 32_768;
/// Who asked for which learned address.
pub const ASKERS: u32 = 65_536;
/// Addresses that names outside the plan were answered with.
pub const FOREIGN: u32 = 32_768;
/// Questions that were rewritten and are not answered.
pub const ASKED: u32 = 16_384;
/// The counters of what names and clients may, one for each value of a hash: who shares one, shares
/// a budget, and nobody gets a new one by making the kernel forget the old.
pub const BUDGETS: u32 = 65_536;
/// The answers of one message that are learned; with more of them it teaches nothing.
pub const MAX_ADDRESSES: u32 = 32;

/// A second.
pub const SECOND: u64 = 1_000_000_000;
/// How long an answer is awaited.
pub const PENDING_LIFE: u64 = 10 * SECOND;
/// A question that is asked again within this time of an unanswered rewrite passes as it is.
pub const REPEAT: u64 = 10 * SECOND;
/// This many unanswered queries since the last answer ...
pub const UNANSWERED: u32 = 3;
/// ... for this long: the resolver is taken for dead.
pub const SILENCE: u64 = 2 * SECOND;
/// A dead resolver is tried once in this time.
pub const TRIAL: u64 = 5 * SECOND;
/// The shortest and the longest life of a learned address, in seconds.
pub const SHORTEST_LIFE: u32 = 300;
/// See [`SHORTEST_LIFE`].
pub const LONGEST_LIFE: u32 = 86_400;
/// Addresses that a name outside the plan had within this time are shared.
pub const FOREIGN_LIFE: u64 = 3600 * SECOND;
/// The windows in which new addresses are counted, as a shift of nanoseconds: 2^38 ns, 275 s.
pub const WINDOW_SHIFT: u32 = 38;
/// New addresses of a name in a window.
pub const NAME_BUDGET: u32 = 64;
/// New addresses of a client in a window.
pub const CLIENT_BUDGET: u32 = 256;
/// The windows in which a client's queries are counted, as a shift of nanoseconds: 2^30 ns, 1.1 s.
pub const ASKING_SHIFT: u32 = 30;
/// Queries of a client in such a window that are remembered, and so rewritten; the rest passes as it
/// is. One client alone cannot make the kernel forget what the others asked in the last 10 s.
pub const CLIENT_QUERIES: u32 = 1024;
const _: () = assert!((CLIENT_QUERIES as u64) * (PENDING_LIFE >> ASKING_SHIFT) < PENDING as u64);

/// Bit of [`DnsTable::flags`]: queries are rewritten.
pub const REWRITING: u32 = 1;
/// Bit of [`DnsTable::flags`]: shared addresses are not steered at all; else for those who asked.
pub const REFUSE_SHARED: u32 = 2;

/// Which resolver the queries of a path go to: its own lifetime, like the state of the paths. Every
/// field is read by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DnsTable {
    /// [`REWRITING`], [`REFUSE_SHARED`].
    pub flags: u32,
    /// The active resolver of each path in each family (0: IPv4, 1: IPv6), an index of the map of
    /// resolvers; 0: none, and queries of that family are left alone.
    pub active: [[u8; 2]; mark::PATHS],
}

/// A resolver. One that the table names must not be changed: take another index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Resolver {
    /// Where it is.
    pub address: Address,
}

/// What the programs know of a resolver's health: with no controller it is all there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ResolverState {
    /// When the first of the unanswered queries was sent.
    pub first: u64,
    /// The last answer.
    pub answered: u64,
    /// The last trial of a dead resolver.
    pub trial: u64,
    /// Queries since the last answer. SERVFAIL and REFUSED are no answers.
    pub unanswered: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

impl ResolverState {
    /// Whether the resolver is taken for dead.
    #[inline(always)]
    pub const fn is_dead(&self, now: u64) -> bool {
        self.unanswered >= UNANSWERED && now.saturating_sub(self.first) >= SILENCE
    }
}

/// What one CPU counted of a resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ResolverCount {
    /// Queries sent to it.
    pub queries: u64,
    /// Answers from it.
    pub answers: u64,
    /// Those of them that say SERVFAIL, REFUSED or the like.
    pub failures: u64,
    /// The sum of the times to its answers, in nanoseconds.
    pub waited: u64,
}

/// What identifies an answer that is awaited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PendingKey {
    /// Who asked.
    pub client: Address,
    /// Whom the query was sent to.
    pub resolver: Address,
    /// The client's port, network order.
    pub port: [u8; 2],
    /// The id of the message.
    pub id: [u8; 2],
    /// Reserved, 0.
    pub reserved: u32,
}

/// Bit of [`Pending::flags`]: the query was rewritten.
pub const REWRITTEN: u16 = 1;
/// Bit of [`Pending::flags`]: the answer teaches.
pub const TEACHES: u16 = 2;
/// Bit of [`Pending::flags`]: it was answered; a second answer is restored but teaches nothing.
pub const ANSWERED: u16 = 4;

/// A query whose answer is awaited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pending {
    /// Whom the client asked.
    pub server: Address,
    /// When.
    pub asked: u64,
    /// A hash of name and type.
    pub question: u64,
    /// The class.
    pub class: u16,
    /// [`REWRITTEN`], [`TEACHES`], [`ANSWERED`].
    pub flags: u16,
    /// The resolver's index.
    pub resolver: u32,
}

/// Bit of [`Learned::flags`]: names outside the class were answered with the address, too.
pub const SHARED: u16 = 1;

/// An address that a name of the plan was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Learned {
    /// When it is forgotten; put off by traffic.
    pub expires: u64,
    /// The first answer with it.
    pub learned: u64,
    /// Who asked first.
    pub client: Address,
    /// The first name, as [`crate::names::Key`]: its last 64 octets.
    pub name: [u8; KEY_OCTETS],
    /// How long it lives after an answer or a packet, in seconds.
    pub life: u32,
    /// The class.
    pub class: u16,
    /// [`SHARED`].
    pub flags: u16,
}

/// Who asked for an address: a hash of both is the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Asker {
    /// When it is forgotten; put off by traffic.
    pub expires: u64,
    /// The class that this client asked for.
    pub class: u16,
    /// Reserved, 0.
    pub reserved: [u16; 3],
}

/// How long an address lives that an answer taught, in seconds, by the answer's time to live.
#[inline(always)]
pub const fn life(ttl: u32) -> u32 {
    if ttl < SHORTEST_LIFE {
        SHORTEST_LIFE
    } else if ttl > LONGEST_LIFE {
        LONGEST_LIFE
    } else {
        ttl
    }
}

/// Whether an address can be that of a public service: not private, not reserved, no multicast.
#[inline(always)]
pub const fn is_plausible(address: &Address, v6: bool) -> bool {
    if v6 {
        // Global unicast (RFC 4291, 2.4).
        return address[0] & 0xe0 == 0x20;
    }
    let (a, b) = (address[12], address[13]);
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && b & 0xc0 == 64)
        || (a == 169 && b == 254)
        || (a == 172 && b & 0xf0 == 16)
        || (a == 192 && b == 168))
}

/// One half of an address.
#[inline(always)]
pub fn long(address: &Address, half: usize) -> u64 {
    let at = half * 8;
    u64::from_ne_bytes([
        address[at],
        address[at + 1],
        address[at + 2],
        address[at + 3],
        address[at + 4],
        address[at + 5],
        address[at + 6],
        address[at + 7],
    ])
}

/// A number for a client.
#[inline(always)]
pub fn client(client: &Address) -> u64 {
    flow::finish(flow::mix(flow::mix(!0, long(client, 0)), long(client, 1)))
}

/// The key of a client and an address that it asked for.
#[inline(always)]
pub fn asker(client: &Address, address: &Address) -> u64 {
    let mut hash = 0;
    let mut word = 0;
    while word < 2 {
        hash = flow::mix(flow::mix(hash, long(client, word)), long(address, word));
        word += 1;
    }
    flow::finish(hash)
}

/// What a name or a client had of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Budget {
    /// Which window.
    pub window: u32,
    /// How much in it.
    pub used: u32,
}

impl Budget {
    /// The place of somebody's counter.
    #[inline(always)]
    pub const fn place(who: u64) -> u32 {
        who as u32 & (BUDGETS - 1)
    }

    /// Whether there is something left of `most` in a window.
    #[inline(always)]
    pub const fn allows(self, most: u32, window: u64) -> bool {
        self.window != window as u32 || self.used < most
    }

    /// The same with one less left.
    #[inline(always)]
    pub const fn spent(self, window: u64) -> Self {
        let window = window as u32;
        let used = if self.window == window { self.used } else { 0 };
        Self {
            window,
            used: used.saturating_add(1),
        }
    }
}

const _: () = assert!(BUDGETS.is_power_of_two());
const _: () = assert!(size_of::<DnsTable>() == 36);
const _: () = assert!(size_of::<Resolver>() == 16);
const _: () = assert!(size_of::<ResolverState>() == 32);
const _: () = assert!(size_of::<ResolverCount>() == 32);
const _: () = assert!(size_of::<PendingKey>() == 40 && align_of::<PendingKey>() == 4);
const _: () = assert!(size_of::<Pending>() == 40 && align_of::<Pending>() == 8);
const _: () = assert!(size_of::<Learned>() == 104 && align_of::<Learned>() == 8);
const _: () = assert!(size_of::<Asker>() == 16);
const _: () = assert!(size_of::<Budget>() == 8);

/// Places for counters of [`DnsEvent`]s; room for more than are in use.
pub const DNS_EVENTS: u32 = 48;

macro_rules! events {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What became of a query or an answer. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum DnsEvent {
            $($(#[doc = $doc])* $name = $value,)*
        }

        impl DnsEvent {
            /// Every event, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name of the counter: one word, stable, for metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, for a person.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

events! {
    /// A query was sent to the resolver of its path.
    Rewritten = 0, "rewritten";
    /// A query of a kind that is left alone: not plain, not recursive, signed, several questions.
    Odd = 1, "odd-query";
    /// The operator leaves the name alone.
    Excluded = 2, "excluded-name";
    /// The query was asked again and passes as it is: the first one is not answered yet.
    Repeated = 3, "repeated";
    /// The path's resolver is taken for dead.
    Dead = 4, "resolver-dead";
    /// The path has no resolver in the query's family.
    NoResolver = 5, "no-resolver";
    /// No breakout is up, or steering is off.
    NoPath = 6, "query-without-path";
    /// The client asks the path's resolver anyway.
    Already = 7, "asks-it-already";
    /// There was no room to remember the query.
    NoRoom = 8, "no-room";
    /// The client is not one of the LAN, or left out, or its queries are left alone.
    NotClient = 9, "not-a-client";
    /// An answer got the address back that the client asked.
    Restored = 10, "restored";
    /// The resolver answered SERVFAIL, REFUSED or the like.
    Failed = 11, "resolver-failed";
    /// An answer for another question than the one that was asked; it passes as it is.
    OtherQuestion = 12, "other-question";
    /// A resolver's answer came too late.
    Late = 13, "late";
    /// An answer that should teach is malformed, too long or has too many records.
    BadAnswer = 14, "bad-answer";
    /// A truncated answer teaches nothing.
    Truncated = 15, "truncated";
    /// An address was learned.
    Learned = 16, "learned";
    /// A learned address was answered again.
    Refreshed = 17, "refreshed";
    /// An address that no public service has: private, own, reserved.
    Implausible = 18, "implausible-address";
    /// A name or a client had more new addresses than it may.
    OverBudget = 19, "over-budget";
    /// An address that a name outside the class has, too; it is steered for those who asked.
    Shared = 20, "shared-address";
    /// A trial of a dead resolver.
    Trial = 21, "trial";
    /// The client asks more often than is remembered; the query goes where the client sent it.
    TooMany = 22, "too-many-queries";
}

const _: () = assert!(DnsEvent::ALL.len() <= DNS_EVENTS as usize);

/// An address as the maps have it.
#[cfg(feature = "user")]
pub fn address(address: std::net::IpAddr) -> Address {
    match address {
        std::net::IpAddr::V4(it) => it.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(it) => it.octets(),
    }
}

/// An address from the maps.
#[cfg(feature = "user")]
pub fn ip(address: Address) -> std::net::IpAddr {
    std::net::Ipv6Addr::from(address).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_in_the_order_of_their_counters() {
        for (index, event) in DnsEvent::ALL.iter().enumerate() {
            assert_eq!(*event as usize, index, "{event:?}");
            assert!(!event.meaning().is_empty(), "{event:?}");
        }
    }

    #[test]
    fn a_life_is_neither_so_short_that_flows_lose_it_nor_so_long_that_it_is_somebody_else_s() {
        for (ttl, expected) in [
            (0, SHORTEST_LIFE),
            (SHORTEST_LIFE + 1, SHORTEST_LIFE + 1),
            (LONGEST_LIFE + 1, LONGEST_LIFE),
            (u32::MAX, LONGEST_LIFE),
        ] {
            assert_eq!(life(ttl), expected, "{ttl}");
        }
    }

    #[test]
    fn a_resolver_is_dead_after_three_queries_and_two_seconds() {
        let state = |unanswered| ResolverState {
            first: 5 * SECOND,
            unanswered,
            ..ResolverState::default()
        };
        assert!(!state(3).is_dead(5 * SECOND + SILENCE - 1));
        assert!(state(3).is_dead(5 * SECOND + SILENCE));
        assert!(!state(2).is_dead(60 * SECOND));
        assert!(!state(3).is_dead(0));
    }
}
