//! Why the controller did not do what it was asked to.

use std::path::PathBuf;

use super::LockError;
use crate::{
    config::ConfigError,
    datapath::{DatapathError, Mode},
    endpoints::{FeedError, StoreError},
    policy::PlanError,
    probe::TrustError,
    system::{MarkBits, SystemError},
};

/// Why the controller did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Another controller runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The feed has mistakes.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The endpoint lists on disk cannot be kept.
    #[error("{0}. [system] state_dir must be writable for feed.update")]
    Store(#[from] StoreError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The box refuses something.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The kernel refuses something of BPF.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Nobody can be believed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A LAN interface does not exist.
    #[error(
        "the LAN interface {interface} does not exist: there is nothing to steer. Correct [[lan]] interface, or create it (ip link show lists all)"
    )]
    LanMissing {
        /// Its name.
        interface: String,
    },
    /// A LAN's VLAN has no interface of its own.
    #[error(
        "the LAN interface {interface} has none of the VLAN interfaces that [[lan]] vlans names: the router does not route these VLANs. Create them, or correct the list"
    )]
    VlanMissing {
        /// The parent.
        interface: String,
    },
    /// More breakouts than a mark can name.
    #[error("there are more than 15 breakouts; a mark has room for 15")]
    TooManyBreakouts,
    /// Redirect mode would break something here.
    #[error("redirect mode cannot be used here: {why}. Use mode = \"mark\"{or_else}")]
    NotForRedirect {
        /// What it would break.
        why: String,
        /// Another remedy, if there is one.
        or_else: &'static str,
    },
    /// The programs of another mode steer here.
    #[error(
        "the programs of {other} mode steer here, and its flows would be cut. Let them end first (steer detach), then start again"
    )]
    OtherMode {
        /// Their mode.
        other: Mode,
    },
    /// The programs that steer here write other bits.
    #[error(
        "[mark] mask changed, and the flows that the programs here granted would not be known any more: they use {:#010x}. Let them end first (steer detach), then start again", marks.mask()
    )]
    OtherMarks {
        /// Their bits.
        marks: MarkBits,
    },
    /// Somebody else writes bits of marks that are steer's.
    #[error(
        "{conflict}, which are steer's: flows would change their way. Move steer's bits ([mark] mask: six bits next to each other that nobody else uses), or the other owner's"
    )]
    MarkConflict {
        /// Who, and which bits.
        conflict: String,
    },
    /// Connection tracking would overflow.
    #[error(
        "connection tracking holds {entries} of at most {max} entries; steer would need it for every flow of the box, and a full table drops packets. Raise net.netfilter.nf_conntrack_max first"
    )]
    ConntrackFull {
        /// Entries now.
        entries: u64,
        /// The most.
        max: u64,
    },
    /// A change that running programs cannot take.
    #[error(
        "{what} changed, which a reload cannot apply. Restart steer: the programs steer on meanwhile"
    )]
    NeedsRestart {
        /// The key.
        what: &'static str,
    },
    /// A breakout has another path id than before.
    #[error(
        "[[breakout]] {name} was path {was} and would be path {is}: running connections carry the id in their marks and would change their link. Write `id = {was}` into its section (an order that changes needs ids), or end them first (steer detach)"
    )]
    PathMoved {
        /// The breakout.
        name: String,
        /// Its path id.
        was: u8,
        /// What the configuration would make of it.
        is: u8,
    },
    /// The ids of the paths cannot be read or written.
    #[error(
        "{path}: {source}. It keeps connections on their link when breakouts change places in the configuration; make it writable, or remove it if the breakouts are where they were"
    )]
    PathIds {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The registry of classes cannot be read or written.
    #[error(
        "{path}: {reason}. It gives the counters their meaning; make it writable, or remove it together with the pinned maps (steer detach)"
    )]
    Registry {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The API socket cannot be made.
    #[error(
        "{path}: cannot listen: {source}. [system] run_dir must be writable and short enough for a socket (107 bytes)"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
    /// No randomness for the flow table.
    #[error("/dev/urandom: {0}")]
    Random(std::io::Error),
    /// Something of steer is still in the box.
    #[error(
        "not everything could be removed:\n{0}\nrun `steer detach` again when the cause is gone"
    )]
    Left(String),
}
