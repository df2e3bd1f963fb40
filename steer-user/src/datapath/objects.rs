//! The kernel programs as built, embedded in the binary, and their names.

use aya::Ebpf;

/// Mark mode's, at LAN ingress.
pub(super) const LAN_INGRESS: &str = "lan_ingress";
/// Redirect mode's, at LAN ingress.
pub(super) const LAN_REDIRECT: &str = "lan_redirect";
/// What hears answers at the ingress of breakouts.
pub(super) const BREAKOUT_RX: &str = "breakout_rx";
/// For queries, at LAN ingress.
pub(super) const DNS_QUERY: &str = "dns_query";
/// For answers, at LAN egress.
pub(super) const DNS_ANSWER: &str = "dns_answer";

/// Whether a program's name is that of one of steer's.
pub fn is_ours(name: &str) -> bool {
    [
        LAN_INGRESS,
        LAN_REDIRECT,
        BREAKOUT_RX,
        DNS_QUERY,
        DNS_ANSWER,
    ]
    .contains(&name)
}

/// How many instructions the verifier looked at; none before Linux 5.16.
pub(super) fn verified_instructions(ebpf: &Ebpf, program: &str) -> Option<u32> {
    ebpf.program(program)?
        .info()
        .ok()?
        .verified_instruction_count()
}

/// Mark mode.
pub static MARK: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-mark"));
/// Redirect mode.
pub static FAST: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-fast"));
/// What hears the answers on a breakout, in both modes.
pub static BREAKOUT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-breakout"));
/// Queries and answers, in both modes.
pub static DNS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-dns"));
/// What the benchmark compares steer with.
#[cfg(feature = "bench-object")]
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer-bench"));
