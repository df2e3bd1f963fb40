//! The layout of all maps: the hash that names it, and what aya may write into them.

use crate::{abi, chunk, deadman, dns, flow, mark, names, reason, rule};

/// Counts up when a layout keeps its sizes but changes its meaning.
const REVISION: u64 = 6 + abi::NEXT as u64;

/// Names the layout of every map. It is part of the pin path, so that two versions of steer never
/// read each other's maps with the wrong layout.
pub const HASH: u64 = {
    let parts = [
        REVISION,
        chunk::CHUNKS as u64,
        chunk::DYNAMIC as u64,
        chunk::ENTRIES as u64,
        chunk::SEGMENTS as u64,
        chunk::RULES_PER_ENTRY as u64,
        size_of::<chunk::Chunk>() as u64,
        size_of::<chunk::Segment>() as u64,
        size_of::<chunk::Boundary>() as u64,
        size_of::<rule::Rule>() as u64,
        size_of::<abi::Count>() as u64,
        size_of::<abi::PathTable>() as u64,
        size_of::<abi::NextHop>() as u64,
        flow::LAYOUT,
        abi::CLASSES as u64,
        abi::PREFERENCES as u64,
        abi::NEXT_HOPS as u64,
        mark::Bits::DEFAULT.mask() as u64,
        mark::PATHS as u64,
        reason::REASONS as u64,
        size_of::<deadman::Heartbeat>() as u64,
        size_of::<deadman::Open>() as u64,
        size_of::<deadman::Life>() as u64,
        deadman::LIVES as u64,
        size_of::<names::NameRule>() as u64,
        names::KEY_OCTETS as u64,
        size_of::<dns::DnsTable>() as u64,
        size_of::<dns::ResolverState>() as u64,
        size_of::<dns::ResolverCount>() as u64,
        size_of::<dns::PendingKey>() as u64,
        size_of::<dns::Pending>() as u64,
        size_of::<dns::Learned>() as u64,
        size_of::<dns::Asker>() as u64,
        dns::LEARNED as u64,
        dns::BUDGETS as u64,
        dns::DNS_EVENTS as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < parts.len() {
        hash = flow::mix(hash, parts[index]);
        index += 1;
    }
    flow::finish(hash)
};

#[cfg(feature = "user")]
mod user {
    //! Every byte pattern of these types is valid and none has padding: bytemuck proves it, aya
    //! only wants to hear it.
    use crate::{
        abi::{Count, NextHop, PathTable},
        chunk::Chunk,
        deadman::{Heartbeat, Life, Open},
        dns::{
            Asker, Budget, DnsTable, Learned, Pending, PendingKey, Resolver, ResolverCount,
            ResolverState,
        },
        flow::Bucket,
        names::NameRule,
    };

    macro_rules! pod {
        ($($type:ty),*) => {$(
            const _: () = {
                const fn proven<T: bytemuck::Pod>() {}
                proven::<$type>();
            };
            // SAFETY: `bytemuck::Pod` is derived for the type, which is what aya's Pod asks for.
            unsafe impl aya::Pod for $type {}
        )*};
    }
    pod!(
        Bucket, Chunk, Count, Heartbeat, Life, NextHop, Open, PathTable
    );
    pod!(
        Asker,
        Budget,
        DnsTable,
        Learned,
        NameRule,
        Pending,
        PendingKey,
        Resolver,
        ResolverCount,
        ResolverState
    );
}
