//! A DNS message in memory of our own: UDP's headers, the question as a key, the answers' records.
//!
//! Everything that a loop carries on is kept in the map's value and accessed as volatile: the verifier
//! then takes every number for unknown, so that the ways through the loop meet again. In registers
//! they would be known numbers on every way, and no two ways alike.

use core::ptr;

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{PerCpuArray, lpm_trie::Key},
    helpers::generated::bpf_skb_load_bytes,
    programs::TcContext,
};
use steer_common::{
    dns::{Address, Learned, MAX_ADDRESSES, Pending, PendingKey},
    flow,
    names::{self, Head},
    rule::UDP,
};

use crate::{
    learned::mapped,
    parse::{Bytes, IPV4, IPV6, Link},
};

/// The port of DNS.
pub const PORT: u16 = 53;
/// The message's place in [`Buffer`]'s text: the name is read back to front, in words.
const FRONT: usize = 64;
/// The header of a message.
pub const HEADER: usize = 12;
/// Positions in a message, as a mask.
const POSITIONS: i32 = 2047;
/// The most octets of a message that are looked at.
pub const LONGEST: usize = 1500;
/// The most labels of a name that is looked up.
const LABELS: u32 = 40;
/// The steps of the walk through a message: labels, pointers, records, parameters.
const STEPS: u32 = 256;

macro_rules! get {
    ($message:ident . $($field:ident).+ $([$index:expr])?) => {
        // SAFETY: an aligned load of a field of a valid map value, this CPU's own.
        unsafe { (&raw const (*$message.0).$($field).+ $([$index])?).read_volatile() }
    };
}
macro_rules! set {
    ($message:ident . $($field:ident).+ $([$index:expr])? = $value:expr) => {{
        let value = $value;
        // SAFETY: an aligned store to a field of a valid map value, this CPU's own.
        unsafe { (&raw mut (*$message.0).$($field).+ $([$index])?).write_volatile(value) }
    }};
}

/// A UDP datagram from or to port 53.
pub struct Udp {
    /// Where the UDP header begins.
    pub l4: usize,
    /// The octets of the message.
    pub length: usize,
    /// IPv4, or else IPv6.
    pub v4: bool,
}

/// Which port has to be 53.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source's: an answer.
    From,
    /// The destination's: a query.
    To,
}

