//! What can go wrong in the box, told to whoever is on call.

use std::{io, path::PathBuf};

/// A failure to read or change the system. Nothing is left half-changed by a single object.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// A name that no network device can have, or that nftables cannot express.
    #[error("the interface name `{name}` {reason}")]
    InterfaceName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused a netlink request.
    #[error("the kernel refused `{what}`: {source}")]
    Netlink {
        /// The command the request equals.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A route needs a device that does not exist.
    #[error(
        "interface {interface} does not exist, so `{what}` cannot be applied; steer tries again \
         when the interface appears"
    )]
    LinkMissing {
        /// The device.
        interface: String,
        /// The command that needs it.
        what: String,
    },
    /// Somebody else's object is where ours belongs.
    #[error("{found} is not steer's, so `{what}` was not applied; remove it, or free its number")]
    Foreign {
        /// What is there.
        found: String,
        /// The command that was not carried out.
        what: String,
    },
    /// `nft` could not be started.
    #[error("cannot start `nft`: {0}. Install the package nftables; its tool must be on the PATH")]
    NftMissing(#[source] io::Error),
    /// `nft` ran and failed.
    #[error("`{command}` failed: {message}")]
    Nft {
        /// The command line.
        command: String,
        /// What it printed.
        message: String,
    },
    /// `nft -j` printed something that is not the JSON it documents.
    #[error("`{command}` printed JSON that steer does not understand: {message}")]
    NftJson {
        /// The command line.
        command: String,
        /// What is wrong with it.
        message: String,
    },
    /// The private network namespace for the reference listing could not be made.
    #[error(
        "cannot make a network namespace to compare the nftables table in: {0}. steer needs either \
         CAP_SYS_ADMIN or a kernel that lets it make user namespaces (user.max_user_namespaces, \
         AppArmor); under systemd RestrictNamespaces= must allow `net` and `user`"
    )]
    Namespace(#[source] io::Error),
    /// A value below `/proc/sys` could not be read or written.
    #[error("cannot access /proc/sys/{key}: {source}")]
    Sysctl {
        /// The key, with slashes.
        key: String,
        /// The reason.
        source: io::Error,
    },
    /// The record of previous sysctl values could not be read or written.
    #[error(
        "cannot use the undo record {path}: {source}. steer changes no sysctl without it; make the \
         directory writable, or remove the file if its previous values no longer matter"
    )]
    Undo {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Connection tracking could not be asked.
    #[error(
        "cannot list connection tracking entries: {0}. The module nf_conntrack_netlink is needed"
    )]
    Conntrack(#[source] io::Error),
}
