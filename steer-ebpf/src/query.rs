//! Queries at LAN ingress: those for names of the plan go to the resolver of their path.
//!
//! Only the destination is changed, before conntrack has seen the packet; the wish goes along, so
//! that query and flow leave together. Whatever is odd, missing or in doubt: the query goes where the
//! client sent it.

use aya_ebpf::{bindings::__sk_buff, btf_maps::PerCpuArray, macros::btf_map, programs::TcContext};
use steer_common::{
    dns::{
        self, ASKING_SHIFT, Address, CLIENT_QUERIES, DnsEvent, PENDING_LIFE, Pending, PendingKey,
        REPEAT, REWRITING, REWRITTEN, TEACHES, long,
    },
    flow,
    names::{EXCLUDED, LEARN, NameAction, REWRITE},
};

use crate::{
    address::{self, Field},
    budget::{self, Budgets},
    classify, config, deadman,
    message::{self, Buffer, Message, Side, Udp, half, octet},
    parse::{self, Bytes, Link},
    paths, resolvers,
};

/// The query in hand.
#[btf_map]
static QUERY: PerCpuArray<Buffer, 1> = PerCpuArray::new();

/// The queries of clients that are remembered.
#[btf_map]
static ASKING: Budgets = Budgets::new();

/// Whom a query goes to.
struct Target {
    path: u8,
    index: u32,
    address: Address,
}

/// Looks at a packet of the LAN.
#[inline(always)]
pub fn look(ctx: &TcContext) -> Result<(), DnsEvent> {
    let bytes = Bytes::of_packet(ctx);
    let link = if config::bare_ip() {
        Link::bare(&bytes)
    } else {
        Link::ethernet(&bytes, parse::stripped_vlan(ctx))
    };
    let Some(link) = link else { return Ok(()) };
    let Some(udp) = message::udp(&bytes, &link, Side::To) else {
        return Ok(());
    };
    query(ctx, &bytes, &link, &udp)
}

#[inline(always)]
fn query(ctx: &TcContext, bytes: &Bytes, link: &Link, udp: &Udp) -> Result<(), DnsEvent> {
    /// Longer queries are rare and none of ours.
    const LONGEST: usize = 320;
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the field.
    let old_mark = unsafe { (*skb).mark };
    let bits = config::mark_bits();
    if bits.are_in(old_mark) || !parse::for_this_router(ctx, bytes) {
        return Ok(());
    }
    let Some(message) = Message::of(&QUERY) else {
        return Ok(());
    };
    let Some((client, server)) = message::addresses(bytes, link, udp) else {
        return Ok(());
    };
    let Some(port) = bytes.read::<2>(udp.l4) else {
        return Ok(());
    };
    if udp.length > LONGEST {
        return Err(DnsEvent::Odd);
    }
    if !message::load(ctx, message, udp) || !is_plain(message) {
        return Err(DnsEvent::Odd);
    }
    let id = [octet(message, 0) as u8, octet(message, 1) as u8];
    let additional = half(message, 10);
    if !message::question(message) || !ends_well(message, additional) {
        return Err(DnsEvent::Odd);
    }
    let action = resolvers::action(message);
    if action.flags & EXCLUDED != 0 {
        return Err(DnsEvent::Excluded);
    }
    if action.flags & (REWRITE | LEARN) == 0 {
        return Ok(());
    }
    if !classify::may_ask(link, &client) {
        return Err(DnsEvent::NotClient);
    }
    let now = resolvers::now();
    let (_, question) = message::hashes(message);
    let asked = resolvers::asked(&client, question);
    let target = target(&action, &client, &server, udp, asked, now);
    let (to, index, flags) = match &target {
        Ok(target) => (target.address, target.index, REWRITTEN),
        Err(_) => (server, 0, 0),
    };
    let teaches = action.flags & LEARN != 0 && classify::learns();
    if target.is_err() && !teaches {
        return target.map(drop);
    }
    let window = now >> ASKING_SHIFT;
    let Some(left) = budget::left(&ASKING, dns::client(&client), CLIENT_QUERIES, window) else {
        return Err(DnsEvent::TooMany);
    };
    left.spend(window);
    message.set_pending_key(PendingKey {
        client,
        resolver: to,
        port,
        id,
        reserved: 0,
    });
    message.set_pending(Pending {
        server,
        asked: now,
        question,
        class: action.class,
        flags: flags | if teaches { TEACHES } else { 0 },
        resolver: index,
    });
    let (key, value) = (message.pending_key(), message.pending());
    if resolvers::PENDING.insert(key, value, 0).is_err() {
        return Err(DnsEvent::NoRoom);
    }
    let target = target?;
    if resolvers::ASKED.insert(asked, now, 0).is_err() {
        return Err(DnsEvent::NoRoom);
    }
    if !address::replace(ctx, link, udp, Field::Destination, &server, &to) {
        return Err(DnsEvent::NoRoom);
    }
    resolvers::sent(index, now);
    ctx.set_mark(if config::sets_grant() {
        bits.with_grant(old_mark, target.path)
    } else {
        bits.with_wish(old_mark, target.path)
    });
    Err(DnsEvent::Rewritten)
}