/// Finds a whole UDP datagram without options or extension headers.
#[inline(always)]
pub fn udp(bytes: &Bytes, link: &Link, side: Side) -> Option<Udp> {
    let (l4, room, v4) = match link.ethertype {
        IPV4 => {
            let header: [u8; 20] = bytes.read(link.l3)?;
            let fragment = u16::from_be_bytes([header[6], header[7]]);
            if header[9] != UDP || header[0] != 0x45 || fragment & 0x3fff != 0 || header[8] <= 1 {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            (link.l3 + 20, length.wrapping_sub(20), true)
        }
        IPV6 => {
            let header: [u8; 40] = bytes.read(link.l3)?;
            if header[6] != UDP || header[0] >> 4 != 6 || header[7] <= 1 {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            (link.l3 + 40, length, false)
        }
        _ => return None,
    };
    let head: [u8; 8] = bytes.read(l4)?;
    let port = match side {
        Side::From => u16::from_be_bytes([head[0], head[1]]),
        Side::To => u16::from_be_bytes([head[2], head[3]]),
    };
    if port != PORT {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    if length != room || l4 + length > bytes.length || length < 8 + HEADER + 5 {
        return None;
    }
    Some(Udp {
        l4,
        length: length - 8,
        v4,
    })
}

/// The trie's key as the helper wants it, and all else that is too large for the stack.
#[repr(C)]
pub struct Buffer {
    pad: u32,
    /// How many bits of the key count.
    bits: u32,
    /// The name, back to front (see `steer_common::names`).
    key: [u64; 8],
    /// The beginning of the name.
    head: Head,
    /// The name's octets without the root.
    length: u32,
    /// The type that is asked for.
    kind: u32,
    /// Where the question ends.
    end: u32,
    /// The addresses that were found.
    found: u32,
    /// The key of the pending query.
    pending_key: PendingKey,
    /// Its value.
    pending: Pending,
    /// The address in hand.
    address: Address,
    /// Its value.
    learned: Learned,
    /// What the answer teaches, how many records it has, and when it came.
    lesson: u64,
    records: u64,
    now: u64,
    walk: Walk,
    /// Where a name begins or goes on, a bit for each position.
    starts: [u64; 32],
    /// Where the addresses are: position << 1 | IPv6.
    places: [u32; MAX_ADDRESSES as usize],
    text: [u8; FRONT + POSITIONS as usize + 1 + 64],
}

/// A message in its buffer: a valid value of a per-CPU map, this CPU's own while the program runs.
#[derive(Clone, Copy)]
pub struct Message(*mut Buffer);

impl Message {
    /// The buffer of this CPU.
    #[inline(always)]
    pub fn of(map: &PerCpuArray<Buffer, 1>) -> Option<Self> {
        map.get_ptr_mut(0).map(Self)
    }

    /// The number of the addresses that [`walk`] found.
    #[inline(always)]
    pub fn found(self) -> u32 {
        get!(self.found)
    }

    /// The type that is asked for.
    #[inline(always)]
    pub fn kind(self) -> u32 {
        get!(self.kind)
    }

    /// Where the question ends.
    #[inline(always)]
    pub fn end(self) -> usize {
        get!(self.end) as usize
    }

    /// The octets of the question's name, without the root.
    #[inline(always)]
    pub fn name_length(self) -> u32 {
        get!(self.length)
    }

    /// The name as the trie's key.
    #[inline(always)]
    pub fn key(self) -> &'static Key<names::Key> {
        // SAFETY: the number of bits and the key stand side by side as the helper wants them, in a
        // map's value, which outlives the program.
        unsafe { &*(&raw const (*self.0).bits).cast() }
    }

    /// The beginning of the name.
    #[inline(always)]
    pub fn head(self) -> &'static Head {
        // SAFETY: a field of a map's value, which outlives the program.
        unsafe { &(*self.0).head }
    }

    /// Writes the key of a pending query.
    #[inline(always)]
    pub fn set_pending_key(self, key: PendingKey) {
        set!(self.pending_key = key);
    }

    /// The key of the pending query.
    #[inline(always)]
    pub fn pending_key(self) -> &'static PendingKey {
        // SAFETY: as for `head`.
        unsafe { &(*self.0).pending_key }
    }

    /// Writes a pending query.
    #[inline(always)]
    pub fn set_pending(self, value: Pending) {
        set!(self.pending = value);
    }

    /// The pending query.
    #[inline(always)]
    pub fn pending(self) -> &'static Pending {
        // SAFETY: as for `head`.
        unsafe { &(*self.0).pending }
    }

    /// Writes down what an answer teaches.
    #[inline(always)]
    pub fn set_lesson(self, lesson: u64, counts: Counts, now: u64) {
        set!(self.lesson = lesson);
        set!(self.records = u64::from(counts.answers) << 32 | u64::from(counts.records));
        set!(self.now = now);
    }

    /// What the answer teaches; its records in the answer section (upper half) and in all; when it
    /// came.
    #[inline(always)]
    pub fn lesson(self) -> (u64, u64, u64) {
        (get!(self.lesson), get!(self.records), get!(self.now))
    }

    /// The address that [`take`] took.
    #[inline(always)]
    pub fn address(self) -> &'static Address {
        // SAFETY: as for `head`.
        unsafe { &(*self.0).address }
    }

    /// What [`write`] wrote.
    #[inline(always)]
    pub fn learned(self) -> &'static Learned {
        // SAFETY: as for `head`.
        unsafe { &(*self.0).learned }
    }
}

#[repr(C)]
struct Walk {
    /// Where the next step begins.
    pos: u32,
    /// The octets of the message.
    len: u32,
    /// Where the name in hand begins: pointers point before it.
    begin: u32,
    phase: u32,
    /// Records that are left, all in all and in the answer section.
    records: u32,
    answers: u32,
    /// Where the record's data end.
    end: u32,
    /// Names that are left in them, and the octets behind the last one.
    names: u32,
    tail: u32,
    /// Whether the names are followed by parameters, and the least key that the next one may have.
    service: u32,
    key: u32,
    /// The octets of an address of the hint in hand, and where the hint ends.
    size: u32,
    hint: u32,
    /// The shortest time to live of the answers.
    ttl: u32,
}

/// What a step of the walk begins with.
mod phase {
    pub const QUESTION: u32 = 0;
    pub const OWNER: u32 = 1;
    pub const DATA: u32 = 2;
    pub const PARAMETER: u32 = 3;
    pub const HINT: u32 = 4;
}

