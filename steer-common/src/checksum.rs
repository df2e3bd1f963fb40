//! Internet checksums, changed in place.

/// The IPv4 header checksum after the TTL went down by one (RFC 1624, equation 3).
///
/// `checksum` is in network byte order as read from the packet, and so is the result.
#[inline(always)]
pub const fn after_ttl_decrement(checksum: [u8; 2]) -> [u8; 2] {
    // The TTL is the upper byte of its 16-bit word: the sum grows by 0x0100.
    let sum = u16::from_be_bytes(checksum) as u32 + 0x0100;
    // A result of 0xffff stands for 0 and must be folded again (RFC 1624, section 3).
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of an IPv4 header, the plain way (RFC 1071).
    fn of_header(header: &[u8; 20]) -> [u8; 2] {
        let mut sum = 0_u32;
        for (index, pair) in header.chunks(2).enumerate() {
            if index != 5 {
                sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            }
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest::proptest! {
        #[test]
        fn a_decremented_ttl_gives_the_checksum_of_the_new_header(
            mut header: [u8; 20], ttl in 1_u8..=255,
        ) {
            header[0] = 0x45;
            header[8] = ttl;
            let before = of_header(&header);
            header[8] -= 1;
            proptest::prop_assert_eq!(after_ttl_decrement(before), of_header(&header));
        }
    }
}
