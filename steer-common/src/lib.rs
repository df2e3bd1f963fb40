//! What the kernel programs and the controller of steer share: the layout of the maps, and the
//! pure code that both sides run.
//!
//! The host proves the lookups against naive models (`cargo test -p steer-common`); the kernel
//! programs then run the very same functions on the same bytes.
#![no_std]
#![deny(missing_docs)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "cutting fields out of wider words is what this crate does; the tests cover it"
)]

#[cfg(feature = "user")]
extern crate std;

pub mod abi;
pub mod checksum;
pub mod chunk;
pub mod deadman;
pub mod dns;
pub mod flow;
#[cfg(feature = "user")]
pub mod image;
pub mod layout;
pub mod lookup;
pub mod mark;
pub mod names;
pub mod reason;
pub mod rule;
