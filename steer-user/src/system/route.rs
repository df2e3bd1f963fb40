//! A path's default route, alone in the path's own table; and the one that delivers to this router.

use std::{fmt, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use super::{
    Change, Family, InterfaceName, Kernel, NextHop, PROTOCOL, PathId, Presence, SystemError,
    TableId, kernel::errno_of,
};

/// One default route of steer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The path's table.
    pub table: TableId,
    /// The device.
    pub interface: InterfaceName,
    /// Where it leads; nowhere else (`None`): packets are for this router.
    pub next_hop: Option<NextHop<IpAddr>>,
}

impl Route {
    /// Every default route in our tables that bears steer's protocol number.
    pub(super) async fn ours(kernel: &Kernel, family: Family) -> Result<Vec<Self>, SystemError> {
        let mut found = Vec::new();
        let paths = (1..=PathId::MAX).filter_map(PathId::new);
        for table in paths.map(PathId::table).chain([TableId::HERE]) {
            for message in dump(kernel, family, table).await? {
                found.extend(Self::from_message(kernel, family, table, &message).await?);
            }
        }
        Ok(found)
    }

    pub(super) async fn present(&self, kernel: &Kernel) -> Result<Presence, SystemError> {
        let mut presence = Presence::Absent;
        for message in dump(kernel, self.family, self.table).await? {
            if message.header.destination_prefix_length != 0 {
                continue;
            }
            match Self::from_message(kernel, self.family, self.table, &message).await? {
                Some(route) if route == *self => return Ok(Presence::Present),
                Some(route) => presence = Presence::Different(format!("there is `{route}`")),
                None => {
                    presence = Presence::Different(format!(
                        "table {} has a default route of another owner (protocol {})",
                        self.table,
                        u8::from(message.header.protocol)
                    ));
                }
            }
        }
        Ok(presence)
    }

    pub(super) async fn apply(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        let mut ours = Vec::new();
        for message in dump(kernel, self.family, self.table).await? {
            if message.header.destination_prefix_length != 0 {
                continue;
            }
            let Some(route) = Self::from_message(kernel, self.family, self.table, &message).await?
            else {
                return Err(SystemError::Foreign {
                    found: format!(
                        "a default route of protocol {} in table {}",
                        u8::from(message.header.protocol),
                        self.table
                    ),
                    what: self.to_string(),
                });
            };
            if route == *self {
                return Ok(Change::None);
            }
            ours.push(route);
        }
        let index = self.index(kernel).await?;
        // Replaced, not deleted and added: there is no moment without a route.
        let mut request = kernel.netlink().route().add(self.to_message(index));
        if !ours.is_empty() {
            request = request.replace();
        }
        request
            .execute()
            .await
            .map_err(|source| self.failed(source))?;
        Ok(Change::Made)
    }

    pub(super) async fn remove(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        if self.present(kernel).await? != Presence::Present {
            return Ok(Change::None);
        }
        let index = self.index(kernel).await?;
        match kernel
            .netlink()
            .route()
            .del(self.to_message(index))
            .execute()
            .await
        {
            Ok(()) => Ok(Change::Made),
            Err(error) if errno_of(&error) == Some(libc::ESRCH) => Ok(Change::None),
            Err(source) => Err(self.failed(source)),
        }
    }

    async fn index(&self, kernel: &Kernel) -> Result<u32, SystemError> {
        kernel
            .index_of(&self.interface)
            .await?
            .ok_or_else(|| SystemError::LinkMissing {
                interface: self.interface.as_str().into(),
                what: self.to_string(),
            })
    }

    fn to_message(&self, index: u32) -> RouteMessage {
        let mut message = query(self.family, self.table);
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(index));
        match self.next_hop {
            None => {
                message.header.kind = RouteType::Local;
                message.header.scope = RouteScope::Host;
            }
            Some(NextHop::Via(gateway)) => message
                .attributes
                .push(RouteAttribute::Gateway(gateway.into())),
            Some(NextHop::ViaOnLink(gateway)) => {
                message
                    .attributes
                    .push(RouteAttribute::Gateway(gateway.into()));
                message.header.flags |= RouteFlags::Onlink;
            }
            // IPv4 says with the scope that there is no gateway; IPv6 knows no scopes.
            Some(NextHop::Device) if self.family == Family::V4 => {
                message.header.scope = RouteScope::Link;
            }
            Some(NextHop::Device) => {}
        }
        message
    }

    /// `None` for a route that is not a default route of steer's.
    async fn from_message(
        kernel: &Kernel,
        family: Family,
        table: TableId,
        message: &RouteMessage,
    ) -> Result<Option<Self>, SystemError> {
        if message.header.destination_prefix_length != 0
            || u8::from(message.header.protocol) != PROTOCOL
            || !matches!(message.header.kind, RouteType::Unicast | RouteType::Local)
        {
            return Ok(None);
        }
        let (mut gateway, mut index) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                    gateway = Some(IpAddr::V4(*address));
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                    gateway = Some(IpAddr::V6(*address));
                }
                RouteAttribute::Oif(value) => index = Some(*value),
                _ => {}
            }
        }
        let Some(index) = index else {
            return Ok(None);
        };
        let Some(interface) = kernel.name_of(index).await? else {
            return Ok(None);
        };
        let next_hop = match gateway {
            _ if message.header.kind == RouteType::Local => None,
            Some(gateway) if message.header.flags.contains(RouteFlags::Onlink) => {
                Some(NextHop::ViaOnLink(gateway))
            }
            Some(gateway) => Some(NextHop::Via(gateway)),
            None => Some(NextHop::Device),
        };
        Ok(Some(Self {
            family,
            table,
            interface,
            next_hop,
        }))
    }

    fn failed(&self, source: rtnetlink::Error) -> SystemError {
        SystemError::Netlink {
            what: self.to_string(),
            source,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.next_hop.is_none() {
            "local "
        } else {
            ""
        };
        write!(f, "ip {} route add {kind}default", self.family)?;
        let on_link = match self.next_hop {
            Some(NextHop::Via(gateway)) => {
                write!(f, " via {gateway}")?;
                ""
            }
            Some(NextHop::ViaOnLink(gateway)) => {
                write!(f, " via {gateway}")?;
                " onlink"
            }
            Some(NextHop::Device) | None => "",
        };
        write!(
            f,
            " dev {}{on_link} table {} proto {PROTOCOL}",
            self.interface, self.table
        )
    }
}

fn query(family: Family, table: TableId) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    match u8::try_from(table.0) {
        Ok(table) => message.header.table = table,
        Err(_) => message.header.table = RouteHeader::RT_TABLE_UNSPEC,
    }
    message.attributes.push(RouteAttribute::Table(table.0));
    message
}

/// Every route of one table; none if the kernel has no such table.
pub(super) async fn dump(
    kernel: &Kernel,
    family: Family,
    table: TableId,
) -> Result<Vec<RouteMessage>, SystemError> {
    let routes = kernel
        .netlink()
        .route()
        .get(query(family, table))
        .execute()
        .try_collect::<Vec<_>>()
        .await;
    match routes {
        Ok(mut routes) => {
            routes.retain(|route| table_of(route) == table);
            Ok(routes)
        }
        Err(error) if errno_of(&error) == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(source) => Err(SystemError::Netlink {
            what: format!("ip {family} route show table {table}"),
            source,
        }),
    }
}

fn table_of(route: &RouteMessage) -> TableId {
    let wide = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    TableId(wide.unwrap_or(u32::from(route.header.table)))
}