/// An `and` that the compiler cannot remove because it believes to know better than the verifier.
#[inline(always)]
pub fn mask<const M: i32>(value: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: one instruction on a register.
        unsafe {
            core::arch::asm!("{0} &= {1}", inout(reg) value, const M, options(pure, nomem, nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value & M as usize
    }
}

/// Eight octets at any address, little-endian: the compiler would read them one by one.
///
/// # Safety
/// All of them can be read.
#[inline(always)]
unsafe fn word(at: *const u8) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller says so.
        unsafe {
            core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) word, in(reg) at, options(pure, readonly, nostack));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: the caller says so.
        unsafe { at.cast::<u64>().read_unaligned() }
    }
}

/// Copies a message of at most [`LONGEST`] octets; of a longer one the beginning. False: nothing can
/// be read.
#[inline(always)]
pub fn load(ctx: &TcContext, message: Message, udp: &Udp) -> bool {
    let skb: *const __sk_buff = ctx.skb.skb;
    let length = if udp.length > LONGEST {
        LONGEST
    } else {
        udp.length
    };
    let length = mask::<POSITIONS>(length);
    if length > LONGEST {
        return false;
    }
    // The mask again: a range that starts below zero would lose what the next line says (7.3).
    let length = mask::<POSITIONS>(length);
    if length < HEADER + 5 {
        return false;
    }
    // SAFETY: the buffer has room for every length that the mask allows; the helper checks the packet.
    let failed = unsafe {
        let to = (&raw mut (*message.0).text).cast::<u8>().add(FRONT);
        bpf_skb_load_bytes(skb.cast(), (udp.l4 + 8) as u32, to.cast(), length as u32)
    };
    set!(message.walk.len = length as u32);
    failed == 0
}

/// The octet at a position.
#[inline(always)]
pub fn octet(message: Message, at: usize) -> u32 {
    // SAFETY: the mask keeps the position inside the text.
    unsafe {
        let text = (&raw const (*message.0).text).cast::<u8>().add(FRONT);
        text.add(mask::<POSITIONS>(at)).read_volatile().into()
    }
}

/// Two octets in network order.
#[inline(always)]
pub fn half(message: Message, at: usize) -> u32 {
    octet(message, at) << 8 | octet(message, at + 1)
}

/// The octets of the message that were copied.
#[inline(always)]
pub fn length(message: Message) -> usize {
    mask::<POSITIONS>(get!(message.walk.len) as usize)
}

/// Reads the question: name, type, class IN. Afterwards key, head, kind and end are those of the
/// question, and the header is no longer there.
#[inline(always)]
pub fn question(message: Message) -> bool {
    let length = length(message);
    set!(message.walk.pos = HEADER as u32);
    let mut label = 0;
    while label < LABELS {
        let pos = mask::<POSITIONS>(get!(message.walk.pos) as usize);
        let octets = octet(message, pos);
        if octets == 0 {
            break;
        }
        if octets > 63 || pos >= length {
            return false;
        }
        set!(message.walk.pos = pos as u32 + 1 + octets);
        label += 1;
    }
    let pos = mask::<POSITIONS>(get!(message.walk.pos) as usize);
    if octet(message, pos) != 0
        || pos + 5 > length
        || pos <= HEADER
        || pos > HEADER + 254
        || half(message, pos + 3) != 1
    {
        return false;
    }
    let name = pos - HEADER;
    set!(message.kind = half(message, pos + 1));
    set!(message.end = pos as u32 + 5);
    set!(message.length = name as u32);
    reverse(message, mask::<255>(name));
    true
}

/// Writes key and head of the name that begins behind the header and has `length` octets.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the fields stand at multiples of eight octets, as the assertions below say"
)]
fn reverse(message: Message, length: usize) {
    // SAFETY: constant places inside the text, and those that the mask of `length` allows: at most
    // 255 + 68 + 8, at least 12.
    unsafe {
        let text = (&raw mut (*message.0).text).cast::<u8>();
        let name = text.add(FRONT + HEADER);
        let mut place = 0;
        while place < names::HEAD_WORDS {
            let value = names::lower(word(name.add(place * 8)));
            (&raw mut (*message.0).head[place]).write_volatile(value);
            place += 1;
        }
        // What is read before the name's first octet is 0, and that one ends the key.
        let mut place = 8;
        while place < FRONT + HEADER - 4 {
            ptr::write_volatile(text.add(place).cast::<u64>(), 0);
            place += 8;
        }
        ptr::write_volatile(text.add(FRONT + HEADER - 4).cast::<u32>(), 0);
        let first = ptr::read_volatile(name);
        ptr::write_volatile(name, 0xff);
        let mut place = 0;
        while place < 8 {
            let at = text.add(FRONT + HEADER - 8 - place * 8).add(length);
            let value = names::lower(word(at)).swap_bytes();
            (&raw mut (*message.0).key[place]).write_volatile(value);
            place += 1;
        }
        let whole = if length > names::KEY_OCTETS {
            names::KEY_OCTETS
        } else {
            length
        };
        (&raw mut (*message.0).bits).write_volatile(whole as u32 * 8);
        ptr::write_volatile(name, first);
    }
}

