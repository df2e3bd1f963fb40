//! What is known when a program is loaded for an interface: constants to the verifier, which
//! removes the code that the interface does not need.

use aya_ebpf::Global;
use steer_common::mark;

/// 1: the interface has no Ethernet header (PPP, tunnels).
#[unsafe(no_mangle)]
static BARE_IP: Global<u8> = Global::new(0);

/// The VLANs whose frames are steered: outer id in the upper half, inner id in the lower half,
/// 0 for untagged. The first one is the commonest; unused places hold [`NO_VLAN`].
#[unsafe(no_mangle)]
static VLANS: Global<[u32; 8]> = Global::new([
    0, NO_VLAN, NO_VLAN, NO_VLAN, NO_VLAN, NO_VLAN, NO_VLAN, NO_VLAN,
]);

/// The Ethernet address that clients send to: the router's, in the first six bytes.
#[unsafe(no_mangle)]
static ROUTER_MAC: Global<[u8; 8]> = Global::new([0; 8]);

/// Makes the places of connections unpredictable to clients.
#[unsafe(no_mangle)]
static FLOW_SEED: Global<u64> = Global::new(0);

/// The path whose answers come in by the interface.
#[unsafe(no_mangle)]
static PATH: Global<u8> = Global::new(0);

/// The lowest of the six bits of a mark that are steer's.
#[unsafe(no_mangle)]
static MARK_SHIFT: Global<u8> = Global::new(mark::Bits::DEFAULT.shift());

/// 1: a query's mark is a grant, because nothing here turns wishes into grants (redirect mode).
#[unsafe(no_mangle)]
static SET_GRANT: Global<u8> = Global::new(0);

/// An unused place among the VLANs.
const NO_VLAN: u32 = u32::MAX;

/// Whether packets begin with the IP header.
#[inline(always)]
pub fn bare_ip() -> bool {
    BARE_IP.load() != 0
}

/// Whether frames of this VLAN (outer << 16 | inner) are steered.
#[inline(always)]
pub fn steers_vlan(vlan: u64) -> bool {
    let vlans = VLANS.load();
    let mut found = u64::from(vlans[0]) == vlan;
    let mut index = 1;
    while index < 8 {
        found |= u64::from(vlans[index]) == vlan;
        index += 1;
    }
    found
}

/// The Ethernet address of the router on this interface.
#[inline(always)]
pub fn router_mac() -> [u8; 8] {
    ROUTER_MAC.load()
}

/// The bits of a mark that are steer's.
#[inline(always)]
pub fn mark_bits() -> mark::Bits {
    mark::Bits::at(MARK_SHIFT.load())
}

/// The seed of the flow table.
#[inline(always)]
pub fn flow_seed() -> u64 {
    FLOW_SEED.load()
}

/// The path whose answers come in by the interface.
#[inline(always)]
pub fn path() -> u8 {
    PATH.load() & 0x0f
}

/// Whether a query's mark is a grant.
#[inline(always)]
pub fn sets_grant() -> bool {
    SET_GRANT.load() != 0
}
