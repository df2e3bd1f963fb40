//! What the benchmark needs besides steer itself: a generator, sinks, and a redirect that
//! classifies nothing, which is the limit of what a classifier can reach. Not part of the product.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers return actions and times as machine words"
)]

// For the panic handler.
use steer_ebpf as _;

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        TC_ACT_UNSPEC,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    },
    btf_maps::{Array, DevMap, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Flows of one kind of traffic; a power of two.
const FLOWS_PER_KIND: u32 = 4096;
/// Hits and misses.
const KINDS: u32 = 2;

/// Ready-made frames; the first kind's flows, then the second's.
#[btf_map]
static FRAMES: Array<Frame, { (FLOWS_PER_KIND * KINDS) as usize }> = Array::new();

/// How the generator sends; written between two measurements.
#[btf_map]
static GENERATOR: Array<Generator, 1> = Array::new();

/// Frames sent so far. The generator runs on one processor.
#[btf_map]
static SENT: Array<u64, 1> = Array::new();

/// What arrived, by sink: 0 the WAN's, 1 the breakout's, 2 the router's LAN interface.
#[btf_map]
static ARRIVED: PerCpuArray<Arrived, 3> = PerCpuArray::new();

/// The next hop of the redirect without classifier.
#[btf_map]
static NEXT_HOP: Array<NextHop, 1> = Array::new();

/// Its device.
#[btf_map]
static OUT: DevMap<1> = DevMap::new();

/// One frame of 64 bytes, in words that a program copies quickly.
type Frame = [u64; 8];

#[repr(C)]
struct Generator {
    /// The first entry of the frames to send.
    first: u32,
    /// The interface to send from; 0 drops every frame, which is the generator's own cost.
    ifindex: u32,
}

#[repr(C)]
struct Arrived {
    packets: u64,
    /// Of the last packet, as it is in the header.
    source: [u8; 4],
    ttl: u8,
    pad: [u8; 3],
}

#[repr(C)]
struct NextHop {
    /// Destination and source as they go into the frame, padded to words.
    macs: [u32; 4],
}

#[repr(C)]
struct Ethernet {
    macs: [u32; 3],
    ethertype: [u8; 2],
}

#[repr(C)]
struct Ipv4 {
    version_length: u8,
    tos: u8,
    length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: [u8; 4],
    destination: [u8; 4],
}

/// Octets of an Ethernet header; the structure above is padded.
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const UDP: u8 = 17;
/// One less TTL in the header's checksum, in memory order.
const TTL_STEP: u32 = 0x0100_u16.to_be() as u32;

/// Sends the flows in turn. Run with BPF_PROG_TEST_RUN and live frames: what earlier hops wrote
/// into a frame is still there when it comes back, so it is written anew as a whole.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    try_generate(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_generate(ctx: &XdpContext) -> Option<u32> {
    let generator = GENERATOR.get(0)?;
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: the map's entry outlives the program, and only this processor sends.
    let turn = unsafe {
        let turn = *sent;
        *sent = turn.wrapping_add(1);
        turn as u32
    };
    let frame = FRAMES.get(generator.first.wrapping_add(turn % FLOWS_PER_KIND))?;
    let to = at::<Frame>(ctx, 0)?.cast::<u64>();
    for (word, value) in frame.iter().enumerate() {
        // SAFETY: `at` checked the frame's bounds; live frames start on a cache line.
        unsafe { *to.add(word) = *value };
    }
    if generator.ifindex == 0 {
        return Some(XDP_DROP);
    }
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect(generator.ifindex, 0) } as u32)
}

/// The far end of the WAN.
#[xdp]
pub fn sink_wan(ctx: XdpContext) -> u32 {
    sink(&ctx, 0)
}

/// The far end of the breakout.
#[xdp]
pub fn sink_breakout(ctx: XdpContext) -> u32 {
    sink(&ctx, 1)
}

/// The router's LAN interface, when nothing but the harness is measured.
#[xdp]
pub fn sink_lan(ctx: XdpContext) -> u32 {
    sink(&ctx, 2)
}

#[inline(always)]
fn sink(ctx: &XdpContext, which: u32) -> u32 {
    let _ = count(ctx, which);
    XDP_DROP
}

#[inline(always)]
fn count(ctx: &XdpContext, which: u32) -> Option<()> {
    let (_, ip) = udp(ctx)?;
    let arrived = ARRIVED.get_ptr_mut(which)?;
    // SAFETY: `udp` checked the header's bounds; the entry is this processor's own.
    unsafe {
        (*arrived).packets += 1;
        (*arrived).source = (*ip).source;
        (*arrived).ttl = (*ip).ttl;
    }
    Some(())
}

/// What running a program at TC takes.
#[classifier]
pub fn nothing(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// What is left of steer's redirect when the classifier is taken away.
#[xdp]
pub fn redirect(ctx: XdpContext) -> u32 {
    try_redirect(&ctx).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn try_redirect(ctx: &XdpContext) -> Option<u32> {
    let (ethernet, ip) = udp(ctx)?;
    let hop = NEXT_HOP.get(0)?;
    // SAFETY: `udp` checked the bounds of both headers.
    unsafe {
        if (*ip).ttl <= 1 {
            return None;
        }
        (*ip).ttl -= 1;
        let sum = u32::from((*ip).checksum) + TTL_STEP;
        (*ip).checksum = (sum + u32::from(sum >= 0xffff)) as u16;
        (*ethernet).macs = [hop.macs[0], hop.macs[1], hop.macs[2]];
    }
    OUT.redirect(0, 0).ok()
}

/// The headers of a UDP packet in a plain IPv4 frame.
#[inline(always)]
fn udp(ctx: &XdpContext) -> Option<(*mut Ethernet, *mut Ipv4)> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    let ip = at::<Ipv4>(ctx, ETHERNET)?;
    // SAFETY: `at` checked the bounds of both headers.
    let is_udp = unsafe {
        (*ethernet).ethertype == IPV4 && (*ip).version_length == 0x45 && (*ip).protocol == UDP
    };
    is_udp.then_some((ethernet, ip))
}

/// A header at an offset, when all of it is in the frame.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
