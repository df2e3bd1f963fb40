//! What queries and answers share: names, resolvers and their health, the queries that are awaited.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, LpmTrie, LruHashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use steer_common::{
    dns::{
        self, Address, DnsEvent, DnsTable, Pending, PendingKey, Resolver, ResolverCount,
        ResolverState, TRIAL, long,
    },
    flow,
    names::{self, NameAction, NameRule},
};

use crate::message::Message;

type Names = LpmTrie<names::Key, NameRule, { names::MAX_NAMES as usize }>;

/// The active names: one table, replaced with one write.
#[btf_map]
static NAMES: ArrayOfMaps<Names, 1> = ArrayOfMaps::new();

#[btf_map]
static DNS_TABLE: Array<DnsTable, 1> = Array::new();

#[btf_map]
static RESOLVERS: Array<Resolver, { dns::RESOLVERS as usize }> = Array::new();

#[btf_map]
static RESOLVER_STATE: Array<ResolverState, { dns::RESOLVERS as usize }> = Array::new();

#[btf_map]
static RESOLVER_COUNTS: PerCpuArray<ResolverCount, { dns::RESOLVERS as usize }> =
    PerCpuArray::new();

/// The queries whose answer is awaited.
#[btf_map]
pub static PENDING: LruHashMap<PendingKey, Pending, { dns::PENDING as usize }> = LruHashMap::new();

/// When a client's question was rewritten that is not answered, by a hash of both.
#[btf_map]
pub static ASKED: LruHashMap<u64, u64, { dns::ASKED as usize }> = LruHashMap::new();

#[btf_map]
static DNS_EVENTS: PerCpuArray<u64, { dns::DNS_EVENTS as usize }> = PerCpuArray::new();

/// Counts what became of a query or an answer.
#[inline(always)]
pub fn count(event: DnsEvent) {
    if let Some(count) = DNS_EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: the value is this CPU's own, and softirqs do not interrupt each other.
        unsafe { *count += 1 }
    }
}

/// The moment.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no arguments and always succeeds.
    unsafe { bpf_ktime_get_ns() }
}

/// Which resolver each path uses.
#[inline(always)]
pub fn table() -> Option<&'static DnsTable> {
    DNS_TABLE.get(0)
}

/// A resolver's address.
#[inline(always)]
pub fn resolver(index: u32) -> Option<&'static Resolver> {
    RESOLVERS.get(index)
}

/// What happens to queries for the name of the message's question.
#[inline(always)]
pub fn action(message: Message) -> NameAction {
    const NONE: NameAction = NameAction {
        class: 0,
        flags: 0,
        claim: 0,
    };
    let Some(rule) = NAMES.get(0).and_then(|names| names.get(message.key())) else {
        return NONE;
    };
    rule.decide(message.head(), message.name_length())
}

/// The key of a client's question.
#[inline(always)]
pub fn asked(client: &Address, question: u64) -> u64 {
    let hash = flow::mix(flow::mix(question, long(client, 0)), long(client, 1));
    flow::finish(hash)
}

/// Whether a query may go to a resolver, and if so, whether that is a trial.
#[inline(always)]
pub fn may_ask(index: u32, now: u64) -> Result<bool, DnsEvent> {
    let state = RESOLVER_STATE
        .get_ptr_mut(index)
        .ok_or(DnsEvent::NoResolver)?;
    // SAFETY: aligned loads and stores of single fields of a valid map value. Two CPUs may try the
    // resolver at once, which is harmless.
    unsafe {
        if !(*state).is_dead(now) {
            return Ok(false);
        }
        let last = (&raw const (*state).trial).read_volatile();
        if now.wrapping_sub(last) < TRIAL {
            return Err(DnsEvent::Dead);
        }
        (&raw mut (*state).trial).write_volatile(now);
    }
    Ok(true)
}

/// A query goes to a resolver.
#[inline(always)]
pub fn sent(index: u32, now: u64) {
    if let Some(state) = RESOLVER_STATE.get_ptr_mut(index) {
        // SAFETY: as above; that a count is lost when two CPUs count at once only makes it take
        // longer to call the resolver dead.
        unsafe {
            let unanswered = (&raw const (*state).unanswered).read_volatile();
            if unanswered == 0 {
                (&raw mut (*state).first).write_volatile(now);
                // The last trial is over.
                (&raw mut (*state).trial).write_volatile(now);
            }
            (&raw mut (*state).unanswered).write_volatile(unanswered.saturating_add(1));
        }
    }
    if let Some(count) = RESOLVER_COUNTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own.
        unsafe { (*count).queries += 1 }
    }
}

/// An answer came from a resolver; `failed`: it is none.
#[inline(always)]
pub fn answered(index: u32, failed: bool, now: u64, waited: u64) {
    if let Some(count) = RESOLVER_COUNTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own.
        unsafe {
            (*count).answers += 1;
            (*count).waited += waited;
            if failed {
                (*count).failures += 1;
            }
        }
    }
    if failed {
        return;
    }
    if let Some(state) = RESOLVER_STATE.get_ptr_mut(index) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*state).answered).write_volatile(now);
            (&raw mut (*state).unanswered).write_volatile(0);
        }
    }
}