/// Whether the header is that of an ordinary question: no answer, opcode QUERY, not truncated,
/// recursion desired (an iterating server does not), one question, at most one additional record.
#[inline(always)]
fn is_plain(message: Message) -> bool {
    const RECURSION_DESIRED: u32 = 0x0100;
    // QR, opcode, AA, TC, RD.
    let flags = half(message, 2) & 0xff00;
    flags == RECURSION_DESIRED
        && half(message, 4) == 1
        && half(message, 6) == 0
        && half(message, 8) == 0
        && half(message, 10) <= 1
}

/// Whether nothing but EDNS follows the question: no signature (TSIG, SIG(0)), no rubbish. And
/// whether the type is one of data: no transfers, no ANY.
#[inline(always)]
fn ends_well(message: Message, additional: u32) -> bool {
    const OPT: u32 = 41;
    const FIRST_META: u32 = 128;
    const LAST_META: u32 = 255;
    let kind = message.kind();
    if (FIRST_META..=LAST_META).contains(&kind) || kind == 0 || kind == OPT {
        return false;
    }
    let end = message.end();
    let length = message::length(message);
    if additional == 0 {
        return end == length;
    }
    octet(message, end) == 0
        && half(message, end + 1) == OPT
        && end + 11 + half(message, end + 9) as usize == length
}

/// The resolver that a query goes to, or why it goes where the client sent it.
#[inline(always)]
fn target(
    action: &NameAction,
    client: &Address,
    server: &Address,
    udp: &Udp,
    asked: u64,
    now: u64,
) -> Result<Target, DnsEvent> {
    let table = resolvers::table().ok_or(DnsEvent::NoResolver)?;
    if action.flags & REWRITE == 0 || table.flags & REWRITING == 0 {
        return Err(DnsEvent::NoResolver);
    }
    let paths = paths::table().ok_or(DnsEvent::NoPath)?;
    let hash = if udp.v4 {
        u64::from(u32::from_be((long(client, 1) >> 32) as u32))
    } else {
        flow::mix(u64::from_be(long(client, 0)), u64::from_be(long(client, 1)))
    };
    let family = usize::from(!udp.v4);
    let ways = paths.ways(family, action.class, flow::finish(hash));
    if !ways.is_steering() {
        return Err(DnsEvent::NoPath);
    }
    let path = deadman::choose_for_query(ways, family, now).ok_or(DnsEvent::NoPath)?;
    let index = table.active[usize::from(path & 0x0f)][family & 1];
    let index = u32::from(index);
    let resolver = resolvers::resolver(index)
        .filter(|_| index != 0)
        .ok_or(DnsEvent::NoResolver)?;
    let address = resolver.address;
    if (long(&address, 0), long(&address, 1)) == (long(server, 0), long(server, 1)) {
        return Err(DnsEvent::Already);
    }
    // SAFETY: the value is one word, read once.
    let before = unsafe { resolvers::ASKED.get(asked) };
    if before.is_some_and(|before| now.wrapping_sub(*before) < REPEAT) {
        return Err(DnsEvent::Repeated);
    }
    if resolvers::may_ask(index, now)? {
        resolvers::count(DnsEvent::Trial);
    }
    Ok(Target {
        path,
        index,
        address,
    })
}

const _: () = assert!(PENDING_LIFE >= REPEAT);
