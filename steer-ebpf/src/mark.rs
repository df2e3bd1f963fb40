//! The object `steer-mark`: mark mode, TC only.
//!
//! The program puts a wish on every packet of a class, without a state of its own: nftables grants
//! it to a flow's first packet and conntrack remembers. Whatever happens here, the program ends
//! with "next": other owners' programs and the stack get the packet.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use steer_common::reason::Reason;
use steer_ebpf::{
    classify::{self, FirstFragments, Match, Outcome},
    config, count, deadman,
    parse::{self, Bytes, Link},
    paths,
};

/// LAN ingress: wish.
#[classifier]
pub fn lan_ingress(ctx: TcContext) -> i32 {
    if let Err(reason) = wish(&ctx) {
        count::passed(reason);
        match reason {
            Reason::ForeignMark => {
                debug!(&ctx, "a packet came with bits of our mark set; it passes");
            }
            Reason::Malformed => debug!(&ctx, "a malformed packet to Microsoft 365 passes"),
            _ => {}
        }
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn wish(ctx: &TcContext) -> Result<(), Reason> {
    let bytes = Bytes::of_packet(ctx);
    let link = if config::bare_ip() {
        Link::bare(&bytes)
    } else {
        Link::ethernet(&bytes, parse::stripped_vlan(ctx))
    };
    let Some(link) = link else {
        return Ok(());
    };
    match classify::classify(&bytes, &link, FirstFragments::Match) {
        Outcome::Pass => Ok(()),
        Outcome::PassBecause(reason) => Err(reason),
        Outcome::Match(packet) => set_wish(ctx, &bytes, &packet),
    }
}

#[inline(always)]
fn set_wish(ctx: &TcContext, bytes: &Bytes, packet: &Match) -> Result<(), Reason> {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the fields.
    let (old, segments) = unsafe { ((*skb).mark, (*skb).gso_segs) };
    let bits = config::mark_bits();
    if bits.are_in(old) {
        return Err(Reason::ForeignMark);
    }
    if !parse::for_this_router(ctx, bytes) {
        return Err(Reason::NotForUs);
    }
    let table = paths::table().ok_or(Reason::NotSteering)?;
    let ways = table.ways(packet.family, packet.class, packet.client);
    if !ways.is_steering() {
        return Err(Reason::NotSteering);
    }
    // Id 0 says "matched, but there is no path for it": nftables moves an unanswered first packet back.
    let path = deadman::choose(ways, packet).unwrap_or(0);
    ctx.set_mark(bits.with_wish(old, path));
    count::steered(
        packet.class,
        path,
        if segments > 1 { segments.into() } else { 1 },
        packet.length,
    );
    if path == 0 {
        Err(Reason::NoPath)
    } else {
        Ok(())
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
