//! The object `steer-fast`: redirect mode, in native or generic XDP.
//!
//! For offices that need no translation on the breakout and no forward firewall in between: the
//! packet goes from the LAN's driver to the breakout's without the stack.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};
use aya_log_ebpf::debug;
use steer_common::reason::Reason;
use steer_ebpf::{
    classify::{self, FirstFragments, Match, Outcome},
    count, flows, forward,
    parse::{self, Bytes, Link},
    paths,
};

/// LAN ingress: redirect.
#[xdp]
pub fn lan_redirect(ctx: XdpContext) -> u32 {
    match redirect(&ctx) {
        Ok(action) => action,
        Err(reason) => {
            count::passed(reason);
            if reason == Reason::Malformed {
                debug!(&ctx, "a malformed packet to Microsoft 365 passes");
            }
            XDP_PASS
        }
    }
}

#[inline(always)]
fn redirect(ctx: &XdpContext) -> Result<u32, Reason> {
    let bytes = Bytes::of_frame(ctx);
    let Some(link) = Link::ethernet(&bytes, 0) else {
        return Ok(XDP_PASS);
    };
    match classify::classify(&bytes, &link, FirstFragments::Pass) {
        Outcome::Pass => Ok(XDP_PASS),
        Outcome::PassBecause(reason) => Err(reason),
        Outcome::Match(packet) => take_path(ctx, &bytes, &link, &packet),
    }
}

#[inline(always)]
fn take_path(ctx: &XdpContext, bytes: &Bytes, link: &Link, packet: &Match) -> Result<u32, Reason> {
    if !parse::is_for_router(bytes) {
        return Err(Reason::NotForUs);
    }
    let table = paths::table().ok_or(Reason::NotSteering)?;
    let ways = table.ways(packet.family, packet.class, packet.client);
    let usable = |path| forward::next_hop(path, packet.family).is_some();
    let path = flows::path(ways, packet, usable)?;
    let hop = forward::next_hop(path, packet.family).ok_or(Reason::NextHop)?;
    let action = forward::forward(ctx, bytes, link, packet, hop)?;
    count::steered(packet.class, path, 1, packet.length);
    Ok(action)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
