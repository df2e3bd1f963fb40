//! Answers at LAN egress: they get the address back that the client asked, and teach addresses before
//! the client sees them, so that the first packet there is steered.

use core::hint::black_box;

use aya_ebpf::{
    btf_maps::{LruHashMap, PerCpuArray},
    macros::btf_map,
    programs::TcContext,
};
use steer_common::dns::{
    self, ANSWERED, Address, Asker, CLIENT_BUDGET, DnsEvent, FOREIGN_LIFE, Learned, MAX_ADDRESSES,
    NAME_BUDGET, PENDING_LIFE, PendingKey, REFUSE_SHARED, REWRITTEN, SECOND, SHARED, TEACHES,
    WINDOW_SHIFT,
};

use crate::{
    address::{self, Field},
    budget::{self, Budgets},
    classify, config,
    learned::{ASKERS, LEARNED},
    message::{self, Buffer, Counts, LONGEST, Message, Side, Udp, half},
    parse::{self, Bytes, Link},
    resolvers,
};

/// The answer in hand.
#[btf_map]
static ANSWER: PerCpuArray<Buffer, 1> = PerCpuArray::new();

/// When a name outside the plan was answered with an address.
#[btf_map]
static FOREIGN: LruHashMap<Address, u64, { dns::FOREIGN as usize }> = LruHashMap::new();

/// The new addresses of names.
#[btf_map]
static NAME_BUDGETS: Budgets = Budgets::new();

/// The new addresses of clients.
#[btf_map]
static CLIENT_BUDGETS: Budgets = Budgets::new();

/// Looks at a packet for the LAN.
#[inline(always)]
pub fn look(ctx: &TcContext) {
    if black_box(restore(ctx)) != 0
        && let Some(message) = Message::of(&ANSWER)
        && let Err(event) = learn_all(message)
    {
        resolvers::count(event);
    }
}

/// Gives an answer its source back; 1: it teaches. It has a stack of its own, which those who teach
/// need for themselves.
#[inline(never)]
fn restore(ctx: &TcContext) -> u64 {
    match find(ctx) {
        Ok(teaches) => teaches.into(),
        Err(event) => {
            resolvers::count(event);
            0
        }
    }
}

#[inline(always)]
fn find(ctx: &TcContext) -> Result<bool, DnsEvent> {
    let bytes = Bytes::of_packet(ctx);
    let link = if config::bare_ip() {
        Link::bare(&bytes)
    } else {
        Link::ethernet(&bytes, parse::stripped_vlan(ctx))
    };
    let Some(link) = link else {
        return Ok(false);
    };
    let Some(udp) = message::udp(&bytes, &link, Side::From) else {
        return Ok(false);
    };
    answer(ctx, &bytes, &link, &udp)
}

