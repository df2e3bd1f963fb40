//! The lab: a branch office in network namespaces, for `cargo xtask run` and for every test that
//! needs a real kernel.
//!
//! ```text
//!            eth0      lan0        brk0      wan0  isp0
//!   client ─────────────── router ──────────────── isp ═══ (4 ms) ═══ near   Microsoft's near front
//!                            │ bb0                                           door, and the Internet
//!                            │
//!                         backbone ═══ (40 ms) ═══ hq ─────────────── far    the same addresses,
//!                                                                            far away
//! ```
//!
//! `═══` is a userspace WAN emulator on two TUN devices ([`wan`]). `near` and `far` hold the same
//! real addresses of Microsoft 365 and of others, as anycast does, so who answers tells the way a
//! flow took. The judge is the wire: [`wire`] captures on the ISP's and the backbone's side.
//!
//! ```no_run
//! # use steer_tests::{lab::{Lab, LabOptions}, traffic::Flow};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::start(LabOptions::default())?;
//! let wires = lab.capture()?;
//! let answer = Flow::tcp("52.96.1.1".parse()?, 443).probe(&lab.client)?;
//! println!("{} answered in {:?}", answer.site, answer.round_trip);
//! println!("it took {}", wires.stop()?.path_of(&answer));
//! # Ok(())
//! # }
//! ```
//!
//! Root is needed. Everything is named `steer-<pid>-<n>-…` and removed on drop, also after a
//! panic; what a killed process left is swept when the next lab starts.
#![deny(missing_docs)]

pub mod bench;
pub mod delegation;
pub mod demo;
pub mod dnsrun;
pub mod lab;
pub mod links;
pub mod m365;
pub mod marker;
pub mod namespace;
pub mod packet;
pub mod pppoe;
pub mod residue;
pub mod scenario;
pub mod server;
pub mod steer;
pub mod steering;
pub mod testrun;
pub mod traffic;
pub mod unpacked;
pub mod wan;
pub mod webservice;
pub mod wire;
