//! The one handle through which objects reach the kernel: a netlink socket of the network namespace
//! it was opened in, and the undo record of sysctls.

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;

use super::{InterfaceName, Sysctl, SystemError, nft::Listing, sysctl::UndoRecord};

/// Access to the network namespace of the thread that opened it. Use it from threads of the same
/// namespace only: `/proc/sys` and `nft` follow the calling thread.
#[derive(Debug)]
pub struct Kernel {
    netlink: rtnetlink::Handle,
    undo: PathBuf,
    /// The newest text we rendered, and what `nft` makes of it; see [`super::nft`].
    pub(super) reference: Option<(String, Listing)>,
}

impl Kernel {
    /// Opens the netlink socket. `state_dir` keeps the undo record `undo.json`; it is created when
    /// the first sysctl is changed. Must be called inside a tokio runtime.
    pub fn open(state_dir: &Path) -> Result<Self, SystemError> {
        // Strict checking lets the kernel filter dumps: a router may hold a million routes.
        let (connection, netlink, _) =
            rtnetlink::new_connection_with_strict_check().map_err(SystemError::Socket)?;
        tokio::spawn(connection);
        Ok(Self {
            netlink,
            undo: state_dir.join("undo.json"),
            reference: None,
        })
    }

    /// The netlink socket.
    pub fn netlink(&self) -> &rtnetlink::Handle {
        &self.netlink
    }

    /// The record of what sysctls were before steer.
    pub(super) fn undo_record(&self) -> UndoRecord {
        UndoRecord::at(self.undo.clone())
    }

    /// Removes the file of the record when nothing is on record.
    pub(crate) fn forget_undo_record(&self) -> Result<(), SystemError> {
        self.undo_record().remove_if_empty()
    }

    /// The sysctls whose previous values are on record, with the values steer gave them.
    pub(super) fn recorded_sysctls(&self) -> Result<Vec<Sysctl>, SystemError> {
        self.undo_record().sysctls()
    }

    /// The name of the interface with this index, `None` if there is none or its name is not one
    /// that steer could have been given.
    pub(super) async fn name_of(&self, index: u32) -> Result<Option<InterfaceName>, SystemError> {
        let mut links = self.netlink.link().get().match_index(index).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.and_then(|link| {
                link.attributes.iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) => InterfaceName::new(name).ok(),
                    _ => None,
                })
            })),
            Err(error) if errno_of(&error) == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(SystemError::Netlink {
                what: format!("ip link show (index {index})"),
                source,
            }),
        }
    }

    /// The interface's index, `None` if there is no such interface.
    pub(super) async fn index_of(
        &self,
        interface: &InterfaceName,
    ) -> Result<Option<u32>, SystemError> {
        let mut links = self
            .netlink
            .link()
            .get()
            .match_name(interface.as_str().to_owned())
            .execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(link
                .attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(name) if name == interface.as_str()))
                .then_some(link.header.index)),
            Ok(None) => Ok(None),
            Err(error) if errno_of(&error) == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(SystemError::Netlink {
                what: format!("ip link show dev {interface}"),
                source,
            }),
        }
    }
}

/// The positive `errno` in the kernel's answer, if it is one.
pub(super) fn errno_of(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