/// A hash of the name, and of name and type.
#[inline(always)]
pub fn hashes(message: Message) -> (u64, u64) {
    let hash = names::hash(get!(message.length), |word| get!(message.key[word]));
    let question = flow::mix(hash, u64::from(get!(message.kind)));
    (flow::finish(hash), flow::finish(question))
}

/// Copies source and destination address out of the IP header.
#[inline(always)]
pub fn addresses(bytes: &Bytes, link: &Link, udp: &Udp) -> Option<(Address, Address)> {
    if udp.v4 {
        let header: [u8; 20] = bytes.read(link.l3)?;
        let at = |place: usize| {
            u32::from_be_bytes([
                header[place],
                header[place + 1],
                header[place + 2],
                header[place + 3],
            ])
        };
        Some((mapped(at(12)), mapped(at(16))))
    } else {
        let source = bytes.read(link.l3 + 8)?;
        let destination = bytes.read(link.l3 + 24)?;
        Some((source, destination))
    }
}

/// How many records a message says it has.
#[derive(Clone, Copy)]
pub struct Counts {
    /// In the answer section.
    pub answers: u32,
    /// In all sections.
    pub records: u32,
}

/// Walks through the whole message, and says whether it is well formed. The places of the addresses
/// in its answer section are then in `places`, their number in `found`.
///
/// Strict on purpose: what is not exactly a message teaches nothing. A pointer leads to where a label
/// of an earlier name begins; nothing is left behind the last record.
#[inline(always)]
pub fn walk(message: Message, counts: Counts) -> bool {
    let mut word = 0;
    while word < 32 {
        set!(message.starts[word] = 0);
        word += 1;
    }
    set!(message.walk.pos = HEADER as u32);
    set!(message.walk.begin = HEADER as u32);
    set!(message.walk.phase = phase::QUESTION);
    set!(message.walk.records = counts.records);
    set!(message.walk.answers = counts.answers);
    set!(message.walk.ttl = u32::MAX);
    set!(message.found = 0);
    let mut step = 0;
    while step < STEPS {
        match self::step(message) {
            Step::More => {}
            Step::Done => return true,
            Step::Bad => return false,
        }
        step += 1;
    }
    false
}

/// The shortest time to live of the answer's records, in seconds.
#[inline(always)]
pub fn ttl(message: Message) -> u32 {
    get!(message.walk.ttl)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Done,
    Bad,
}

#[inline(always)]
fn step(message: Message) -> Step {
    let pos = mask::<POSITIONS>(get!(message.walk.pos) as usize);
    let len = get!(message.walk.len) as usize;
    match get!(message.walk.phase) {
        phase::PARAMETER => parameter(message, pos),
        phase::HINT => hint(message, pos),
        _ if pos >= len => Step::Bad,
        _ => label(message, pos, len),
    }
}

/// One label, pointer or root; with the end of a name also what follows it.
#[inline(always)]
fn label(message: Message, pos: usize, len: usize) -> Step {
    mark(message, pos);
    let octets = octet(message, pos);
    if octets != 0 && octets < 64 {
        set!(message.walk.pos = pos as u32 + 1 + octets);
        return Step::More;
    }
    let mut end = pos + 1;
    if octets != 0 {
        let target = ((octets & 63) << 8 | octet(message, pos + 1)) as usize;
        if octets < 0xc0
            || target < HEADER
            || target >= get!(message.walk.begin) as usize
            || !is_marked(message, target)
        {
            return Step::Bad;
        }
        end = pos + 2;
    }
    match get!(message.walk.phase) {
        phase::QUESTION => {
            if end + 4 > len {
                return Step::Bad;
            }
            next(message, end + 4)
        }
        phase::OWNER => record(message, end, len),
        _ => {
            let limit = get!(message.walk.end) as usize;
            let left = get!(message.walk.names).wrapping_sub(1);
            if left != 0 {
                set!(message.walk.names = left);
                set!(message.walk.begin = end as u32);
                set!(message.walk.pos = end as u32);
                return if end < limit { Step::More } else { Step::Bad };
            }
            if get!(message.walk.service) != 0 {
                set!(message.walk.phase = phase::PARAMETER);
                set!(message.walk.pos = end as u32);
                return if end <= limit { Step::More } else { Step::Bad };
            }
            let tail = get!(message.walk.tail);
            let behind = end + tail as usize;
            // A signature has any length.
            if behind == limit || (tail == SIGNATURE && end < limit) {
                finish(message)
            } else {
                Step::Bad
            }
        }
    }
}

