//! Why a packet that might have been steered was left to the kernel's own routing.

/// The number of reason counters in the map; room for more than are in use.
pub const REASONS: u32 = 32;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal, $text:literal;)*) => {
        /// A reason for a pass. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])* $name = $value,)*
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name of the counter: one word, stable, for metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What the reason means, for a person.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

reasons! {
    /// A header contradicts itself or the length of the packet.
    Malformed = 0, "malformed";
    /// A fragment: its ports are not in sight, or its mode keeps a datagram's fragments together.
    Fragment = 1, "fragment";
    /// IPv4 options or IPv6 extension headers that routers must look at.
    Options = 2, "options";
    /// Neither TCP nor UDP.
    Protocol = 3, "protocol";
    /// The destination is Microsoft 365's, the port is not.
    Port = 4, "port";
    /// The operator excludes the destination.
    Excluded = 5, "excluded";
    /// The destination is an address of this router.
    RouterLocal = 6, "router-local";
    /// The source is not a client of the LAN.
    NotLan = 7, "not-lan";
    /// The operator leaves this client out.
    SourceExcluded = 8, "source-excluded";
    /// A VLAN whose frames are not steered.
    Vlan = 9, "vlan";
    /// Somebody else set bits of our mark mask.
    ForeignMark = 10, "foreign-mark";
    /// No breakout is up.
    NoPath = 11, "no-path";
    /// The TTL or hop limit expires here; the kernel answers.
    Ttl = 12, "ttl";
    /// Larger than the breakout's MTU; the kernel fragments or answers.
    Mtu = 13, "mtu";
    /// The breakout's next hop is not resolved.
    NextHop = 14, "next-hop";
    /// The connection began on another path.
    FlowPinned = 15, "flow-pinned";
    /// Steering is off, or still watches for connections that began before it.
    NotSteering = 16, "not-steering";
    /// The frame is for somebody else than this router.
    NotForUs = 17, "not-for-us";
    /// The flow table has no room where this flow belongs.
    FlowTable = 18, "flow-table";
}

const _: () = assert!(Reason::ALL.len() <= REASONS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_the_order_of_their_counters() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?}");
            assert!(!reason.meaning().is_empty(), "{reason:?}");
        }
    }
}
