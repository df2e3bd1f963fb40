//! Changes an address of a packet in place, checksums included.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use steer_common::dns::Address;

use crate::{message::Udp, parse::Link};

/// Which address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The source's.
    Source,
    /// The destination's.
    Destination,
}

/// Of bpf_l4_csum_replace: the packet is IPv6, where a card's checksum over the whole packet changes
/// with the address (linux/bpf.h; older kernels refuse it).
const BPF_F_IPV6: u64 = 1 << 7;
/// Where the IPv4 header's checksum and UDP's are.
const IP_CHECKSUM: usize = 10;
const UDP_CHECKSUM: usize = 6;

/// Replaces an address by another of the same family. UDP without a checksum stays without.
#[inline(always)]
pub fn replace(
    ctx: &TcContext,
    link: &Link,
    udp: &Udp,
    field: Field,
    old: &Address,
    new: &Address,
) -> bool {
    let skb: *mut __sk_buff = ctx.skb.skb;
    let skb = skb.cast();
    let checksum = (udp.l4 + UDP_CHECKSUM) as u32;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
    if udp.v4 {
        let at = link.l3 + if field == Field::Source { 12 } else { 16 };
        let word = |it: &Address| u64::from(u32::from_ne_bytes([it[12], it[13], it[14], it[15]]));
        // SAFETY: the helpers check the packet; the pointer is to four octets on the stack.
        unsafe {
            let four: [u8; 4] = [new[12], new[13], new[14], new[15]];
            bpf_l4_csum_replace(skb, checksum, word(old), word(new), pseudo | 4) == 0
                && bpf_l3_csum_replace(skb, (link.l3 + IP_CHECKSUM) as u32, word(old), word(new), 4)
                    == 0
                && bpf_skb_store_bytes(skb, at as u32, four.as_ptr().cast(), 4, 0) == 0
        }
    } else {
        let at = link.l3 + if field == Field::Source { 8 } else { 24 };
        // SAFETY: as above; the pointers are to 16 octets each.
        unsafe {
            let difference = bpf_csum_diff(
                old.as_ptr().cast_mut().cast(),
                16,
                new.as_ptr().cast_mut().cast(),
                16,
                0,
            );
            let difference = difference.cast_unsigned();
            (bpf_l4_csum_replace(skb, checksum, 0, difference, pseudo | BPF_F_IPV6) == 0
                || bpf_l4_csum_replace(skb, checksum, 0, difference, pseudo) == 0)
                && bpf_skb_store_bytes(skb, at as u32, new.as_ptr().cast(), 16, 0) == 0
        }
    }
}
