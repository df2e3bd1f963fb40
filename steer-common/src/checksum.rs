//! Internet checksums, changed in place.

/// The IPv4 header checksum after the TTL went down by one (RFC 1624, equation 3).
///
/// `checksum` is in network byte order as read from the packet, and so is the result.
#[inline(always)]
pub const fn after_ttl_decrement(checksum: [u8; 2]) -> [u8; 2] {
    // The TTL is the upper byte of its 16-bit word: the sum grows by 0x0100.
    let sum = u16::from_be_bytes(checksum) as u32 + 0x0100;
    // No header sums up to 0, so 0xffff is never a checksum: 0 is (RFC 1624, section 3; the kernel's
    // ip_decrease_ttl does the same).
    let carry = (sum >= 0xffff) as u32;
    ((sum + carry) as u16).to_be_bytes()
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

    #[test]
    fn every_checksum_is_that_of_the_new_header() {
        for identification in 0..=u16::MAX {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[8] = 64;
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            let before = of_header(&header);
            header[8] -= 1;
            assert_eq!(
                after_ttl_decrement(before),
                of_header(&header),
                "{before:02x?}"
            );
        }
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
