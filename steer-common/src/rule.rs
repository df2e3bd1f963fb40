//! One line of an entry: which protocol and ports, and what to do with them.

use bytemuck::{Pod, Zeroable};

use crate::flow::Standing;

/// TCP's number in an IP header.
pub const TCP: u8 = 6;
/// UDP's number in an IP header.
pub const UDP: u8 = 17;
/// Every protocol, also those without ports.
pub const ANY: u8 = 255;

/// What a matching rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Action {
    /// Nothing: the end of an entry.
    End = 0,
    /// Leaves by a breakout.
    Steer = 1,
    /// Passes, because the operator excludes the destination.
    Exclude = 2,
    /// Passes, because the destination is an address of this router.
    RouterLocal = 3,
}

/// A rule as it lies in a generation: 8 bytes, ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    /// The index of the class in the class registry; 0 for rules that pass.
    pub class: u16,
    /// The first port.
    pub first: u16,
    /// The last port, included.
    pub last: u16,
    /// [`TCP`], [`UDP`] or [`ANY`].
    pub protocol: u8,
    action: u8,
}

impl Rule {
    /// Steers `protocol` to ports `first` to `last` as `class`.
    pub const fn steer(class: u16, protocol: u8, first: u16, last: u16) -> Self {
        Self {
            class,
            first,
            last,
            protocol,
            action: Action::Steer as u8,
        }
    }

    /// Passes whatever the protocol and the port.
    pub const fn pass(action: Action) -> Self {
        Self {
            class: 0,
            first: 0,
            last: u16::MAX,
            protocol: ANY,
            action: action as u8,
        }
    }

    /// What the rule does; a number that is no action ends the entry.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        match Standing::strip(self.action as u16) {
            1 => Action::Steer,
            2 => Action::Exclude,
            3 => Action::RouterLocal,
            _ => Action::End,
        }
    }

    /// What a change of the plan means for the flows that the rule speaks of.
    #[inline(always)]
    pub const fn standing(&self) -> Standing {
        Standing::of(self.action as u16)
    }

    /// The same rule with another standing.
    pub const fn with(self, standing: Standing) -> Self {
        Self {
            action: standing.on(Standing::strip(self.action as u16) as u8),
            ..self
        }
    }

    /// Whether the rule speaks of `protocol` and `port`.
    #[inline(always)]
    pub const fn matches(&self, protocol: u8, port: u16) -> bool {
        self.protocol == ANY
            || (self.protocol == protocol && self.first <= port && port <= self.last)
    }
}

const _: () = assert!(size_of::<Rule>() == 8 && align_of::<Rule>() == 2);
