//! The object `steer-breakout`: both modes, TC ingress of a breakout.
//!
//! It hears the answers that come in, so that the dead-man knows which path lives, and changes
//! nothing: it ends with "next".
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
use steer_ebpf::{
    classify, config, deadman,
    parse::{Bytes, IPV4, IPV6, Link},
};

/// Breakout ingress: hear.
#[classifier]
pub fn breakout_rx(ctx: TcContext) -> i32 {
    if let Some(family) = family(&ctx) {
        deadman::hear(config::path(), family, || is_answer(&ctx));
    }
    TC_ACT_UNSPEC
}

/// The family of a packet, as the kernel has it: nothing of the packet is read.
#[inline(always)]
fn family(ctx: &TcContext) -> Option<usize> {
    const V4: u32 = IPV4.to_be() as u32;
    const V6: u32 = IPV6.to_be() as u32;
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the field.
    match unsafe { (*skb).protocol } {
        V4 => Some(0),
        V6 => Some(1),
        _ => None,
    }
}

#[inline(always)]
fn is_answer(ctx: &TcContext) -> bool {
    let bytes = Bytes::of_packet(ctx);
    let link = if config::bare_ip() {
        Link::bare(&bytes)
    } else {
        Link::ethernet(&bytes, 0)
    };
    link.is_some_and(|link| classify::is_answer(&bytes, &link))
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
