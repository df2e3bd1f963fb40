//! Bounds-checked views of headers: Ethernet with up to two VLAN tags, or bare IP.

use aya_ebpf::{
    bindings::__sk_buff,
    programs::{TcContext, XdpContext},
};

use crate::config;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
/// The length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// The length of a VLAN tag.
pub const TAG: usize = 4;
/// Enough for every header that the classifier looks at in all but absurd packets.
const HEADERS: u32 = 128;

/// The bytes of a packet that can be read directly.
#[derive(Clone, Copy)]
pub struct Bytes {
    start: usize,
    end: usize,
    /// The length of the whole packet, also where it is not in one piece.
    pub length: usize,
}

impl Bytes {
    /// The packet of an XDP program.
    #[inline(always)]
    pub fn of_frame(ctx: &XdpContext) -> Self {
        let (start, end) = (ctx.data(), ctx.data_end());
        Self {
            start,
            end,
            length: end - start,
        }
    }

    /// The packet of a TC program; headers are made readable where they lie in fragments of
    /// memory.
    #[inline(always)]
    pub fn of_packet(ctx: &TcContext) -> Self {
        let length = ctx.len();
        if (ctx.data_end() - ctx.data()) < HEADERS as usize
            && ctx.data_end() - ctx.data() < length as usize
        {
            // On failure the packet stays as it was, and what cannot be read passes.
            let _ = ctx.pull_data(if length < HEADERS { length } else { HEADERS });
        }
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            length: length as usize,
        }
    }

    /// A header at `offset`, if all of it can be read.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let address = self.start + offset;
        if address + size_of::<T>() > self.end {
            return None;
        }
        Some(address as *mut T)
    }

    /// A copy of the bytes at `offset`.
    #[inline(always)]
    pub fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.at::<[u8; N]>(offset)?;
        // SAFETY: `at` checked that the packet holds all of them.
        Some(unsafe { *bytes })
    }
}

/// What comes before the IP header.
#[derive(Clone, Copy)]
pub struct Link {
    /// Where the IP header begins.
    pub l3: usize,
    /// [`IPV4`], [`IPV6`] or something else.
    pub ethertype: u16,
    /// Outer VLAN id << 16 | inner VLAN id, 0 for untagged. With the tag that was taken off there
    /// may be three: then more than 32 bits, which no listed VLAN is.
    pub vlan: u64,
    /// The tags that stand in the frame.
    pub tags: usize,
}

impl Link {
    /// Reads an Ethernet header and its tags; `outer` is the VLAN id that a network card or the
    /// stack took off before, 0 for none.
    #[inline(always)]
    pub fn ethernet(bytes: &Bytes, outer: u32) -> Option<Self> {
        let mut ethertype = u16::from_be_bytes(bytes.read(12)?);
        let (mut vlan, mut tags) = (u64::from(outer), 0);
        while tags < 2 && (ethertype == VLAN || ethertype == QINQ) {
            let tag: [u8; TAG] = bytes.read(ETHERNET + tags * TAG)?;
            let id = u64::from(u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff);
            vlan = if vlan == 0 { id } else { vlan << 16 | id };
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            tags += 1;
        }
        // One tag: the id is the outer one.
        if vlan <= 0x0fff {
            vlan <<= 16;
        }
        Some(Self {
            l3: forget(bytes, ETHERNET + tags * TAG) & 31,
            ethertype,
            vlan: forget(bytes, vlan as usize) as u64,
            tags: forget(bytes, tags) & 3,
        })
    }

    /// Finds the family of a packet that begins with the IP header.
    #[inline(always)]
    pub fn bare(bytes: &Bytes) -> Option<Self> {
        // All of the shorter header: the verifier does not follow a check of the first byte alone,
        // which the compiler turns from "one behind is past the end" into "this is at the end".
        let header: [u8; 20] = bytes.read(0)?;
        let ethertype = match header[0] >> 4 {
            4 => IPV4,
            6 => IPV6,
            _ => 0,
        };
        Some(Self {
            l3: 0,
            ethertype,
            vlan: 0,
            tags: 0,
        })
    }
}

/// The same value, but any to the verifier: it would follow the program to its end once for each value
/// that it can tell apart.
#[inline(always)]
pub fn forget(bytes: &Bytes, value: usize) -> usize {
    value ^ bytes.length ^ core::hint::black_box(bytes.length)
}

/// The VLAN id that the stack took off a packet, 0 for none.
#[inline(always)]
pub fn stripped_vlan(ctx: &TcContext) -> u32 {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the fields.
    unsafe {
        if (*skb).vlan_present == 0 {
            0
        } else {
            (*skb).vlan_tci & 0x0fff
        }
    }
}

/// Whether an Ethernet frame is addressed to the router.
#[inline(always)]
pub fn is_for_router(bytes: &Bytes) -> bool {
    let router = config::router_mac();
    bytes.read::<6>(0).is_some_and(|to| {
        to == [
            router[0], router[1], router[2], router[3], router[4], router[5],
        ]
    })
}

/// Whether the frame is addressed to this router; on the port of a bridge that is the bridge's
/// address, which the port itself takes for somebody else's.
#[inline(always)]
pub fn for_this_router(ctx: &TcContext, bytes: &Bytes) -> bool {
    const HOST: u32 = 0;
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the whole program; the verifier checks the field.
    let to_host = unsafe { (*skb).pkt_type } == HOST;
    to_host || (!config::bare_ip() && is_for_router(bytes))
}