/// As a tail: at least one octet.
const SIGNATURE: u32 = 0xffff;

/// The record whose owner ended at `at`.
#[inline(always)]
fn record(message: Message, at: usize, len: usize) -> Step {
    if at + 10 > len {
        return Step::Bad;
    }
    let at = mask::<POSITIONS>(at);
    let (kind, class) = (half(message, at), half(message, at + 2));
    let ttl = half(message, at + 4) << 16 | half(message, at + 6);
    let octets = half(message, at + 8) as usize;
    let data = at + 10;
    let end = data + octets;
    if end > len {
        return Step::Bad;
    }
    set!(message.walk.end = end as u32);
    set!(message.walk.service = 0);
    let answer = get!(message.walk.answers) != 0;
    // The OPT record's class and time to live are something else.
    if answer && kind != 41 {
        if class != 1 {
            return Step::Bad;
        }
        // With the topmost bit it is zero (RFC 2181, 8).
        let ttl = ttl & !(ttl.cast_signed() >> 31).cast_unsigned();
        if ttl < get!(message.walk.ttl) {
            set!(message.walk.ttl = ttl);
        }
    }
    let (skip, names, tail) = match kind {
        1 | 28 => {
            let size = if kind == 1 { 4 } else { 16 };
            if octets != size {
                return Step::Bad;
            }
            if answer && !found(message, data, kind == 28) {
                return Step::Bad;
            }
            return finish(message);
        }
        // NS, CNAME, PTR, DNAME.
        2 | 5 | 12 | 39 => (0, 1, 0),
        // SOA.
        6 => (0, 2, 20),
        // MX.
        15 => (2, 1, 0),
        // SRV.
        33 => (6, 1, 0),
        // RRSIG.
        46 => (18, 1, SIGNATURE),
        // SVCB, HTTPS.
        64 | 65 => {
            set!(message.walk.service = 1);
            set!(message.walk.key = 0);
            (2, 1, 0)
        }
        _ => return finish(message),
    };
    let begin = data + skip;
    if begin >= end {
        return Step::Bad;
    }
    set!(message.walk.names = names);
    set!(message.walk.tail = tail);
    set!(message.walk.phase = phase::DATA);
    set!(message.walk.begin = begin as u32);
    set!(message.walk.pos = begin as u32);
    Step::More
}

/// One parameter of a service.
#[inline(always)]
fn parameter(message: Message, pos: usize) -> Step {
    let end = get!(message.walk.end) as usize;
    if pos == end {
        return finish(message);
    }
    if pos + 4 > end {
        return Step::Bad;
    }
    let (key, octets) = (half(message, pos), half(message, pos + 2));
    let behind = pos as u32 + 4 + octets;
    // Keys ascend (RFC 9460, 2.2).
    if behind as usize > end || key < get!(message.walk.key) {
        return Step::Bad;
    }
    set!(message.walk.key = key + 1);
    // ipv4hint, ipv6hint (RFC 9460, 7.3).
    let size = match key {
        4 => 4,
        6 => 16,
        _ => 0,
    };
    if size != 0 && get!(message.walk.answers) != 0 {
        if octets == 0 || octets & (size - 1) != 0 {
            return Step::Bad;
        }
        set!(message.walk.size = size);
        set!(message.walk.hint = behind);
        set!(message.walk.phase = phase::HINT);
        set!(message.walk.pos = pos as u32 + 4);
    } else {
        set!(message.walk.pos = behind);
    }
    Step::More
}

/// One address of a hint.
#[inline(always)]
fn hint(message: Message, pos: usize) -> Step {
    let size = get!(message.walk.size);
    if !found(message, pos, size == 16) {
        return Step::Bad;
    }
    let behind = pos as u32 + size;
    set!(message.walk.pos = behind);
    if behind == get!(message.walk.hint) {
        set!(message.walk.phase = phase::PARAMETER);
    }
    Step::More
}

