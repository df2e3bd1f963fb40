//! The object `steer-dns`: both modes, TC ingress and egress of the LAN.
//!
//! Queries for names of the plan go to the resolver of their path, answers come back as if from the
//! server that the client asked, and teach the addresses of names that have no prefixes.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use steer_ebpf::{answer, query, resolvers};

/// LAN ingress: queries.
#[classifier]
pub fn dns_query(ctx: TcContext) -> i32 {
    if let Err(event) = query::look(&ctx) {
        resolvers::count(event);
    }
    TC_ACT_UNSPEC
}

/// LAN egress: answers.
#[classifier]
pub fn dns_answer(ctx: TcContext) -> i32 {
    answer::look(&ctx);
    TC_ACT_UNSPEC
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
