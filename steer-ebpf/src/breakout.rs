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

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use steer_ebpf::{
    classify, config, deadman,
    parse::{Bytes, Link},
};

/// Breakout ingress: hear.
#[classifier]
pub fn breakout_rx(ctx: TcContext) -> i32 {
    deadman::hear(config::path(), || is_answer(&ctx));
    TC_ACT_UNSPEC
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