#[inline(always)]
fn answer(ctx: &TcContext, bytes: &Bytes, link: &Link, udp: &Udp) -> Result<bool, DnsEvent> {
    let Some(message) = Message::of(&ANSWER) else {
        return Ok(false);
    };
    let Some((resolver, client)) = message::addresses(bytes, link, udp) else {
        return Ok(false);
    };
    // UDP's header and the message's id.
    let Some(head) = bytes.read::<10>(udp.l4) else {
        return Ok(false);
    };
    message.set_pending_key(PendingKey {
        client,
        resolver,
        port: [head[2], head[3]],
        id: [head[8], head[9]],
        reserved: 0,
    });
    let Some(pending) = resolvers::PENDING.get_ptr_mut(message.pending_key()) else {
        return if classify::learns() {
            Ok(foreign(ctx, message, udp))
        } else {
            Ok(false)
        };
    };
    if !message::load(ctx, message, udp) {
        return Err(DnsEvent::BadAnswer);
    }
    let (flags, questions) = (half(message, 2), half(message, 4));
    let counts = counts(message);
    if flags & QR == 0 {
        return Ok(false);
    }
    // SAFETY: aligned loads of single fields of a valid map value. If the entry was evicted and taken
    // by another query meanwhile, the hash of the question is another one.
    let (asked, question, class, state, index, server) = unsafe {
        (
            (&raw const (*pending).asked).read_volatile(),
            (*pending).question,
            (*pending).class,
            (&raw const (*pending).flags).read_volatile(),
            (*pending).resolver,
            (*pending).server,
        )
    };
    let now = resolvers::now();
    let waited = now.wrapping_sub(asked);
    if waited > PENDING_LIFE {
        return Err(DnsEvent::Late);
    }
    let rcode = flags & RCODE;
    let failed = rcode != NO_ERROR && rcode != NAME_ERROR;
    // Who fails may leave the question out.
    let bare = questions == 0 && failed;
    if !bare
        && (questions != 1 || !message::question(message) || message::hashes(message).1 != question)
    {
        return Err(DnsEvent::OtherQuestion);
    }
    // SAFETY: as above; the last answer to come is the one that is written.
    unsafe { (&raw mut (*pending).flags).write_volatile(state | ANSWERED) };
    if state & REWRITTEN != 0 {
        if state & ANSWERED == 0 {
            resolvers::answered(index, failed, now, waited);
            if failed {
                resolvers::count(DnsEvent::Failed);
            } else {
                let _ = resolvers::ASKED.remove(resolvers::asked(&client, question));
            }
        }
        if !address::replace(ctx, link, udp, Field::Source, &resolver, &server) {
            return Err(DnsEvent::BadAnswer);
        }
        resolvers::count(DnsEvent::Restored);
    }
    if state & TEACHES == 0 || state & ANSWERED != 0 || rcode != NO_ERROR {
        return Ok(false);
    }
    if flags & TRUNCATED != 0 {
        return Err(DnsEvent::Truncated);
    }
    if udp.length > LONGEST || flags & OPCODE != 0 {
        return Err(DnsEvent::BadAnswer);
    }
    message.set_lesson(class.into(), counts, now);
    Ok(true)
}

const QR: u32 = 0x8000;
const OPCODE: u32 = 0x7800;
const TRUNCATED: u32 = 0x0200;
const RCODE: u32 = 0x000f;
const NO_ERROR: u32 = 0;
const NAME_ERROR: u32 = 3;

/// An answer to a query that is not ours; true: it teaches. When its name is not of the plan, its
/// addresses are somebody else's, too.
#[inline(always)]
fn foreign(ctx: &TcContext, message: Message, udp: &Udp) -> bool {
    if udp.length > LONGEST || !message::load(ctx, message, udp) {
        return false;
    }
    let (flags, questions) = (half(message, 2), half(message, 4));
    let counts = counts(message);
    if flags & (QR | OPCODE | RCODE | TRUNCATED) != QR || questions != 1 || counts.answers == 0 {
        return false;
    }
    if !message::question(message) || resolvers::action(message).flags != 0 {
        return false;
    }
    message.set_lesson(FOREIGN_LESSON, counts, resolvers::now());
    true
}

#[inline(always)]
fn counts(message: Message) -> Counts {
    let answers = half(message, 6);
    Counts {
        answers,
        records: answers + half(message, 8) + half(message, 10),
    }
}

/// Walks through the message and learns from it.
#[inline(always)]
fn learn_all(message: Message) -> Result<(), DnsEvent> {
    let (lesson, records, now) = message.lesson();
    if black_box(walk_answer(records)) == 0 {
        // Only what should have taught is worth a word.
        return if lesson == FOREIGN_LESSON {
            Ok(())
        } else {
            Err(DnsEvent::BadAnswer)
        };
    }
    let mut index = 0;
    while index < MAX_ADDRESSES {
        if index >= message.found() {
            break;
        }
        black_box(teach_address(index.into(), lesson, now));
        index += 1;
    }
    Ok(())
}

/// No class: the lesson that others have the address, too.
const FOREIGN_LESSON: u64 = u64::MAX;

/// Walks through the answer; 1: it is well formed.
///
/// A function that the verifier looks at by itself, once, and that has a stack of its own: so it must
/// be global (`no_mangle`) and take numbers only. `records`: those of the answer section in the upper
/// half, all of them in the lower.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_answer(records: u64) -> u64 {
    let Some(message) = Message::of(&ANSWER) else {
        return 0;
    };
    let counts = Counts {
        answers: (records >> 32) as u32,
        records: records as u32,
    };
    message::walk(message, counts).into()
}

