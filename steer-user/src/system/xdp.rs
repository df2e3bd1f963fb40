//! What a device's driver does with XDP, as the kernel tells it: the generic netlink family `netdev`
//! (Linux 6.3 and newer). Read only.

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use super::conntrack::{inside, split_message};

/// `GENL_ID_CTRL`, which knows the numbers of the families.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_FEATURES: u16 = 3;
/// `struct nlmsghdr`, `struct genlmsghdr` and the head of an attribute
const HEADERS: usize = 16 + COMMAND_HEADER + 4;
const COMMAND_HEADER: usize = 4;

/// `enum netdev_xdp_act`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Nothing at all: only generic XDP is possible.
    #[cfg(test)]
    pub const NONE: Self = Self(0);
    /// Everything.
    #[cfg(test)]
    pub const ALL: Self = Self(u64::MAX);

    /// Of a device of the calling thread's network namespace. None where the kernel does not tell.
    pub fn of(index: u32) -> Option<Self> {
        let family = ask(CONTROL, GET_FAMILY, FAMILY_NAME, b"netdev\0")?;
        let family = inside(family.get(COMMAND_HEADER..)?, FAMILY_ID)?;
        let family = u16::from_ne_bytes(family.try_into().ok()?);
        let device = ask(family, GET_DEVICE, DEVICE_INDEX, &index.to_ne_bytes())?;
        let features = inside(device.get(COMMAND_HEADER..)?, DEVICE_FEATURES)?;
        Some(Self(u64::from_ne_bytes(features.try_into().ok()?)))
    }

    /// Whether programs run in the driver and may redirect from there.
    pub fn runs_programs(self) -> bool {
        const BASIC_AND_REDIRECT: u64 = 0b11;
        self.0 & BASIC_AND_REDIRECT == BASIC_AND_REDIRECT
    }

    /// Whether the driver sends what programs in other drivers redirect to it. The kernel drops it
    /// otherwise (`dev_map_enqueue`).
    pub fn takes_frames(self) -> bool {
        const NDO_XMIT: u64 = 0b100;
        self.0 & NDO_XMIT != 0
    }
}

/// The payload of the answer to a request with one attribute; none if it is an error.
fn ask(family: u16, command: u8, attribute: u16, value: &[u8]) -> Option<Vec<u8>> {
    const REQUEST: u16 = 1;
    let length = HEADERS + value.len();
    let mut message = Vec::new();
    message.extend(
        u32::try_from(length.next_multiple_of(4))
            .ok()?
            .to_ne_bytes(),
    );
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence and port number; version 1.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(u16::try_from(4 + value.len()).ok()?.to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(length.next_multiple_of(4), 0);
    let mut socket = Socket::new(NETLINK_GENERIC).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    socket.send(&message, 0).ok()?;
    let (datagram, _) = socket.recv_from_full().ok()?;
    let (kind, payload, _) = split_message(&datagram)?;
    (kind == family).then(|| payload.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::testing::{in_namespace, sh};

    #[test]
    fn the_kernel_tells_what_drivers_do_with_xdp() {
        in_namespace(async || {
            sh(
                "ip link add name a0 index 70 type veth peer name a1 index 71
                ip link add name d0 index 72 type bridge; ethtool -K a1 gro off
                ip link set a0 up; ip link set a1 up",
            );
            if XdpFeatures::of(70).is_none() {
                println!("skipped: this kernel does not tell");
                return;
            }
            let veth = |index| XdpFeatures::of(index).unwrap();
            assert!(veth(70).runs_programs());
            assert!(!veth(70).takes_frames(), "nobody reads them in time");
            sh("ethtool -K a1 gro on");
            assert!(veth(70).takes_frames());
            assert_eq!(XdpFeatures::of(72), Some(XdpFeatures::NONE));
            assert_eq!(XdpFeatures::of(99), None);
        });
    }
}
