//! Forwarding without the stack: next hop, TTL, Ethernet header, device.

use aya_ebpf::{
    btf_maps::{Array, DevMap},
    helpers::bpf_xdp_adjust_head,
    macros::btf_map,
    programs::XdpContext,
};
use steer_common::{
    abi::{self, NextHop},
    checksum, mark,
    reason::Reason,
};

use crate::{
    classify::Match,
    parse::{Bytes, IPV4, IPV6, Link},
    paths,
};

#[btf_map]
static NEXT_HOPS: Array<NextHop, { abi::NEXT_HOPS as usize }> = Array::new();

#[btf_map]
static DEVICES: DevMap<{ mark::PATHS }> = DevMap::new();

/// The next hop of a path in a family, if it is resolved. It asks for the table anew: the program's
/// stack has no room to keep it.
#[inline(always)]
pub fn next_hop(path: u8, family: usize) -> Option<&'static NextHop> {
    match paths::table()?.next_hops[usize::from(path & 0x0f)][family & 1] {
        0 => None,
        index => NEXT_HOPS.get(u32::from(index)),
    }
}

/// Sends the packet to the next hop. Nothing of it is changed before it is sure that it can go.
#[inline(always)]
pub fn forward(
    ctx: &XdpContext,
    bytes: &Bytes,
    link: &Link,
    packet: &Match,
    hop: &NextHop,
) -> Result<u32, Reason> {
    if packet.length > hop.mtu as usize {
        return Err(Reason::Mtu);
    }
    // Only asks for it: the packet goes when the program ends with this action.
    let action = DEVICES
        .redirect(hop.device, 0)
        .map_err(|_| Reason::NextHop)?;
    let ethertype = if packet.family == 0 {
        let ip = bytes.at::<[u8; 20]>(link.l3).ok_or(Reason::Malformed)?;
        // SAFETY: `at` checked that the packet holds the header.
        unsafe {
            (*ip)[8] -= 1;
            let sum = checksum::after_ttl_decrement([(*ip)[10], (*ip)[11]]);
            (*ip)[10] = sum[0];
            (*ip)[11] = sum[1];
        }
        IPV4
    } else {
        let ip = bytes.at::<[u8; 40]>(link.l3).ok_or(Reason::Malformed)?;
        // SAFETY: as above.
        unsafe { (*ip)[7] -= 1 }
        IPV6
    };
    if link.tags == 0 {
        let header = bytes.at::<[u8; 12]>(0).ok_or(Reason::Malformed)?;
        // SAFETY: as above.
        unsafe { *header = hop.macs }
    } else {
        // The tags are the LAN's.
        let cut = if link.tags == 1 { 4 } else { 8 };
        // SAFETY: the helper checks the length; every packet pointer is read anew below.
        let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, cut) };
        if moved != 0 {
            return Err(Reason::Malformed);
        }
        let header = Bytes::of_frame(ctx)
            .at::<[u8; 14]>(0)
            .ok_or(Reason::Malformed)?;
        let [high, low] = ethertype.to_be_bytes();
        // SAFETY: as above.
        unsafe {
            *header.cast::<[u8; 12]>() = hop.macs;
            (*header)[12] = high;
            (*header)[13] = low;
        }
    }
    Ok(action)
}