/// Learns the address number `index` of the answer as `lesson`, a class or [`FOREIGN_LESSON`]. See
/// [`walk_answer`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn teach_address(index: u64, lesson: u64, now: u64) -> u64 {
    let Some(message) = Message::of(&ANSWER) else {
        return 0;
    };
    let refuse = resolvers::table().is_some_and(|table| table.flags & REFUSE_SHARED != 0);
    let v6 = message::take(message, index as usize);
    let address = message.address();
    if lesson == FOREIGN_LESSON {
        claim(address, refuse, now);
    } else if dns::is_plausible(address, v6) && !classify::is_in_plan(address, !v6) {
        learn(message, address, lesson as u16, refuse, now);
    } else {
        resolvers::count(DnsEvent::Implausible);
    }
    1
}

/// A name outside the plan has the address.
#[inline(always)]
fn claim(address: &Address, refuse: bool, now: u64) {
    // A full table forgets; then the address is not known to be shared.
    let _ = FOREIGN.insert(address, now, 0);
    if let Some(learned) = LEARNED.get_ptr_mut(address) {
        // SAFETY: an aligned store of a field of a valid map value.
        unsafe { share(learned, refuse) }
    }
}

/// Says that an address is shared.
///
/// # Safety
/// The pointer is to a value of the map.
#[inline(always)]
unsafe fn share(learned: *mut Learned, refuse: bool) {
    // SAFETY: the caller says so; aligned accesses of single fields.
    unsafe {
        let flags = (&raw const (*learned).flags).read_volatile();
        if flags & SHARED == 0 {
            (&raw mut (*learned).flags).write_volatile(flags | SHARED);
            resolvers::count(DnsEvent::Shared);
        }
        if refuse {
            (&raw mut (*learned).expires).write_volatile(0);
        }
    }
}

/// An address of a class: for everybody who goes there, or, if it is shared, for who asked.
#[inline(always)]
fn learn(message: Message, address: &Address, class: u16, refuse: bool, now: u64) {
    let ttl = message::ttl(message);
    let life = dns::life(ttl);
    let expires = now + u64::from(life) * SECOND;
    let client = message.pending_key().client;
    // SAFETY: one word, read once.
    let foreign =
        unsafe { FOREIGN.get(address) }.is_some_and(|seen| now.wrapping_sub(*seen) < FOREIGN_LIFE);
    if foreign && refuse {
        return resolvers::count(DnsEvent::Shared);
    }
    let known = LEARNED.get_ptr_mut(address);
    // SAFETY: an aligned load of a field of a valid map value.
    let known = known.filter(|it| unsafe { (&raw const (**it).expires).read_volatile() } > now);
    if let Some(known) = known {
        // SAFETY: aligned accesses of single fields of a valid map value.
        unsafe {
            if foreign || (*known).class != class {
                share(known, refuse);
            }
            if !refuse && (&raw const (*known).expires).read_volatile() < expires {
                (&raw mut (*known).life).write_volatile(life);
                (&raw mut (*known).expires).write_volatile(expires);
            }
        }
        resolvers::count(DnsEvent::Refreshed);
    } else {
        let (name, _) = message::hashes(message);
        let window = now >> WINDOW_SHIFT;
        let who = dns::client(&client);
        let (Some(of_client), Some(of_name)) = (
            budget::left(&CLIENT_BUDGETS, who, CLIENT_BUDGET, window),
            budget::left(&NAME_BUDGETS, name, NAME_BUDGET, window),
        ) else {
            return resolvers::count(DnsEvent::OverBudget);
        };
        of_client.spend(window);
        of_name.spend(window);
        if foreign {
            resolvers::count(DnsEvent::Shared);
        }
        message::write(
            message,
            expires,
            now,
            life,
            class,
            if foreign { SHARED } else { 0 },
        );
        if LEARNED.insert(address, message.learned(), 0).is_err() {
            return resolvers::count(DnsEvent::OverBudget);
        }
        resolvers::count(DnsEvent::Learned);
    }
    let asker = Asker {
        expires,
        class,
        reserved: [0; 3],
    };
    let _ = ASKERS.insert(dns::asker(&client, address), asker, 0);
}
