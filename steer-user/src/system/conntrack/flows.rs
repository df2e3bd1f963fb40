//! The flows that connection tracking knows: who asked whom, and whether somebody answered.

use std::net::{IpAddr, SocketAddr};

use super::{
    super::SystemError, Attributes, DUMP, FAMILY_HEADER, GET, for_each_message, inside, request,
    tcp_state,
};
use crate::system::Mark;

/// A connection as its first packet had it, before anybody translated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The number of the protocol in the IP header: TCP or UDP.
    pub protocol: u8,
    /// Who began it.
    pub source: IpAddr,
    /// Whom it was sent to.
    pub destination: SocketAddr,
    /// Whether something came back.
    pub answered: bool,
    /// Whether TCP was reset.
    pub reset: bool,
}

/// Calls `found` with every flow of TCP and UDP to one of these ports.
///
/// Blocks for about a millisecond per thousand entries of the table.
pub fn for_each_flow(ports: &[u16], mut found: impl FnMut(Flow)) -> Result<(), SystemError> {
    // Every mark is this one where no bit is compared.
    let any = Mark::from_bits(0);
    let all = request(GET, DUMP, None, any, any);
    for_each_message(&all, |payload| {
        if let Some(flow) = flow_of(payload)
            && ports.contains(&flow.destination.port())
        {
            found(flow);
        }
    })
    .map_err(SystemError::Conntrack)
}

const ATTRIBUTE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// Inside `TUPLE_IP`; those of IPv6 are larger by two.
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
/// Inside `TUPLE_PROTOCOL`.
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// One entry; none if the message is cut, or the protocol has no ports.
fn flow_of(payload: &[u8]) -> Option<Flow> {
    const SEEN_REPLY: u32 = 1 << 1;
    const CLOSE: u8 = 8;
    let attributes = payload.get(FAMILY_HEADER..)?;
    let tuple = inside(attributes, ATTRIBUTE_ORIGINAL)?;
    let (ip, protocol) = (inside(tuple, TUPLE_IP)?, inside(tuple, TUPLE_PROTOCOL)?);
    let address = |kind: u16| -> Option<IpAddr> {
        if let Some(v4) = inside(ip, kind) {
            return Some(<[u8; 4]>::try_from(v4).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(inside(ip, kind + 2)?).ok()?.into())
    };
    let port = <[u8; 2]>::try_from(inside(protocol, DESTINATION_PORT)?).ok()?;
    let mut status = 0;
    let mut state = None;
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        match kind {
            super::ATTRIBUTE_STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
            super::ATTRIBUTE_PROTOCOL => state = tcp_state(value),
            _ => {}
        }
    }
    Some(Flow {
        protocol: *inside(protocol, NUMBER)?.first()?,
        source: address(SOURCE)?,
        destination: SocketAddr::new(address(DESTINATION)?, u16::from_be_bytes(port)),
        answered: status & SEEN_REPLY != 0,
        reset: state == Some(CLOSE),
    })
}
