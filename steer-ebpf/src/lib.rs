//! The kernel programs of steer, one file per concern; [`mark`](../mark.rs), [`fast`](../fast.rs),
//! [`breakout`](../breakout.rs) and [`dns`](../dns.rs) are the objects made of them.
//!
//! Every function that sees a packet pointer is `#[inline(always)]`: the verifier refuses pointers
//! into a packet across a call.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![deny(missing_docs)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "packet fields are cut out of machine words; the golden packets cover it"
)]

pub mod address;
pub mod answer;
pub mod budget;
pub mod classify;
pub mod config;
pub mod count;
pub mod deadman;
pub mod flows;
pub mod forward;
pub mod learned;
pub mod message;
pub mod parse;
pub mod paths;
pub mod query;
pub mod resolvers;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}
