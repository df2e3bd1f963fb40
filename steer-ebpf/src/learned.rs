//! Addresses that answers taught: asked after the plan, and only when names of the plan teach any.

use core::hint::black_box;

use aya_ebpf::{btf_maps::LruHashMap, helpers::bpf_ktime_get_ns, macros::btf_map};
use steer_common::dns::{self, Address, Asker, Learned, SECOND, SHARED};

/// The learned addresses, for who writes them, too.
#[btf_map]
pub static LEARNED: LruHashMap<Address, Learned, { dns::LEARNED as usize }> = LruHashMap::new();

/// Who asked for them.
#[btf_map]
pub static ASKERS: LruHashMap<u64, Asker, { dns::ASKERS as usize }> = LruHashMap::new();

/// An IPv4 address (host byte order) as the maps have it.
#[inline(always)]
pub const fn mapped(address: u32) -> Address {
    let [a, b, c, d] = address.to_be_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The class of a learned address for a client, 0 for none. Its life is put off by the packet.
///
/// A function with a stack of its own, because that of the classifier is nearly full; so it must be
/// global (`no_mangle`) and take numbers only: the halves of both addresses in host order.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn learned_class(
    client_high: u64,
    client_low: u64,
    address_high: u64,
    address_low: u64,
) -> u64 {
    let client = whole(client_high, client_low);
    let address = whole(address_high, address_low);
    let Some(learned) = LEARNED.get_ptr_mut(address) else {
        return 0;
    };
    // SAFETY: the helper has no arguments and always succeeds.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: aligned loads and stores of single fields of valid map values; each stands for itself.
    unsafe {
        let expires = (&raw const (*learned).expires).read_volatile();
        if expires <= now {
            return 0;
        }
        let until = now + u64::from((*learned).life) * SECOND;
        // Every packet of a flow would write; once in a tenth of the shortest life is enough.
        if until > expires + u64::from(dns::SHORTEST_LIFE) * SECOND / 10 {
            (&raw mut (*learned).expires).write_volatile(until);
        }
        if (&raw const (*learned).flags).read_volatile() & SHARED == 0 {
            return (*learned).class.into();
        }
        let Some(asker) = ASKERS.get_ptr_mut(dns::asker(&client, &address)) else {
            return 0;
        };
        if (&raw const (*asker).expires).read_volatile() <= now {
            return 0;
        }
        (&raw mut (*asker).expires).write_volatile(until);
        (*asker).class.into()
    }
}

/// See [`learned_class`]: the function is called as if nothing were known of what it returns.
#[inline(always)]
pub fn class(client: (u64, u64), address: (u64, u64)) -> u16 {
    black_box(learned_class(client.0, client.1, address.0, address.1)) as u16
}

/// An address of two halves in host order.
#[inline(always)]
fn whole(high: u64, low: u64) -> Address {
    let (high, low) = (high.to_be_bytes(), low.to_be_bytes());
    let mut address = [0; 16];
    address[..8].copy_from_slice(&high);
    address[8..].copy_from_slice(&low);
    address
}

/// The halves of an IPv4 address as the maps have it.
#[inline(always)]
pub const fn halves(address: u32) -> (u64, u64) {
    (0, 0xffff_0000_0000 | address as u64)
}