/// Ends a record.
#[inline(always)]
fn finish(message: Message) -> Step {
    let answers = get!(message.walk.answers);
    if answers != 0 {
        set!(message.walk.answers = answers - 1);
    }
    set!(message.walk.records = get!(message.walk.records).wrapping_sub(1));
    next(message, get!(message.walk.end) as usize)
}

/// Goes on behind a record or the question.
#[inline(always)]
fn next(message: Message, at: usize) -> Step {
    if get!(message.walk.records) == 0 {
        return if at == get!(message.walk.len) as usize {
            Step::Done
        } else {
            Step::Bad
        };
    }
    set!(message.walk.phase = phase::OWNER);
    set!(message.walk.begin = at as u32);
    set!(message.walk.pos = at as u32);
    Step::More
}

/// Writes the place of an address down; false when there are too many.
#[inline(always)]
fn found(message: Message, at: usize, v6: bool) -> bool {
    let count = get!(message.found);
    if count >= MAX_ADDRESSES {
        return false;
    }
    // SAFETY: an aligned store to one of the places, this CPU's own.
    unsafe { place(message, count as usize).write_volatile((at as u32) << 1 | u32::from(v6)) }
    set!(message.found = count + 1);
    true
}

/// Where the place of an address stands. The compiler would check the index, and a check panics.
#[inline(always)]
fn place(message: Message, index: usize) -> *mut u32 {
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        (&raw mut (*message.0).places)
            .cast::<u32>()
            .add(mask::<31>(index))
    }
}

/// Where the bit of a position stands.
#[inline(always)]
fn start(message: Message, at: usize) -> *mut u64 {
    // SAFETY: the mask keeps the index inside the array.
    unsafe {
        (&raw mut (*message.0).starts)
            .cast::<u64>()
            .add(mask::<31>(at >> 6))
    }
}

#[inline(always)]
fn mark(message: Message, at: usize) {
    let word = start(message, at);
    // SAFETY: aligned accesses of one of the words, this CPU's own.
    unsafe { word.write_volatile(word.read_volatile() | 1 << (at & 63)) }
}

#[inline(always)]
fn is_marked(message: Message, at: usize) -> bool {
    // SAFETY: as above.
    unsafe { start(message, at).read_volatile() >> (at & 63) & 1 != 0 }
}

/// Puts the address number `index` into the message's buffer, and says whether it is of IPv6.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the fields stand at multiples of eight octets, as the assertions below say"
)]
pub fn take(message: Message, index: usize) -> bool {
    // SAFETY: an aligned load of one of the places, this CPU's own.
    let place = unsafe { place(message, index).read_volatile() };
    let (at, v6) = (mask::<POSITIONS>(place as usize >> 1), place & 1 != 0);
    // SAFETY: the text goes on for 64 octets behind the last position.
    unsafe {
        let text = (&raw const (*message.0).text)
            .cast::<u8>()
            .add(FRONT)
            .add(at);
        let (high, low) = if v6 {
            (word(text), word(text.add(8)))
        } else {
            (0, word(text) << 32 | 0xffff_0000)
        };
        let address = (&raw mut (*message.0).address).cast::<u64>();
        address.write_volatile(high);
        address.add(1).write_volatile(low);
    }
    v6
}

/// Fills what is learned for the address in hand.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the fields stand at multiples of eight octets, as the assertions below say"
)]
pub fn write(message: Message, expires: u64, now: u64, life: u32, class: u16, flags: u16) {
    set!(message.learned.expires = expires);
    set!(message.learned.learned = now);
    set!(message.learned.life = life);
    set!(message.learned.class = class);
    set!(message.learned.flags = flags);
    set!(message.learned.client = get!(message.pending_key.client));
    // SAFETY: eight aligned words each, of one map value.
    unsafe {
        let to = (&raw mut (*message.0).learned.name).cast::<u64>();
        let mut word = 0;
        while word < 8 {
            to.add(word)
                .write_volatile((&raw const (*message.0).key[word]).read_volatile());
            word += 1;
        }
    }
}

const _: () = assert!(MAX_ADDRESSES == 32);
const _: () = assert!(core::mem::offset_of!(Buffer, text) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Buffer, address) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Buffer, learned) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Learned, name) % 8 == 0);
const _: () =
    assert!(core::mem::offset_of!(Buffer, key) == core::mem::offset_of!(Buffer, bits) + 4);
