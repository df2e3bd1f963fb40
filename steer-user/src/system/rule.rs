//! Policy rules: which packets look into a breakout's routing table. Only grants do, and the
//! router's own packets that come from a breakout's address or are bound to its device.

use std::{fmt, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::IpVersion;

use super::{
    Change, Family, InterfaceName, Kernel, Mark, PROTOCOL, Presence, RulePriority, SystemError,
    TableId, kernel::errno_of,
};

/// One policy rule of steer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// IPv4 or IPv6: the kernel keeps two lists.
    pub family: Family,
    /// Its place in the list.
    pub priority: RulePriority,
    /// Which packets it is about.
    pub selector: Selector,
    /// The table it looks into.
    pub table: TableId,
    /// Routes of at most this prefix length do not count; the next rule is asked.
    pub suppress: Option<u32>,
}

/// Which packets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Packets with these bits in their mark.
    Mark {
        /// The bits.
        mark: Mark,
        /// The bits that are compared.
        mask: Mark,
    },
    /// The same, but only where the router itself looks for a route.
    OwnMark {
        /// The bits.
        mark: Mark,
        /// The bits that are compared.
        mask: Mark,
    },
    /// The router's own packets from this address.
    From(IpAddr),
    /// The router's own packets bound to this device.
    Device(InterfaceName),
}

/// What the kernel calls the device of packets that the router itself makes.
const LOOPBACK: &str = "lo";
/// The kernel's way to say "no suppression".
const NO_SUPPRESSION: u32 = u32::MAX;

impl Rule {
    /// Every rule in the box that bears steer's protocol number and one of its priorities.
    pub(super) async fn ours(kernel: &Kernel, family: Family) -> Result<Vec<Self>, SystemError> {
        Ok(dump(kernel, family)
            .await?
            .iter()
            .filter_map(|message| Self::from_message(family, message))
            .collect())
    }

    pub(super) async fn present(&self, kernel: &Kernel) -> Result<Presence, SystemError> {
        Ok(if Self::ours(kernel, self.family).await?.contains(self) {
            Presence::Present
        } else {
            Presence::Absent
        })
    }

    pub(super) async fn apply(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        if self.present(kernel).await? == Presence::Present {
            return Ok(Change::None);
        }
        let mut request = kernel.netlink().rule().add();
        *request.message_mut() = self.to_message();
        request
            .execute()
            .await
            .map_err(|source| self.failed(source))?;
        Ok(Change::Made)
    }

    pub(super) async fn remove(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        let mut change = Change::None;
        // The kernel deletes the first rule that matches what the request mentions; only because
        // the request is complete is it the right one.
        while self.present(kernel).await? == Presence::Present {
            match kernel
                .netlink()
                .rule()
                .del(self.to_message())
                .execute()
                .await
            {
                Ok(()) => change = Change::Made,
                Err(error) if errno_of(&error) == Some(libc::ENOENT) => break,
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(change)
    }

    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table.0).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes = vec![
            RuleAttribute::Priority(self.priority.get()),
            RuleAttribute::Table(self.table.0),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        message
            .attributes
            .extend(self.suppress.map(RuleAttribute::SuppressPrefixLen));
        match &self.selector {
            Selector::Mark { mark, mask } => message.attributes.extend([
                RuleAttribute::FwMark(mark.bits()),
                RuleAttribute::FwMask(mask.bits()),
            ]),
            Selector::OwnMark { mark, mask } => message.attributes.extend([
                RuleAttribute::FwMark(mark.bits()),
                RuleAttribute::FwMask(mask.bits()),
                RuleAttribute::Iifname(LOOPBACK.into()),
            ]),
            Selector::From(address) => {
                message.header.src_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(RuleAttribute::Source(*address));
            }
            Selector::Device(interface) => message
                .attributes
                .push(RuleAttribute::Oifname(interface.as_str().into())),
        }
        message
    }

    /// `None` for a rule that is not ours, or that says more than ours ever do.
    pub(super) fn from_message(family: Family, message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let mut protocol = None;
        let mut priority = None;
        let mut table = u32::from(header.table);
        let mut suppress = None;
        let (mut bits, mut compared, mut from, mut device) = (None, None, None, None);
        let mut own = false;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Protocol(value) => protocol = Some(u8::from(*value)),
                RuleAttribute::Priority(value) => priority = RulePriority::of_ours(*value),
                RuleAttribute::Table(value) => table = *value,
                RuleAttribute::SuppressPrefixLen(NO_SUPPRESSION) => {}
                RuleAttribute::SuppressPrefixLen(value) => suppress = Some(*value),
                RuleAttribute::FwMark(value) => bits = Some(*value),
                RuleAttribute::FwMask(value) => compared = Some(*value),
                RuleAttribute::Source(value) => from = Some(*value),
                RuleAttribute::Iifname(value) if value == LOOPBACK => own = true,
                RuleAttribute::Oifname(value) => device = Some(value.as_str()),
                _ => return None,
            }
        }
        let host = if family == Family::V4 { 32 } else { 128 };
        if protocol != Some(PROTOCOL)
            || header.action != RuleAction::ToTable
            || header.dst_len != 0
            || header.tos != 0
            || header.src_len != from.map_or(0, |_| host)
            // Ours look into our tables, or for more specific routes only.
            || (suppress.is_none() && !TableId(table).is_ours() && !own)
        {
            return None;
        }
        let selector = match (bits, compared, from, device) {
            (Some(bits), Some(compared), None, None) => {
                let (bits, compared) = (Mark::from_bits(bits), Mark::from_bits(compared));
                if own {
                    Selector::OwnMark {
                        mark: bits,
                        mask: compared,
                    }
                } else {
                    Selector::Mark {
                        mark: bits,
                        mask: compared,
                    }
                }
            }
            _ if own => return None,
            (None, None, Some(from), None) => Selector::From(from),
            (None, None, None, Some(device)) => Selector::Device(InterfaceName::new(device).ok()?),
            _ => return None,
        };
        Some(Self {
            family,
            priority: priority?,
            selector,
            table: TableId(table),
            suppress,
        })
    }

    fn failed(&self, source: rtnetlink::Error) -> SystemError {
        SystemError::Netlink {
            what: self.to_string(),
            source,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip {} rule add pref {} ", self.family, self.priority)?;
        match &self.selector {
            Selector::Mark { mark, mask } => write!(f, "fwmark {mark}/{mask}")?,
            Selector::OwnMark { mark, mask } => write!(f, "fwmark {mark}/{mask} iif {LOOPBACK}")?,
            Selector::From(address) => write!(f, "from {address}")?,
            Selector::Device(interface) => write!(f, "oif {interface}")?,
        }
        write!(f, " lookup {}", self.table)?;
        if let Some(length) = self.suppress {
            write!(f, " suppress_prefixlength {length}")?;
        }
        write!(f, " protocol {PROTOCOL}")
    }
}

/// Every rule of one family, other owners' included.
pub(super) async fn dump(kernel: &Kernel, family: Family) -> Result<Vec<RuleMessage>, SystemError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    kernel
        .netlink()
        .rule()
        .get(version)
        .execute()
        .try_collect()
        .await
        .map_err(|source| SystemError::Netlink {
            what: format!("ip {family} rule show"),
            source,
        })
}
